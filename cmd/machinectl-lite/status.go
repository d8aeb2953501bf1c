package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/dbus"
	"nspawnd/machined"
	"nspawnd/units"
)

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status NAME...",
		Short: "Show details of machines",
		Long: `Show what a machine is, since when it runs, its processes and the last lines of its log. The image is shown for machines of
nspawnd. Of one that has stopped and is kept, and of a detached one that failed, show how it ended: its exit status, or success for 0 and what it was
asked to end with, and whether it ran out of memory.`,
		Example: `  machinectl-lite status web
  machinectl-lite status --lines=50 --output=short-iso web
  machinectl-lite status --full web db`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE:              runStatus,
	}
}

func runStatus(cmd *cobra.Command, names []string) (err error) {
	out := openOutput(options.noPager)
	out.wide = out.wide || options.full
	defer func() { err = errors.Join(err, out.close()) }()
	shown := blocks{out: out}
	return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
		status, err := host.status(cmd.Context(), name)
		if err != nil {
			return host.statusOfEnded(cmd.Context(), &shown, name, fmt.Errorf("could not get path to machine: %w", err))
		}
		if err := shown.write(status.format(out, time.Now())); err != nil {
			return err
		}
		if host.elsewhere { // journalctl would show this host's
			return nil
		}
		return showJournal(cmd.Context(), out, status.Unit, status.logSince)
	})
}

// statusOfEnded shows how a machine ended, and says what becomes of it. If it is none, the error is notKnown.
func (h *host) statusOfEnded(ctx context.Context, shown *blocks, name string, notKnown error) error {
	if !unknown(notKnown) {
		return notKnown
	}
	kept, img, isKept := keptHere(name)
	end, ended := h.ended(ctx, name, kept, img)
	if ended {
		if err := shown.write(end.format(name, time.Now())); err != nil {
			return err
		}
	}
	switch {
	case isKept:
		return fmt.Errorf("machine %s has stopped and is kept; to start it: machinectl-lite start %s", name, name)
	case ended:
		return fmt.Errorf("machine %s has ended; to forget it: systemctl reset-failed %s", name, end.Name)
	}
	return notKnown
}

// status is what is shown of a machine.
type status struct {
	machined.Properties
	leader     string // its command's name
	supervisor string
	image      string
	labels     units.Labels
	health     units.HealthStatus
	interfaces []string
	addresses  []netip.Addr
	os         string
	uidShift   uint32
	group      string // the unit's control group
	processes  []dbus.Process
	logSince   time.Time
}

// status asks for everything about a machine. Only that it exists is certain: what can't be had any more is left out.
func (h *host) status(ctx context.Context, name string) (status, error) {
	var s status
	var err error
	if s.Properties, err = h.machined.Get(ctx, name); unknown(err) {
		unit, err := h.unregistered(ctx, name, err)
		if err != nil {
			return s, err
		}
		s.Properties = machined.Properties{
			Name: name, Since: unit.Started, Service: machined.OwnService, Unit: unit.Name, Leader: unit.MainPID, Class: machined.OwnClass,
		}
	} else if err != nil {
		return s, err
	} else {
		release, _ := h.machined.OSRelease(ctx, name)
		s.os = release["PRETTY_NAME"]
		s.addresses, _ = h.machined.Addresses(ctx, name)
		s.uidShift, _ = h.machined.UIDShift(ctx, name)
	}
	for _, index := range s.NetworkInterfaces {
		name := strconv.Itoa(int(index))
		if !h.elsewhere {
			name = interfaceName(int(index))
		}
		s.interfaces = append(s.interfaces, name)
	}
	if !h.elsewhere {
		s.leader = command(s.Leader, s.LeaderPIDFDID)
		s.supervisor = command(s.Supervisor, s.SupervisorPIDFDID)
	}
	s.logSince = s.Since
	if s.Unit == "" {
		return s, nil
	}
	unit, _ := h.systemd.Unit(ctx, s.Unit)
	s.group = path.Join(unit.ControlGroup, s.Subgroup)
	s.processes, _ = h.systemd.Processes(ctx, s.Unit)
	if units.MachineOf(s.Unit) == name {
		s.image = unitImage(unit.Description, name)
		s.labels = unit.Labels
		if !h.elsewhere {
			health, _ := os.ReadFile(units.HealthFile(name))
			s.health = units.ParseHealthStatus(string(health))
		}
		s.logSince = unit.Started // what it said before it was registered is of interest too
	}
	return s, nil
}

