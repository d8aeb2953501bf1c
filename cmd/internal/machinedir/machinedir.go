// Package machinedir tells whose a machine's directory in the store is, and removes one that is nobody's.
package machinedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"nspawnd/cmd/internal/mountns"
	"nspawnd/image"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// Owned says whether a machine's directory is in use: by a companion unit, or by a process that became systemd-nspawn in place.
func Owned(dir string) bool { return hasUnit(dir) || hasProcess(dir) }

// ownerFile names a process: its PID and when it started, which together no other process has until the next boot.
const ownerFile = "owner"

// SetOwner gives a directory to this process, also after execve(2).
func SetOwner(dir string) error {
	identity, err := identity(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), []byte(strconv.Itoa(os.Getpid())+" "+identity), 0o600)
}

func hasProcess(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return false
	}
	pid, then, _ := strings.Cut(string(data), " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		return false
	}
	now, err := identity(n)
	return err == nil && now == then
}

// identity gives the boot and the start time of a process (proc_pid_stat(5)).
func identity(pid int) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const startTime = 22 - 3 // the field after the name is the third
	if len(fields) <= startTime {
		return "", errors.New("/proc/PID/stat is short")
	}
	return strings.TrimSpace(string(boot)) + " " + fields[startTime], nil
}

// hasUnit says whether a companion unit owns a machine's directory. The manager keeps the text of transient units in files as
// long as they are loaded; to look is cheaper than to ask for each machine.
func hasUnit(dir string) bool {
	text, err := os.ReadFile("/run/systemd/transient/" + units.CompanionName(Name(dir)))
	return err == nil && strings.Contains(string(text), "/"+filepath.Base(dir))
}

// Name is that of the machine.
func Name(dir string) string {
	base := filepath.Base(dir)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

// MountPath is where the root of a machine with this directory is mounted, when that has to be on the host.
func MountPath(dir string) string { return filepath.Join("/run/nspawnd", filepath.Base(dir)) }

// ShowRoot mounts a machine's root on its path again, for its service to start, unless it is there. It waits for the client that may be about to unmount it.
func ShowRoot(dir string) error {
	lock, err := image.LockDirectory(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	path := MountPath(dir)
	if mounted, err := isMountPoint(path); mounted || err != nil {
		return err
	}
	return mountns.Show(path)
}

func isMountPoint(path string) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &stat); err != nil {
		return false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Discard removes a machine's mount and its user namespace, if it has them, and its directory unless the machine is kept. What can't be removed now the next sweep
// finds.
func Discard(dir string) {
	for unix.Unmount(MountPath(dir), unix.MNT_DETACH) == nil { // as often as a client that was killed had mounted it
	}
	for _, below := range []string{units.TerminalsMount, "/run", ""} { // not all that is there: it may still be mounted
		_ = os.Remove(MountPath(dir) + below)
	}
	_ = mountns.Forget(MountPath(dir))
	ReleaseIDs(dir)
	if !image.IsKept(dir) {
		_ = os.RemoveAll(dir)
	}
}
