package main

import (
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	agentTimeout  = 10 * time.Second // until polkit's agent is there
	typingTimeout = 5 * time.Minute  // until a call is answered for which a password may be typed
)

var (
	agentRuns = false
	stopAgent = func() {} // ends polkit's agent, if there is one
)

// startAgent has polkit's own agent ask on this terminal for the password of who may do what is asked for: the one command beside the pager, the journal and ssh that is
// run, since who reads passwords should be nobody else. Root is not asked, and without an agent or a terminal polkit refuses what it would have to ask for.
func startAgent() {
	if os.Geteuid() == 0 || !term.IsTerminal(0) {
		return
	}
	ready, notify, err := os.Pipe()
	if err != nil {
		return
	}
	defer ready.Close()
	agent := exec.Command("/usr/bin/pkttyagent", "--notify-fd=3", "--fallback")
	agent.Stdin, agent.Stdout, agent.Stderr, agent.ExtraFiles = os.Stdin, os.Stderr, os.Stderr, []*os.File{notify}
	err = agent.Start()
	notify.Close()
	if err != nil { // it is not installed
		return
	}
	agentRuns = true
	stopAgent = func() {
		_ = agent.Process.Signal(unix.SIGTERM)
		_ = agent.Process.Signal(unix.SIGCONT) // what reads a terminal in the background is stopped
		_ = agent.Wait()
	}
	_ = ready.SetReadDeadline(time.Now().Add(agentTimeout))
	_, _ = io.Copy(io.Discard, ready) // closed when it has told polkit of itself, or has failed, which it says
}