// command gives the name of a process's command; "" when pidfdID (of systemd 258 and later) tells that it is not the process
// that had this number.
func command(pid uint32, pidfdID uint64) string {
	if pid == 0 {
		return ""
	}
	if pidfdID != 0 {
		fd, err := unix.PidfdOpen(int(pid), 0)
		if err != nil {
			return ""
		}
		defer unix.Close(fd)
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil || stat.Ino != pidfdID {
			return ""
		}
	}
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSuffix(string(name), "\n")
}

// unitImage reads the image out of a unit's description, "NAME: IMAGE".
func unitImage(description, name string) string {
	image, _ := strings.CutPrefix(description, name+": ")
	if image == description {
		return ""
	}
	return image
}

func interfaceName(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return strconv.Itoa(index)
}

// format lays a status out as machinectl does: labels end in one column, the processes are a tree below the unit.
func (s status) format(out *output, now time.Time) string {
	title := s.Name
	if s.ID != [16]byte{} {
		title += "(" + hex.EncodeToString(s.ID[:]) + ")"
	}
	b := newDetails(title, now)
	if !s.Since.IsZero() {
		b.line("Since", s.Since.Format("Mon 2006-01-02 15:04:05 MST")+"; "+age(now.Sub(s.Since)))
	}
	process := func(label string, pid uint32, command string) {
		switch {
		case pid != 0 && command != "":
			b.line(label, fmt.Sprintf("%d (%s)", pid, command))
		case pid != 0:
			b.line(label, strconv.Itoa(int(pid)))
		}
	}
	process("Leader", s.Leader, s.leader)
	process("Superv.", s.Supervisor, s.supervisor)
	switch {
	case s.Service != "" && s.Class != "":
		b.line("Service", s.Service+"; class "+s.Class)
	case s.Service != "":
		b.line("Service", s.Service)
	default:
		b.line("Class", s.Class)
	}
	b.line("Image", s.image)
	b.line("Health", healthWords(s.health, now))
	for _, label := range s.labels.Labels {
		b.line("Label", label)
	}
	for _, annotation := range s.labels.Annotations {
		b.line("Note", annotation)
	}
	if s.UID != 0 {
		b.line("UID", strconv.Itoa(int(s.UID)))
	}
	b.line("Root", s.RootDirectory)
	b.line("Iface", strings.Join(s.interfaces, " "))
	scope := ""
	if len(s.NetworkInterfaces) == 1 {
		scope = fmt.Sprintf("%%%d", s.NetworkInterfaces[0])
	}
	addresses := make([]string, len(s.addresses))
	for i, address := range s.addresses {
		addresses[i] = address.String()
		if !address.Is4() {
			addresses[i] += scope
		}
	}
	b.line("Address", addresses...)
	b.line("OS", s.os)
	if s.uidShift != 0 {
		b.line("ID Shift", strconv.Itoa(int(s.uidShift)))
	}
	b.line("Unit", s.Unit)
	elsewhere := true
	if subgroup := strings.Trim(s.Subgroup, "/"); subgroup != "" {
		b.line("Subgroup", s.Subgroup)
		elsewhere = false // they are another machine's, or the supervisor
	}
	b.WriteString(processTree(out, "\t\t  ", max(out.columns-18, minCommand), s.group, s.processes, elsewhere))
	return b.String()
}

// healthWords says how healthy a machine is and what the last probe said, if it is probed.
func healthWords(h units.HealthStatus, now time.Time) string {
	if h.State == "" {
		return ""
	}
	words := h.State
	if h.Streak > 0 {
		words += fmt.Sprintf(", %d failed in a row", h.Streak)
	}
	words += "; last probe " + h.Result + " " + age(now.Sub(h.Time))
	if said, _, _ := strings.Cut(strings.TrimSpace(h.Output), "\n"); said != "" {
		words += ": " + said
	}
	return words
}

