package vm

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

const shellImage = "localhost/shell"

// importImage stores a test image as localhost/NAME, without a registry.
func (m *Machine) importImage(name string) {
	m.helper()()
	m.Must("machinectl-lite", "import-oci", "--quiet", "--insecure-options=image", "oci:"+m.Images()+":"+name, "localhost/"+name)
}

// session is a dialog of which each part is looked for behind the one before.
type session struct {
	*dialog
	read int
}

// session runs a command and wants the terminal to be as it was before.
func (m *Machine) session(t *testing.T, command string) *session {
	t.Helper()
	const around = `before=$(stty -g); %s; status=$?; [ "$before" = "$(stty -g)" ] && echo as before || stty -a; exit $status`
	return &session{dialog: m.dialog(t, 100, fmt.Sprintf(around, command))}
}

// saw waits for what the regular expression describes.
func (s *session) saw(pattern string) {
	s.t.Helper()
	s.until(fmt.Sprintf("the terminal does not show %q", pattern), func() bool { return s.sees(regexp.MustCompile(pattern)) })
}

func (s *session) sees(pattern *regexp.Regexp) bool {
	at := pattern.FindStringIndex(s.shown()[s.read:])
	if at != nil {
		s.read += at[1]
	}
	return at != nil
}

// press types a key until the terminal shows its effect: a shell names a job before it hands the terminal over to it.
func (s *session) press(key, pattern string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%q: the terminal does not show %q", key, pattern), func() bool {
		s.say(key)
		return within(300*time.Millisecond, func() bool { return s.sees(regexp.MustCompile(pattern)) })
	})
}

// ends wants the command's status.
func (s *session) ends(status int) {
	s.t.Helper()
	s.saw("as before\r\n")
	if got, shown := s.end(); got != status {
		s.t.Errorf("status %d, want %d; %q", got, status, shown)
	}
}

