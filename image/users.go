package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"nspawnd/internal/thread"

	"golang.org/x/sys/unix"
)

// Users is a user namespace (user_namespaces(7)), and what its root is on the host.
type Users struct {
	Namespace *os.File
	uid, gid  int
}

// NewUsers makes a user namespace, which is there as long as its file is open or mounted somewhere. 0 has to be mapped.
func NewUsers(uids, gids []syscall.SysProcIDMap) (*Users, error) {
	u := &Users{uid: -1, gid: -1}
	for _, kind := range []struct {
		ranges []syscall.SysProcIDMap
		root   *int
	}{{uids, &u.uid}, {gids, &u.gid}} {
		for _, r := range kind.ranges {
			if r.ContainerID == 0 && r.Size > 0 {
				*kind.root = r.HostID
			}
		}
		if *kind.root < 0 {
			return nil, errors.New("a user namespace without root: id 0 is not mapped")
		}
	}
	// The kernel wants a process to make one. This one never runs: it is stopped when it has become a program (ptrace(2)), and killed.
	var err error
	thread.Run(func() { // which a stopped process belongs to
		child := exec.Command("/proc/self/exe")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Ptrace: true, UidMappings: uids, GidMappings: gids, GidMappingsEnableSetgroups: true}
		if err = child.Start(); err != nil {
			return
		}
		u.Namespace, err = os.Open("/proc/" + strconv.Itoa(child.Process.Pid) + "/ns/user")
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	if err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	return u, nil
}

// Map gives a detached mount's files, which have the image's ids, those of the namespace (mount_setattr(2), "ID-mapped mounts").
func (u *Users) Map(mount *os.File) error {
	err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(u.Namespace.Fd())})
	if err != nil {
		return fmt.Errorf("%s: giving it the ids of a user namespace: %w", mount.Name(), err)
	}
	return nil
}

// becomeRoot has this thread make files as the namespace's root, with all that the host's may.
func (u *Users) becomeRoot() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	// They say what the id was before; whether it was changed only a second call can tell (setfsuid(2)).
	for _, id := range []struct {
		call uintptr
		id   int
	}{{unix.SYS_SETFSGID, u.gid}, {unix.SYS_SETFSUID, u.uid}} {
		unix.RawSyscall(id.call, uintptr(id.id), 0, 0)
		if now, _, _ := unix.RawSyscall(id.call, ^uintptr(0), 0, 0); int(now) != id.id {
			return fmt.Errorf("making files as id %d is not permitted", id.id)
		}
	}
	return unix.Capset(&header, &data[0]) // of which the kernel has taken those about files away
}
