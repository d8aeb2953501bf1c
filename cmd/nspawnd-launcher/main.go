// Command nspawnd-launcher is what PID 1 starts inside a machine when a directive can't say what the image asks: user
// and group ids that the host doesn't know, strings that the bus refuses, a hostname on systemd 257, sysctls, a terminal. It sets them and becomes
// the payload, or stays as its process 1. It is bind-mounted into the machine, so it is static and links nothing else of nspawnd. On
// systemd 257 it is also the service's ExecStop=.
//
// Usage:
//
//	nspawnd-launcher [--become-root] [--terminal=PATH] [--hostname=NAME] [--refuse-naming] [--sysctl=NAME=VALUE…] [--secret-env=…] [--secret-file=…] [--bounding=CAPABILITIES] [--ambient=CAPABILITIES]
//	                 [--ids=UID,GID[,GROUP…]] [--quoted] [--env=NAME=VALUE…] [--init] -- PATH ARGV0 [ARG…]
//	nspawnd-launcher --stop=SIGNAL
//	nspawnd-launcher --probe=UNIT …
//	nspawnd-launcher --record-health=UNIT …
//	nspawnd-launcher --exec=UNIT|--exec-beside=PID:STARTED …
//
// The last three run on the host, beside a machine: see join.go, health.go and exec.go.
//
// Capabilities are a mask in hexadecimal. After --quoted strings are in Go's quotes.
package main

import (
	"errors"
	"os"
	"os/signal"
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
	// Namespaces, capabilities and system call filters are a thread's own: the one that goes on as the payload.
	runtime.LockOSThread()
	args := os.Args[1:]
	switch {
	case len(args) == 1 && strings.HasPrefix(args[0], "--stop="):
		stopMainProcess(strings.TrimPrefix(args[0], "--stop="))
	case len(args) > 3 && args[0] == "--init" && args[1] == "--":
		os.Exit(initProcess(args[2], args[3:]))
	case len(args) > 0 && strings.HasPrefix(args[0], "--probe="):
		probe(args)
	case len(args) > 0 && strings.HasPrefix(args[0], "--record-health="):
		recordHealth(args)
	case len(args) > 0 && strings.HasPrefix(args[0], "--exec=") || strings.HasPrefix(args[0], "--exec-beside="):
		execute(args)
	default:
		launch(args)
	}
}

// launch becomes the payload.
func launch(args []string) {
	var hostname, ids string
	var sysctls, secretFiles, env []string
	bounding, ambient := ^uint64(0), uint64(0)
	refuseNaming, stays := false, false
	text := func(s string) string { return s }
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		option, value, _ := strings.Cut(args[0], "=")
		switch option {
		case "--become-root":
			keepSecrets(args)
			becomeRoot()
		case "--terminal":
			openTerminal(value)
		case "--hostname":
			hostname = value
		case "--sysctl":
			sysctls = append(sysctls, value)
		case "--secret-env":
			env = append(env, secretVariable(value))
		case "--secret-file":
			secretFiles = append(secretFiles, value)
		case "--refuse-naming":
			refuseNaming = true
		case "--bounding":
			bounding = parseMask(value)
		case "--ambient":
			ambient = parseMask(value)
		case "--ids":
			ids = value
		case "--quoted":
			text = unquote
		case "--env":
			env = append(env, text(value))
		case "--init":
			stays = true
		default:
			fail(ownError, "unknown argument "+strconv.Quote(args[0]))
		}
	}
	if len(args) < 3 {
		fail(ownError, "no program given")
	}
	argv := args[1:]
	for i := range argv {
		argv[i] = text(argv[i])
	}

	if hostname != "" {
		must("setting the hostname", setHostname(hostname))
	}
	must("setting sysctls", setSysctls(sysctls))
	for _, secret := range secretFiles {
		writeSecret(secret)
	}
	if refuseNaming {
		must("refusing system calls", refuseNames())
	}
	if bounding != ^uint64(0) {
		must("dropping capabilities", setBounding(bounding))
	}
	if ids != "" {
		setIDs(ids, ambient)
	}
	if bounding != ^uint64(0) {
		must("dropping capabilities", limitCapabilities(bounding))
	}
	if stays { // and none of its threads has what this one has given up
		argv = append([]string{os.Args[0], os.Args[0], "--init", "--"}, argv...)
	}
	fail(execFailed(argv[0], syscall.Exec(argv[0], argv[1:], append(os.Environ(), env...))))
}

