package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What package syscall calls around its own forks.
//
//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// child is all that a process needs that joins a user namespace and becomes a program: between fork and exec nothing can be allocated.
type child struct {
	users        int // the namespace
	bounding     uint64
	filters      []unix.SockFprog
	uid, gid     uint32
	groups       []uint32
	header       unix.CapUserHeader
	capabilities [2]unix.CapUserData
	ambient      uint64
	files        []uintptr
	terminal     bool
	dir          *byte
	paths        []*byte // tried one after the other
	argv, env    []*byte
	failed       int    // where the number of the error goes
	reason       uint32 // which that is
}

// forkIntoUsers starts a program in a user namespace, which only a process with a single thread can join (setns(2)). So a child does it, which has all
// capabilities there then, and gives up what the payload does not have.
func forkIntoUsers(users int, j joining, bounding uint64, ids []uint32, filters []unix.SockFprog) (pid int, err error) {
	c := &child{users: users, bounding: bounding, filters: filters, uid: ids[0], gid: ids[1], groups: ids[2:],
		header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, files: j.files, terminal: j.terminal}
	if ids[0] != 0 {
		c.ambient = j.ambient & bounding
	}
	for i := range c.capabilities {
		half := uint32(c.ambient >> (32 * i))
		c.capabilities[i] = unix.CapUserData{Effective: half, Permitted: half, Inheritable: half}
	}
	paths := []string{j.argv[0]}
	if !strings.Contains(j.argv[0], "/") {
		paths = nil
		for dir := range strings.SplitSeq(getenv(j.env, "PATH"), ":") {
			paths = append(paths, filepath.Join("/", dir, j.argv[0]))
		}
	}
	dir, err := syscall.BytePtrFromString(j.workdir)
	if err != nil {
		return 0, err
	}
	c.dir = dir
	for _, list := range []struct {
		from []string
		to   *[]*byte
	}{{paths, &c.paths}, {j.argv, &c.argv}, {j.env, &c.env}} {
		if *list.to, err = syscall.SlicePtrFromStrings(list.from); err != nil {
			return 0, err
		}
	}
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	c.failed = int(write.Fd())
	pid, errno := c.fork()
	runtime.KeepAlive(c)
	write.Close()
	if errno != 0 {
		return 0, os.NewSyscallError("fork", errno)
	}
	var reason [4]byte
	if n, _ := read.Read(reason[:]); n == len(reason) { // else it has become the program
		_, _ = await(pid)
		return 0, &os.PathError{Op: "exec", Path: j.argv[0], Err: syscall.Errno(binary.NativeEndian.Uint32(reason[:]))}
	}
	return pid, nil
}

// fork is the child from the fork to the exec: system calls alone. As in package syscall, nothing here may grow the stack.
//
//go:noinline
//go:norace
//go:nocheckptr
func (c *child) fork() (pid int, errno syscall.Errno) {
	const high = 64 // descriptors that are not among the program's
	var n, bit uintptr
	var i int
	var last syscall.Errno
	beforeFork()
	n, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || n != 0 {
		afterFork()
		return int(n), errno
	}
	afterForkInChild()
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(c.users), unix.CLONE_NEWUSER, 0); errno != 0 {
		goto failed
	}
	for bit = range 64 {
		if c.bounding&(1<<bit) != 0 {
			continue
		}
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0); errno != 0 && errno != syscall.EINVAL { // the kernel has none of this number
			goto failed
		}
	}
	for i = range c.filters {
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&c.filters[i]))); errno != 0 {
			goto failed
		}
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(c.groups))), 0); errno != 0 {
		goto failed
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(c.gid), uintptr(c.gid), uintptr(c.gid)); errno != 0 {
		goto failed
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(c.uid), uintptr(c.uid), uintptr(c.uid)); errno != 0 {
		goto failed
	}
	if c.ambient != 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.header)), uintptr(unsafe.Pointer(&c.capabilities)), 0); errno != 0 {
			goto failed
		}
		for bit = range 64 {
			if c.ambient&(1<<bit) == 0 {
				continue
			}
			if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0, 0); errno != 0 {
				goto failed
			}
		}
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto failed
	}
	for i = range c.files { // away from where they may be in each other's way
		if n, _, errno = syscall.RawSyscall(unix.SYS_FCNTL, c.files[i], unix.F_DUPFD_CLOEXEC, high); errno != 0 {
			goto failed
		}
		c.files[i] = n
	}
	for i = range c.files {
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, c.files[i], uintptr(i), 0); errno != 0 {
			goto failed
		}
	}
	if c.terminal {
		if _, _, errno = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0); errno != 0 {
			goto failed
		}
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.dir)), 0, 0); errno != 0 {
		goto failed
	}
	last = syscall.ENOENT
	for i = 0; c.paths[i] != nil; i++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.paths[i])), uintptr(unsafe.Pointer(unsafe.SliceData(c.argv))), uintptr(unsafe.Pointer(unsafe.SliceData(c.env))))
		if errno != syscall.ENOENT && errno != syscall.ENOTDIR {
			last = errno
		}
	}
	errno = last
failed:
	c.reason = uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.failed), uintptr(unsafe.Pointer(&c.reason)), unsafe.Sizeof(c.reason))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