func TestStreams(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.importImage("shell")
		m.importImage("tiny")
		run := func(options, command string) string {
			return "nspawnd-run " + options + " " + shellImage + " " + command
		}
		ps1 := `-e PS1='> ' `
		test := func(name string, f func(t *testing.T, m *Machine)) {
			t.Run(name, func(t *testing.T) { f(t, m.With(t)); m.With(t).nothingLeft(t) })
		}

		test("a terminal of its own", func(t *testing.T, m *Machine) {
			s := m.session(t, run("", "sh -c 'tty; stty size; echo $TERM; ls -l /dev/console /dev/pts/0; tty <&2; tty < /dev/tty; tty < /dev/console; exit 5'"))
			s.saw(`/dev/pts/0\r\n24 100\r\nxterm-256color\r\n`)
			s.saw(`crw--w---- +1 root tty +136, +0 .* /dev/console\r\ncrw--w---- .* /dev/pts/0\r\n/dev/pts/0\r\n/dev/(tty|pts/0)\r\n/dev/(console|pts/0)\r\n`)
			s.ends(5)
			// For another user too.
			s = m.session(t, run("-u games", "sh -c 'tty; id -un; stat -c %U /dev/pts/0; echo reopened > /dev/stdout; echo tty > /dev/tty'"))
			s.saw(`/dev/pts/0\r\ngames\r\ngames\r\nreopened\r\ntty\r\n`)
			s.ends(0)
		})
		test("without", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run localhost/tiny tty | cat", 0, "stdin no\nstdout no\nstderr no\n", ""},
				outcome{"nspawnd-run -i localhost/tiny cat <<< x", 0, "x\n", ""},
			)
			s := m.session(t, run("-t=false", "tty"))
			s.saw(`not a tty|/dev/pts`) // it has the caller's, which has no name in the machine
			s.ends(1)
			s = m.session(t, "nspawnd-run localhost/tiny tty | cat")
			s.saw(`stdin 24 100\r\nstdout no\r\n`)
			s.ends(0)
			s = m.session(t, "nspawnd-run "+shellImage+" sh -c 'tty; echo complaint >&2' 2> /tmp/errors; cat /tmp/errors | od -c")
			s.saw(`/dev/pts/0\r\n`)
			s.saw(`c   o   m   p   l   a   i   n   t  \\n`) // not through the terminal
			s.ends(0)
		})
		test("asked for", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run -t " + shellImage + " sh -c 'tty; stty size; echo $TERM' < /dev/null", 0, "/^/dev/pts/0\r\n24 80\r\n[a-z0-9-]+\r\n$/", ""},
				outcome{"printf 'one\\ntwo' | nspawnd-run -it " + shellImage + " sh -c 'stty -echo; cat | od -An -c'", 0, "/   o   n   e  .n   t   w   o\r\n/", ""},
				outcome{"nspawnd-run -t -a stdout " + shellImage + " true", 125, "", "/^nspawnd-run: --tty needs .*\n$/"},
			)
		})
		test("job control", func(t *testing.T, m *Machine) {
			s := m.session(t, run(ps1, "bash --norc -i"))
			s.saw(`> $`)
			s.say("sleep 100 & jobs\r")
			s.saw(`\[1\]\+ +Running +sleep 100 &`)
			s.say("fg\r")
			s.saw(`sleep 100\r\n`)
			s.press("\x1a", `\[1\]\+ +Stopped +sleep 100`)
			s.say("bg; kill %1; sleep 100\r")
			s.saw(`sleep 100\r\n`)
			s.press(ctrlC, `(?s)\^C.*> $`)
			s.say("echo $?; trap 'echo its \"own\" SIGINT' INT; kill -INT $$; exit 7\r")
			s.saw(`130\r\n`)
			s.saw(`its own SIGINT\r\n`)
			s.ends(7)
		})
		test("full-screen programs", func(t *testing.T, m *Machine) {
			s := m.session(t, run("", "sh -c 'seq 1000 | less'"))
			s.saw(`23\r\n`)
			s.say("G")
			s.saw(`1000\r\n`)
			s.say("q")
			s.ends(0)

			s = m.session(t, run("", "sh -c 'vi /tmp/new; cat /tmp/new'"))
			s.saw(`/tmp/new`)
			s.say("ihello\x1b")
			time.Sleep(200 * time.Millisecond) // or the key after it makes a sequence of it
			s.say(":wq\r")
			s.saw(`written`)
			s.saw(`hello\r\n`)
			s.ends(0)

			s = m.session(t, run("", "top"))
			s.saw(`(?s)Tasks:.*top`)
			s.say("q")
			s.ends(0)
		})
		test("window size", func(t *testing.T, m *Machine) {
			s := m.session(t, run("", `bash -c "trap 'stty size' WINCH; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"`))
			s.saw(`ready`)
			for _, size := range []pty.Winsize{{Rows: 50, Cols: 132}, {Rows: 10, Cols: 40}} {
				if err := pty.Setsize(s.tty, &size); err != nil {
					t.Fatal(err)
				}
				s.saw(fmt.Sprintf(`%d %d\r\n`, size.Rows, size.Cols))
			}
			m.Must("pkill", "-TERM", "-x", "nspawnd-run")
			s.ends(3)
		})
		test("a paste of 1 MiB", func(t *testing.T, m *Machine) {
			s := m.session(t, run("", `sh -c "stty raw -echo; printf ready; head -c 1048576 | md5sum"`))
			s.saw(`ready`)
			paste := strings.Repeat("0123456789abcde\r", 1<<16)
			go s.tty.WriteString(paste)
			want := strings.Fields(m.Must("sh", "-c", `yes 0123456789abcde | tr '\n' '\r' | head -c 1048576 | md5sum`))[0]
			s.saw(want)
			s.ends(0)
			// And as much out.
			s = m.session(t, run("", `sh -c "yes 0123456789abcde | head -c 1048576; echo end"`))
			s.saw(`end\r\n`)
			s.ends(0)
			if n := strings.Count(s.shown(), "0123456789abcde\r\n"); n != 1<<16 {
				t.Errorf("%d of %d lines came", n, 1<<16)
			}
		})
		test("given back", func(t *testing.T, m *Machine) {
			const raw = `sh -c 'stty raw -echo; printf ready; sleep 1000'`
			for _, c := range []struct {
				how    string
				end    func(s *session)
				status int
			}{
				{"payload killed", func(*session) { m.Must("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "nspawnd-raw") }, 137},
				{"unit stopped", func(*session) { m.Must("systemctl", "stop", "nspawnd-raw") }, 137},
				{"terminated", func(*session) { m.Must("machinectl-lite", "terminate", "raw") }, 137},
			} {
				s := m.session(t, run("--name raw -p TimeoutStopSec=1", raw))
				s.saw(`ready`)
				c.end(s)
				s.ends(c.status)
				m.nothingLeft(t)
			}
			for _, sig := range []string{"TERM", "HUP", "INT", "QUIT"} {
				s := m.session(t, run("--name raw", `bash -c "trap 'exit 9' `+sig+`; stty raw -echo; printf ready; while :; do sleep 0.1; done"`))
				s.saw(`ready`)
				m.Must("pkill", "-"+sig, "-x", "nspawnd-run")
				s.ends(9)
			}
			// A start that fails.
			s := m.session(t, run("-v /etc/passwd:/etc/passwd/x --name raw", "true"))
			s.ends(125)
		})
		test("left", func(t *testing.T, m *Machine) {
			s := m.session(t, run(ps1+"--name left", "bash --norc -i"))
			s.saw(`> $`)
			s.say("echo $((6*7))\r")
			s.saw(`\r42\r\n`)
			s.say("\x10\r") // ctrl-p alone is passed on with what comes next: the line before
			s.saw(`\r42\r\n`)
			s.say("(until [ -e /left ]; do sleep 0.1; done; echo later) &\r")
			s.saw(`\[1\]`)
			s.say("\x10\x11")
			s.ends(0)
			m.expect(t,
				outcome{"machinectl-lite list --no-legend", 0, "/^left +container nspawnd/", ""},
				outcome{"touch /proc/$(systemctl show -P MainPID nspawnd-left)/root/left; said left '.*later'; journalctl -qu nspawnd-left -o cat | grep -c later; systemctl stop nspawnd-left", 0, "1\n", ""},
			)
			s = m.session(t, run("--name left --detach-keys ctrl-x,q", "sleep 1000"))
			m.raw("nspawnd-run")
			s.say("\x18q")
			s.ends(0)
			m.Must("systemctl", "stop", "nspawnd-left")
		})
		test("detached", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run -dit --name d -p TimeoutStopSec=1 " + shellImage + " sh -c 'tty; stty size; read never'; said d /dev/pts/0; journalctl -qu nspawnd-d -o cat | grep -x '24 80'", 0, "d\n24 80\n", ""},
				outcome{"systemctl restart nspawnd-d; await sh -c '[ $(journalctl -qu nspawnd-d -o cat | grep -cx \"24 80\") = 2 ]'; systemctl is-active nspawnd-d; systemctl stop nspawnd-d; systemctl reset-failed nspawnd-d", 0, "active\n", ""},
				outcome{"nspawnd-run -di --name d -p TimeoutStopSec=1 " + shellImage + " sh -c 'echo up; cat; echo end'; said d up; sleep 0.2; systemctl is-active nspawnd-d; systemctl stop nspawnd-d; systemctl reset-failed nspawnd-d; journalctl -qu nspawnd-d -o cat | grep -cx end", 1, "d\nactive\n0\n", ""},
			)
		})
		test("the client killed", func(t *testing.T, m *Machine) {
			s := m.session(t, "nspawnd-run --name hung "+shellImage+" sh -c 'echo ready; read line'; stty sane; exit 7")
			s.saw(`ready`)
			m.Must("pkill", "-KILL", "-x", "nspawnd-run") // the terminal hangs up, and the shell ends as it would here
			s.end()
		})
		test("bad values", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run --detach-keys ctrl-ö localhost/tiny true", 125, "", "/^nspawnd-run: --detach-keys: .*\n$/"},
				outcome{"nspawnd-run -a stdlog localhost/tiny true", 125, "", "nspawnd-run: --attach: \"stdlog\" is not stdin, stdout or stderr\n"},
				outcome{"nspawnd-run -d -a stdout localhost/tiny true", 125, "", "nspawnd-run: --attach can't be used with --detach\n"},
			)
		})
		test("attached in part", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run --name part -a stdout " + shellImage + " sh -c 'echo out; echo err >&2; cat' <<< in", 0, "out\n", ""},
				outcome{"await sh -c 'journalctl -qt part -o cat | grep err'", 0, "err\n", ""},
				outcome{"nspawnd-run -a STDIN -a stderr " + shellImage + " sh -c 'cat >&2' <<< in", 0, "", "in\n"},
			)
		})
	})
}
