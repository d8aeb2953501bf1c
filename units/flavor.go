package units

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Flavor says what runs a machine's payload.
type Flavor string

const (
	ServiceFlavor Flavor = "service" // the manager, with the unit's own isolation
	ChrootFlavor  Flavor = "chroot"  // the manager, with nothing of its own but the root directory
	NspawnFlavor  Flavor = "nspawn"  // systemd-nspawn in the unit
)

// Flavors are those that there are.
var Flavors = []string{string(ServiceFlavor), string(ChrootFlavor), string(NspawnFlavor)}

// flavored is the machine with what its flavor means for the rest of it.
func (m Machine) flavored() Machine {
	switch m.Flavor {
	case ChrootFlavor:
		m.Security = Security{Privileged: true, HostIPC: true, HostPID: true, HostUTS: true, HostCgroups: true}
		m.Payload.Hostname = m.Name
	case NspawnFlavor:
		// systemd-nspawn's exit status says nothing of a signal; the launcher's does, as the payload's parent.
		m.Payload.Init = true
		if len(m.Health.Test) > 0 {
			m.Health = Health{}
			m.Payload.Notes = append(slices.Clone(m.Payload.Notes), "Healthcheck is not mapped: a probe can't join what systemd-nspawn runs")
		}
	}
	return m
}

// checkFlavor refuses what a flavor can't do.
func (m Machine) checkFlavor() error {
	s := m.Security
	var cant string
	switch m.Flavor {
	case ChrootFlavor:
		switch {
		case m.Network == NoNetwork:
			cant = "--network=none: it has the host's network"
		case !reflect.ValueOf(s).IsZero() || m.Payload.Hostname != m.Name:
			cant = "options of isolation, as it has none: --cap-add, --cap-drop, --security-opt, --privileged, --ipc, --pid, --uts, --hostname"
		}
	case NspawnFlavor:
		switch {
		case s.HostIPC || s.HostPID || s.HostUTS:
			cant = "--ipc=host, --pid=host and --uts=host"
		case s.Seccomp != nil || s.NoSeccomp || s.AppArmor != "":
			cant = "seccomp= and apparmor=: systemd-nspawn has a filter of its own"
		case s.Privileged || len(s.Unmask) > 0:
			cant = "--privileged and unmask="
		case m.HealthAsked:
			cant = "--health-cmd and its like: a probe can't join what systemd-nspawn runs"
		case len(m.Secrets) > 0:
			cant = "--secret"
		}
	}
	if cant != "" {
		return fmt.Errorf("--flavor=%s can't do %s", m.Flavor, cant)
	}
	return nil
}

// nspawnDirectives says what becomes of a service's directives when systemd-nspawn runs the payload: an option of its own,
// or nothing, because it does so anyway or has its own way. All others stay the unit's.
var nspawnDirectives = map[string]func(m Machine, v any) []string{
	"BindPaths":             func(m Machine, v any) []string { return m.nspawnBinds("--bind=", v) },
	"BindReadOnlyPaths":     func(m Machine, v any) []string { return m.nspawnBinds("--bind-ro=", v) },
	"TemporaryFileSystem":   nspawnTmpfs,
	"Environment":           nspawnEach("--setenv="),
	"WorkingDirectory":      nspawnOption("--chdir=%s"),
	"PrivateNetwork":        nspawnIf("--private-network"),
	"NetworkNamespacePath":  nspawnOption("--network-namespace-path=%s"),
	"NoNewPrivileges":       nspawnIf("--no-new-privileges=yes"),
	"CapabilityBoundingSet": nspawnCapabilities,
	"SELinuxContext":        nspawnOption("--selinux-context=%s"),
	"OOMScoreAdjust":        nspawnOption("--oom-score-adjust=%d"),
	"Personality":           nspawnOption("--personality=%s"),
	"KillSignal":            nspawnOption("--kill-signal=%d"),
	"LoadCredential": func(_ Machine, v any) (out []string) {
		for _, pair := range v.([]Pair) {
			out = append(out, "--load-credential="+pair.First+":"+pair.Second)
		}
		return out
	},

	"ProtectHostname": nil, "ExecStart": nil, "Type": nil, "UnsetEnvironment": nil, "MountAPIVFS": nil, "BindLogSockets": nil, "RootDirectory": nil,
	"PrivatePIDs": nil, "PrivateIPC": nil, "PrivateDevices": nil, "ProtectControlGroups": nil, "ProtectKernelTunables": nil,
	"SystemCallFilter": nil, "SystemCallArchitectures": nil, "SystemCallErrorNumber": nil,
	"InaccessiblePaths": nil, "ReadOnlyPaths": nil, "ReadWritePaths": nil, "IgnoreSIGPIPE": nil, "MemoryPressureWatch": nil,
}

// nspawnUnsupported are directives that would reach systemd-nspawn itself and not the payload.
var nspawnUnsupported = []string{"User", "Group", "SupplementaryGroups", "UMask", "IPCNamespacePath", "UserNamespacePath", "AmbientCapabilities",
	"SetCredential", "LoadCredentialEncrypted", "DeviceAllow", "PrivateUsers", "RestrictAddressFamilies", "RestrictNamespaces", "SystemCallLog"}

func nspawnOption(format string) func(Machine, any) []string {
	return func(_ Machine, v any) []string { return []string{fmt.Sprintf(format, v)} }
}

func nspawnIf(option string) func(Machine, any) []string {
	return func(_ Machine, v any) []string {
		if v.(bool) {
			return []string{option}
		}
		return nil
	}
}

