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
	leader   string // or that process: its PID, a colon, and when it started, as in /proc/PID/stat
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
	program  *program
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

// joinMachine runs a program in the namespaces of a machine, never less confined than its first process, unless that is wanted. For a machine of nspawnd this process has
// the filters of system calls and the limits from its own unit; the filters of another are read from its first process. The bounding set and no_new_privs are copied
// from that, and the user is given.
//
// Nothing is executed in the machine but the program. This process can't be traced from there, and its executable has to be on a mount that is
// read-only: root in the machine might otherwise write to it through /proc/PID/exe between fork and exec.
func joinMachine(j joining) (pid int, err error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	leader, err := j.findLeader()
	if err != nil {
		return 0, err
	}
	defer leader.close()
	// In the end only this thread is in the machine, and it ends with the process.
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		pid, err = leader.run(j)
		started <- err
		select {}
	}()
	var program *os.PathError
	if err = <-started; err != nil && !(errors.As(err, &program) && program.Op == "exec") && leader.ended() {
		err = errNoMachine
	}
	return pid, err
}

// openGroup opens what has a process enter the control group of the machine's first process. This process does not: from inside the machine it could be frozen, or killed,
// and would not tell how the program ended.
func (l *leader) openGroup() (*os.File, error) {
	file, err := os.OpenFile(filepath.Join("/sys/fs/cgroup", l.group, "cgroup.procs"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) { // with control groups of version 1
		file, err = os.OpenFile(filepath.Join("/sys/fs/cgroup/unified", l.group, "cgroup.procs"), os.O_WRONLY, 0)
	}
	return file, err
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
	first      bool   // number 1 in a PID namespace just below ours
	started    string // clock ticks since boot, as /proc/PID/stat has it
	group      string // its control group
	bounding   uint64
	noNewPrivs bool
	seccomp    bool
}

var errNoMachine = errors.New("the machine does not run")

func (l *leader) close() { unix.Close(l.fd) }

// ended says whether it has ended, or does so: its files are gone a moment before.
func (l *leader) ended() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 100)
	return err == nil && n > 0
}

// findLeader finds the machine's first process: the one that is named, or in the control group of a service that is in the same slice as this process
// the one with number 1 in a PID namespace just below ours, or else the oldest.
func (j joining) findLeader() (*leader, error) {
	if j.leader != "" {
		number, started, _ := strings.Cut(j.leader, ":")
		pid, err := strconv.Atoi(number)
		if err != nil {
			return nil, errors.New("bad process " + strconv.Quote(j.leader))
		}
		l := openLeader(pid)
		switch {
		case l == nil:
			return nil, errNoMachine
		case l.started != started: // another with its number
			l.close()
			return nil, errNoMachine
		}
		return l, nil
	}
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
		pids = groupProcesses(filepath.Join(hierarchy, group, j.unit), pids)
	}
	var found *leader
	for _, pid := range pids {
		l := openLeader(pid)
		if l == nil {
			continue
		}
		if !strings.Contains(l.group+"/", "/"+j.unit+"/") || !l.first && found != nil && !older(l, found) {
			l.close()
			continue
		}
		if found != nil {
			found.close()
		}
		if found = l; l.first {
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

// openLeader reads what a process is confined to, if it lives. A descriptor is opened first: what is read is that process's for as long as it lives, and
// not that of another with its number.
func openLeader(pid int) *leader {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	l := &leader{pid: pid, fd: fd}
	group, _ := os.ReadFile(l.file("cgroup"))
	status, _ := os.ReadFile(l.file("status"))
	stat, _ := os.ReadFile(l.file("stat"))
	l.group = unifiedGroup(group)
	known := false
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		switch name {
		case "NSpid":
			numbers := strings.Split(value, "\t")
			l.first = len(numbers) == 2 && numbers[1] == "1"
		case "CapBnd":
			l.bounding, err = strconv.ParseUint(value, 16, 64)
			known = err == nil
		case "NoNewPrivs":
			l.noNewPrivs = value == "1"
		case "Seccomp":
			l.seccomp = value != "0"
		}
	}
	// The name before it may have spaces and brackets: what counts follows the last bracket.
	if fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(fields) > 19 {
		l.started = fields[19]
	}
	if !known || l.started == "" || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		l.close()
		return nil
	}
	return l
}

