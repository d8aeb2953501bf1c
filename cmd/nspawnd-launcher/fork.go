package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
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

// child is all that a process needs that joins a machine and becomes a program there: between fork and exec nothing can be allocated.
type child struct {
	group        int   // of whose control group it writes itself into; -1: this process's
	itself       byte  // as there: '0'
	namespaces   []int // -1: none
	bounding     uint64
	filters      []unix.SockFprog
	noNewPrivs   bool // it has that already
	uid, gid     uint32
	groups       []uint32 // as outside the user namespace
	keeps        bool     // the capabilities below, though it is not root
	header       unix.CapUserHeader
	capabilities [2]unix.CapUserData
	ambient      uint64
	files        []uintptr
	terminal     bool
	dir          *byte
	openFiles    unix.Rlimit
	paths        []*byte // tried one after the other
	argv, env    []*byte
	failed       int       // where the error goes
	reason       [2]uint32 // its number, and the step
}

// The steps that may fail.
const (
	joiningGroup = iota
	becoming
)

// program is what has been started so far, for who passes signals on.
type program struct {
	sync.Mutex
	pid      int
	executed bool
}

// signal passes a signal on. Until the program is executed, which the machine can have waiting for ever, the signal ends what is there of it, and this process.
func (p *program) signal(s syscall.Signal) {
	p.Lock()
	defer p.Unlock()
	if s == finalSignal {
		s = syscall.SIGKILL
	}
	if p.executed {
		_ = syscall.Kill(p.pid, s)
		return
	}
	switch s {
	case syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return
	}
	if p.pid != 0 {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	unix.Exit(128 + int(s))
}

// admin is the capability that it takes to install the filters, if any (seccomp(2)).
func (c *child) admin() uint64 {
	if len(c.filters) > 0 && !c.noNewPrivs {
		return 1 << unix.CAP_SYS_ADMIN
	}
	return 0
}

// keep has a user who is not root keep capabilities as ambient ones, and until the program is executed what it takes to install the filters.
func (c *child) keep(ambient uint64) {
	if c.uid == 0 {
		return
	}
	c.ambient = ambient
	permitted := ambient | c.admin()
	c.keeps = permitted != 0 || c.namespaces[len(c.namespaces)-1] >= 0 // the user namespace, in which it has all
	c.header.Version = unix.LINUX_CAPABILITY_VERSION_3
	for i := range c.capabilities {
		half := uint32(permitted >> (32 * i))
		c.capabilities[i] = unix.CapUserData{Effective: half, Permitted: half, Inheritable: uint32(ambient >> (32 * i))}
	}
}

// lessen takes from this thread what neither the program nor the way there needs: root in a machine without a user namespace may trace the child as soon as it sees it, if it
// has CAP_SYS_PTRACE.
func (c *child) lessen() error {
	needed := c.bounding | c.admin() | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP
	if slices.ContainsFunc(c.namespaces, func(fd int) bool { return fd >= 0 }) {
		needed |= 1 << unix.CAP_SYS_ADMIN
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return err
	}
	for i := range has {
		has[i].Permitted &= uint32(needed >> (32 * i))
		has[i].Effective &= has[i].Permitted
		has[i].Inheritable = 0
	}
	return unix.Capset(&header, &has[0])
}

// start starts the program. A process with several threads can't join each namespace (setns(2)), so it is a child that does.
func (c *child) start(j joining) (pid int, err error) {
	paths := []string{j.argv[0]}
	if !strings.Contains(j.argv[0], "/") {
		paths = nil
		for dir := range strings.SplitSeq(getenv(j.env, "PATH"), ":") {
			paths = append(paths, filepath.Join("/", dir, j.argv[0]))
		}
	}
	if c.dir, err = syscall.BytePtrFromString(j.workdir); err != nil {
		return 0, err
	}
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
	c.failed, c.itself = int(write.Fd()), '0'
	// Package syscall raised the limit of open files at first, and lowers it before it executes something, also in vain.
	var raised unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return 0, err
	}
	_ = syscall.Exec("", nil, nil)
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &raised, &c.openFiles); err != nil {
		return 0, err
	}
	j.program.Lock()
	pid, errno := c.fork()
	j.program.pid = pid
	j.program.Unlock()
	runtime.KeepAlive(c)
	write.Close()
	if errno != 0 {
		return 0, os.NewSyscallError("fork", errno)
	}
	var reason [2]uint32
	err = binary.Read(read, binary.NativeEndian, &reason)
	j.program.Lock()
	defer j.program.Unlock()
	if err != nil { // it has become the program
		j.program.executed = true
		return pid, nil
	}
	_, _ = await(pid)
	j.program.pid = 0
	if reason[1] == joiningGroup {
		return 0, errors.New("entering the machine's control group: " + syscall.Errno(reason[0]).Error())
	}
	return 0, &os.PathError{Op: "exec", Path: printable(j.argv[0]), Err: syscall.Errno(reason[0])}
}

// fork is the child from the fork to the exec: system calls alone. As in package syscall, nothing here may grow the stack.
//
//go:noinline
//go:norace
//go:nocheckptr
func (c *child) fork() (pid int, errno syscall.Errno) {
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
	if c.group >= 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.group), uintptr(unsafe.Pointer(&c.itself)), 1); errno != 0 {
			goto failed
		}
	}
	c.reason[1] = becoming
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(c.groups))), 0); errno != 0 { // in the user namespace it may be refused
		goto failed
	}
	for i = range c.namespaces {
		if c.namespaces[i] < 0 {
			continue
		}
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(c.namespaces[i]), 0, 0); errno != 0 {
			goto failed
		}
	}
	for bit = range 64 {
		if c.bounding&(1<<bit) != 0 {
			continue
		}
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0); errno != 0 && errno != syscall.EINVAL { // the kernel has none of this number
			goto failed
		}
	}
	if c.keeps {
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); errno != 0 {
			goto failed
		}
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(c.gid), uintptr(c.gid), uintptr(c.gid)); errno != 0 {
		goto failed
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(c.uid), uintptr(c.uid), uintptr(c.uid)); errno != 0 {
		goto failed
	}
	if c.keeps {
		if _, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.header)), uintptr(unsafe.Pointer(&c.capabilities)), 0); errno != 0 {
			goto failed
		}
	}
	for bit = range 64 {
		if c.ambient&(1<<bit) == 0 {
			continue
		}
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0, 0); errno != 0 {
			goto failed
		}
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto failed
	}
	for i = range c.files { // away from where they may be in each other's way
		if n, _, errno = syscall.RawSyscall(unix.SYS_FCNTL, c.files[i], unix.F_DUPFD_CLOEXEC, 3); errno != 0 {
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
	if _, _, errno = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&c.openFiles)), 0, 0, 0); errno != 0 {
		goto failed
	}
	for i = range c.filters { // last, since they may refuse any of the above
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&c.filters[i]))); errno != 0 {
			goto failed
		}
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
	c.reason[0] = uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.failed), uintptr(unsafe.Pointer(&c.reason)), unsafe.Sizeof(c.reason))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
