package units

import (
	"fmt"
	"slices"
	"strings"
)

// DefaultCapabilities are those that podman gives a rootful container (containers.conf(5), default_capabilities).
var DefaultCapabilities, _ = ParseCapabilities(
	"CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT")

// isolate adds what keeps the machine apart from the host.
func (m Machine) isolate(u *Unit) (notes []string) {
	s := m.Security
	if !s.HostPID {
		u.set("PrivatePIDs", "yes")
	}
	u.set("PrivateIPC", !s.HostIPC)
	if !s.HostUTS {
		m.hostname(u)
	}
	if m.hasUsers() {
		u.set("UserNamespacePath", m.Users.File)
	}
	if m.Network == NoNetwork {
		u.set("PrivateNetwork", true)
	}
	u.set("CapabilityBoundingSet", s.capabilities())
	if s.AppArmor != "" {
		u.set("AppArmorProfile", s.AppArmor)
	}
	if s.SELinux != "" {
		u.set("SELinuxContext", s.SELinux)
	}
	if s.Privileged {
		if !s.HostCgroups {
			u.set("ProtectControlGroups", "private")
		}
		return nil
	}
	u.set("PrivateDevices", true)
	if s.HostCgroups {
		u.set("ProtectControlGroups", "yes") // read-only all the same
	} else {
		u.set("ProtectControlGroups", "strict")
	}
	readOnly := s.unmasked(readOnlyPaths)
	if len(s.Unmask) == 0 {
		u.set("ProtectKernelTunables", true)
	} else { // that would hide some of them again
		readOnly = append(readOnly, "-+/sys")
	}
	u.set("NoNewPrivileges", !s.NewPrivileges)
	if !s.NoSeccomp && m.Flavor != NspawnFlavor { // systemd-nspawn has a filter of its own
		profile := podmanProfile
		if s.Seccomp != nil {
			profile = s.Seccomp
		} else { // what podman's looks at arguments for
			u.set("LockPersonality", true)
			if !m.allowsOnlyFamilies() {
				u.set("RestrictAddressFamilies", []Filter{{false, []string{"AF_VSOCK"}}})
			}
		}
		if calls := profile.set(u, s.capabilities()); s.Seccomp != nil && len(calls) > 0 {
			notes = append(notes, fmt.Sprintf("%s: conditions on arguments can't be expressed; calls that it allows with some arguments are allowed with any: %s",
				s.SeccompFile, strings.Join(calls, " ")))
		}
	}
	masked := s.unmasked(maskedPaths)
	for _, p := range s.Mask {
		masked = append(masked, "-+"+p)
	}
	u.set("InaccessiblePaths", masked)
	u.set("ReadOnlyPaths", readOnly)
	return notes
}

// allowsOnlyFamilies says whether --property has a list of the address families that are allowed: after a list of denied ones it would mean
// nothing but exceptions from that (systemd.exec(5)).
func (m Machine) allowsOnlyFamilies() bool {
	return slices.ContainsFunc(m.Extra, func(d Directive) bool {
		filters, ok := d.Value.([]Filter)
		return ok && d.Name == "RestrictAddressFamilies" && len(filters) > 0 && filters[0].Allow
	})
}

func (m Machine) hostname(u *Unit) {
	if m.Manager >= hostnameSince {
		u.set("ProtectHostname", Pair{"private", m.Payload.Hostname})
	} else if !m.launcherNames() {
		u.set("ProtectHostname", Pair{"yes", ""}) // its own UTS namespace, with the host's name
	}
}

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
