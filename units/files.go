package units

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Volume is a directory or file of the host that the machine sees.
type Volume struct {
	Source, Target string
	ReadOnly       bool
	NoRecursive    bool // without the mounts below Source
}

// ParseVolume reads HOST:PATH[:OPTION,…] as podman-run(1) --volume does. A relative HOST starts with "."; the caller
// makes it absolute.
func ParseVolume(s string) (Volume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return Volume{}, fmt.Errorf("%q is not HOST:PATH[:OPTIONS]", s)
	}
	v := Volume{Source: parts[0], Target: path.Clean(parts[1])}
	switch {
	case !strings.HasPrefix(v.Source, "/") && !strings.HasPrefix(v.Source, "."):
		return v, fmt.Errorf("%q: %q is not a path; write an absolute one, or ./%s", s, v.Source, v.Source)
	case !path.IsAbs(v.Target):
		return v, fmt.Errorf("%q: the path inside, %q, is not absolute", s, parts[1])
	case v.Target == "/":
		return v, errors.New("the root of the machine can't be a volume")
	}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			switch option {
			case "ro":
				v.ReadOnly = true
			case "bind":
				v.NoRecursive = true
			case "rw", "rbind":
			default:
				return v, fmt.Errorf("%q: %q is not one of ro, rw, rbind, bind", s, option)
			}
		}
	}
	return v, nil
}

const defaultShm = "mode=1777,size=64M,nosuid,nodev,noexec"

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
	if !m.Security.HostIPC {
		u.set("TemporaryFileSystem", []Tmpfs{{"/dev/shm", defaultShm}})
	}
	if m.Flavor != ChrootFlavor {
		u.set("BindPaths", []Bind{{Source: m.inside(TerminalsMount), Target: "/dev/pts"}})
	}
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
