package main

import (
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confinement gives a process's filters of system calls. One that a security module confines in another way than this process is refused: by a profile of AppArmor, a context
// of SELinux.
func (l *leader) confinement() (filters []unix.SockFprog, err error) {
	ours, _ := os.ReadFile("/proc/self/attr/current") // without such a module there is nothing to read
	its, _ := os.ReadFile(l.file("attr/current"))
	if string(ours) != string(its) && !strings.HasPrefix(string(its), "unconfined") {
		return nil, errors.New("its first process is confined by the security module's " + printable(strings.TrimRight(string(its), "\n\x00")) + ", which can't be given to a process beside it")
	}
	if l.seccomp {
		if filters, err = l.filters(); err != nil {
			err = errors.New("reading its filter of system calls: " + err.Error())
		}
	}
	return filters, err
}

// environment gives what a process was started with (proc_pid_environ(5)) and lays variables over that.
func (l *leader) environment(over []string) ([]string, error) {
	file, err := os.Open(l.file("environ"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxEnvironment))
	if err != nil {
		return nil, err
	}
	env := append([]string{"PATH=" + defaultPath}, strings.Split(string(text), "\x00")...)
	merged := map[string]string{}
	for _, assignment := range env {
		if name, value, assigned := strings.Cut(assignment, "="); assigned && !slices.Contains(ofItsManager, name) {
			merged[name] = value
		}
	}
	for _, assignment := range over {
		name, value, _ := strings.Cut(assignment, "=")
		merged[name] = value
	}
	env = env[:0]
	for name, value := range merged {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env, nil
}

// maxEnvironment is more than the kernel passes to a program (execve(2)).
const maxEnvironment = 8 << 20

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ofItsManager are variables that tell a process of its manager, and of its own part there (systemd.exec(5), "Environment variables in spawned processes"), or of its terminal.
var ofItsManager = []string{"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", "MAINPID", "MANAGERPID",
	"MANAGERPIDFDID", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "TERM"}

// attachTime is how long a process may take until a tracer can look at it: one that waits for a disk, or is frozen, does not answer.
const attachTime = 5 * time.Second

// filters reads a process's filters of system calls, the oldest first (ptrace(2), PTRACE_SECCOMP_GET_FILTER). It is stopped for less than a millisecond meanwhile,
// which it may notice by a system call that is interrupted, as by any stop (signal(7)).
func (l *leader) filters() (filters []unix.SockFprog, err error) {
	runtime.LockOSThread() // whose tracee it becomes
	defer runtime.UnlockOSThread()
	signal, err := l.stop()
	if err != nil {
		return nil, err
	}
	defer func() {
		_, detachErr := ptrace(unix.PTRACE_DETACH, l.pid, 0, uintptr(signal))
		err = errors.Join(err, detachErr)
	}()
	for i := uintptr(0); ; i++ {
		length, err := ptrace(unix.PTRACE_SECCOMP_GET_FILTER, l.pid, i, 0)
		switch {
		case err == unix.ENOENT:
			return filters, nil
		case err != nil:
			return nil, err
		}
		program := make([]unix.SockFilter, length)
		_, err = ptrace(unix.PTRACE_SECCOMP_GET_FILTER, l.pid, i, uintptr(unsafe.Pointer(&program[0])))
		runtime.KeepAlive(program)
		if err != nil {
			return nil, err
		}
		filters = append([]unix.SockFprog{{Len: uint16(length), Filter: &program[0]}}, filters...)
	}
}

// stop attaches to a process and has it stop. It gives the signal that it was about to get, to be handed on, or 0.
func (l *leader) stop() (signal syscall.Signal, err error) {
	deadline := time.Now().Add(attachTime)
	for { // a process has one tracer, maybe a launcher like this
		if _, err = ptrace(unix.PTRACE_SEIZE, l.pid, 0, 0); err == nil {
			break
		}
		status, _ := os.ReadFile(l.file("status"))
		_, after, _ := strings.Cut(string(status), "\nTracerPid:\t")
		tracer, _, _ := strings.Cut(after, "\n")
		switch {
		case err == unix.ESRCH:
			return 0, errNoMachine
		case err != unix.EPERM || tracer == "":
			return 0, err
		case time.Now().After(deadline) && tracer != "0":
			return 0, errors.New("its first process is traced by process " + tracer)
		case time.Now().After(deadline):
			return 0, err
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := ptrace(unix.PTRACE_INTERRUPT, l.pid, 0, 0); err != nil {
		return 0, err
	}
	for ; ; time.Sleep(time.Millisecond) {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(l.pid, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err != nil && err != syscall.EINTR:
			return 0, os.NewSyscallError("wait", err)
		case pid == l.pid && !status.Stopped():
			return 0, errNoMachine
		case pid == l.pid && status>>16 != 0: // by the call above, or stopped before
			return 0, nil
		case pid == l.pid:
			return status.StopSignal(), nil
		case time.Now().After(deadline):
			return 0, errors.New("its first process does not answer") // the end of this one lets go of it
		}
	}
}

func ptrace(request, pid int, addr, data uintptr) (uintptr, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}