// age says how long ago something was, in systemd's units and words.
func age(d time.Duration) string {
	const day, week, month, year = 24 * time.Hour, 7 * 24 * time.Hour, 2629800 * time.Second, 31557600 * time.Second
	suffix := " ago"
	if d < 0 {
		d, suffix = -d, " left"
	}
	count := func(unit, of time.Duration) int64 { return int64(d % of / unit) }
	words := func(n int64, unit string) string {
		if n != 1 {
			unit += "s"
		}
		return fmt.Sprintf("%d %s", n, unit)
	}
	const all = time.Duration(1<<63 - 1)
	switch {
	case d >= year:
		return words(count(year, all), "year") + " " + words(count(month, year), "month") + suffix
	case d >= month:
		return words(count(month, all), "month") + " " + words(count(day, month), "day") + suffix
	case d >= week:
		return words(count(week, all), "week") + " " + words(count(day, week), "day") + suffix
	case d >= 2*day:
		return words(count(day, all), "day") + suffix
	case d >= 25*time.Hour:
		return fmt.Sprintf("1 day %dh%s", count(time.Hour, day), suffix)
	case d >= 6*time.Hour:
		return fmt.Sprintf("%dh%s", count(time.Hour, all), suffix)
	case d >= time.Hour:
		return fmt.Sprintf("%dh %dmin%s", count(time.Hour, all), count(time.Minute, time.Hour), suffix)
	case d >= 5*time.Minute:
		return fmt.Sprintf("%dmin%s", count(time.Minute, all), suffix)
	case d >= time.Minute:
		return fmt.Sprintf("%dmin %ds%s", count(time.Minute, all), count(time.Second, time.Minute), suffix)
	case d >= time.Second:
		return fmt.Sprintf("%ds%s", count(time.Second, all), suffix)
	case d >= time.Millisecond:
		return fmt.Sprintf("%dms%s", count(time.Millisecond, all), suffix)
	case d >= time.Microsecond:
		return fmt.Sprintf("%dus%s", count(time.Microsecond, all), suffix)
	}
	return "now"
}

// unitOption is journalctl's for units of the manager that is asked.
func unitOption() string {
	if options.user {
		return "--user-unit="
	}
	return "--unit="
}

// showJournal prints the last lines of a unit's log, after an empty line if there are any.
func showJournal(ctx context.Context, out *output, unit string, since time.Time) error {
	if unit == "" || options.lines == 0 {
		return nil
	}
	argv := []string{
		"--quiet", "--no-pager", "--boot", unitOption() + unit, fmt.Sprintf("--lines=%d", options.lines), "--output=" + string(options.output),
		fmt.Sprintf("--since=@%d.%06d", since.Unix(), since.Nanosecond()/1000),
	}
	if options.all {
		argv = append(argv, "--all")
	}
	if !out.wide {
		argv = append(argv, "--no-full")
	}
	journal := exec.CommandContext(ctx, "journalctl", argv...)
	journal.Stderr = os.Stderr
	journal.Env = append(os.Environ(), fmt.Sprintf("SYSTEMD_COLORS=%v", out.color), fmt.Sprintf("COLUMNS=%d", out.columns))
	lines, err := journal.StdoutPipe()
	if err != nil {
		return err
	}
	if err := journal.Start(); err != nil {
		return fmt.Errorf("showing the log of %s: %w", unit, err)
	}
	buffered := bufio.NewReader(lines)
	if _, err := buffered.Peek(1); err == nil {
		if _, err := io.Copy(out, io.MultiReader(strings.NewReader("\n"), buffered)); err != nil {
			lines.Close() // or it waits for somebody to read the rest
			return errors.Join(err, journal.Wait())
		}
	}
	journal.Wait() // what went wrong there, such as a log that this user may not read, journalctl has said itself
	return nil
}
