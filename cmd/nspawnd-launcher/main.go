// Command nspawnd-launcher is what PID 1 starts inside a machine when a directive can't say what the image asks: user
// and group ids that the host doesn't know, and environment names that Environment= refuses. It sets them and becomes
// the payload. It is bind-mounted into the machine, so it is static and links nothing else of nspawnd. On systemd 257 it is
// also the service's ExecStopPost=, which waits until the payload has ended.
//
// Usage:
//
//	nspawnd-launcher --ids=UID,GID[,GROUP…] [--env=NAME=VALUE…] -- PATH ARGV0 [ARG…]
//	nspawnd-launcher --await-main-process
package main

import (
	"errors"
	"os"
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
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		if ids, ok := strings.CutPrefix(args[0], "--ids="); ok {
			setIDs(ids)
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

// setIDs becomes the user. Leaving uid 0 makes the kernel clear the effective and permitted capabilities.
func setIDs(list string) {
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
	if err := errors.Join(syscall.Setgroups(ids[2:]), syscall.Setgid(ids[1]), syscall.Setuid(ids[0])); err != nil {
		fail(ownError, "becoming user "+list+": "+err.Error())
	}
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
