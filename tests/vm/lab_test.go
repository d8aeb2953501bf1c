package vm

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// helperLab makes the test binary a process that has a lab and can be killed.
const helperLab = "NSPAWND_LAB_TEST_HELPER"

func TestMain(m *testing.M) {
	if suite := os.Getenv(helperLab); suite != "" {
		lab, err := Start(Suite(suite), Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		json.NewEncoder(os.Stdout).Encode(lab.state)
		os.Stdin.Read(make([]byte, 1)) // until killed
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestBoot(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		t.Log(m.Must("systemd-analyze", "time"))
		if state, failed := m.State(); state != "running" {
			t.Errorf("state %s, failed units %v", state, failed)
		}
		if got, want := strings.TrimSpace(m.Must("cat", "/proc/sys/kernel/hostname")), "lab-"+string(m.Suite); got != want {
			t.Errorf("hostname %q, want %q", got, want)
		}
		if got := m.Must("cat", "/proc/self/cgroup"); !strings.Contains(got, "0::/system.slice/lab-shell.service\n") {
			t.Errorf("a command's cgroup: %s", got)
		}
		if got := m.Must("systemd-run", "--quiet", "--wait", "--pipe", "echo", "a unit"); got != "a unit\n" {
			t.Errorf("a transient unit said %q", got)
		}
		// The lab has a network of its own, and it is up.
		m.Must("ping", "-c1", "-W1", "registry.test")
		if got := m.Must("sh", "-c", "ls /sys/class/net"); got != "lo\n" {
			t.Errorf("network interfaces: %q", got)
		}
	})
}

func TestOverlayAndCredentialsWork(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		for _, dir := range []string{"/tmp", "/var/tmp", "/var/lib/nspawnd", "/var/lib/containers", "/var/lib/machines"} {
			result := m.Script(`cd ` + dir + `; mkdir -p l u w m; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m; touch m/x; umount m; test -e u/x`)
			if result.Status != 0 {
				t.Errorf("an overlay in %s: %s", dir, result.Stderr)
			}
		}
		got := m.Must("systemd-run", "--quiet", "--wait", "--pipe", "--property=SetCredential=word:hello", "--property=RootEphemeral=no",
			"sh", "-c", `cat "$CREDENTIALS_DIRECTORY/word"`)
		if got != "hello" {
			t.Errorf("a credential: %q", got)
		}
	})
}

func TestCommand(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		t.Run("status", func(t *testing.T) {
			for _, test := range []struct {
				script string
				want   int
			}{
				{"true", 0}, {"exit 1", 1}, {"exit 42", 42}, {"exit 255", 255},
				{"kill -TERM $$", 143}, {"kill -KILL $$", 137}, {"kill -SEGV $$", 139}, {"kill -PIPE $$", 141},
			} {
				if got := m.Script(test.script); got.Status != test.want {
					t.Errorf("%s: status %d, want %d %s", test.script, got.Status, test.want, got.Stderr)
				}
			}
			if got := m.Run("no-such-command"); got.Status != 127 {
				t.Errorf("a command that isn't there: status %d", got.Status)
			}
			if got := m.Run("/etc/hosts"); got.Status != 126 {
				t.Errorf("a file that isn't a program: status %d", got.Status)
			}
		})
		t.Run("streams", func(t *testing.T) {
			data := make([]byte, 3<<20)
			rand.Read(data)
			cmd := m.Command("sh", "-c", "cat; echo complaint >&2")
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stdout.Bytes(), data) || stderr.String() != "complaint\n" {
				t.Errorf("%d bytes went in, %d came out, equal: %t; standard error %q", len(data), stdout.Len(),
					bytes.Equal(stdout.Bytes(), data), stderr.String())
			}
		})
		t.Run("arguments and environment", func(t *testing.T) {
			arguments := []string{"", "a b", "$HOME", "'\"\\", "ü\n", "--"}
			got := m.Must("printf", append([]string{"%s|"}, arguments...)...)
			if want := strings.Join(arguments, "|") + "|"; got != want {
				t.Errorf("arguments %q, want %q", got, want)
			}
			os.Setenv("LEAK", "1") // for both suites, at once
			cmd := m.Command("env")
			cmd.Env = append(cmd.Env, "GIVEN=2")
			if got := run(cmd).Stdout; strings.Contains(got, "LEAK") || !strings.Contains(got, "GIVEN=2\n") || !strings.Contains(got, "HOME=/root\n") {
				t.Errorf("environment:\n%s", got)
			}
		})
		t.Run("signals", func(t *testing.T) {
			cmd := m.Command("bash", "-c", `trap 'echo term; exit 9' TERM; trap 'echo usr1' USR1; echo ready; sleep 1000 > /dev/null & while :; do wait; done`)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			for _, step := range []struct {
				line string
				then syscall.Signal
			}{{"ready", syscall.SIGUSR1}, {"usr1", syscall.SIGTERM}, {"term", 0}} {
				if lines.Scan(); lines.Text() != step.line {
					t.Errorf("it said %q, want %q", lines.Text(), step.line)
				}
				if step.then != 0 {
					cmd.Process.Signal(step.then)
				}
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 9 {
				t.Errorf("status %d", got)
			}
		})
		t.Run("killed", func(t *testing.T) {
			cmd := m.Command("sh", "-c", "echo $$; exec sleep 1000")
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			lines.Scan()
			pid := lines.Text()
			cmd.Process.Kill()
			cmd.Wait()
			m := m.With(t)
			m.Eventually("the command ends with the process that stands for it", func() bool {
				return m.Run("kill", "-0", pid).Status != 0
			})
		})
		t.Run("terminal", func(t *testing.T) {
			cmd := m.Command("bash", "-c", `tty; stty size; read line; echo "got $line"; test -t 2; exit 5`)
			terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 99})
			if err != nil {
				t.Fatal(err)
			}
			defer terminal.Close()
			terminal.WriteString("hello\n")
			var output bytes.Buffer
			output.ReadFrom(terminal) // to EIO, when the other side is closed
			err = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 5 {
				t.Errorf("status %d, %v", code, err)
			}
			for _, want := range []string{"/dev/pts/", "33 99\r\n", "got hello\r\n"} {
				if !strings.Contains(output.String(), want) {
					t.Errorf("no %q in %q", want, output.String())
				}
			}
		})
		t.Run("files", func(t *testing.T) {
			m := m.With(t)
			data := []byte("a\x00b\n")
			m.WriteFile("/var/lib/new/dir/file", data, 0o640)
			if got := m.ReadFile("/var/lib/new/dir/file"); !bytes.Equal(got, data) {
				t.Errorf("read %q", got)
			}
			if got := m.Must("stat", "-c", "%a %U", "/var/lib/new/dir/file"); got != "640 root\n" {
				t.Errorf("mode and owner: %s", got)
			}
		})
	})
}

