// Command nspawnd-launcher is what PID 1 starts inside a machine when a directive can't say what the image asks: user
// and group ids that the host doesn't know, and environment names that Environment= refuses. It sets them and becomes
// the payload. It is bind-mounted into the machine, so it is static and links nothing else of nspawnd. On systemd 257 it is
// also the service's ExecStopPost=, which waits until the payload has ended.
//
// Usage:
//
//	nspawnd-launcher [--bounding=HEX] [--ambient=HEX] --ids=UID,GID[,GROUP…] [--env=NAME=VALUE…] -- PATH ARGV0 [ARG…]
//	nspawnd-launcher --await-main-process
package main

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit statuses of podman-run(1): 125 our own error, 126 not executable, 127 not found.
const (
	ownError      = 125
	notExecutable = 126
	notFound      = 127
)

func main() {
	args := os.Args[1:]
	if len(args) == 1 && args[0] == "--await-main-process" {
		awaitMainProcess()
		return
	}
	launch(args)
}

// launch becomes the payload.
func launch(args []string) {
	env := os.Environ()
	var capabilities uint64
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		if ids, ok := strings.CutPrefix(args[0], "--ids="); ok {
			setIDs(ids, capabilities)
		} else if mask, ok := strings.CutPrefix(args[0], "--bounding="); ok {
			setBounding(parseMask(mask))
		} else if mask, ok := strings.CutPrefix(args[0], "--ambient="); ok {
			capabilities = parseMask(mask)
		} else if assignment, ok := strings.CutPrefix(args[0], "--env="); ok {
			env = append(env, assignment)
		} else {
			fail(ownError, "unknown argument "+strconv.Quote(args[0]))
		}
	}
	if len(args) < 3 {
		fail(ownError, "no program given")
	}
	path, argv := args[1], args[2:]
	err := syscall.Exec(path, argv, env)
	status := notExecutable
	if errors.Is(err, syscall.ENOENT) {
		status = notFound
	}
	fail(status, path+": "+err.Error())
}

// setIDs becomes the user. Leaving uid 0 makes the kernel clear the effective and permitted capabilities; those in keep the payload gets all
// the same, as ambient ones (capabilities(7)).
func setIDs(list string, keep uint64) {
	var ids []int
	for _, s := range strings.Split(list, ",") {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			fail(ownError, "bad ids "+strconv.Quote(list))
		}
		ids = append(ids, int(id))
	}
	if len(ids) < 2 {
		fail(ownError, "bad ids "+strconv.Quote(list))
	}
	runtime.LockOSThread() // capabilities are a thread's own
	if keep != 0 {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			fail(ownError, "keeping capabilities: "+err.Error())
		}
	}
	if err := errors.Join(syscall.Setgroups(ids[2:]), syscall.Setgid(ids[1]), syscall.Setuid(ids[0])); err != nil {
		fail(ownError, "becoming user "+list+": "+err.Error())
	}
	if keep != 0 {
		if err := setCapabilities(keep); err != nil {
			fail(ownError, "setting capabilities: "+err.Error())
		}
	}
}

// setBounding drops all capabilities but those in mask from the bounding set: what the payload, also as root, can have after execve(2).
func setBounding(mask uint64) {
	runtime.LockOSThread() // it is a thread's own
	for bit := range 64 {
		if mask&(1<<bit) != 0 {
			continue
		}
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0); err {
		case nil, unix.EINVAL: // the kernel has no capability of this number
		default:
			fail(ownError, "dropping capabilities: "+err.Error())
		}
	}
}

// setCapabilities makes a mask the permitted, effective, inheritable and ambient set of this thread.
func setCapabilities(mask uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(mask), uint32(mask>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low, Inheritable: low}, {Effective: high, Permitted: high, Inheritable: high}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	for bit := range 64 {
		if mask&(1<<bit) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bit), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func parseMask(s string) uint64 {
	mask, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		fail(ownError, "bad capabilities "+strconv.Quote(s))
	}
	return mask
}

func fail(status int, message string) {
	os.Stderr.WriteString("nspawnd-launcher: " + message + "\n")
	os.Exit(status)
}

// awaitMainProcess waits until the process that the manager calls the service's main one has ended, if there still is one
// (systemd.exec(5), $MAINPID). The manager's TimeoutStopSec= bounds it.
func awaitMainProcess() {
	pid, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		return // the manager has seen its end
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	// A signal may interrupt the wait; the runtime sends itself some.
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
	}
}
