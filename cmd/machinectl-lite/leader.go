package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nspawnd/cmd/internal/launcher"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"
)

// leader is a machine's first process: its directory below /proc, and a handle on its root directory. What is read from the former is of this process, or fails when it has
// ended, also when another has its number then.
type leader struct {
	pid       uint32
	dir, root *os.File
}

// openLeader opens the first process of a unit.
func openLeader(u dbus.Unit) (*leader, error) {
	if u.MainPID == 0 {
		return nil, errEnded
	}
	l := &leader{pid: u.MainPID}
	var err error
	if l.dir, err = os.Open("/proc/" + strconv.Itoa(int(l.pid))); err != nil {
		return nil, ofFirst(err)
	}
	group, err := l.read("cgroup")
	if err == nil && !strings.Contains(group+"/", u.ControlGroup) {
		err = errEnded
	}
	if err == nil {
		l.root, err = os.OpenFile(l.path("root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		l.dir.Close()
		return nil, ofFirst(err)
	}
	return l, nil
}

var errEnded = errors.New("its first process has ended")

// ofFirst says what an error is about, or that there is no such process any more: then its files are gone, or can't be read.
func ofFirst(err error) error {
	if errors.Is(err, errEnded) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return errEnded
	}
	return fmt.Errorf("its first process: %w", err)
}

func (l *leader) close() {
	l.root.Close()
	l.dir.Close()
}

func (l *leader) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", l.dir.Fd(), name)
}

// maxProcFile bounds what is read: more than the kernel passes to a program (execve(2)).
const maxProcFile = 8 << 20

func (l *leader) read(name string) (string, error) {
	file, err := os.Open(l.path(name))
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxProcFile))
	return string(text), err
}

// startTime is how long a machine may take from when it is known until its payload is executed.
const startTime = 10 * time.Second

// payload gives the process that was executed first, and has been: until then, a process of the program that starts the machine is more than the payload is to be. It is this
// process, which is closed otherwise, or the one that systemd-nspawn's own process 1 has beside it (--as-pid2).
func (l *leader) payload(u dbus.Unit) (*leader, error) {
	for deadline := time.Now().Add(startTime); ; time.Sleep(5 * time.Millisecond) {
		executed, err := l.executed()
		if err != nil {
			l.close()
			return nil, ofFirst(err)
		}
		if executed {
			return l, nil
		}
		if time.Now().After(deadline) {
			l.close()
			return nil, errors.New("its payload is not executed yet: its first process is still the program that starts it")
		}
		if name, _ := l.read("comm"); name != "(sd-stubinit)\n" {
			continue
		}
		children, _ := l.read(fmt.Sprintf("task/%d/children", l.pid))
		first, _, _ := strings.Cut(children, " ")
		if pid, err := strconv.ParseUint(first, 10, 32); err == nil {
			u.MainPID = uint32(pid)
			l.close()
			if l, err = openLeader(u); err != nil {
				return nil, err
			}
		}
	}
}

// executed says whether the process is no longer one that its parent, or systemd, forked to set up what is to be executed.
func (l *leader) executed() (bool, error) {
	status, err := l.read("status")
	if err != nil {
		return false, err
	}
	_, after, _ := strings.Cut(status, "\nPPid:\t")
	parent, _, _ := strings.Cut(after, "\n")
	its, err := os.Stat(l.path("exe"))
	if err != nil {
		return false, err
	}
	if before, err := os.Stat("/proc/" + parent + "/exe"); err != nil || os.SameFile(its, before) { // without that, its parent has just ended
		return false, nil
	}
	// Next, since by now it may be one of these, and not yet what they execute.
	program, err := os.Readlink(l.path("exe"))
	switch path.Base(program) {
	case "systemd-executor":
		return false, nil
	case launcher.Name:
		command, err := l.read("cmdline")
		args := strings.Split(command, "\x00")
		return len(args) > 1 && args[1] == "--init", err // as which it stays
	}
	return true, err
}

// hostUID gives what a user of its user namespace is on the host (user_namespaces(7)).
func (l *leader) hostUID(uid uint32) (uint32, error) {
	text, err := l.read("uid_map")
	if err != nil {
		return 0, ofFirst(err)
	}
	outside, mapped := units.Outside(units.ParseIDMap(text), uid)
	if !mapped {
		err = fmt.Errorf("its user namespace has no user %d", uid)
	}
	return outside, err
}

// running gives what a command gets that is to run beside it, when it alone tells.
func (l *leader) running(machine string) (r units.Running, err error) {
	files := units.ProcFiles{}
	for name, text := range map[string]*string{"status": &files.Status, "stat": &files.Stat, "limits": &files.Limits, "oom_score_adj": &files.OOMScoreAdj, "uid_map": &files.UIDMap, "gid_map": &files.GIDMap} {
		if *text, err = l.read(name); err != nil {
			return r, ofFirst(err)
		}
	}
	if r, err = files.Running(machine, l.pid); err == nil {
		r.WorkingDir = l.workingDir()
	}
	return r, err
}

// workingDir gives its working directory by the path that leads there from its root directory, or "/" if none does.
func (l *leader) workingDir() string {
	top, err := os.Readlink(l.path("root"))
	dir, dirErr := os.Readlink(l.path("cwd"))
	if errors.Join(err, dirErr) != nil {
		return "/"
	}
	dir, below := strings.CutPrefix(dir+"/", strings.TrimSuffix(top, "/")+"/")
	if !below {
		return "/"
	}
	dir = path.Join("/", dir)
	directory, err := image.NewRoot(l.root).Directory(dir)
	if err != nil { // it was removed
		return "/"
	}
	directory.Close()
	return dir
}