// execFailed gives a shell's status for a program that can't be executed, and the message.
func execFailed(path string, err error) (status int, message string) {
	status = notExecutable
	if errors.Is(err, syscall.ENOENT) {
		status = notFound
	}
	return status, path + ": " + err.Error()
}

// openTerminal makes the terminal the controlling one of a new session and its standard input, and opens the other standard streams that lead to
// it anew: by the path they came on, they have no name in the machine, which ttyname(3) needs.
func openTerminal(path string) {
	_, err := unix.Setsid()
	if err != nil && err != unix.EPERM { // we lead a session already
		fail(ownError, "making a session: "+err.Error())
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	must("opening "+path, err)
	must("making "+path+" the controlling terminal", unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0))
	for stream := range 3 {
		if _, err := unix.IoctlGetTermios(stream, unix.TCGETS); err == nil || stream == 0 {
			must("opening "+path, unix.Dup3(fd, stream, 0))
		}
	}
}

// becomeRoot makes root of its user namespace of this process, which is started there as a user that the namespace does not have, with ambient
// capabilities.
func becomeRoot() {
	must("becoming root", errors.Join(syscall.Setgroups(nil), syscall.Setresgid(0, 0, 0), syscall.Setresuid(0, 0, 0)))
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must("reading capabilities", unix.Capget(&header, &data[0]))
	for i := range data {
		data[i].Effective, data[i].Inheritable = data[i].Permitted, 0 // and the kernel takes it from the ambient set
	}
	must("setting capabilities", unix.Capset(&header, &data[0]))
}

// setIDs becomes the user. Leaving uid 0 makes the kernel clear the effective and permitted capabilities; those in keep the payload gets all
// the same, as ambient ones (capabilities(7)).
func setIDs(list string, keep uint64) {
	ids, err := parseIDs(list)
	must("ids", err)
	var groups []int
	for _, group := range ids[2:] {
		groups = append(groups, int(group))
	}
	if keep != 0 {
		must("keeping capabilities", unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
	}
	must("becoming user "+list, errors.Join(syscall.Setgroups(groups), syscall.Setgid(int(ids[1])), syscall.Setuid(int(ids[0]))))
	if keep != 0 {
		must("setting capabilities", setCapabilities(keep))
	}
}

// parseIDs reads UID,GID[,GROUP…].
func parseIDs(list string) ([]uint32, error) {
	var ids []uint32
	for s := range strings.SplitSeq(list, ",") {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, errors.New("bad ids " + strconv.Quote(list))
		}
		ids = append(ids, uint32(id))
	}
	if len(ids) < 2 {
		return nil, errors.New("bad ids " + strconv.Quote(list))
	}
	return ids, nil
}

func parseMask(s string) uint64 {
	mask, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		fail(ownError, "bad capabilities "+strconv.Quote(s))
	}
	return mask
}

func unquote(s string) string {
	text, err := strconv.Unquote(s)
	must("argument "+s, err)
	return text
}

func must(what string, err error) {
	if err != nil {
		fail(ownError, what+": "+err.Error())
	}
}

// speaker is who speaks in messages.
var speaker = "nspawnd-launcher"

func fail(status int, message string) {
	os.Stderr.WriteString(speaker + ": " + message + "\n")
	os.Exit(status)
}

// stopMainProcess sends a signal, a number, to the process that the manager calls the service's main one (systemd.exec(5), $MAINPID), if there still
// is one, and waits until it has ended. When TimeoutStopSec= has passed, the manager sends the same signal here: then it is killed.
func stopMainProcess(number string) {
	pid, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		return // the manager has seen its end
	}
	n, err := strconv.Atoi(number)
	must("--stop", err)
	stop := syscall.Signal(n)
	late := make(chan os.Signal, 1)
	signal.Notify(late, stop)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	unix.PidfdSendSignal(fd, stop, nil, 0)
	unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
	go func() {
		<-late
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}()
	// A signal may interrupt the wait; the runtime sends itself some.
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
	}
}
