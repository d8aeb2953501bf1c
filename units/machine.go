package units

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"nspawnd/cgroup"

	"github.com/coreos/go-systemd/v22/unit"
)

// Network says which network a machine sees.
type Network string

const (
	HostNetwork Network = "host"
	NoNetwork   Network = "none"
)

// Machine is all that the units of one machine are made of.
type Machine struct {
	Name         string // systemd's rule for machine names
	Image        string // reference, for people
	Digest       string // of the image's manifest
	Payload      Payload
	Path         string // the executable, absolute in the image
	Account      Account
	Mounts       []Mount
	ImageVolumes string // what the image's volumes are: bind, tmpfs or ignore
	Devices      []Pair // DeviceAllow=: node or class, and access
	ShmSize      string // of /dev/shm, as mount(8) reads it; "": 64M
	ReadOnly     bool
	ReadOnlyTmp  bool // with ReadOnly: /run, /tmp and /var/tmp too
	Network      Network
	Resources    []cgroup.Setting // limits
	Slice        string           // "": machine.slice
	// Unregistered: machined is not told of it.
	Unregistered bool
	// Description is for people; "": name and image.
	Description string
	Security    Security
	Users       *Users      // nil: the host's
	Flavor      Flavor      // "" is ServiceFlavor
	Extra       []Directive // --property, laid over everything else
	Detached    bool        // stays visible when it failed
	Streams     Streams

	Restart     Restart
	Labels      Labels
	Health      Health
	Secrets     []Secret
	Keep        bool // Dir stays when the machine has stopped
	HealthAsked bool // it is not the image's alone

	Manager  int            // version of the running systemd
	Dir      string         // the machine's own directory in the store; removed when the machine is gone
	Root     string         // where the root is mounted on the host; "": it goes to the manager as a descriptor
	Hides    string         // nspawnd-run's path, if it unmounts Root once the machine runs
	Launcher string         // path of the launcher on the host
	Run      []RunDirectory // what the image has in /run; for NspawnFlavor
}

// RunDirectory is a directory's name and attributes.
type RunDirectory struct {
	Name     string
	Mode     uint32 // permissions
	UID, GID uint32
}

// RootDescriptorSince is the first version of systemd that takes the root as a descriptor
// (RootDirectoryFileDescriptor, org.freedesktop.systemd1(5)).
const RootDescriptorSince = 259

// ServiceName is the unit that runs the machine's payload.
func ServiceName(machine string) string {
	return "nspawnd-" + unit.UnitNameEscape(machine) + ".service"
}

// MachineOf gives the machine whose payload a unit runs, "" when there is none: the inverse of ServiceName. A machine's name has no
// slash, which an unescaped dash stands for: so nspawnd-NAME-root.service, which belongs to a machine too, runs none.
func MachineOf(service string) string {
	machine := unit.UnitNameUnescape(strings.TrimSuffix(strings.TrimPrefix(service, "nspawnd-"), ".service"))
	if machine == "" || strings.Contains(machine, "/") || ServiceName(machine) != service {
		return ""
	}
	return machine
}

// CompanionName is the unit that owns what the machine has on the host's file systems.
func CompanionName(machine string) string {
	return "nspawnd-" + unit.UnitNameEscape(machine) + "-root.service"
}

const defaultTasks = 2048 // containers.conf(5) pids_limit

// Translate gives the units of the machine. The error says what the running systemd can't do.
func (m Machine) Translate() (Set, error) {
	if err := errors.Join(m.Security.check(), m.checkFlavor(), m.CheckUsers()); err != nil {
		return Set{}, err
	}
	m = m.flavored()
	companion := CompanionName(m.Name)
	u := Unit{Name: ServiceName(m.Name)}
	u.set("Description", cmp.Or(m.Description, m.Name+": "+m.Image))
	needs := []string{companion}
	if m.Hides != "" {
		needs = append(needs, m.shower().Name)
	}
	u.set("Requires", needs)
	u.set("After", needs)
	u.set("CollectMode", m.collectMode())
	m.process(&u)
	m.restart(&u)
	m.secrets(&u)
	if err := m.Labels.set(&u); err != nil {
		return Set{}, err
	}
	notes := slices.Concat(m.Payload.Notes, m.files(&u), m.isolate(&u))
	u.set("Slice", cmp.Or(m.Slice, "machine.slice"))
	u.set("TasksMax", uint64(defaultTasks))
	for _, s := range m.Resources {
		d, err := ParseDirective(s.Directive+"="+s.Value, m.Manager)
		if err != nil {
			return Set{}, err
		}
		u.Lay(d)
	}
	for _, d := range m.Extra {
		u.Lay(d)
	}
	if m.mainIsStrange() {
		m.stopStrange(&u)
	}
	confined := Unit{Directives: slices.Clone(u.Directives)}
	if err := m.launch(&u); err != nil {
		return Set{}, err
	}
	if m.Flavor == NspawnFlavor {
		var err error
		if u, err = m.nspawn(u); err != nil {
			return Set{}, err
		}
	}
	set := Set{Main: u, Aux: []Unit{m.companion(companion)}, Notes: notes}
	if m.Hides != "" {
		set.Aux = append(set.Aux, m.shower())
	}
	if m.registers() {
		registrar := registrar(m)
		set.Main.set("Wants", []string{registrar.Name})
		set.Aux = append(set.Aux, registrar)
	}
	m.relay(&set)
	if err := m.health(&set, confined); err != nil {
		return Set{}, err
	}
	return set, nil
}

