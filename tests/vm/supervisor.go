package vm

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stateDir has one directory for each lab, whose supervisor holds its flock: a directory without one is a dead lab's.
const stateDir = "/run/nspawnd-lab"

const cgroupPrefix = "nspawnd-lab-"

// order is what a supervisor is asked for; its one argument.
type order struct {
	Name     string
	Suite    Suite
	Root     string
	Bound    bool // to the life of whoever holds the other end of descriptor 4
	Copies   map[string]string
	ReadOnly map[string]string
}

// state is what a supervisor reports, on its file descriptor 3 and as state.json for who comes later.
type state struct {
	Name       string
	Suite      Suite
	Supervisor int    // process id
	Leader     int    // process id of the lab's PID 1, here
	Cgroup     string // path on the host
	Copies     map[string]string
	Error      string `json:",omitempty"` // the lab is not there, and this is why
}

func (s state) dir() string { return filepath.Join(stateDir, s.Name) }

// supervise boots a lab, reports on descriptor 3, lives until it is told to stop by SIGTERM or, if the lab is bound, until descriptor 4
// ends (its other end is the starter's, and closes however the starter ends), and removes the lab.
func supervise(args []string) error {
	report := os.NewFile(3, "report")
	err := superviseLab(args, report)
	if err != nil && json.NewEncoder(report).Encode(state{Error: err.Error()}) == nil {
		return nil // the starter says it
	}
	return err
}

func superviseLab(args []string, report *os.File) (err error) {
	unix.CloseOnExec(3)
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)

	var o order
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	dir := filepath.Join(stateDir, o.Name)
	unlock, err := claim(dir)
	if err != nil {
		return err
	}
	defer unlock()
	defer func() { err = errors.Join(err, removeLab(dir)) }()
	// A root in use is not removed from the cache.
	root, err := os.Open(o.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Flock(int(root.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w", o.Root, err)
	}

	s := state{Name: o.Name, Suite: o.Suite, Supervisor: os.Getpid(), Copies: o.Copies}
	if s.Cgroup, err = makeCgroup(cgroupPrefix + o.Name); err != nil {
		return fmt.Errorf("making the lab's cgroup: %w", err)
	}

	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	console, terminal, err := openTerminal("/dev/ptmx")
	if err != nil {
		return fmt.Errorf("opening a console: %w", err)
	}
	defer console.Close()
	defer terminal.Close()
	log, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		return err
	}
	defer log.Close()
	go log.ReadFrom(console)

	mountpoint := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		return err
	}
	disk := labDisk(dir)
	if err := os.MkdirAll(disk, 0o700); err != nil {
		return err
	}
	id := make([]byte, 16)
	rand.Read(id)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // a version 4 UUID, or systemd takes another one
	input, err := json.Marshal(plan{
		Suite: o.Suite, Root: o.Root, State: mountpoint, Disk: disk, Console: terminal.Name(), Notify: filepath.Join(dir, "notify"),
		Copies: o.Copies, ReadOnly: o.ReadOnly, MachineID: hex.EncodeToString(id),
	})
	if err != nil {
		return err
	}

	group, err := os.Open(s.Cgroup)
	if err != nil {
		return err
	}
	defer group.Close()
	var complaint bytes.Buffer
	leader := stage("init")
	leader.Env = []string{}
	leader.Stdin = bytes.NewReader(input)
	leader.Stderr = &complaint
	leader.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		// This goroutine is locked to the main thread, so the signal comes with the end of the process, not of a thread.
		Pdeathsig:   syscall.SIGKILL,
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	if err := leader.Start(); err != nil {
		return fmt.Errorf("cloning the lab's namespaces: %w", err)
	}
	s.Leader = leader.Process.Pid
	gone := make(chan error, 1)
	go func() { gone <- leader.Wait() }()
	defer func() {
		// The kernel ends the namespace's other processes before wait(2) returns its PID 1.
		leader.Process.Kill()
		<-gone
	}()

	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notify) }()
	ended := make(chan struct{})
	if o.Bound {
		unix.CloseOnExec(4)
		life := os.NewFile(4, "life")
		go func() {
			life.Read(make([]byte, 1))
			close(ended)
		}()
	}
	explain := func(what string) error {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s\n%s", what, tail(strings.ReplaceAll(string(text), "\r", ""), 30))
	}
	select {
	case err := <-ready:
		if err != nil {
			return err
		}
	case err := <-gone:
		gone <- err
		return explain(fmt.Sprintf("the lab's PID 1 ended while it booted: %v\n%s", err, complaint.String()))
	case <-time.After(bootTimeout):
		return explain(fmt.Sprintf("the lab has not booted after %s", bootTimeout))
	case <-stop:
		return nil
	case <-ended:
		return nil
	}

	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "state.json"), data, 0o644); err != nil {
		return err
	}
	if _, err := report.Write(append(data, '\n')); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	report.Close()
	select {
	case err := <-gone:
		gone <- err
		return explain(fmt.Sprintf("the lab's PID 1 ended: %v", err))
	case <-stop:
	case <-ended:
	}
	return nil
}

const bootTimeout = 60 * time.Second

// awaitReady returns when PID 1 says that the boot's jobs are done (systemd(1), $NOTIFY_SOCKET). What PID 1 says later is read too: it waits
// when nobody does, and with it all of the lab.
func awaitReady(notify *net.UnixConn) error {
	buffer := make([]byte, 4096)
	for {
		n, err := notify.Read(buffer)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(buffer[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				go io.Copy(io.Discard, notify)
				return nil
			}
		}
	}
}

// claim makes a lab's state directory and holds its flock, after it has removed what dead labs left. The names of living labs
// are taken.
func claim(dir string) (release func(), err error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	// A directory that was made and is not locked yet is no dead lab: one lock over both.
	lock, err := lockFile(filepath.Join(stateDir, ".lock"))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	sweep()
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("a lab named %s is running", filepath.Base(dir))
	} else if err != nil {
		return nil, err
	}
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { file.Close() }, nil
}

// removeLeft removes a lab whose supervisor was killed; dir is its state directory, open and locked. One that cleaned up itself left nothing.
func removeLeft(dir *os.File) error {
	lock, err := lockFile(filepath.Join(stateDir, ".lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	ours, err := dir.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Stat(dir.Name()); err != nil || !os.SameFile(ours, there) {
		return nil // it is gone, or another lab has the name now
	}
	return removeLab(dir.Name())
}

// sweep removes what labs with a killed supervisor left: directories that nobody holds a flock of.
func sweep() {
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		dir := filepath.Join(stateDir, entry.Name())
		file, err := os.Open(dir)
		if err != nil || !entry.IsDir() {
			continue
		}
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeLab(dir)
		}
		file.Close()
	}
}

// removeLab removes what a lab has on the host. Its mounts went with its mount namespace.
func removeLab(dir string) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	if err := removeCgroup(filepath.Join(root, cgroupPrefix+filepath.Base(dir))); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(labDisk(dir)), os.RemoveAll(dir))
}

// labDisk is the directory for what a lab needs a disk for. It is in the cache, which is on one.
func labDisk(dir string) string { return filepath.Join(CacheDir(), ".disk", filepath.Base(dir)) }

// openTerminal opens a new pseudo-terminal by this ptmx.
func openTerminal(ptmx string) (controller, terminal *os.File, err error) {
	controller, err = os.OpenFile(ptmx, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(controller.Fd())
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		controller.Close()
		return nil, nil, err
	}
	return controller, terminal, nil
}
