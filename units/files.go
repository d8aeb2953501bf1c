package units

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	shmOptions = "mode=1777,nosuid,nodev,noexec"
	defaultShm = shmOptions + ",size=64M"
)

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

// files adds what the machine sees of file systems, and gives a note for each mount that no directive has.
func (m Machine) files(u *Unit) (notes []string) {
	if m.Root != "" {
		u.set("RootDirectory", m.Root)
	}
	if m.Hides != "" { // else what is unmounted below it goes in the machine too
		u.set("MountFlags", uint64(unix.MS_PRIVATE))
	}
	u.set("MountAPIVFS", true)
	u.set("BindLogSockets", false)
	if m.Flavor != ChrootFlavor {
		u.set("BindPaths", []Bind{{Source: m.inside(TerminalsMount), Target: "/dev/pts"}})
	}
	// MountAPIVFS= puts an empty tmpfs on /run; images have directories there that their software needs. Volumes may be below.
	run := []Bind{{Source: m.inside("/run"), Target: "/run", Flags: Recursive}}
	if m.ReadOnly && m.ReadOnlyTmp {
		u.set("BindReadOnlyPaths", run)
	} else {
		u.set("BindPaths", run)
	}
	if m.ReadOnly {
		u.set("ReadOnlyPaths", []string{"+/"})
		writable := m.Payload.Volumes
		if !m.ReadOnlyTmp {
			writable = slices.Concat([]string{"/tmp", "/var/tmp"}, writable)
		}
		for _, dir := range writable {
			u.set("ReadWritePaths", []string{"-+" + dir})
		}
	}
	notes = m.mounts(u)
	if len(m.Devices) > 0 && !m.Security.Privileged { // which has all
		u.set("DeviceAllow", m.Devices)
	}
	return notes
}

// ParseDevice reads HOST[:PATH][:ACCESS] as podman-run(1) --device does. ACCESS is of "rwm", which is the default.
func ParseDevice(s string) (host, target, access string, err error) {
	parts := strings.Split(s, ":")
	host, target, access = parts[0], parts[0], "rwm"
	switch {
	case !path.IsAbs(host) && strings.Contains(host, "="):
		return "", "", "", fmt.Errorf("%q is a CDI name, which nothing here resolves; name the device nodes", s)
	case !path.IsAbs(host) || len(parts) > 3:
		return "", "", "", fmt.Errorf("%q is not HOST[:PATH][:rwm]", s)
	case len(parts) == 2 && isAccess(parts[1]):
		access = parts[1]
	case len(parts) > 1:
		target = parts[1]
	}
	if len(parts) == 3 {
		access = parts[2]
	}
	if !path.IsAbs(target) || !isAccess(access) {
		return "", "", "", fmt.Errorf("%q is not HOST[:PATH][:rwm]", s)
	}
	return path.Clean(host), path.Clean(target), access, nil
}

func isAccess(s string) bool { return s != "" && len(s) <= 3 && strings.Trim(s, "rwm") == "" }

// ParseDeviceRule reads "TYPE MAJOR:MINOR ACCESS" as podman-run(1) --device-cgroup-rule does, and gives what DeviceAllow= says for it.
func ParseDeviceRule(s string) ([]Pair, error) {
	bad := fmt.Errorf("%q is not \"TYPE MAJOR:MINOR ACCESS\" (like \"c 10:229 rw\"; MINOR or both can be *)", s)
	fields := strings.Fields(s)
	if len(fields) != 3 || !isAccess(fields[2]) {
		return nil, bad
	}
	major, minor, found := strings.Cut(fields[1], ":")
	kinds := map[string][]string{"c": {"char"}, "b": {"block"}, "a": {"char", "block"}}[fields[0]]
	if !found || kinds == nil || major != "*" && !isNumber(major) || minor != "*" && !isNumber(minor) {
		return nil, bad
	}
	if major == "*" && minor != "*" {
		return nil, errors.New("a minor number of all drivers can't be said to systemd; name the major numbers")
	}
	var rules []Pair
	for _, kind := range kinds {
		node := kind + "-" + major
		if minor != "*" {
			node = "/dev/" + kind + "/" + fields[1]
		}
		rules = append(rules, Pair{node, fields[2]})
	}
	return rules, nil
}