// mainIsStrange says whether the manager takes the main process of a service with PrivatePIDs= for a stranger's ("not our child"), as
// systemd 257 does (tried). It then waits for it neither after a stop signal nor when the control group is empty before SIGCHLD has
// come, and so loses exit statuses.
func (m Machine) mainIsStrange() bool {
	return m.Manager < 258 && m.Flavor != NspawnFlavor && !m.Security.HostPID
}

// collectMode lets the name of a machine in the foreground go with it; one that runs detached and failed stays for
// systemctl status, as with systemd-run(1).
func (m Machine) collectMode() string {
	if m.Detached {
		return "inactive"
	}
	return "inactive-or-failed"
}

// companion owns the machine's directory and, where the root has a path, its mount: it is there before the service,
// stays over restarts of it, and cleans up when nothing needs it any more. Its commands are the host's own, so they work
// when nspawnd is gone.
func (m Machine) companion(name string) Unit {
	u := Unit{Name: name}
	u.set("Description", fmt.Sprintf("%s: root file system", m.Name))
	u.set("StopWhenUnneeded", true)
	u.set("CollectMode", "inactive-or-failed")
	u.set("Type", "oneshot")
	u.set("RemainAfterExit", true)
	var stop []Command
	if m.Hides != "" {
		forget := m.rootCommand("--forget-root")
		forget.Flags = append(forget.Flags, ignoreFailure)
		stop = append(stop, forget)
	}
	if m.Root != "" {
		stop = append(stop, Command{"umount", []string{"umount", "--quiet", "--lazy", m.Root}, []string{noExpansion, ignoreFailure}},
			// Not rmdir: what systemd 257 kills while it makes the machine's mounts may still make a mount point, below the one that is gone.
			Command{"rm", []string{"rm", "--recursive", "--force", "--one-file-system", "--preserve-root=all", m.Root}, []string{noExpansion, ignoreFailure}})
	}
	if m.Users != nil {
		if m.Flavor != NspawnFlavor {
			stop = append(stop, Command{"umount", []string{"umount", m.Users.File}, []string{noExpansion, ignoreFailure}})
		}
		stop = append(stop, Command{"rm", []string{"rm", "--force", m.Users.File}, []string{noExpansion, ignoreFailure}})
	}
	gone := m.healthFiles()
	if m.Keep {
		stop = append(stop, Command{"sync", []string{"sync", "--file-system", m.Dir}, []string{noExpansion, ignoreFailure}})
	} else {
		gone = append([]string{m.Dir}, gone...)
	}
	if len(gone) > 0 {
		stop = append(stop, Command{"rm", append([]string{"rm", "--recursive", "--force", "--one-file-system"}, gone...), []string{noExpansion}})
	}
	u.set("ExecStop", stop)
	u.set("Slice", "machine.slice")
	return u
}

// Hideable says whether Root can be unmounted while the machine runs: nothing of what is mounted on the host later is to show in it.
func (m Machine) Hideable() bool {
	return m.Flavor == ServiceFlavor && !slices.ContainsFunc(m.Mounts, func(v Mount) bool { return v.Propagation == "slave" }) &&
		!slices.ContainsFunc(m.Extra, func(d Directive) bool { return d.Name == "MountFlags" })
}

// HiddenFile is there from before the client unmounts Root, for the sake of other services, if it does.
func (m Machine) HiddenFile() string { return path.Join(m.Dir, "hidden") }

// shower is a unit that mounts the root again for each start but the first, which the service requires.
func (m Machine) shower() Unit {
	u := Unit{Name: strings.TrimSuffix(ServiceName(m.Name), ".service") + "-mount.service"}
	u.set("Description", fmt.Sprintf("%s: mount of the root file system", m.Name))
	u.set("StartLimitIntervalSec", uint64(0)) // the limit is the service's
	u.set("CollectMode", "inactive-or-failed")
	u.set("ConditionPathExists", []Condition{{Parameter: m.HiddenFile()}})
	u.set("Type", "oneshot")
	u.set("ExecStart", m.rootCommand("--show-root"))
	u.set("Slice", "machine.slice")
	return u
}

func (m Machine) rootCommand(option string) Command {
	return Command{m.Hides, []string{m.Hides, option, m.Dir}, []string{noExpansion}}
}