func nspawnEach(option string) func(Machine, any) []string {
	return func(_ Machine, v any) (out []string) {
		for _, s := range v.([]string) {
			out = append(out, option+s)
		}
		return out
	}
}

// escapeColons writes a path for systemd-nspawn's options, which part at colons.
var escapeColons = strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace

func (m Machine) nspawnBinds(option string, v any) (out []string) {
	for _, b := range v.([]Bind) {
		switch b.Target {
		case "/dev/pts": // systemd-nspawn makes its own
			continue
		case "/run": // it has directories of its own there too, so the image's are made anew: see Machine.Run
			for _, dir := range m.Run {
				out = append(out, fmt.Sprintf("--tmpfs=%s:mode=%04o,uid=%d,gid=%d", escapeColons("/run/"+dir.Name), dir.Mode, dir.UID, dir.GID))
			}
			continue
		}
		recursive := "norbind"
		if b.Flags&Recursive != 0 {
			recursive = "rbind"
		}
		out = append(out, option+escapeColons(b.Source)+":"+escapeColons(b.Target)+":"+recursive)
	}
	return out
}

func nspawnTmpfs(_ Machine, v any) (out []string) {
	for _, t := range v.([]Tmpfs) {
		if t.Path == "/dev/shm" && t.Options == defaultShm { // systemd-nspawn makes its own
			continue
		}
		out = append(out, "--tmpfs="+escapeColons(t.Path)+":"+t.Options)
	}
	return out
}

func nspawnCapabilities(_ Machine, v any) []string {
	mask := v.(uint64)
	names := func(mask uint64) string { return strings.ReplaceAll(formatCapabilities(mask), " ", ",") }
	out := []string{"--drop-capability=" + names(allCapabilities&^mask)}
	if mask != 0 {
		out = append(out, "--capability="+names(mask))
	}
	return out
}

// nspawnUsers is the user namespace. The root's files have its ids already.
func (m Machine) nspawnUsers() string {
	if m.Users == nil {
		return "--private-users=no"
	}
	return fmt.Sprintf("--private-users=%d:%d", m.Users.UIDs[0].Outside, m.Users.UIDs[0].Count)
}

const nspawnProgram = "/usr/bin/systemd-nspawn"

// nspawn makes of a service's unit one in which systemd-nspawn runs the payload. What the isolation is, is systemd-nspawn's; the capabilities are
// those of the service.
func (m Machine) nspawn(service Unit) (Unit, error) {
	argv := []string{nspawnProgram, "--quiet", "--keep-unit", "--machine=" + m.Name, "--hostname=" + m.Payload.Hostname, "--directory=" + m.Root, m.nspawnUsers(),
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe", "--settings=no"}
	if m.Unregistered {
		argv = append(argv, "--register=no")
	}
	if m.ReadOnly {
		argv = append(argv, "--read-only")
	}
	for _, p := range m.Security.Mask {
		argv = append(argv, "--inaccessible="+p)
	}
	u := Unit{Name: service.Name}
	for _, d := range service.Directives {
		option, known := nspawnDirectives[d.Name]
		switch limit, isLimit := strings.CutPrefix(d.Name, "Limit"); {
		case slices.Contains(nspawnUnsupported, d.Name):
			return u, fmt.Errorf("--flavor=nspawn can't do %s=", d.Name)
		case isLimit:
			l := d.Value.(Limit)
			argv = append(argv, "--rlimit="+limit+"="+formatLimit(l))
		case option != nil:
			argv = append(argv, option(m, d.Value)...)
		case !known:
			u.Directives = append(u.Directives, d)
		}
	}
	if service.Get("Type") == "notify" {
		argv = append(argv, "--notify-ready=yes")
	}
	argv = append(append(argv, "--"), service.Get("ExecStart").(Command).Argv...)
	u.set("Type", "notify")
	u.set("NotifyAccess", "main")
	u.set("ExecStart", Command{nspawnProgram, argv, []string{noExpansion}})
	u.set("Delegate", "yes")
	u.set("Environment", []string{quietNspawn})
	u.set("KillSignal", signals["TERM"]) // systemd-nspawn passes on the payload's own
	u.set("SuccessExitStatus", Statuses{Codes: []int32{128 + m.Payload.StopSignal}})
	// When systemd-nspawn is killed it leaves a lock, and a mount for which it would refuse the next start: 262 in the first place, 257 in the second.
	const dir = "/run/systemd/nspawn/"
	tidy := []string{"sh", "-c", `umount "$1" "$2" 2> /dev/null; rm -f "$3"`, "sh", dir + m.Name + "/unix-export", dir + "unix-export/" + m.Name,
		filepath.Join(filepath.Dir(m.Root), ".#"+filepath.Base(m.Root)+".lck")}
	post, _ := u.Get("ExecStopPost").([]Command)
	u.set("ExecStopPost", append(post, Command{"sh", tidy, []string{noExpansion, ignoreFailure}}))
	return u, nil
}

// quietNspawn has systemd-nspawn keep to itself that a stop was asked for.
const quietNspawn = "SYSTEMD_LOG_LEVEL=notice"

// NspawnCommand gives the command line that runs the payload, and what it has in its environment, for a caller that becomes systemd-nspawn.
func (s Set) NspawnCommand() (argv, env []string) {
	return s.Main.Get("ExecStart").(Command).Argv, s.Main.Get("Environment").([]string)
}
