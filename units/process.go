package units

import (
	"slices"
	"strconv"
	"strings"
)

// Account is a payload's user as numbers, resolved in the image.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

const defaultFiles = 1 << 20 // podman's RLIMIT_NOFILE

func (m Machine) process(u *Unit) {
	p := m.Payload
	plain, _ := m.environment()
	u.set("Type", "exec")
	switch {
	case p.Notify:
		u.set("Type", "notify")
		u.set("NotifyAccess", "all") // a script's readiness comes from a child of its own
	case m.Health.Ready:
		u.set("Type", "notify") // whom the manager is told of by the health check, in the name of the main process
		u.set("NotifyAccess", "main")
	}
	u.set("ExecStart", Command{m.Path, p.Argv, []string{noExpansion}})
	if !m.foreignIDs() && m.onlyRootsGroup() {
		u.set("SupplementaryGroups", []string{"0"})
	}
	u.set("Environment", plain)
	u.set("UnsetEnvironment", m.unwantedEnvironment())
	u.set("WorkingDirectory", m.workingDirectory())
	if p.UMask != nil {
		u.set("UMask", *p.UMask)
	}
	if p.Personality != "" {
		u.set("Personality", p.Personality)
	}
	if p.RunTimeout != 0 {
		u.set("RuntimeMaxSec", p.RunTimeout)
	}
	u.set("TimeoutStopSec", p.StopTimeout)
	u.set("KillMode", "mixed") // the stop signal is for the first process only, as with podman
	u.set("KillSignal", p.StopSignal)
	// Programs that handle the stop signal and exit with 128+n have stopped as asked.
	u.set("SuccessExitStatus", Statuses{Codes: []int32{128 + p.StopSignal}, Signals: []int32{p.StopSignal}})
	u.set("OOMPolicy", "continue")
	u.set("IgnoreSIGPIPE", false)
	u.set("LimitNOFILE", Limit{defaultFiles, defaultFiles})
	u.set("MemoryPressureWatch", "off")
	u.set("LogExtraFields", []string{"NSPAWND_IMAGE=" + m.Image, "NSPAWND_DIGEST=" + m.Digest})
	m.streams(u)
}

// stopStrange has the launcher do for a main process that is a stranger what systemd does by itself from 258 on: it sends the stop signal, and keeps
// the service from being forgotten before the manager has seen how that process ended (see mainIsStrange). Commands of the user's own go first.
//
// It is an ExecStop=. From an ExecStopPost= systemd 257's PID 1 dies by an assertion when a service of Type=exec is stopped while it starts: it finds
// nothing to wait for and starts the command in the state before. ("Assertion '!s->exec_fd_event_source' failed", tried on 257.13.) So a service
// that has one of the user's own is of Type=simple.
func (m Machine) stopStrange(u *Unit) {
	// It runs on the host with the image's environment, so it has to be a static program that reads none of it.
	//
	// "+" takes the sandbox away from it and not the root directory: without RootDirectoryStartOnly= the program of that name in the machine
	// would run, with all of the host's privileges (tried on 257).
	stop := Command{m.Launcher, []string{m.Launcher, "--stop=" + strconv.Itoa(int(u.Get("KillSignal").(int32)))}, []string{noExpansion, ignoreFailure, privileged}}
	own, _ := u.Get("ExecStop").([]Command)
	u.set("RootDirectoryStartOnly", true)
	u.set("ExecStop", append(slices.Clone(own), stop))
	if u.Get("ExecStopPost") != nil && u.Get("Type") == "exec" {
		u.set("Type", "simple")
	}
}

// workingDirectory gives the payload's. ExecStop= is to start in it as well, on the host, where it is missing: it may be ("-"). That the payload
// has it, the client sees to.
func (m Machine) workingDirectory() string {
	if m.mainIsStrange() {
		return "-" + m.Payload.WorkingDir
	}
	return m.Payload.WorkingDir
}

// environment parts the payload's variables: those that Environment= takes, and those that only the launcher can set.
func (m Machine) environment() (plain, odd []string) {
	for _, e := range m.Payload.Env {
		if validEnvironment(e) {
			plain = append(plain, e)
		} else {
			odd = append(odd, e)
		}
	}
	return plain, odd
}

// validEnvironment says whether Environment= takes the assignment: a name of letters, digits and "_" that starts with no
// digit, and a value of UTF-8 without control characters other than newline and tab (systemd.exec(5)). MAINPID has to stay the manager's
// for ExecStop=, and CREDENTIALS_DIRECTORY for the launcher: that reads there what the payload may not.
func validEnvironment(assignment string) bool {
	name, value, _ := strings.Cut(assignment, "=")
	if nameLength(name) != len(name) {
		return false
	}
	for _, r := range value {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return name != "" && name != "MAINPID" && name != "CREDENTIALS_DIRECTORY"
}

// managerEnvironment is what a service inherits from the manager and a container should not see.
var managerEnvironment = []string{"LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY",
	"LC_NUMERIC", "LC_TIME", "PATH", "INVOCATION_ID", "SYSTEMD_EXEC_PID", "JOURNAL_STREAM", "WATCHDOG_PID", "MEMORY_PRESSURE_WATCH", "USER", "LOGNAME", "SHELL"}

// unwantedEnvironment leaves out what the payload sets itself: UnsetEnvironment= comes last and would drop that too.
func (m Machine) unwantedEnvironment() []string {
	var out []string
	for _, name := range managerEnvironment {
		if _, set := m.Payload.Getenv(name); !set {
			out = append(out, name)
		}
	}
	return out
}
