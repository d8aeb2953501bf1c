package units

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"nspawnd/cgroup"

	"github.com/coreos/go-systemd/v22/unit"
)

// Account is a payload's user as numbers, resolved in the image.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Volume is a directory or file of the host that the machine sees.
type Volume struct {
	Source, Target string
	ReadOnly       bool
	NoRecursive    bool // without the mounts below Source
}

// Network says which network a machine sees.
type Network string

const (
	HostNetwork Network = "host"
	NoNetwork   Network = "none"
)

// Machine is all that the units of one machine are made of.
type Machine struct {
	Name      string // systemd's rule for machine names
	Image     string // reference, for people
	Digest    string // of the image's manifest
	Payload   Payload
	Path      string // the executable, absolute in the image
	Account   Account
	Volumes   []Volume
	ReadOnly  bool
	Network   Network
	Resources cgroup.Resources
	Extra     []Directive // --property, laid over everything else
	Detached  bool        // logs to the journal and stays visible when it failed

	Manager  int    // version of the running systemd
	Dir      string // the machine's own directory in the store; removed when the machine is gone
	Root     string // where the root is mounted on the host; "": it goes to the manager as a descriptor
	Launcher string // path of the launcher on the host
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

// launcherPath is where the machine sees the launcher.
const launcherPath = "/run/nspawnd-launcher"

// DefaultCapabilities are those that podman gives a rootful container (containers.conf(5), default_capabilities).
var DefaultCapabilities, _ = ParseCapabilities(
	"CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT")

const (
	defaultTasks = 2048    // containers.conf(5) pids_limit
	defaultFiles = 1 << 20 // podman's RLIMIT_NOFILE
	defaultShm   = "mode=1777,size=64M,nosuid,nodev,noexec"
)

// Translate gives the units of the machine.
func (m Machine) Translate() Set {
	companion := CompanionName(m.Name)
	u := Unit{Name: ServiceName(m.Name)}
	u.set("Description", m.Name+": "+m.Image)
	u.set("Requires", []string{companion})
	u.set("After", []string{companion})
	u.set("CollectMode", m.collectMode())
	m.process(&u)
	m.files(&u)
	m.isolate(&u)
	u.set("Slice", "machine.slice")
	u.set("TasksMax", uint64(defaultTasks))
	for _, s := range m.Resources.Settings() {
		u.set(s.Directive, s.Value)
	}
	for _, d := range m.Extra {
		u.set(d.Name, d.Value)
	}
	set := Set{Main: u, Aux: []Unit{m.companion(companion)}, Notes: m.Payload.Notes}
	if m.mainIsStrange() {
		stopper := stopper(u)
		set.Main.set("Wants", []string{stopper.Name})
		set.Aux = append(set.Aux, stopper)
	}
	return set
}

// mainIsStrange says whether the manager takes the main process of a service with PrivatePIDs= for a stranger's ("not our child"), as
// systemd 257 does (tried). It then waits for it neither after a stop signal nor when the control group is empty before SIGCHLD has
// come, and so loses exit statuses.
func (m Machine) mainIsStrange() bool { return m.Manager < 258 }

// collectMode lets the name of a machine in the foreground go with it; one that runs detached and failed stays for
// systemctl status, as with systemd-run(1).
func (m Machine) collectMode() string {
	if m.Detached {
		return "inactive"
	}
	return "inactive-or-failed"
}

func (m Machine) process(u *Unit) {
	argv := m.Payload.Argv
	path := m.Path
	plain, odd := m.environment()
	if m.launched() {
		a := m.Account
		ids := []string{strconv.Itoa(int(a.UID)), strconv.Itoa(int(a.GID))}
		for _, g := range a.Groups {
			ids = append(ids, strconv.Itoa(int(g)))
		}
		launch := []string{launcherPath, "--ids=" + strings.Join(ids, ",")}
		for _, e := range odd {
			launch = append(launch, "--env="+e)
		}
		argv = append(append(launch, "--", m.Path), argv...)
		path = launcherPath
		u.set("BindReadOnlyPaths", []Bind{{Source: m.Launcher, Target: launcherPath}})
	}
	u.set("Type", "exec")
	u.set("ExecStart", Command{path, argv, []string{noExpansion}})
	u.set("Environment", plain)
	u.set("UnsetEnvironment", m.unwantedEnvironment())
	u.set("WorkingDirectory", m.Payload.WorkingDir)
	u.set("TimeoutStopSec", m.Payload.StopTimeout)
	u.set("KillMode", "mixed") // the stop signal is for the first process only, as with podman
	u.set("KillSignal", m.Payload.StopSignal)
	// Programs that handle the stop signal and exit with 128+n have stopped as asked.
	u.set("SuccessExitStatus", Statuses{Codes: []int32{128 + m.Payload.StopSignal}, Signals: []int32{m.Payload.StopSignal}})
	u.set("OOMPolicy", "continue")
	u.set("IgnoreSIGPIPE", false)
	u.set("LimitNOFILE", Limit{defaultFiles, defaultFiles})
	u.set("MemoryPressureWatch", "off")
	u.set("SyslogIdentifier", m.Name)
	u.set("LogExtraFields", []string{"NSPAWND_IMAGE=" + m.Image, "NSPAWND_DIGEST=" + m.Digest})
	if m.mainIsStrange() {
		// It keeps the service from being forgotten before the manager has seen how the main process ended. It runs on the host with
		// the image's environment, so it has to be a static program that reads none of it.
		u.set("ExecStopPost", []Command{{m.Launcher, []string{m.Launcher, "--await-main-process"}, []string{noExpansion, ignoreFailure, privileged}}})
	}
	if m.Detached {
		u.set("StandardInput", "null")
		u.set("StandardOutput", "journal")
		u.set("StandardError", "journal")
	}
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
	u.set("BindsTo", []string{main.Name})
	u.set("PartOf", []string{main.Name})
	u.set("After", []string{main.Name})
	u.set("CollectMode", "inactive-or-failed")
	u.set("Type", "oneshot")
	u.set("RemainAfterExit", true)
	u.set("ExecStop", []Command{{"/bin/sh", []string{"sh", "-c", script, "stop", main.Name, strconv.Itoa(int(signal)), wait}, []string{noExpansion, ignoreFailure}}})
	u.set("TimeoutStopSec", timeout)
	u.set("Slice", "machine.slice")
	return u
}

// NeedsLauncher says whether the units run the launcher.
func (m Machine) NeedsLauncher() bool { return m.mainIsStrange() || m.launched() }

// launched says whether the launcher starts the payload, because a directive can't express the payload: User= and SupplementaryGroups= resolve on the host,
// so they refuse ids that the host doesn't know and add the groups that the host gives an id it knows; Environment=
// refuses names that shells would.
func (m Machine) launched() bool {
	a := m.Account
	if a.UID != 0 || a.GID != 0 || len(a.Groups) > 0 {
		return true
	}
	_, odd := m.environment()
	return len(odd) > 0
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
	for i, r := range name {
		if !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && r >= '0' && r <= '9') {
			return false
		}
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
	"LC_NUMERIC", "LC_TIME", "INVOCATION_ID", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH", "USER", "LOGNAME", "SHELL"}

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

// inside names a path of the machine's own root as the source of a bind mount. The manager reads sources as paths of the
// host; a root that came as a descriptor has one only while the manager sets the mounts up (measured on 262).
//
// A symbolic link at the end would lead to the host's files: the client makes sure that the image has directories there,
// and the payload can't replace them, because it sees mount points (EBUSY).
func (m Machine) inside(path string) string {
	root := m.Root
	if root == "" {
		root = "/run/systemd/mount-rootfs"
	}
	return root + path
}

// TerminalsMount is where the client mounts a new devpts instance in the machine's root, to be moved to /dev/pts from there:
// the payload sees its own procfs over it. PrivateDevices= alone would show the host's terminals.
const TerminalsMount = "/proc"

func (m Machine) files(u *Unit) {
	if m.Root != "" {
		u.set("RootDirectory", m.Root)
	}
	u.set("MountAPIVFS", true)
	u.set("BindLogSockets", false)
	// The host's /dev/shm is below /dev even with PrivateIPC=.
	u.set("TemporaryFileSystem", []Tmpfs{{"/dev/shm", defaultShm}})
	u.set("BindPaths", []Bind{{Source: m.inside(TerminalsMount), Target: "/dev/pts"}})
	// MountAPIVFS= puts an empty tmpfs on /run; images have directories there that their software needs.
	u.set("BindPaths", []Bind{{Source: m.inside("/run"), Target: "/run"}})
	if m.ReadOnly {
		u.set("ReadOnlyPaths", []string{"+/"})
		for _, dir := range append([]string{"/tmp", "/var/tmp"}, m.Payload.Volumes...) {
			u.set("ReadWritePaths", []string{"-+" + dir})
		}
	}
	for _, v := range m.Volumes {
		b := Bind{Source: v.Source, Target: v.Target, Flags: Recursive}
		if v.NoRecursive {
			b.Flags = 0
		}
		if v.ReadOnly {
			u.set("BindReadOnlyPaths", []Bind{b})
		} else {
			u.set("BindPaths", []Bind{b})
		}
	}
}

func (m Machine) isolate(u *Unit) {
	u.set("PrivatePIDs", "yes")
	u.set("PrivateIPC", true)
	u.set("PrivateDevices", true)
	u.set("ProtectControlGroups", "strict")
	u.set("ProtectKernelTunables", true)
	if m.Manager >= directives["ProtectHostname"].since {
		u.set("ProtectHostname", Pair{"private", m.Name})
	} else {
		u.set("ProtectHostname", Pair{"yes", ""}) // its own UTS namespace, with the host's name
	}
	if m.Network == NoNetwork {
		u.set("PrivateNetwork", true)
	}
	u.set("NoNewPrivileges", true)
	u.set("CapabilityBoundingSet", DefaultCapabilities)
	u.set("SystemCallFilter", []Filter{{true, allowedCalls}, {false, refusedCalls}})
	u.set("SystemCallArchitectures", architectures)
	u.set("SystemCallErrorNumber", int32(38)) // ENOSYS, as in podman's profile
	u.set("InaccessiblePaths", maskedPaths)
	u.set("ReadOnlyPaths", readOnlyPaths)
}

// architectures are those of podman's profile but x32, which hardly a kernel has: the manager builds a filter for each, which costs a
// start some milliseconds.
var architectures = map[string][]string{"amd64": {"native", "x86"}, "arm64": {"native", "arm"}}[runtime.GOARCH]

// maskedPaths and readOnlyPaths are those of podman's default (podman-run(1), --security-opt mask and unmask). "-": it
// may be absent; "+": below the root.
var (
	maskedPaths = []string{"-+/proc/acpi", "-+/proc/asound", "-+/proc/interrupts", "-+/proc/kcore", "-+/proc/keys",
		"-+/proc/latency_stats", "-+/proc/sched_debug", "-+/proc/scsi", "-+/proc/timer_list", "-+/proc/timer_stats",
		"-+/sys/dev/block", "-+/sys/devices/virtual/powercap", "-+/sys/firmware", "-+/sys/fs/selinux",
		// The host mounts these; podman's sysfs and /dev are new and have nothing there.
		"-+/sys/fs/bpf", "-+/sys/fs/fuse/connections", "-+/sys/kernel/debug", "-+/sys/kernel/tracing", "-+/dev/hugepages"}
	readOnlyPaths = []string{"-+/proc/bus", "-+/proc/fs", "-+/proc/irq", "-+/proc/sys", "-+/proc/sysrq-trigger"}
)

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
	if m.Root != "" {
		stop = append(stop, Command{"umount", []string{"umount", "--lazy", m.Root}, []string{noExpansion, ignoreFailure}},
			Command{"rmdir", []string{"rmdir", m.Root}, []string{noExpansion, ignoreFailure}})
	}
	stop = append(stop, Command{"rm", []string{"rm", "--recursive", "--force", "--one-file-system", m.Dir}, []string{noExpansion}})
	u.set("ExecStop", stop)
	u.set("Slice", "machine.slice")
	return u
}
