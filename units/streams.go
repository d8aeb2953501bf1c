package units

import (
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
)

// Streams say where the payload's standard input, output and error lead to: as StandardInput=, StandardOutput= and StandardError= do
// (systemd.exec(5)), or "" for a descriptor that the client passes.
type Streams struct {
	Input, Output, Error string
	Terminal             bool // the input and the descriptors are TerminalPath, the first terminal of the machine's own devpts
	// Relay has what would go to the journal go through a pipe: a payload can open a pipe again by its name, /dev/stdout, but
	// not the socket that the journal gives it (open(2), ENXIO).
	Relay bool
	Tag   string // SyslogIdentifier=; "": the machine's name
}

// DetachedStreams are those of a machine that nobody waits for.
var DetachedStreams = Streams{Input: "null", Output: "journal", Error: "journal"}

// TerminalPath is where the machine sees its terminal, in TerminalsMount moved to /dev/pts.
const TerminalPath = "/dev/pts/0"

// Relay says that a unit of a Set writes what the payload says to the journal, and what the client has to connect.
type Relay struct {
	Unit    string   // reads from the pipe or from the terminal's other end
	Input   string   // its property that takes the descriptor
	Streams []string // directives of the main unit, StandardOutput and StandardError, that are the pipe's other end
}

// RelayName is the unit that writes to the journal what the machine says, where that can't be the machine's own unit.
func RelayName(machine string) string {
	return "nspawnd-" + unit.UnitNameEscape(machine) + "-log.service"
}

func (m Machine) streams(u *Unit) {
	s := m.Streams
	for _, stream := range []struct{ name, value string }{{"StandardInput", s.Input}, {"StandardOutput", s.Output}, {"StandardError", s.Error}} {
		if stream.value != "" {
			u.set(stream.name, stream.value)
		}
	}
	u.set("SyslogIdentifier", m.Name)
	if s.Tag != "" {
		u.set("SyslogIdentifier", s.Tag)
	}
	if s.Terminal {
		// The launcher opens it. The manager would make it the controlling terminal of a process that does not live on.
		u.set("StandardInput", "null")
		// As podman binds it.
		u.set("BindPaths", []Bind{{Source: m.inside(TerminalsMount + strings.TrimPrefix(TerminalPath, "/dev/pts")), Target: "/dev/console"}})
	}
}

// relay says which streams are descriptors and adds, where it is needed, the unit that copies to the journal what the payload says. That unit's process is a cat of the host.
func (m Machine) relay(set *Set) {
	terminal := m.Streams.Terminal && m.Detached
	var streams []string
	for _, name := range []string{"StandardOutput", "StandardError"} {
		if m.Streams.Relay && set.Main.Get(name) == "journal" {
			streams = append(streams, name)
			set.Main.Directives = slices.DeleteFunc(set.Main.Directives, func(d Directive) bool { return d.Name == name })
		}
	}
	for _, name := range []string{"StandardInput", "StandardOutput", "StandardError"} {
		if set.Main.Get(name) == nil && !slices.Contains(streams, name) {
			set.Passed = append(set.Passed, name)
		}
	}
	// The manager takes an output of which it only has a descriptor for the journal, and gives an error output that is the journal the same file.
	if slices.Contains(set.Passed, "StandardOutput") && set.Main.Get("StandardError") == "journal" {
		set.Main.set("StandardOutput", "null")
	}
	if !terminal && streams == nil {
		return
	}
	relay := m.RelayUnit(set.Main)
	// After it, so that in a common stop order it is there to the payload's end.
	set.Main.set("Wants", []string{relay.Name})
	set.Main.set("After", []string{relay.Name})
	set.Aux = append(set.Aux, relay)
	set.Relay = Relay{relay.Name, "StandardInputFileDescriptor", streams}
	if terminal {
		set.Relay.Input = TerminalRelayInput
	}
	set.Notes = append(set.Notes, "a pipe or terminal, which unit files can't have, goes from "+set.Main.Name+" to "+relay.Name)
}

// TerminalRelayInput is the property by which RelayUnit takes a terminal's other end. The manager makes a terminal that is a
// standard input the process's controlling one, and resets it.
const TerminalRelayInput = "StandardErrorFileDescriptor"

// RelayUnit gives the unit that copies a pipe or, for a machine with a terminal, what that shows to the journal in the name of main.
//
// journalctl -u and systemctl status show for a unit what root says about it with OBJECT_SYSTEMD_UNIT=
// (systemd.journal-fields(7)). The unit ends when nobody has the other end open: the payload's processes, and the manager, which lets go
// when the service has stopped for good. A stop waits for that (SIGCONT does nothing), so what is in the pipe is not lost.
func (m Machine) RelayUnit(main Unit) Unit {
	u := Unit{Name: RelayName(m.Name)}
	u.set("Description", m.Name+": what it says goes to the journal")
	u.set("CollectMode", "inactive-or-failed")
	u.set("Type", "simple")
	u.set("StandardOutput", "journal")
	if m.Streams.Terminal {
		u.set("ExecStart", Command{"/bin/sh", []string{"sh", "-c", "exec cat <&2 2>/dev/null"}, []string{noExpansion}})
		u.set("SuccessExitStatus", Statuses{Codes: []int32{1}}) // its other end is closed: EIO
	} else {
		u.set("ExecStart", Command{"cat", []string{"cat"}, []string{noExpansion}})
		u.set("StandardError", "journal")
	}
	u.set("Restart", "on-failure") // the manager has the descriptors
	u.set("KillSignal", signals["CONT"])
	u.set("TimeoutStopSec", uint64(10_000_000))
	u.set("LogExtraFields", []string{"OBJECT_SYSTEMD_UNIT=" + main.Name})
	for _, name := range []string{"SyslogIdentifier", "SyslogFacility", "SyslogLevelPrefix", "LogLevelMax", "LogExtraFields", "LogNamespace",
		"LogRateLimitIntervalSec", "LogRateLimitBurst", "Slice"} {
		if v := main.Get(name); v != nil {
			u.set(name, v)
		}
	}
	u.set("NoNewPrivileges", true)
	u.set("CapabilityBoundingSet", uint64(0))
	return u
}