// buildCommand builds a command that a test puts into the lab, from its folder, and gives the file.
func buildCommand(t *testing.T, folder string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "command")
	build := exec.Command("go", "build", "-tags", "containers_image_openpgp", "-o", file, folder)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return file
}

func TestSideBySide(t *testing.T) {
	var labs [4]*Machine
	var booting sync.WaitGroup
	for i := range labs {
		booting.Go(func() {
			started := time.Now()
			m, err := Start(AllSuites[i%len(AllSuites)], Options{})
			if errors.Is(err, errNotRoot) {
				return
			} else if err != nil {
				t.Error(err)
				return
			}
			t.Logf("%s: up in %s", m.state.Name, time.Since(started).Round(time.Millisecond))
			labs[i] = m
		})
	}
	booting.Wait()
	for i, m := range labs {
		if m == nil {
			t.Skip(errNotRoot)
		}
		defer m.Stop()
		m = m.With(t)
		labs[i] = m
		m.WriteFile("/etc/which", fmt.Append(nil, i), 0o644)
		m.WriteFile("/var/lib/nspawnd/which", fmt.Append(nil, i), 0o644)
	}
	for i, m := range labs {
		if got := string(m.ReadFile("/etc/which")) + string(m.ReadFile("/var/lib/nspawnd/which")); got != strings.Repeat(fmt.Sprint(i), 2) {
			t.Errorf("lab %d has the files of another one: %s", i, got)
		}
	}
	ids := map[string]bool{}
	for _, m := range labs {
		ids[m.Must("cat", "/etc/machine-id")] = true
	}
	if len(ids) != len(labs) {
		t.Errorf("%d labs, machine ids %v", len(labs), ids)
	}
}

func TestNothingIsLeft(t *testing.T) {
	m := Lab(t, Forky)
	left := remains(t, m.state)
	m.Must("systemd-run", "--quiet", "--property=PrivateNetwork=yes", "sleep", "1000")
	cmd := m.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone in %s", time.Since(started).Round(time.Millisecond))
	cmd.Wait()
	left()
}

func TestNothingIsLeftOfAKilledTest(t *testing.T) {
	state, helper := startHelper(t)
	left := remains(t, state)
	dir, err := os.Open(state.dir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	helper.Process.Kill()
	helper.Wait()
	// The supervisor lets go of this lock when it is done.
	if err := flock(dir); err != nil {
		t.Fatal(err)
	}
	left()
}

func TestNothingIsLeftOfAKilledSupervisor(t *testing.T) {
	state, helper := startHelper(t)
	left := remains(t, state)
	dir, err := os.Open(state.dir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Kill(state.Supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := flock(dir); err != nil {
		t.Fatal(err)
	}
	dir.Close()
	helper.Process.Kill()
	helper.Wait()
	Lab(t, Trixie) // the next one sweeps
	left()
}

// startHelper is a process, killed at the end of the test at the latest, and its lab.
func startHelper(t *testing.T) (state, *exec.Cmd) {
	if os.Geteuid() != 0 {
		t.Skip(errNotRoot)
	}
	helper := exec.Command("/proc/self/exe")
	helper.Env = append(os.Environ(), helperLab+"="+string(Trixie))
	helper.Stderr = os.Stderr
	if _, err := helper.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := helper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		helper.Process.Kill()
		helper.Wait()
	})
	var s state
	if err := json.NewDecoder(stdout).Decode(&s); err != nil {
		t.Fatalf("the helper has no lab: %v", err)
	}
	return s, helper
}

// remains notes what a running lab is made of; what it returns fails the test for anything of that which is still there.
func remains(t *testing.T, s state) (check func()) {
	t.Helper()
	network, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.Leader))
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		for _, path := range []string{s.dir(), s.Cgroup} {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left: %v", path, err)
			}
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), s.dir()) {
			t.Errorf("mounts are left: %v\n%s", err, mounts)
		}
		processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, process := range processes {
			if name, err := os.Readlink(process); err == nil && name == network {
				t.Errorf("%s is in the lab's network namespace", process)
			}
		}
		for _, pid := range []int{s.Leader, s.Supervisor} {
			// Whoever adopted a killed process may take a moment to reap it.
			for range 100 {
				if !inCgroup(pid, s.Cgroup) {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			if inCgroup(pid, s.Cgroup) {
				t.Errorf("process %d is left", pid)
			}
		}
	}
}
