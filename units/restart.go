package units

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"nspawnd/cgroup"
)

// Restart says when a payload that has ended is started again.
type Restart struct {
	Policy  RestartPolicy
	Retries uint32 // of RestartOnFailure; 0: without an end
}

// RestartPolicy is a word of podman-run(1) --restart.
type RestartPolicy string

const (
	RestartNo        RestartPolicy = "" // or "no"
	RestartAlways    RestartPolicy = "always"
	RestartOnFailure RestartPolicy = "on-failure"
)

// ParseRestart reads no, always, unless-stopped or on-failure[:RETRIES], as podman-run(1) --restart does. The two that differ there in what a
// reboot does are one: the machine is gone then.
func ParseRestart(s string) (Restart, error) {
	policy, retries, limited := strings.Cut(s, ":")
	r := Restart{}
	switch policy {
	case "no", "never":
	case "always", "unless-stopped":
		r.Policy = RestartAlways
	case "on-failure":
		r.Policy = RestartOnFailure
	default:
		return r, fmt.Errorf("%q is not one of no, always, unless-stopped, on-failure[:RETRIES]", s)
	}
	if limited {
		n, err := strconv.ParseUint(retries, 10, 31)
		if err != nil || r.Policy != RestartOnFailure {
			return r, fmt.Errorf("%q: only on-failure takes a number of retries", s)
		}
		r.Retries = uint32(n)
	}
	return r, nil
}

// Docker's back-off: a tenth of a second, then twice as long each time, up to a minute.
const (
	restartDelay    = 100_000
	restartMaxDelay = 60_000_000
	restartSteps    = 9
)

// cleanSignals are those that a process may die of without having failed for systemd (systemd.service(5), SuccessExitStatus=).
var cleanSignals = []string{"HUP", "INT", "TERM", "PIPE"}

func (m Machine) restart(u *Unit) {
	if m.Restart.Policy == RestartNo {
		return
	}
	u.set("Restart", string(m.Restart.Policy))
	// Otherwise the service is "failed" or "inactive" for an instant between two runs, and a machined that looks then stops it (tried on 262).
	u.set("RestartMode", "direct")
	u.set("RestartSec", uint64(restartDelay))
	u.set("RestartSteps", uint32(restartSteps))
	u.set("RestartMaxDelaySec", uint64(restartMaxDelay))
	if m.Restart.Policy == RestartOnFailure {
		// What counts as stopped as asked when it was asked to stop is a failure when it was not.
		force := Statuses{Codes: []int32{128 + m.Payload.StopSignal}, Signals: []int32{m.Payload.StopSignal}}
		for _, name := range cleanSignals {
			if n := signals[name]; n != m.Payload.StopSignal {
				force.Signals = append(force.Signals, n)
			}
		}
		u.set("RestartForceExitStatus", force)
	}
	// The limit of systemd's own is five starts in ten seconds.
	if m.Restart.Retries > 0 {
		u.set("StartLimitBurst", m.Restart.Retries+1) // the first start counts
		u.set("StartLimitIntervalSec", uint64(cgroup.Infinity))
	} else {
		u.set("StartLimitIntervalSec", uint64(0))
	}
}

// registers says whether the machine has a registrar: it is restarted by itself or, as nobody waits for it, may well be by hand. (systemd-nspawn registers
// itself each time.)
func (m Machine) registers() bool {
	return (m.Restart.Policy != RestartNo || m.Detached) && !m.Unregistered && m.Flavor != NspawnFlavor
}

// RegisteredFile is there when a machine's client has registered it, and leaves later starts to its registrar.
func (m Machine) RegisteredFile() string { return path.Join(m.Dir, "registered") }

// registrar is a unit that has machined know the machine by its first process, each time that it is started: the service wants it. Otherwise machined
// before 258 goes on with the process of the first start, and when it is started itself, it finds that gone and stops the unit (tried on 257).
//
// At the first start the client does, but for a machine with --restart: from 258 on, machined ends who registered a machine when the machine's first process
// has ended, with a signal that would say "stop" to nspawnd-run in the foreground.
//
// It is a unit of its own because its commands run on the host: those of the service would get the image's environment.
func registrar(m Machine) Unit {
	const script = `pid=$(systemctl show --property=MainPID --value "$2")
[ "$pid" -gt 0 ] || exit 0
manager() { busctl --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager "$@"; }
manager UnregisterMachine s "$1" 2> /dev/null
manager RegisterMachine sayssus "$1" 0 nspawnd container "$pid" ""`
	main := ServiceName(m.Name)
	u := Unit{Name: strings.TrimSuffix(main, ".service") + "-register.service"}
	u.set("Description", "Registration of "+main)
	u.set("StartLimitIntervalSec", uint64(0)) // the limit is the service's
	u.set("After", []string{main})
	u.set("CollectMode", "inactive-or-failed")
	if m.Restart.Policy == RestartNo {
		u.set("ConditionPathExists", []Condition{{Parameter: m.RegisteredFile()}})
	}
	u.set("Type", "oneshot")
	u.set("ExecStart", Command{"/bin/sh", []string{"sh", "-c", script, "register", m.Name, main}, []string{noExpansion, ignoreFailure}})
	u.set("Slice", "machine.slice")
	return u
}
