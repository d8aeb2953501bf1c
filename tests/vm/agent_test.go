package vm

import (
	"strings"
	"testing"
)

// startPolkit has polkit decide, and a user alice who comes by ssh: the session has a terminal then, as a person's.
func startPolkit(t *testing.T, m *Machine) {
	t.Helper()
	startSSH(t, m)
	r := m.Script(`
		useradd --create-home --shell=/bin/bash alice
		echo root:secret | chpasswd
		install -d -o alice -m 700 /home/alice/.ssh
		install -o alice /root/.ssh/authorized_keys /home/alice/.ssh/
		mv /usr/share/polkit-1/org.freedesktop.PolicyKit1.service /usr/share/dbus-1/system-services/
		systemctl reload dbus
		systemctl start polkit
		systemctl start polkit-agent-helper.socket 2>/dev/null || :
	`)
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
}

// TestPasswordAgent types a password, beside machinectl.
func TestPasswordAgent(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startPolkit(t, m)
		run := func(t *testing.T, command, typed string) (failed bool, shown string) {
			t.Helper()
			d := m.dialog(t, 100, "timeout --foreground 30 ssh -tt alice@localhost "+command+" && echo done || echo failed")
			if typed != "" {
				d.await("Password: ")
				d.say(typed + "\n")
			}
			d.await("(done|failed)\r\n$")
			d.tty.Close()
			shown = visible(d.shown())
			if shown, failed = strings.CutSuffix(shown, "failed\n"); !failed {
				shown = strings.TrimSuffix(shown, "done\n")
			}
			return failed, shown
		}
		for _, test := range []struct{ command, typed, want string }{
			{"terminate web", "secret", "==== AUTHENTICATION COMPLETE ====\n"},
			{"terminate web", "wrong", "==== AUTHENTICATION FAILED ====\n"},
			{"--no-ask-password terminate web", "", "nteractive auth"},
			{"shell -q .host /usr/bin/id -u", "secret", "COMPLETE ====\n0\n"},
			{"list --no-pager", "", "web"},
		} {
			results := map[string]string{}
			for _, program := range []string{"machinectl", "machinectl-lite"} {
				if m.Run("machinectl", "show", "web").Status != 0 {
					m.Run("systemctl", "stop", "nspawnd-web")
					startService(m, "web")
					register(m, "web")
				}
				failed, shown := run(t, program+" "+test.command, test.typed)
				if gone := strings.HasPrefix(test.command, "terminate") && test.typed == "secret"; gone {
					m.Eventually("web is gone", func() bool { return m.Run("machinectl", "show", "web").Status != 0 })
				}
				if failed != (test.want == "nteractive auth" || test.typed == "wrong") || !strings.Contains(shown, test.want) {
					t.Errorf("%s %s: failed %v, %q", program, test.command, failed, shown)
				}
				shown, hint := strings.CutSuffix(shown, "; try: sudo machinectl-lite …\n")
				if hint != (program == "machinectl-lite" && failed) {
					t.Errorf("%s %s: a hint: %v", program, test.command, hint)
				}
				before, _, _ := strings.Cut(shown, "ould not terminate machine: ") // denied with other words
				results[program] = strings.TrimSuffix(strings.TrimSuffix(before, "C"), "machinectl-lite: c")
			}
			if results["machinectl"] != results["machinectl-lite"] {
				t.Errorf("%s: %q, machinectl %q", test.command, results["machinectl-lite"], results["machinectl"])
			}
		}
		// Without a terminal nobody is asked.
		if r := m.Run("timeout", "30", "ssh", "alice@localhost", "machinectl-lite terminate web"); r.Status != 1 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "nteractive auth") {
			t.Errorf("without a terminal: %d, %s", r.Status, r.Stderr)
		}
		// What the unit's manager is asked for too; on 257 its bus lets root alone call.
		typed, want := "secret", "==== AUTHENTICATION COMPLETE ====\n"
		if m.Suite == Trixie {
			typed, want = "", "machinectl-lite: could not pause machine: the bus lets only root do that: permission denied; try: sudo machinectl-lite …\n"
		}
		if _, shown := run(t, "machinectl-lite pause web", typed); !strings.HasSuffix(shown, want) {
			t.Errorf("pause: %q", shown)
		}
		if left := m.Must("bash", "-c", "pgrep pkttyagent || :"); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}
