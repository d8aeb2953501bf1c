package units

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Command is a program and its arguments, argv[0] among them. The manager expands no "%" in them, and "$" unless a flag says so.
// Its shape is that of the bus (a(sasas)).
type Command struct {
	Path  string
	Argv  []string
	Flags []string
}

// Flags of a command, with their prefixes in unit files (systemd.service(5), "Command lines").
const (
	noExpansion   = "no-env-expand"  // ":", "$" stays as it is
	ignoreFailure = "ignore-failure" // "-"
	privileged    = "privileged"     // "+", on the host and as root
	keepUser      = "no-setuid"      // "!", as root
	keepCaps      = "ambient"        // "!!", which 258 and later ignore
	viaShell      = "via-shell"      // "|"
)

// viaShellSince is the first version of systemd that runs commands by the shell.
const viaShellSince = 258

// parseCommands reads the command line of ExecStartPre= and its like, prefixes and all.
func parseCommands(s string, manager int) (any, error) {
	if s == "" {
		return []Command{}, nil
	}
	c := Command{Flags: []string{}}
	has := func(flags ...string) bool {
		return slices.ContainsFunc(flags, func(f string) bool { return slices.Contains(c.Flags, f) })
	}
	named, ignored := false, false // the path is told apart from argv[0]; "!!" was there
prefixes:
	for ; s != ""; s = s[1:] {
		switch {
		case s[0] == '-' && !has(ignoreFailure):
			c.Flags = append(c.Flags, ignoreFailure)
		case s[0] == '@' && !named:
			named = true
		case s[0] == ':' && !has(noExpansion):
			c.Flags = append(c.Flags, noExpansion)
		case s[0] == '+' && !ignored && !has(privileged, keepUser, keepCaps):
			c.Flags = append(c.Flags, privileged)
		case s[0] == '!' && has(keepUser):
			c.Flags = slices.DeleteFunc(c.Flags, func(f string) bool { return f == keepUser })
			if ignored = manager >= viaShellSince; !ignored {
				c.Flags = append(c.Flags, keepCaps)
			}
		case s[0] == '!' && !ignored && !has(privileged, keepCaps):
			c.Flags = append(c.Flags, keepUser)
		case s[0] == '|' && !has(viaShell):
			if manager < viaShellSince {
				return nil, fmt.Errorf("%q needs systemd %d; this one is %d", "|", viaShellSince, manager)
			}
			c.Flags = append(c.Flags, viaShell)
		default:
			break prefixes
		}
	}
	argv, err := splitCWords(s)
	switch {
	case err != nil:
		return nil, err
	case has(viaShell):
		shell := "sh"
		if named {
			shell = "-sh"
		}
		c.Path, argv = "/bin/sh", append([]string{shell}, argv...)
	case len(argv) == 0 && !named: // as systemd-run reads prefixes alone
		return []Command{}, nil
	case len(argv) < 2 && named:
		return nil, errors.New("there is no command")
	case named:
		c.Path, argv = argv[0], argv[1:]
	default:
		c.Path = argv[0]
	}
	c.Argv = argv
	slices.Sort(c.Flags)
	return []Command{c}, nil
}

func commandProperty(directive string, v any) []Property {
	return []Property{{directive + "Ex", []Command{v.(Command)}}}
}

func formatCommand(c Command) string {
	prefix, argv := "", c.Argv
	for _, flag := range c.Flags {
		prefix += map[string]string{noExpansion: ":", ignoreFailure: "-", privileged: "+", keepUser: "!", keepCaps: "!!", viaShell: "|"}[flag]
	}
	switch {
	case slices.Contains(c.Flags, viaShell):
		if argv[0] == "-sh" {
			prefix += "@"
		}
		argv = argv[1:]
	case c.Path != c.Argv[0]:
		prefix += "@"
		argv = append([]string{c.Path}, argv...)
	}
	return prefix + joinWords(argv)
}

// OpenFile is a file of the host that the manager opens for the service (sst).
type OpenFile struct {
	Path, Name string
	Flags      uint64
}

var openFlags = bitNames{{"read-only", 1}, {"append", 2}, {"truncate", 4}, {"graceful", 8}}

// parseOpenFile reads PATH[:NAME[:OPTION,…]].
func parseOpenFile(s string) (OpenFile, error) {
	parts, err := syntax{separators: ":", quotes: true, cEscapes: true, everyField: true}.split(s)
	if err != nil || len(parts) > 3 || len(parts) == 0 {
		return OpenFile{}, fmt.Errorf("%q is not PATH[:NAME[:OPTION,…]]", s)
	}
	f := OpenFile{Path: parts[0]}
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
		return f, fmt.Errorf("%q is not an absolute path", f.Path)
	}
	if len(parts) > 1 {
		f.Name = parts[1]
	}
	if f.Name == "" {
		f.Name = strings.ReplaceAll(path.Base(f.Path), ":", "_")
	}
	if len(parts) > 2 {
		if f.Flags, err = openFlags.parse(strings.ReplaceAll(parts[2], ",", " ")); err != nil {
			return f, err
		}
	}
	if exclusive := f.Flags & 7; exclusive&(exclusive-1) != 0 {
		return f, fmt.Errorf("%q: read-only, append and truncate exclude each other", s)
	}
	return f, nil
}

func formatOpenFile(f OpenFile) string {
	s := partOf(f.Path) + ":" + partOf(f.Name)
	if f.Flags != 0 {
		s += ":" + strings.ReplaceAll(openFlags.format(f.Flags), " ", ",")
	}
	return s
}
