package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// initProcess runs a program as its child, passes on the signals that it gets and collects what processes leave, until the child has ended.
// It gives the status of a shell.
func initProcess(path string, argv []string) int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if _, err := unix.IoctlGetInt(0, unix.TIOCGPGRP); err == nil { // standard input is the terminal of this session
		attributes.Foreground = true
	}
	child, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attributes})
	if err != nil {
		fail(execFailed(path, err))
	}
	go func() {
		for s := range signals {
			if s != syscall.SIGCHLD && s != syscall.SIGURG { // Go's scheduler interrupts threads by that
				syscall.Kill(child, s.(syscall.Signal)) // it fails when the child has ended, and then so do we
			}
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == nil && pid == child && status.Exited():
			return status.ExitStatus()
		case err == nil && pid == child && status.Signaled():
			return 128 + int(status.Signal())
		case err != nil && err != syscall.EINTR:
			fail(ownError, "waiting: "+err.Error())
		}
	}
}
