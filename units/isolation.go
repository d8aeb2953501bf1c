package units

import "runtime"

// DefaultCapabilities are those that podman gives a rootful container (containers.conf(5), default_capabilities).
var DefaultCapabilities, _ = ParseCapabilities(
	"CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT")

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
