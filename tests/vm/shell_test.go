package vm

import (
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// bootContainer starts a whole system under systemd-nspawn.
func bootContainer(t *testing.T, m *Machine, name string, options string) {
	t.Helper()
	r := m.Script("systemd-run --quiet --unit=" + name + " --property=Delegate=yes systemd-nspawn --quiet --directory=/ --volatile=yes --bind-ro=/etc/pam.d --machine=" + name +
		" --keep-unit --network-veth " + options + " --boot systemd.unit=basic.target systemd.firstboot=no systemd.mask=systemd-networkd.service")
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	m.Eventually(name+" is up", func() bool {
		state := strings.TrimSpace(m.Run("systemctl", "--machine="+name, "is-system-running").Stdout)
		return state == "running" || state == "degraded"
	})
}

// escapes are what terminals do not show. machinectl erases what is behind the end, and ends a line that was not begun (257).
var escapes = regexp.MustCompile("\x1b\\[[0-9;?!]*[a-zA-Z]|\x1b\\][^\x07\x1b]*(\x07|\x1b\\\\)|\x1bP[^\x1b]*\x1b\\\\")

func visible(s string) string {
	return regexp.MustCompile(`(\r*\n)+`).ReplaceAllString(escapes.ReplaceAllString(s, ""), "\n")
}

// TestShell compares shell and login with machinectl's on a booted container.
func TestShell(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.importImage("shell")
		bootContainer(t, m, "bootc", "")
		m.Must("nspawnd-run", "-d", "--name", "web", "-u", "games", "-e", "FROM=web", shellImage, "sleep", "infinity")
		test := func(name string, f func(t *testing.T, m *Machine)) {
			t.Run(name, func(t *testing.T) { f(t, m.With(t)) })
		}
		test("as machinectl", func(t *testing.T, m *Machine) {
			const size = `'while [ "$(stty size)" = "0 0" ]; do :; done; stty size'` // the terminal gets it while the command starts
			for _, command := range []string{
				"shell bootc /bin/echo 'a b' '$HOME' -x", "shell -q bootc /bin/sh -c " + size, "shell -q bootc /usr/bin/tty", "shell nobody@bootc /usr/bin/id", "shell --uid=nobody bootc /usr/bin/id", "shell --uid=x nobody@bootc /usr/bin/id -un",
				"shell -q -E A=b -E HOME bootc /bin/sh -c 'echo $A $TERM $COLORTERM $HOME $USER; pwd'", "shell bootc /bin/sh -c 'exit 3'", "shell .host /bin/sh -c " + size, "shell -q games@ /usr/bin/id", "shell -q '' /usr/bin/id",
				"shell -q bootc /bin/sh -c 'printf half'",
			} {
				run := func(program string) string {
					d := m.dialog(t, 91, "timeout --foreground 20 "+program+" "+command+"; echo status $?")
					d.await("status [0-9]+")
					d.tty.Close()
					return visible(d.shown())
				}
				theirs, ours := run("machinectl"), run("machinectl-lite")
				if ours != theirs {
					t.Errorf("%s:\nours %q\nmachinectl %q", command, ours, theirs)
				}
			}
			// Into a file goes what the command says.
			const into = " shell -q bootc /bin/printf '\\033[31mred\\033[0m\\n' < /dev/null > /tmp/"
			m.expect(t, outcome{"machinectl" + into + "theirs; machinectl-lite" + into + "ours; cmp /tmp/theirs /tmp/ours && cat /tmp/ours", 0, "/^\x1b\\[31mred\x1b\\[0m\r\n/", ""})
			for command, want := range map[string]string{
				"shell nosuch":       "machinectl-lite: could not open a shell: No machine 'nosuch' known\n",
				"shell bootc echo":   "machinectl-lite: could not open a shell: Specified path 'echo' is not absolute\n",
				"shell @bootc":       "machinectl-lite: shell: \"@bootc\" has no user before the @\n",
				"shell -E =x bootc":  "machinectl-lite: --setenv: \"=x\" is not NAME=VALUE\n",
				"login a b":          "machinectl-lite: login: one machine at a time (see machinectl-lite login --help)\n",
				"login nosuch":       "machinectl-lite: could not log in: No machine 'nosuch' known\n",
				"login web":          "machinectl-lite: could not log in: no systemd runs in web; for a shell: machinectl-lite shell web\n",
				"shell nosuch@web":   "machinectl-lite: could not open a shell: web: --user: user \"nosuch\": no such user in the image's /etc/passwd\n",
				"shell -E =x web /x": "/^machinectl-lite: could not open a shell: web: --env: .*\n$/",
			} {
				if r := m.Run("bash", "-c", "timeout 20 machinectl-lite "+command); r.Status != 1 || !matches(r.Stderr, want) {
					t.Errorf("%s: %d, %q", command, r.Status, r.Stderr)
				}
				if r := m.Run("bash", "-c", "timeout 20 machinectl "+command); r.Status == 0 {
					t.Errorf("machinectl %s: %q", command, r.Stdout)
				}
			}
		})
		test("a dialog", func(t *testing.T, m *Machine) {
			for _, program := range []string{"machinectl", "machinectl-lite"} {
				s := m.session(t, program+" shell bootc /bin/bash --norc -i")
				s.saw(`Connected to machine bootc\. Press \^\] three times within 1s to exit session\.\r+\n`)
				s.saw(`[#$] `)
				s.say("PS1='> '; tty\r")
				s.saw(`/dev/pts/[0-9]+\r\n`)
				s.saw(`> `)
				s.controlsJobs()
				s.say("exit 7\r")
				s.saw(`exit\r\n`)
				s.saw(`Connection to machine bootc terminated\.\r+\n`)
				s.ends(0) // machined does not tell

				s = m.session(t, program+" shell bootc")
				s.saw(`[#$] `)
				s.say("\x1d\x1d\x1d")
				s.saw(`\n([\x07\x1b\x1d].*)?Connection to machine bootc terminated\.\r+\n`)
				s.ends(0)

				s = m.session(t, program+" login bootc")
				s.saw(`Connected to machine bootc`)
				s.saw(`login: `)
				s.say("nobodyhere\r")
				s.saw(`Password: |(?i)login incorrect`)
				s.say("\x04") // the prompt comes again on the same terminal
				s.saw(`login: `)
				s.say("\x1d")
				s.say("\x1d\x1d")
				s.saw(`\n([\x07\x1b\x1d].*)?(Connection to machine|Machine) bootc terminated\.\r+\n`)
				s.ends(0)
				// The getty is started again on a terminal that may be the next one's.
				m.Script("systemctl -M bootc stop 'container-getty@*'; systemctl -M bootc reset-failed")
			}
			// The size changes with ours.
			s := m.session(t, "machinectl-lite shell -q bootc /bin/sh -c 'trap \"stty size\" WINCH; echo ready; while :; do sleep 0.1; done'")
			s.saw("ready")
			if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
				t.Fatal(err)
			}
			s.saw(`33 77\r\n`)
			s.say("\x1d\x1d\x1d")
			s.ends(0)
			// SIGTERM ends the connection, and leaves the terminal as it was.
			s = m.session(t, "machinectl-lite shell bootc /bin/sleep 100")
			m.raw("machinectl-lite")
			m.Must("pkill", "-TERM", "-x", "machinectl-lite")
			s.ends(1)
		})
		test("without systemd", func(t *testing.T, m *Machine) {
			s := m.session(t, "machinectl-lite shell web")
			s.saw(`[#$] `)
			s.say("tty; id -un; echo $FROM; exit 5\r")
			s.saw(`/dev/pts/[0-9]+\r\ngames\r\nweb\r\n`)
			s.ends(5)
			s = m.session(t, "machinectl-lite shell -E A=b root@web sh -c 'id -un; echo $A; exit 6'")
			s.saw(`root\r\nb\r\n`)
			s.ends(6)
		})
		test("the machine goes", func(t *testing.T, m *Machine) {
			login, shell := m.session(t, "machinectl-lite login bootc"), m.session(t, "machinectl-lite shell bootc")
			login.saw("login: ")
			shell.saw(`[#$] `)
			m.Must("machinectl", "kill", "-s", "KILL", "bootc") // what is logged in may take its time to stop
			login.saw(`Connection to machine bootc terminated\.`)
			login.ends(0)
			shell.saw(`Connection to machine bootc terminated\.`)
			shell.ends(0)
		})
		m.must(await + "machinectl-lite kill -s KILL web; await systemctl is-failed -q nspawnd-web; systemctl reset-failed nspawnd-web")
		m.nothingLeft(t)
	})
}

// controlsJobs has a shell at its prompt run a job in the background, stop it and interrupt it.
func (s *session) controlsJobs() {
	s.t.Helper()
	s.say("sleep 100 & jobs\r")
	s.saw(`\[1\]\+ +Running +sleep 100 &`)
	s.say("fg\r")
	s.saw(`sleep 100\r\n`)
	s.press("\x1a", `Stopped +sleep 100`)
	s.say("fg\r")
	s.saw(`sleep 100\r\n`)
	s.press(ctrlC, `(?s)\^C.*> $`)
}
