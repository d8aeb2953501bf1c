package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// finalSignal is what the manager is to send in place of SIGKILL (systemd.kill(5), FinalKillSignal=): the program is not in the control group that
// it would kill.
const finalSignal = syscall.Signal(64)

// execute runs a program in a machine, with this process's streams, passes signals on to it, and exits as it does: with 128+n for a signal.
//
//	--exec=UNIT|--exec-beside=PID:STARTED --as=WHO [--terminal] [--privileged] --ids=… --workdir=DIR [--env=…] [--bounding=…] [--ambient=…] [--refuse=…] -- ARGV0 [ARG…]
//
// WHO is the beginning of messages. The directory, variables and arguments are in Go's quotes.
func execute(args []string) {
	j := joining{bounding: ^uint64(0), files: []uintptr{0, 1, 2}, program: &program{}}
	j.read(args, func(option, value string) bool {
		switch option {
		case "--exec":
			j.unit = value
		case "--exec-beside":
			j.leader = value
		case "--as":
			speaker = value
		case "--terminal": // not as standard input: the manager would make it the controlling one of this process
			j.terminal = true
			j.files[0] = 1
		case "--privileged":
			j.more = true
		default:
			return false
		}
		return true
	})
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	go func() {
		for s := range signals {
			if s != syscall.SIGCHLD && s != syscall.SIGURG && s != syscall.SIGPIPE { // about this process
				j.program.signal(s.(syscall.Signal))
			}
		}
	}()
	pid, err := joinMachine(j)
	var started *os.PathError
	switch {
	case errors.As(err, &started) && started.Op == "exec" && pid == 0:
		fail(execFailed(started.Path, started.Err))
	case err != nil:
		fail(ownError, err.Error())
	}
	status, err := await(pid)
	must("waiting for "+strconv.Quote(j.argv[0]), err)
	unix.Exit(status)
}
