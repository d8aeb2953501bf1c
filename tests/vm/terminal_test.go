package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// dialog is a command on a terminal, with somebody in front of it.
type dialog struct {
	t      *testing.T
	cmd    *exec.Cmd
	tty    *os.File
	before *unix.Termios
	mu     sync.Mutex
	output bytes.Buffer
	ended  chan struct{}
}

const ctrlC = "\x03"

func (m *Machine) dialog(t *testing.T, columns uint16, script string) *dialog {
	t.Helper()
	d := &dialog{t: t, cmd: m.Command("bash", "-c", script), ended: make(chan struct{})}
	d.cmd.Env = append(d.cmd.Env, "TERM=xterm-256color")
	// A new terminal is as any other; of this one the command may change it before it is looked at.
	controller, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	d.before, err = unix.IoctlGetTermios(int(controller.Fd()), unix.TCGETS)
	if err = errors.Join(err, controller.Close(), terminal.Close()); err != nil {
		t.Fatal(err)
	}
	if d.tty, err = pty.StartWithSize(d.cmd, &pty.Winsize{Rows: 24, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.ended)
		buf := make([]byte, 4096)
		for {
			n, err := d.tty.Read(buf)
			d.mu.Lock()
			d.output.Write(buf[:n])
			d.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return d
}

func (d *dialog) shown() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.output.String()
}

// await waits until the terminal shows something.
func (d *dialog) await(pattern string) {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	d.until(fmt.Sprintf("the terminal does not show %q", pattern), func() bool { return re.MatchString(d.shown()) })
}

func (d *dialog) until(what string, f func() bool) {
	d.t.Helper()
	if !within(patience, f) {
		d.cmd.Process.Kill()
		d.t.Fatalf("%s: %q", what, d.shown())
	}
}

// raw waits until a program of the lab has its terminal in raw mode: keys are no signals then, nor echoed.
func (m *Machine) raw(program string) {
	m.helper()()
	m.Eventually(program+" has its terminal in raw mode", func() bool {
		return m.Script("stty -a -F /proc/$(pgrep -n -x "+program+")/fd/0 | grep -q -e -icanon").Status == 0
	})
}

func (d *dialog) say(s string) {
	d.t.Helper()
	if _, err := d.tty.WriteString(s); err != nil {
		d.t.Fatal(err)
	}
}

// end waits for the command's end and gives its status and what the terminal showed. The terminal is as it was.
func (d *dialog) end() (status int, shown string) {
	d.t.Helper()
	stuck := time.AfterFunc(time.Minute, func() { d.cmd.Process.Kill() })
	defer stuck.Stop()
	d.cmd.Wait()
	after, err := unix.IoctlGetTermios(int(d.tty.Fd()), unix.TCGETS)
	if diff := cmp.Diff(d.before, after); err != nil || diff != "" {
		d.t.Errorf("the terminal's settings, %v:\n%s", err, diff)
	}
	<-d.ended
	d.tty.Close()
	shown = d.shown()
	if strings.LastIndex(shown, "\x1b[?25l") > strings.LastIndex(shown, "\x1b[?25h") {
		d.t.Errorf("the cursor is hidden: %q", shown)
	}
	if shown != "" && !strings.HasSuffix(shown, "\n") {
		d.t.Errorf("the last line has no end: %q", shown)
	}
	return d.cmd.ProcessState.ExitCode(), shown
}

// A name that may be several images is asked about on a terminal, once.
func TestShortNamePrompt(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		m.must(`printf 'short-name-mode = "enforcing"\nunqualified-search-registries = ["a.invalid", "` + RegistryAddress + `"]\n' > /etc/containers/registries.conf.d/lab.conf`)
		const pull = "machinectl-lite pull-oci --quiet --insecure-options=image demo/tiny"
		question := `demo/tiny may be:\r\n  1  a.invalid/demo/tiny:latest\r\n  2  ` + RegistryAddress + `/demo/tiny:latest\r\nWhich one\? \[1-2\] `
		answer := func(script, answer string, status int, want string) {
			t.Helper()
			d := m.dialog(t, 80, script)
			d.await(question + "$")
			d.say(answer)
			got, shown := d.end()
			if got != status || !regexp.MustCompile(want).MatchString(shown) {
				t.Errorf("%q: status %d, %q", answer, got, shown)
			}
		}
		m.expect(t,
			outcome{pull, 1, "", "/^machinectl-lite: image name \"demo\\/tiny\": stands for several images, and there is no terminal to ask which; it may be\n  a.invalid\\/demo\\/tiny:latest\n  " + tiny + ":latest\n$/"},
			outcome{"nspawnd-run demo/tiny true", 125, "", "/^nspawnd-run: image name \"demo\\/tiny\": stands for several images.*\n  a.invalid.*\n  " + tiny + ":latest\n$/"})
		answer(pull, ctrlC, 1, `\^C\r\nmachinectl-lite: image name "demo/tiny": interrupted\r\n$`)
		answer(pull, "\x04", 1, `\r\nmachinectl-lite: image name "demo/tiny": none was chosen\r\n$`)
		answer(pull, "\n", 1, `: none was chosen\r\n$`)
		answer(pull, "3\n", 1, `: none was chosen\r\n$`)
		answer(pull, "2 x\n", 1, `: none was chosen\r\n$`)
		answer("nspawnd-run --insecure-options=image demo/tiny echo", ctrlC, 130, `\^C\r\nnspawnd-run: image name "demo/tiny": interrupted\r\n$`)
		m.expect(t, outcome{"find /var/lib/nspawnd -type f", 0, "", ""})
		answer("nspawnd-run --insecure-options=image demo/tiny echo chosen", "2\n", 0, `\r\nchosen\r\n$`)
		// Nobody is asked again, on a terminal or not.
		status, shown := m.dialog(t, 80, pull).end()
		if status != 0 || strings.Contains(shown, "may be") {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t, outcome{pull, 0, "/^" + tiny + "/", "/WARNING/"})
		// In the permissive mode each is tried where there is nobody to ask.
		m.must(`sed -i s/enforcing/permissive/ /etc/containers/registries.conf.d/lab.conf; sed -i s/a.invalid/127.0.0.1:1/ /etc/containers/registries.conf.d/lab.conf`)
		m.expect(t, outcome{strings.Replace(pull, "tiny", "redis", 1), 1, "", "/127.0.0.1:1\\/demo\\/redis:latest: registry not reachable/"})
	})
}

