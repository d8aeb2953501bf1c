package main

import (
	"errors"
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
	unit     string // the service whose first process it joins
	ids      string
	workdir  string
	env      []string
	bounding uint64   // capabilities that the payload may have; of these, it gets what the machine's first process may have now
	ambient  uint64   // of these, those that it has without being root
	refuse   []string // system calls that this unit's filter lets through for joining alone
	argv     []string

	files    []uintptr // its standard input, output and error
	terminal bool      // the first of which is to be its controlling terminal
	beside   bool      // in this process's control group, not in the machine's
	more     bool      // with all capabilities and without no_new_privs
}

// read takes the options up to "--", those that own does not know, and the program's arguments after it. The directory, variables and arguments are in
// Go's quotes.
func (j *joining) read(args []string, own func(option, value string) bool) {
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		if option, value, _ := strings.Cut(args[0], "="); !own(option, value) {
			j.parse(option, value)
		}
	}
	if len(args) < 2 {
		fail(ownError, "no program given")
	}
	for _, arg := range args[1:] {
		j.argv = append(j.argv, unquote(arg))
	}
}

func (j *joining) parse(option, value string) {
	switch option {
	case "--ids":
		j.ids = value
	case "--workdir":
		j.workdir = unquote(value)
	case "--env":
		j.env = append(j.env, unquote(value))
	case "--bounding":
		j.bounding = parseMask(value)
	case "--ambient":
		j.ambient = parseMask(value)
	case "--refuse":
		j.refuse = append(j.refuse, value)
	default:
		fail(ownError, "unknown argument "+strconv.Quote(option))
	}
}

// joinMachine runs a program in the namespaces of a machine, never less confined than its payload, unless that is wanted: this process has the payload's filters of
// system calls and its limits from its own unit; the bounding set and no_new_privs are copied from the machine's first process, and the user
// is given.
//
// Nothing is executed in the machine but the program. This process can't be traced from there, and its executable has to be on a mount that is
// read-only: root in the machine might otherwise write to it through /proc/PID/exe between fork and exec.
func joinMachine(j joining) (pid int, err error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	leader, err := findLeader(j.unit)
	if err != nil {
		return 0, err
	}
	defer leader.close()
	back := func() error { return nil }
	if !j.beside {
		if back, err = leader.enterGroup(); err != nil {
			return 0, errors.New("entering the machine's control group: " + err.Error())
		}
	}
	// In the end only this thread is in the machine, and it ends with the process.
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		pid, err = leader.run(j)
		started <- err
		select {}
	}()
	err = <-started
	return pid, errors.Join(err, back())
}

// enterGroup moves this process into the control group of the machine's first process, so that what it starts is there from its first
// instruction on. back moves it to where it was: what ends the machine need not end this process, which is to tell how the program ended.
func (l *leader) enterGroup() (back func() error, err error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	open := func(group string) (*os.File, error) {
		file, err := os.OpenFile(filepath.Join("/sys/fs/cgroup", group, "cgroup.procs"), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) { // with control groups of version 1
			file, err = os.OpenFile(filepath.Join("/sys/fs/cgroup/unified", group, "cgroup.procs"), os.O_WRONLY, 0)
		}
		return file, err
	}
	from, err := open(unifiedGroup(own))
	if err != nil {
		return nil, err
	}
	to, err := open(l.group)
	if err != nil {
		from.Close()
		return nil, err
	}
	defer to.Close()
	if _, err := to.WriteString("0"); err != nil {
		from.Close()
		return nil, err
	}
	return func() error {
		defer from.Close()
		_, err := from.WriteString("0")
		return err
	}, nil
}

// unifiedGroup gives the control group of version 2 that a process's cgroup file names.
func unifiedGroup(file []byte) string {
	_, group, _ := strings.Cut("\n"+string(file), "\n0::")
	group, _, _ = strings.Cut(group, "\n")
	return group
}

// await waits for a program's end and gives its exit status, 128+n for a signal.
func await(pid int) (status int, err error) {
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
	group      string // its control group
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
	group := unifiedGroup(self)
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
	l.group = unifiedGroup(group)
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
func (l *leader) run(j joining) (pid int, err error) {
	users := -1 // the machine's user namespace, if that is not ours
	if same, err := sameUserNamespace(l.pid); err != nil {
		return 0, err
	} else if !same {
		if users, err = unix.Open("/proc/"+strconv.Itoa(l.pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return 0, os.NewSyscallError("open", err)
		}
	}
	root, err := unix.Open("/proc/"+strconv.Itoa(l.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("open", err)
	}
	// A thread that shares its root and directory with others can't change the mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, os.NewSyscallError("unshare", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(l.fd, all); err != nil {
		return 0, os.NewSyscallError("setns", err)
	}
	if err := enterRoot(root); err != nil {
		return 0, os.NewSyscallError("chroot", err)
	}
	if l.noNewPrivs && !j.more {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, err
		}
	}
	var filters []unix.SockFprog
	for _, call := range j.refuse {
		filter, err := refusal(call)
		if err != nil {
			return 0, err
		}
		filters = append(filters, filter)
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); l.seccomp && !j.more && (err != nil || mode != 2) {
		return 0, errors.New("its unit has no filter of system calls, and the payload has one")
	}
	bounding := l.bounding & j.bounding
	if j.more {
		bounding = ^uint64(0)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return 0, err
	}
	ids, err := parseIDs(j.ids)
	if err != nil {
		return 0, err
	}
	if _, err := os.Stat(j.workdir); err != nil {
		return 0, &os.PathError{Op: "exec", Path: "working directory " + j.workdir, Err: errors.Unwrap(err)}
	}
	if users >= 0 {
		return forkIntoUsers(users, j, bounding, ids, filters)
	}
	for i := range filters {
		if err := install(&filters[i]); err != nil {
			return 0, err
		}
	}
	if err := setBounding(bounding); err != nil {
		return 0, err
	}
	var ambient []uintptr
	for bit := range 64 {
		if j.ambient&l.bounding&(1<<bit) != 0 && ids[0] != 0 {
			ambient = append(ambient, uintptr(bit))
		}
	}
	attributes := &syscall.ProcAttr{Dir: j.workdir, Env: j.env, Files: j.files, Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: j.terminal, Credential: &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, AmbientCaps: ambient,
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

// enterRoot makes a directory the root, unless it is: a service without a mount namespace of its own has a root directory all the same.
func enterRoot(fd int) error {
	var its, now unix.Statx_t
	const what = unix.STATX_INO | unix.STATX_MNT_ID
	if err := errors.Join(unix.Statx(fd, "", unix.AT_EMPTY_PATH, what, &its), unix.Statx(unix.AT_FDCWD, "/", 0, what, &now)); err != nil {
		return err
	}
	if its.Ino == now.Ino && its.Mnt_id == now.Mnt_id {
		return nil
	}
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	return unix.Chroot(".")
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
