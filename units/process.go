package units

import (
	"fmt"
	"strconv"
	"strings"

	"nspawnd/cgroup"
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
	if p.Notify {
		u.set("Type", "notify")
		u.set("NotifyAccess", "all") // a script's readiness comes from a child of its own
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
	if m.mainIsStrange() {
		// It keeps the service from being forgotten before the manager has seen how the main process ended. It runs on the host with
		// the image's environment, so it has to be a static program that reads none of it.
		//
		// "+" takes the sandbox away from it and not the root directory: without RootDirectoryStartOnly= the program of that name in the machine
		// would run, with all of the host's privileges (tried on 257).
		u.set("RootDirectoryStartOnly", true)
		u.set("ExecStopPost", []Command{{m.Launcher, []string{m.Launcher, "--await-main-process"}, []string{noExpansion, ignoreFailure, privileged}}})
	}
	m.streams(u)
}

// stopper is a unit that does for main what systemd does by itself from 258 on: it stops before main does, and for that sends
// the stop signal, waits, and kills after the timeout. systemd 257 may kill right after the stop signal (see mainIsStrange).
//
// It is a unit of its own because its commands run on the host: ExecStop= of the service would get the image's environment.
func stopper(main Unit) Unit {
	signal, timeout := main.Get("KillSignal").(int32), main.Get("TimeoutStopSec").(uint64)
	const script = `pid=$(systemctl show --property=MainPID --value "$1")
[ "$pid" -gt 0 ] && kill -"$2" "$pid" || exit 0
timeout "$3" tail --follow --sleep-interval=0.05 --pid="$pid" /dev/null || kill -KILL "$pid"`
	wait := "infinity" // sleep(1)'s word for it, which timeout(1) takes too
	if timeout != cgroup.Infinity {
		wait = fmt.Sprintf("%.3f", max(float64(timeout)/1e6, 0.001))
		timeout += 5_000_000 // the script ends by itself before that
	}
	u := Unit{Name: strings.TrimSuffix(main.Name, ".service") + "-stop.service"}
	u.set("Description", "Stop of "+main.Name)
	u.set("PartOf", []string{main.Name})
	u.set("After", []string{main.Name})
	u.set("StopWhenUnneeded", true) // a BindsTo= would have an automatic restart start the service at once
	u.set("CollectMode", "inactive-or-failed")
	u.set("Type", "oneshot")
	u.set("RemainAfterExit", true)
	u.set("ExecStop", []Command{{"/bin/sh", []string{"sh", "-c", script, "stop", main.Name, strconv.Itoa(int(signal)), wait}, []string{noExpansion, ignoreFailure}}})
	u.set("TimeoutStopSec", timeout)
	u.set("Slice", "machine.slice")
	return u
}

// workingDirectory gives the payload's. ExecStopPost= is to start in it as well, on the host, where it is missing: it may be ("-"). That the payload
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
// for ExecStopPost=.
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
	return name != "" && name != "MAINPID"
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