// How far a pull is, on a terminal and in a pipe, and what is left when it is interrupted.
func TestPullProgress(t *testing.T) {
	webserver := buildCommand(t, "./webserver")
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		names := m.sharedImages(1)
		m.Copy(webserver, "/usr/local/bin/webserver")
		m.must(`systemd-run --quiet --unit=lab-proxy --property=Type=exec webserver proxy x:x 1000000`)
		m.Eventually("the proxy answers", func() bool {
			return m.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/3128").Status == 0
		})
		const (
			slow = "export HTTPS_PROXY=http://x:x@127.0.0.1:3128; "
			bar  = `layer [0-9a-f]{12} .*[0-9.]+ [KM]iB / [0-9.]+ MiB  [0-9.]+ [KM]iB/s`
		)
		pull := "machinectl-lite pull-oci --insecure-options=image " + names[0]
		// Layers that are complete stay for the next pull, and nothing else.
		onlyLayers := outcome{"find /var/lib/nspawnd -type f -not -path '*/layers/*'; ls -A /var/lib/nspawnd/tmp; machinectl-lite clean > /dev/null; find /var/lib/nspawnd -type f", 0, "", ""}
		for _, columns := range []uint16{40, 80, 200} {
			d := m.dialog(t, columns, slow+pull)
			if columns == 40 {
				d.await(`layer [0-9a-f]{12} `)
			} else {
				d.await(bar)
			}
			d.say(ctrlC)
			status, shown := d.end()
			if status != 1 || !strings.HasSuffix(shown, "machinectl-lite: image "+names[0]+": interrupted\r\n") {
				t.Errorf("%d columns: status %d, %q", columns, status, shown)
			}
			for line := range strings.SplitSeq(shown, "\n") {
				text := regexp.MustCompile("\x1b\\[[0-9?]*[a-zA-Z]").ReplaceAllString(strings.TrimRight(strings.Replace(line, "^C", "", 1), "\r"), "")
				if strings.Contains(text, " / ") && len([]rune(text)) > int(columns) {
					t.Errorf("%d columns: a line of %d: %q", columns, len([]rune(text)), text)
				}
			}
			m.expect(t, onlyLayers)
		}
		d := m.dialog(t, 80, slow+strings.Replace(pull, "machinectl-lite pull-oci", "nspawnd-run", 1)+" true")
		d.await(bar)
		d.say(ctrlC)
		if status, shown := d.end(); status != 130 || !strings.HasSuffix(shown, "nspawnd-run: image "+names[0]+": interrupted\r\n") {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t, onlyLayers)
		// To the end.
		d = m.dialog(t, 100, slow+pull)
		d.await(bar)
		status, shown := d.end()
		if status != 0 || !regexp.MustCompile(names[0]+`@sha256:[0-9a-f]{64}\r\n$`).MatchString(shown) {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t,
			outcome{"machinectl-lite clean --all > /dev/null; " + pull + " | cat", 0, "/^" + names[0] + "@sha256:[0-9a-f]{64}\n$/", "/^(layer [0-9a-f]{12}: [0-9.]+[BKM]\n){5}machinectl-lite: WARNING: .*\n$/"},
			outcome{"machinectl-lite clean --all > /dev/null; " + strings.Replace(pull, "pull-oci", "pull-oci --quiet", 1), 0, "/^" + names[0] + "@sha256:[0-9a-f]{64}\n$/", "/^machinectl-lite: WARNING: .*\n$/"})
		status, shown = m.dialog(t, 100, "machinectl-lite clean --all > /dev/null; "+slow+strings.Replace(pull, "pull-oci", "pull-oci --quiet", 1)+" 2>/dev/null").end()
		if status != 0 || !regexp.MustCompile(`^`+names[0]+`@sha256:[0-9a-f]{64}\r\n$`).MatchString(shown) {
			t.Errorf("--quiet: status %d, %q", status, shown)
		}
	})
}
