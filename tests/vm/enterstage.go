package vm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// enterStage runs a command in a lab: args are the lab's leader, its cgroup, the program and its arguments. The environment is the command's. It
// hands on its standard streams as they are, or a new terminal of the lab where both input and output are a terminal; it forwards signals and ends
// with the command's status, or 128 and the number of the signal that ended it.
func enterStage(args []string) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if len(args) < 3 {
		return errors.New("usage: LEADER CGROUP PROGRAM [ARG...]")
	}
	leader, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	group, err := enter(leader, args[1])
	if err != nil {
		return fmt.Errorf("entering the lab: %w", err)
	}
	// SIGKILL cannot be forwarded: the kernel sends it when we are gone. By setpriv, since Go's own Pdeathsig takes a parent in another PID
	// namespace for a dead one and kills the child at once.
	argv := append([]string{"setpriv", "--pdeathsig", "KILL", "--"}, args[2:]...)
	attributes := &os.ProcAttr{
		Dir:   "/root",
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Setsid:      true, // a terminal's signals come to us and are forwarded once, not to both
			UseCgroupFD: true,
			CgroupFD:    int(group.Fd()),
		},
	}
	finish := func() {}
	if term.IsTerminal(0) && term.IsTerminal(1) {
		if finish, err = relayTerminal(attributes, signals); err != nil {
			return fmt.Errorf("opening a terminal in the lab: %w", err)
		}
	}
	process, err := os.StartProcess("/usr/bin/setpriv", argv, attributes)
	if err != nil {
		finish()
		return err
	}
	if attributes.Files[0] == os.Stdin {
		// The command alone decides when its streams end.
		null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
		if err == nil {
			for fd := range 3 {
				unix.Dup3(int(null.Fd()), fd, 0)
			}
		}
	} else {
		attributes.Files[0].Close()
	}
	go func() {
		for s := range signals {
			// SIGURG is how Go's scheduler interrupts a thread.
			if s != syscall.SIGCHLD && s != syscall.SIGURG && s != syscall.SIGPIPE {
				process.Signal(s)
			}
		}
	}()
	result, err := process.Wait()
	finish()
	if err != nil {
		return err
	}
	status := result.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		// As a shell says it. Not by the same signal: Go's runtime keeps some of them for itself.
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
	return nil
}

// enter joins this thread to all namespaces of a lab and gives the cgroup for the command.
func enter(leader int, cgroup string) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(leader, 0)
	if err != nil {
		return nil, fmt.Errorf("PID 1: %w", err)
	}
	defer unix.Close(pidfd)
	if !inCgroup(leader, cgroup) {
		return nil, errors.New("it has ended")
	}
	group, err := os.Open(filepath.Join(cgroup, labShellCgroup))
	if errors.Is(err, fs.ErrNotExist) {
		group, err = os.Open(filepath.Join(cgroup, "init.scope")) // not booted yet
	}
	if err != nil {
		return nil, err
	}
	// Into the tree before its namespace is entered: where cgroup2 is mounted with nsdelegate, a namespace's processes can't come from outside. Not
	// into the unit's group, where systemd would see a process without a number.
	waiting := filepath.Join(cgroup, "enter")
	if err := os.Mkdir(waiting, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(waiting, "cgroup.procs"), []byte("0"), 0); err != nil {
		return nil, err
	}
	// A thread that shares its working directory and root with others can't change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, err
	}
	all := unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	if err := unix.Setns(pidfd, all); err != nil {
		return nil, err
	}
	return group, nil
}

// relayTerminal gives the command a terminal of the lab as its controlling one, and connects it with ours.
func relayTerminal(attributes *os.ProcAttr, signals chan os.Signal) (finish func(), err error) {
	controller, terminal, err := openTerminal("/dev/ptmx")
	if err != nil {
		return nil, err
	}
	fd := int(controller.Fd())
	resize := func() {
		if size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
			unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size)
		}
	}
	resize()
	before, err := term.MakeRaw(0)
	if err != nil {
		controller.Close()
		terminal.Close()
		return nil, err
	}
	attributes.Files = []*os.File{terminal, terminal, terminal}
	attributes.Sys.Setctty = true
	attributes.Sys.Ctty = 0

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	go func() {
		for range resized {
			resize()
		}
	}()
	go io.Copy(controller, os.Stdin)
	drained := make(chan struct{})
	go func() {
		io.Copy(os.Stdout, controller) // to EIO: the last process has closed the terminal
		close(drained)
	}()
	return func() {
		terminal.Close()
		select {
		case <-drained:
		case <-time.After(time.Second): // a background process still has it open
		}
		term.Restore(0, before)
	}, nil
}
