package vm

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// innerMachine starts a machine in a booted container.
func innerMachine(t *testing.T, m *Machine, container string) {
	t.Helper()
	m.Must("systemd-run", "--quiet", "--machine="+container, "--unit=inner", "--property=Delegate=yes", "systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--machine=inner", "--keep-unit",
		"sh", "-c", "trap exit TERM; sleep 1d & wait")
	m.Eventually(20*time.Second, "inner is up", func() bool { return m.Run("machinectl", "--machine="+container, "show", "inner").Status == 0 })
}

// beside compares what machinectl and machinectl-lite print.
func (m *Machine) beside(t *testing.T, args ...string) {
	t.Helper()
	theirs, ours := m.Run("timeout", append([]string{"30", "machinectl"}, args...)...), m.Run("timeout", append([]string{"30", "machinectl-lite"}, args...)...)
	if diff := cmp.Diff(comparable(visible(theirs.Stdout)), comparable(visible(ours.Stdout))); diff != "" || theirs.Status != ours.Status {
		t.Errorf("%v: status %d, machinectl's %d: %s\nours: %s\nmachinectl: %s", args, ours.Status, theirs.Status, diff, ours.Stderr, theirs.Stderr)
	}
}

// refuses wants one line on standard error that matches.
func (m *Machine) refuses(t *testing.T, want string, command string) {
	t.Helper()
	r := m.Run("bash", "-c", "timeout 30 machinectl-lite "+command)
	if r.Status != 1 || r.Stdout != "" || !regexp.MustCompile(`^machinectl-lite: `+want+`\n$`).MatchString(r.Stderr) {
		t.Errorf("%s: status %d, %q%q, want %s", command, r.Status, r.Stdout, r.Stderr, want)
	}
}

// TestMachineOption compares --machine with machinectl's, in a container with the host's users and one with its own.
func TestMachineOption(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		bootContainer(t, m, "bootc", "")
		bootContainer(t, m, "userc", "--private-users=65536:65536 --private-users-ownership=off")
		m.Must("systemd-run", "--quiet", "--unit=appc", "--property=Delegate=yes", "systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--machine=appc", "--keep-unit", "sleep", "1d")
		innerMachine(t, m, "bootc")
		for _, args := range [][]string{
			{"--machine=bootc"}, {"-M", "bootc", "list", "--all", "--no-legend"}, {"-M", "bootc", "list", "--output=json"}, {"-M", "bootc", "show", "inner"}, {"-M", "bootc", "status", "inner"},
			{"-M", "bootc", "status", "nosuch"}, {"-M", "userc", "list", "--all"}, {"-M", "userc", "show", ".host"}, {"-M", ".host", "list"},
			{"-M", "bootc", "shell", "-q", ".host", "/bin/hostname"}, {"-M", "userc", "shell", "-q", ".host", "/usr/bin/id"},
			{"-M", "appc", "list"}, {"-M", "nosuch", "list"}, {"-M", "", "list"},
		} {
			m.beside(t, args...)
		}

		// Root in each of them may do what needs that.
		r := m.Script(`
			machinectl-lite -M bootc pause inner
			systemctl -M bootc show -P FreezerState inner
			machinectl-lite -M bootc resume inner
			echo text >/tmp/a; machinectl copy-to bootc /tmp/a /tmp/a
			machinectl-lite -M bootc copy-to inner /tmp/a /tmp/b
			machinectl-lite -M bootc copy-from inner /tmp/b /tmp/c
			machinectl copy-from bootc /tmp/c /tmp/c; cat /tmp/c
			machinectl-lite -M userc enable nosuch || :
			machinectl-lite -M bootc kill inner
			timeout 20 machinectl-lite -M bootc wait inner || :
			machinectl-lite -M bootc list
			systemd-run --quiet -M userc --unit=inner sleep 1d
			systemd-run --quiet -M userc --pipe --wait busctl --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus inner 0 x container $(systemctl -M userc show -P MainPID inner) ""
			machinectl-lite -M userc terminate inner
		`)
		if r.Status != 0 || r.Stdout != "frozen\ntext\nNo machines.\n" || !strings.HasPrefix(r.Stderr, "machinectl-lite: could not enable machine: nosuch: No image 'nosuch' known\n") {
			t.Errorf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}

		for command, want := range map[string]string{
			"-M appc":                                 "container appc: its system bus: no such file or directory; a whole system with a bus has to run in it",
			"-M nosuch":                               "container nosuch: No machine 'nosuch' known",
			"-M '' list":                              "--machine: a machine's name is never empty",
			"-M bootc exec web true":                  "exec works on this host alone, not by --machine; .*: machinectl-lite shell bootc /usr/bin/env machinectl-lite exec …",
			"-M bootc list-images":                    "list-images works on this host alone, .*",
			"-M bootc bind inner x /x":                `bind: with --machine, "x" would be a path there and has to be absolute`,
			"-M bootc copy-from inner /x x":           `copy-from: with --machine, "x" would be a path there and has to be absolute`,
			"-M bootc start nosuch":                   "there is no image nosuch in /var/lib/machines",
			"-M bootc wait --condition=healthy .host": "could not wait for machine: how healthy it is says a file of its own host",
		} {
			m.refuses(t, want, command)
		}
		m.refuses(t, "container bootc: its bus needs root: permission denied; try: sudo machinectl-lite …", `--version >/dev/null; setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite -M bootc list`)

		t.Run("a path out of the container", func(t *testing.T) {
			// The link leads to the host's bus where it is followed on the host, to nothing inside.
			pid := strings.TrimSpace(m.Must("machinectl", "show", "-P", "Leader", "appc"))
			m.Must("nsenter", "--target", pid, "--mount", "sh", "-c", "mkdir -p /run/dbus && ln -s /run/host/../host-bus /run/dbus/system_bus_socket")
			m.Must("sh", "-c", "ln -s dbus/system_bus_socket /run/host-bus")
			m.refuses(t, "container appc: its system bus: no such file or directory; .*", "-M appc")
		})
	})
}
