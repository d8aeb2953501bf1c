package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// joining is what a process gets that is to run beside a machine's payload.
type joining struct {
	unit      string // the service whose first process it joins
	ids       string
	workdir   string
	env       []string
	bounding  uint64   // capabilities that the payload may have; of these, it gets what the machine's first process may have now
	refuse    []string // of setns and unshare, what this unit's filter of system calls lets through for joining alone
	output    *os.File
	maxOutput int64
	argv      []string
}

// joinMachine runs a program in the namespaces of a machine, never less confined than its payload: this process has the payload's filters of
// system calls and its limits from its own unit; the bounding set and no_new_privs are copied from the machine's first process, and the user
// is given. It returns the program's exit status, 128+n for a signal.
//
// Nothing is executed in the machine but the program. This process can't be traced from there, and its executable has to be on a mount that is
// read-only: root in the machine might otherwise write to it through /proc/PID/exe between fork and exec.
func joinMachine(j joining) (status int, err error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	leader, err := findLeader(j.unit)
	if err != nil {
		return 0, err
	}
	defer leader.close()
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	// In the end only this thread is in the machine, and it ends with the process.
	started := make(chan error, 1)
	var pid int
	go func() {
		runtime.LockOSThread()
		var err error
		pid, err = leader.run(j, []uintptr{null.Fd(), write.Fd(), write.Fd()})
		write.Close()
		started <- err
		select {}
	}()
	if err := <-started; err != nil {
		return 0, err
	}
	output := j.output
	if _, err := io.Copy(output, io.LimitReader(read, j.maxOutput)); err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, read)
	var ws syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &ws, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// leader is a machine's first process.
type leader struct {
	pid, fd    int
	started    string // clock ticks since boot, as /proc/PID/stat has it
	bounding   uint64
	noNewPrivs bool
	seccomp    bool
}

var errNoMachine = errors.New("the machine does not run")

func (l *leader) close() { unix.Close(l.fd) }

// findLeader finds the first process in the control group of a service that is in the same slice as this process: the one with number 1 in a
// PID namespace just below ours, or else the oldest.
func findLeader(unit string) (*leader, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	_, group, _ := strings.Cut("\n"+string(self), "\n0::")
	group, _, _ = strings.Cut(group, "\n")
	if i := strings.LastIndex(group, ".slice/"); i >= 0 {
		group = group[:i+len(".slice")]
	} else {
		group = ""
	}
	var pids []int
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} { // the second with control groups of version 1
		pids = groupProcesses(filepath.Join(hierarchy, group, unit), pids)
	}
	var found *leader
	for _, pid := range pids {
		l, first := openLeader(pid, unit)
		if l == nil {
			continue
		}
		if !first && found != nil && !older(l, found) {
			l.close()
			continue
		}
		if found != nil {
			found.close()
		}
		found = l
		if first {
			break
		}
	}
	if found == nil {
		return nil, errNoMachine
	}
	return found, nil
}

func older(a, b *leader) bool {
	x, _ := strconv.ParseUint(a.started, 10, 64)
	y, _ := strconv.ParseUint(b.started, 10, 64)
	return x < y
}

// groupProcesses adds the processes of a control group and of those below, but for the manager's own commands.
func groupProcesses(dir string, pids []int) []int {
	list, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, s := range strings.Fields(string(list)) {
		if pid, err := strconv.Atoi(s); err == nil {
			pids = append(pids, pid)
		}
	}
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != ".control" && len(pids) < 1<<16 {
			pids = groupProcesses(filepath.Join(dir, entry.Name()), pids)
		}
	}
	return pids
}

// openLeader reads what a process is confined to. A descriptor is opened first: what is read is that process's for as long as it lives, and
// not that of another with its number.
func openLeader(pid int, unit string) (l *leader, first bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	l = &leader{pid: pid, fd: fd}
	dir := "/proc/" + strconv.Itoa(pid)
	group, _ := os.ReadFile(dir + "/cgroup")
	status, _ := os.ReadFile(dir + "/status")
	stat, _ := os.ReadFile(dir + "/stat")
	known := false
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		switch name {
		case "NSpid":
			numbers := strings.Split(value, "\t")
			first = len(numbers) == 2 && numbers[1] == "1"
		case "CapBnd":
			l.bounding, err = strconv.ParseUint(value, 16, 64)
			known = err == nil
		case "NoNewPrivs":
			l.noNewPrivs = value == "1"
		case "Seccomp":
			l.seccomp = value == "2"
		}
	}
	// The name before it may have spaces and brackets: what counts follows the last bracket.
	if fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(fields) > 19 {
		l.started = fields[19]
	}
	if !known || l.started == "" || !strings.Contains(string(group)+"/", "/"+unit+"/") && !strings.Contains(string(group), "/"+unit+"\n") ||
		unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		l.close()
		return nil, false
	}
	return l, first
}

// run moves this thread into the machine, gives up what the payload does not have either, and starts the program from there.
func (l *leader) run(j joining, files []uintptr) (pid int, err error) {
	if same, err := sameUserNamespace(l.pid); err != nil || !same {
		return 0, errors.Join(err, errors.New("the machine has a user namespace of its own, which can't be joined"))
	}
	// A thread that shares its root and directory with others can't change the mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, os.NewSyscallError("unshare", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(l.fd, all); err != nil {
		return 0, os.NewSyscallError("setns", err)
	}
	if l.noNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, err
		}
	}
	for _, call := range j.refuse {
		if err := refuse(call); err != nil {
			return 0, err
		}
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); l.seccomp && (err != nil || mode != 2) {
		return 0, errors.New("its unit has no filter of system calls, and the payload has one")
	}
	if err := setBounding(l.bounding & j.bounding); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return 0, err
	}
	ids, err := parseIDs(j.ids)
	if err != nil {
		return 0, err
	}
	attributes := &syscall.ProcAttr{Dir: j.workdir, Env: j.env, Files: files, Sys: &syscall.SysProcAttr{
		Setsid: true, Credential: &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]},
	}}
	path := j.argv[0]
	if strings.Contains(path, "/") {
		pid, err = syscall.ForkExec(path, j.argv, attributes)
	} else {
		err = syscall.ENOENT
		for dir := range strings.SplitSeq(getenv(j.env, "PATH"), ":") {
			var tried error
			if pid, tried = syscall.ForkExec(filepath.Join("/", dir, path), j.argv, attributes); tried == nil {
				return pid, nil
			} else if tried != syscall.ENOENT && tried != syscall.ENOTDIR {
				err = tried
			}
		}
	}
	if err != nil {
		err = &os.PathError{Op: "exec", Path: path, Err: err}
	}
	return pid, err
}

func sameUserNamespace(pid int) (bool, error) {
	var ours, its unix.Stat_t
	err := errors.Join(unix.Stat("/proc/self/ns/user", &ours), unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/user", &its))
	return ours.Ino == its.Ino, err
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if value, found := strings.CutPrefix(e, name+"="); found {
			return value
		}
	}
	return ""
}
