package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a booted lab.
type Machine struct {
	Suite Suite
	state state
	life  *os.File // open as long as this process wants the lab
	t     testing.TB
}

// Result is how a command ended: its exit status, or 128 and the signal's number.
type Result struct {
	Stdout, Stderr string
	Status         int
	Duration       time.Duration
}

// Options say what a lab has beside its suite's root.
type Options struct {
	Name     string            // default: one that nobody has
	Keep     bool              // the lab outlives this process, until Stop
	ReadOnly map[string]string // files and directories of the host to bind read-only, by their path in the lab
	Log      io.Writer         // progress of what has to be built first; default: standard error
}

// Start boots a lab and returns when the boot's jobs are done.
func Start(suite Suite, o Options) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	if o.Name == "" {
		o.Name = fmt.Sprintf("%s-%d-%d", suite, os.Getpid(), time.Now().UnixNano()%1e9)
	}
	root, err := Root(suite, o.Log)
	if err != nil {
		return nil, err
	}
	readOnly := map[string]string{labCache: CacheDir()}
	maps.Copy(readOnly, o.ReadOnly)
	argument, err := json.Marshal(order{
		Name: o.Name, Suite: suite, Root: root, Bound: !o.Keep, Copies: installed(), ReadOnly: readOnly,
	})
	if err != nil {
		return nil, err
	}
	reports, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reports.Close()
	defer report.Close()
	supervisor := stage("supervise", string(argument))
	supervisor.Env = []string{"PATH=" + os.Getenv("PATH")}
	supervisor.Dir = "/"
	supervisor.ExtraFiles = []*os.File{report}
	supervisor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	m := &Machine{Suite: suite}
	if !o.Keep {
		reading, writing, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer reading.Close()
		supervisor.ExtraFiles = append(supervisor.ExtraFiles, reading)
		supervisor.Stderr = os.Stderr // why a lab ended before its test
		m.life = writing
	}
	if err := supervisor.Start(); err != nil {
		return nil, err
	}
	go supervisor.Wait()
	report.Close()
	if err := json.NewDecoder(reports).Decode(&m.state); err != nil {
		return nil, fmt.Errorf("the lab's supervisor ended without a word: %w", err)
	}
	if m.state.Error != "" {
		return nil, errors.New(m.state.Error)
	}
	return m, nil
}

var errNotRoot = errors.New("the lab makes namespaces, mounts and cgroups: it needs root")

// Open is a lab that another process has started with Keep.
func Open(name string) (*Machine, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, name, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab is named %s", name)
	} else if err != nil {
		return nil, err
	}
	m := &Machine{}
	if err := json.Unmarshal(data, &m.state); err != nil {
		return nil, err
	}
	if !inCgroup(m.state.Leader, m.state.Cgroup) {
		return nil, fmt.Errorf("lab %s has ended", name)
	}
	m.Suite = m.state.Suite
	return m, nil
}

// Names are the labs that run.
func Names() []string {
	var names []string
	entries, _ := os.ReadDir(stateDir)
	for _, entry := range entries {
		if _, err := Open(entry.Name()); err == nil {
			names = append(names, entry.Name())
		}
	}
	return names
}

// Stop ends everything in the lab and returns when nothing of it is left on the host.
func (m *Machine) Stop() error {
	// The supervisor holds this lock until it has cleaned up.
	dir, err := os.Open(m.state.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	if m.life != nil {
		m.life.Close() // and the supervisor reads the pipe's end
	} else if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		if err := unix.Kill(m.state.Supervisor, unix.SIGTERM); err != nil {
			return err
		}
	}
	if err := flock(dir); err != nil {
		return err
	}
	return removeLeft(dir)
}

// State is what systemctl is-system-running says, and the units that keep it from saying running.
func (m *Machine) State() (state string, failed []string) {
	state = strings.TrimSpace(m.Run("systemctl", "is-system-running").Stdout)
	if state != "running" {
		for line := range strings.Lines(m.Run("systemctl", "--failed", "--plain", "--no-legend").Stdout) {
			if fields := strings.Fields(line); len(fields) > 0 {
				failed = append(failed, fields[0])
			}
		}
	}
	return state, failed
}

