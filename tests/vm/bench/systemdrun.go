package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// systemdRun is the systemd-run that is nearest to nspawnd-run in the foreground.
var systemdRun = []string{"systemd-run", "--wait", "--pipe", "--collect", "--quiet"}

// directive is one line of a unit file.
type directive struct{ name, value string }

func (d directive) String() string { return d.name + "=" + d.value }

// invocation is a command line of systemd-run.
type invocation struct {
	properties []directive
	command    []string
}

// line is the command line, with one more option or "".
func (i invocation) line(option string) []string {
	argv := slices.Clone(systemdRun)
	argv = append(argv, "--expand-environment=no")
	if option != "" {
		argv = append(argv, option)
	}
	for _, p := range i.properties {
		argv = append(argv, "--property="+p.String())
	}
	return append(append(argv, "--"), i.command...)
}

// without leaves properties out.
func (i invocation) without(names ...string) invocation {
	return invocation{slices.DeleteFunc(slices.Clone(i.properties), func(d directive) bool { return slices.Contains(names, d.name) }), i.command}
}

// inRoot is the same in another root: the paths on the host below the old one change with it.
func (i invocation) inRoot(dir string) invocation {
	at := slices.IndexFunc(i.properties, func(d directive) bool { return d.name == "RootDirectory" })
	if at < 0 {
		return i
	}
	old := i.properties[at].value
	moved := invocation{slices.Clone(i.properties), i.command}
	for n := range moved.properties {
		moved.properties[n].value = strings.ReplaceAll(moved.properties[n].value, old, dir)
	}
	return moved
}

// parseService reads what nspawnd-run --dry-run prints: the first unit's [Service] section. The command's words must need no quotes.
func parseService(text string) (invocation, error) {
	var i invocation
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "[") {
			if section == "[Service]" {
				break // the next unit
			}
			section = line
			continue
		}
		name, value, isDirective := strings.Cut(line, "=")
		if section != "[Service]" || strings.HasPrefix(line, "#") || !isDirective {
			continue
		}
		value = strings.ReplaceAll(value, "%%", "%") // no specifiers on a command line
		if name == "ExecStart" {
			i.command = strings.Fields(strings.TrimPrefix(value, ":"))
			continue
		}
		i.properties = append(i.properties, directive{name, value})
	}
	if i.command == nil || i.properties == nil {
		return i, errors.New("nspawnd-run --dry-run printed no service: " + text)
	}
	return i, nil
}

// nearest is what systemd-run can say instead of what it can't.
var nearest = map[string]string{
	"ProtectControlGroups=strict": "ProtectControlGroups=yes", // 257's systemd-run knows booleans only: no cgroup namespace
}

// spellable is an invocation with what this version of systemd-run can say, and notes on what it can't. It finds out by trying: systemd-run names
// the property that it refuses.
func spellable(l *lab, i invocation) (invocation, []string, error) {
	var notes []string
	for range i.properties {
		line := i.line("")
		r := l.Run("timeout", append([]string{"--kill-after=5", "20"}, line...)...)
		if r.Status == 0 {
			return i, notes, nil
		}
		at := slices.IndexFunc(i.properties, func(d directive) bool {
			for _, refusal := range []string{"Failed to parse " + d.name + ":", "Unknown assignment: " + d.name + "=", "Cannot set property " + d.name + ","} {
				if strings.Contains(r.Stderr, refusal) {
					return true
				}
			}
			return false
		})
		if at < 0 {
			return i, nil, fmt.Errorf("systemd-run with our unit's properties: status %d: %s", r.Status, r.Stderr)
		}
		refused := i.properties[at].String()
		i = invocation{slices.Clone(i.properties), i.command}
		if instead := nearest[refused]; instead != "" {
			notes = append(notes, fmt.Sprintf("systemd-run can't say %s here; it gets %s", refused, instead))
			i.properties[at].name, i.properties[at].value, _ = strings.Cut(instead, "=")
		} else {
			notes = append(notes, fmt.Sprintf("systemd-run can't say %s here; it goes without", refused))
			i.properties = slices.Delete(i.properties, at, at+1)
		}
	}
	return i, nil, errors.New("systemd-run refuses all properties of our unit")
}

// parts are the properties that are measured together, because one is nothing without the other.
var parts = [][]string{
	{"SystemCallFilter", "SystemCallErrorNumber"},
	{"InaccessiblePaths"},
	{"ReadOnlyPaths"},
	{"InaccessiblePaths", "ReadOnlyPaths"},
	{"TemporaryFileSystem", "BindPaths"},
	{"PrivateDevices"},
	{"PrivatePIDs"},
	{"PrivateIPC"},
	{"ProtectControlGroups"},
	{"ProtectKernelTunables"},
	{"ProtectHostname"},
	{"CapabilityBoundingSet"},
	{"LogExtraFields", "SyslogIdentifier", "Environment", "UnsetEnvironment"},
	{"InaccessiblePaths", "ReadOnlyPaths", "PrivateDevices", "TemporaryFileSystem", "BindPaths", "ProtectControlGroups", "ProtectKernelTunables"},
}

// additions are what the unit doesn't have and might be quicker with.
var additions = []directive{
	// One seccomp filter instead of three. It refuses 32-bit programs, which podman's profile allows.
	{"SystemCallArchitectures", "native"},
	{"SystemCallArchitectures", "native x86"},
}

// reportProperties says what parts of the unit cost, by systemd-run without them, and what some more would save.
func reportProperties(l *lab, w io.Writer, all invocation) error {
	base := command{Name: "as it is", Argv: all.line("")}
	commands := []command{base}
	for _, names := range parts {
		if part := all.without(names...); len(part.properties) < len(all.properties) {
			commands = append(commands, command{Name: "without " + strings.Join(names, " "), Argv: part.line("")})
		}
	}
	for _, d := range additions {
		more := invocation{append(slices.Clone(all.properties), d), all.command}
		commands = append(commands, command{Name: "with " + d.String(), Argv: more.line("")})
	}
	r, err := l.measure(commands, l.runs)
	if err != nil {
		return err
	}
	// Not the median: what else the machine does only adds to a run, and these differences are small.
	quick := func(c command) float64 { return quantile(r.Milliseconds[c.Name], 0.25) }
	with := quick(base)
	saved := func(c command) float64 { return with - quick(c) }
	slices.SortFunc(commands, func(a, b command) int { return cmp.Compare(saved(b), saved(a)) })
	fmt.Fprintf(w, "\n  what properties cost: systemd-run takes %.1f ms (first quartile), and less\n", with)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, c := range commands {
		if c.Name != base.Name {
			fmt.Fprintf(t, "  %.1f\t %s\n", saved(c), c.Name)
		}
	}
	return t.Flush()
}