// file gives the path of one of its files below /proc.
func (l *leader) file(name string) string { return "/proc/" + strconv.Itoa(l.pid) + "/" + name }

// run moves this thread into the machine and starts the program from there, which gives up what the payload does not have either.
func (l *leader) run(j joining) (pid int, err error) {
	var filters []unix.SockFprog
	for _, call := range j.refuse {
		filter, err := refusal(call)
		if err != nil {
			return 0, err
		}
		filters = append(filters, filter)
	}
	if j.leader != "" {
		if j.env, err = l.environment(j.env); err != nil {
			return 0, err
		}
	}
	switch {
	case j.more:
	case j.leader == "":
		if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); l.seccomp && (err != nil || mode != 2) {
			return 0, errors.New("its unit has no filter of system calls, and the payload has one")
		}
	default:
		if filters, err = l.confinement(); err != nil {
			return 0, err
		}
	}
	var alone []int // namespaces that a process with a single thread can join
	for _, kind := range []string{"time", "user"} {
		namespace, err := l.otherNamespace(kind)
		if err != nil {
			return 0, err
		}
		alone = append(alone, namespace)
	}
	group := -1
	if !j.beside {
		file, err := l.openGroup()
		if err != nil {
			return 0, errors.New("opening the machine's control group: " + err.Error())
		}
		defer file.Close()
		group = int(file.Fd())
	}
	groupMap, err := os.ReadFile(l.file("gid_map"))
	if err != nil {
		return 0, err
	}
	root, err := unix.Open(l.file("root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
	noNewPrivs := l.noNewPrivs && !j.more
	if noNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, err
		}
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
		return 0, &os.PathError{Op: "exec", Path: "working directory " + printable(j.workdir), Err: errors.Unwrap(err)}
	}
	groups, err := outside(groupMap, ids[2:])
	if err != nil {
		return 0, err
	}
	c := &child{group: group, namespaces: alone, bounding: bounding, filters: filters, noNewPrivs: noNewPrivs, uid: ids[0], gid: ids[1], groups: groups, files: j.files, terminal: j.terminal}
	c.keep(j.ambient & bounding)
	if err := c.lessen(); err != nil {
		return 0, os.NewSyscallError("capset", err)
	}
	return c.start(j)
}

// printable quotes what a machine named if that could steer a terminal.
func printable(s string) string {
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

// outside gives what groups of a user namespace are in ours (user_namespaces(7)).
func outside(idMap []byte, groups []uint32) (mapped []uint32, err error) {
	for _, group := range groups {
		found := false
		for line := range strings.Lines(string(idMap)) {
			var numbers [3]uint64
			for i, field := range strings.Fields(line) {
				numbers[i], err = strconv.ParseUint(field, 10, 32)
			}
			if g := uint64(group); err == nil && g >= numbers[0] && g-numbers[0] < numbers[2] {
				mapped, found = append(mapped, uint32(g-numbers[0]+numbers[1])), true
			}
		}
		if !found {
			return nil, errors.New("its user namespace has no group " + strconv.Itoa(int(group)))
		}
	}
	return mapped, nil
}

// otherNamespace gives a descriptor of a namespace of the process, or -1 if this process is in it too, or the kernel has none of the kind.
func (l *leader) otherNamespace(kind string) (fd int, err error) {
	var ours, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/ns/"+kind, &ours), unix.Stat(l.file("ns/"+kind), &its)); err != nil || ours.Ino == its.Ino {
		if errors.Is(err, unix.ENOENT) && kind == "time" {
			err = nil
		}
		return -1, err
	}
	fd, err = unix.Open(l.file("ns/"+kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("open", err)
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

func getenv(env []string, name string) string {
	for _, e := range env {
		if value, found := strings.CutPrefix(e, name+"="); found {
			return value
		}
	}
	return ""
}