// Command is a command in the lab, in its namespaces, its lab-shell.service, root's home directory and a clean environment, which Env may be appended to.
// Signals sent to its process reach the command, and it ends as the command ends.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	cmd := stage("enter", append([]string{strconv.Itoa(m.state.Leader), m.state.Cgroup, name}, args...)...)
	terminal := os.Getenv("TERM")
	if terminal == "" {
		terminal = "dumb"
	}
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash",
		"LANG=C.UTF-8",
		"SYSTEMD_PAGER=", // in a terminal, too, nobody is there to press q
		"TERM=" + terminal,
	}
	return cmd
}

// Run runs a command in the lab. A command that could not be run at all has status 126 or 127, as in a shell, or 255.
func (m *Machine) Run(name string, args ...string) Result {
	return run(m.Command(name, args...))
}

func run(cmd *exec.Cmd) Result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	started := time.Now()
	err := cmd.Run()
	result := Result{Stdout: stdout.String(), Stderr: stderr.String(), Duration: time.Since(started)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		result.Status = exit.ExitCode()
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			result.Status = 128 + int(status.Signal())
		}
	} else if err != nil {
		result.Status = 255
		result.Stderr += err.Error()
	}
	return result
}

// Script runs a shell script in the lab: bash -euc.
func (m *Machine) Script(sh string) Result {
	return m.Run("bash", "-euc", sh)
}

// With is the same lab for another test: a subtest must fail itself, not its parent.
func (m *Machine) With(t testing.TB) *Machine {
	same := *m
	same.t = t
	return &same
}

// fatalf ends the test, or panics with the error where there is none.
func (m *Machine) fatalf(format string, args ...any) {
	err := fmt.Errorf(string(m.Suite)+": "+format, args...)
	if m.t == nil {
		panic(err)
	}
	m.t.Helper()
	m.t.Fatal(err)
}

// helper keeps the calling function out of a failure's line number.
func (m *Machine) helper() func() {
	if m.t == nil {
		return func() {}
	}
	return m.t.Helper
}

// Must runs a command in the lab, fails the test if its status isn't 0, and gives its standard output.
func (m *Machine) Must(name string, args ...string) string {
	m.helper()()
	result := m.Run(name, args...)
	if result.Status != 0 {
		m.fatalf("%s: status %d\n%s%s", strings.Join(append([]string{name}, args...), " "),
			result.Status, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// WriteFile makes a file in the lab, and its directory.
func (m *Machine) WriteFile(name string, data []byte, mode os.FileMode) {
	m.helper()()
	if err := m.write(name, bytes.NewReader(data), mode); err != nil {
		m.fatalf("%w", err)
	}
}

func (m *Machine) write(name string, data io.Reader, mode os.FileMode) error {
	cmd := m.Command("install", "-D", fmt.Sprintf("--mode=%04o", mode.Perm()), "/dev/stdin", path.Clean(name))
	cmd.Stdin = data
	if result := run(cmd); result.Status != 0 {
		return fmt.Errorf("writing %s: %s", name, result.Stderr)
	}
	return nil
}

// ReadFile is a file of the lab.
func (m *Machine) ReadFile(name string) []byte {
	m.helper()()
	return []byte(m.Must("cat", "--", name))
}

// Copy installs a file of the host in the lab.
func (m *Machine) Copy(hostPath, name string) {
	m.helper()()
	if err := m.copy(hostPath, name); err != nil {
		m.fatalf("%w", err)
	}
}

func (m *Machine) copy(hostPath, name string) error {
	file, err := os.Open(hostPath)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return m.write(name, file, info.Mode())
}

// patience is how long tests wait for what sends no event that they could wait for, on a machine that has much else to do.
const patience = time.Minute

// within repeats f until it says so, and gives whether it did in time.
func within(limit time.Duration, f func() bool) bool {
	for end := time.Now().Add(limit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Eventually waits until f says so, and fails the test if it never does.
func (m *Machine) Eventually(what string, f func() bool) {
	m.helper()()
	if !within(patience, f) {
		m.fatalf("%s: not within %s", what, patience)
	}
}
