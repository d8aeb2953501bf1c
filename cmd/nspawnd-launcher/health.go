package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxProbeOutput is how much of what a probe says is kept, as docker does.
const maxProbeOutput = 4096

// probe runs a health check in a machine: exits with 0 when that does, with 1 when it fails or takes too long. What it says goes to a file.
//
//	--probe=UNIT --timeout=SECONDS --output=FILE --ids=… --workdir=DIR [--env=…] [--bounding=CAPABILITIES] [--refuse=setns] [--refuse=unshare] -- ARGV0 [ARG…]
//
// The directory, variables and arguments are in Go's quotes.
func probe(args []string) {
	j := joining{bounding: ^uint64(0), beside: true}
	var timeout time.Duration
	var output string
	j.read(args, func(option, value string) bool {
		switch option {
		case "--probe":
			j.unit = value
		case "--timeout":
			timeout = seconds(value)
		case "--output":
			output = value
		default:
			return false
		}
		return true
	})
	l, err := j.findLeader()
	if err != nil { // and nothing removes a file any more
		os.Exit(notRunning)
	}
	l.close()
	_ = os.Mkdir(filepath.Dir(output), 0o755)
	said, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	must("what it says", err)
	time.AfterFunc(timeout, func() {
		said.WriteString("\nno answer within " + timeout.String())
		os.Exit(1) // and the manager kills what is left
	})
	status, err := probeMachine(j, said)
	switch {
	case errors.Is(err, errNoMachine):
		os.Exit(notRunning)
	case err != nil:
		said.WriteString(err.Error())
		os.Exit(1)
	case status != 0:
		os.Exit(1)
	}
}

// probeMachine runs the program of a probe and writes what it says to a file, up to maxProbeOutput.
func probeMachine(j joining, said *os.File) (status int, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	j.files, j.program = []uintptr{null.Fd(), write.Fd(), write.Fd()}, &program{}
	pid, err := joinMachine(j)
	write.Close()
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(said, io.LimitReader(read, maxProbeOutput)); err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, read)
	return await(pid)
}

// notRunning is the exit status of a probe that found no machine.
const notRunning = 2

func seconds(s string) time.Duration {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		fail(ownError, "bad time "+strconv.Quote(s))
	}
	return time.Duration(n * float64(time.Second))
}

// health is what is known of a machine's health: a file of NAME=VALUE lines.
type health struct {
	leader string // process and start of the machine's first process: one that was started again is another
	state  string // starting, healthy, unhealthy
	streak int    // failures since the last success
}

// recordHealth takes in how a probe has ended ($SERVICE_RESULT, $EXIT_STATUS: systemd.exec(5)), and does what is to be done when the machine becomes
// unhealthy. It runs on the host, as root and unconfined.
//
//	--record-health=UNIT --state=FILE --output=FILE --retries=N --start-period=SECONDS [--action=kill|restart|stop] [--notify]
func recordHealth(args []string) {
	var unit, state, output, action string
	var retries int
	var startPeriod time.Duration
	notifies := false
	for _, arg := range args {
		option, value, _ := strings.Cut(arg, "=")
		switch option {
		case "--record-health":
			unit = value
		case "--state":
			state = value
		case "--output":
			output = value
		case "--retries":
			retries, _ = strconv.Atoi(value)
		case "--start-period":
			startPeriod = seconds(value)
		case "--action":
			action = value
		case "--notify":
			notifies = true
		default:
			fail(ownError, "unknown argument "+strconv.Quote(arg))
		}
	}
	result, status := os.Getenv("SERVICE_RESULT"), os.Getenv("EXIT_STATUS")
	healthy := result == "success" && status == "0"
	if result == "signal" || status == strconv.Itoa(notRunning) || status == "TERM" { // stopped with the machine, or that was gone
		return
	}
	l, err := joining{unit: unit}.findLeader()
	if err != nil {
		return
	}
	h := health{leader: strconv.Itoa(l.pid) + "." + l.started, state: "starting"}
	if before, found := readHealth(state); found && before.leader == h.leader {
		h = before
	}
	became := false
	switch {
	case healthy:
		h.state, h.streak = "healthy", 0
	case h.state == "starting" && l.age() < startPeriod:
	default:
		h.streak++
		became = h.streak >= retries && h.state != "unhealthy"
		if h.streak >= retries {
			h.state = "unhealthy"
		}
	}
	said, _ := os.ReadFile(output)
	text := "LEADER=" + h.leader + "\nSTATE=" + h.state + "\nSTREAK=" + strconv.Itoa(h.streak) + "\nTIME=" + strconv.FormatInt(time.Now().Unix(), 10) +
		"\nRESULT=" + map[bool]string{true: "passed", false: "failed"}[healthy] + "\nOUTPUT=" + strconv.Quote(string(said)) + "\n"
	temporary := state + ".new"
	err = os.WriteFile(temporary, []byte(text), 0o600)
	if err = errors.Join(err, os.Rename(temporary, state)); err != nil {
		fail(ownError, err.Error())
	}
	if notifies && healthy {
		must("telling the manager that the machine is ready", notifyReady(l.pid))
	}
	if !became || action == "" {
		return
	}
	os.Stdout.WriteString("the machine is unhealthy: " + action + "\n")
	command := map[string][]string{
		"kill": {"systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit},
		"stop": {"systemctl", "--no-block", "stop", unit}, "restart": {"systemctl", "--no-block", "restart", unit},
	}[action]
	for _, dir := range []string{"/usr/bin", "/bin"} {
		err = syscall.Exec(filepath.Join(dir, command[0]), command, []string{"PATH=/usr/bin:/bin"})
	}
	fail(ownError, err.Error())
}

// notifyReady tells the manager in the name of a service's main process that the service is ready (sd_pid_notify(3)).
func notifyReady(pid int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	sender := unix.UnixCredentials(&unix.Ucred{Pid: int32(pid)})
	return unix.Sendmsg(fd, []byte("READY=1"), sender, &unix.SockaddrUnix{Name: "/run/systemd/notify"}, 0)
}

// age says how long a process has run.
func (l *leader) age() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	ticks, _ := strconv.ParseInt(l.started, 10, 64)
	return time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/100) // USER_HZ is 100 on Linux
}

func readHealth(path string) (h health, found bool) {
	data, err := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "LEADER":
			h.leader = value
		case "STATE":
			h.state = value
		case "STREAK":
			h.streak, _ = strconv.Atoi(value)
		}
	}
	return h, err == nil
}
