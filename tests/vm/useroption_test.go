package vm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUserOption compares --user with machinectl's, for a user who has come by ssh.
func TestUserOption(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startSSH(t, m)
		m.Must("sh", "-c", "useradd --create-home --shell=/bin/bash alice && install -d -o alice -m 700 /home/alice/.ssh && install -o alice /root/.ssh/authorized_keys /home/alice/.ssh/ && loginctl enable-linger alice")
		startService(m, "web")
		register(m, "web")
		alice := func(command string) Result { return m.Run("timeout", "60", "ssh", "alice@localhost", command) }
		if m.Suite == Trixie {
			const want = "machinectl-lite: --user: users have machines of their own from systemd 259 on, this is 257\n"
			for _, verb := range []string{"list", "status web", "terminate web"} {
				if r := alice("machinectl-lite --user " + verb); r.Status != 1 || r.Stderr != want {
					t.Errorf("%s: status %d, %s%s", verb, r.Status, r.Stdout, r.Stderr)
				}
			}
			return
		}
		register := func() {
			r := alice(`
				systemctl --user reset-failed; systemd-run --user --quiet --unit=own --property=Type=exec sleep 1d &&
				busctl --user --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager \
					RegisterMachine sayssus own 0 x container $(systemctl --user show -P MainPID own) ""
			`)
			if r.Status != 0 {
				t.Fatal(r.Stderr)
			}
		}
		register()
		for _, command := range []string{
			"--user list", "--user list --all --output=json", "--user show own", "--user show", "--user status --lines=0 own", "--user status nosuch", "--user status web", "--system list --no-legend", "--user shell .host", "--user enable nosuch",
			"--user start nosuch", "--user kill nosuch", "--user terminate web", "--user --host=localhost list",
		} {
			theirs, ours := alice("machinectl "+command), alice("machinectl-lite "+command)
			if diff := cmp.Diff(comparable(theirs.Stdout), comparable(ours.Stdout)); diff != "" || ours.Status != theirs.Status {
				t.Errorf("%s: status %d, machinectl's %d: %s\nours %s\nmachinectl %s", command, ours.Status, theirs.Status, diff, ours.Stderr, theirs.Stderr)
			}
		}
		imagesBeside(t, "--user", func(command string) Result {
			return alice("mkdir -p .local/state/machines; cd .local/state/machines; " + command)
		}, alice)

		// Who may do what polkit is not asked for.
		for _, program := range []string{"machinectl", "machinectl-lite"} {
			if r := alice(program + " --user terminate own && while machinectl --user show own; do sleep 0.1; done >/dev/null 2>&1; machinectl-lite --user"); r.Status != 0 || r.Stdout != "No machines.\n" {
				t.Errorf("%s: status %d, %s%s", program, r.Status, r.Stdout, r.Stderr)
			}
			if program == "machinectl" {
				register()
			}
		}
		for command, want := range map[string]string{
			"--user tag a b":       "tag is for what is the system's, not with --user",
			"--user clean --all":   "clean: --all spares .*",
			"--user -M bootc list": "--user is for the bus of who calls, not with --host or --machine",
			"--user --system list": "--user and --system exclude each other",
			"--user list":          `connecting to the user's bus: neither \$DBUS_SESSION_BUS_ADDRESS nor \$XDG_RUNTIME_DIR says where it is: .*`,
			"--user start nosuch":  `connecting to the user's bus: .*`,
		} {
			m.refuses(t, want, command)
		}
		if got := m.Must("machinectl-lite", "--no-legend"); !strings.HasPrefix(got, "web ") {
			t.Errorf("the system's: %s", got)
		}
	})
}
