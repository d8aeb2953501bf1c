package vm

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// innerMachine starts a machine in a booted container.
func innerMachine(t *testing.T, m *Machine, container string) {
	t.Helper()
	m.Must("systemd-run", "--quiet", "--machine="+container, "--unit=inner", "--property=Delegate=yes", "systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--machine=inner", "--keep-unit",
		"sh", "-c", "trap exit TERM; sleep 1d & wait")
	m.Eventually("inner is up", func() bool { return m.Run("machinectl", "--machine="+container, "show", "inner").Status == 0 })
}

// beside compares what machinectl and machinectl-lite print.
func (m *Machine) beside(t *testing.T, args ...string) {
	t.Helper()
	theirs, ours := m.Run("timeout", append([]string{"30", "machinectl"}, args...)...), m.Run("timeout", append([]string{"30", "machinectl-lite"}, args...)...)
	// machinectl has the name of the process that has the leader's number on this host, if there is one.
	theirs.Stdout = regexp.MustCompile(`(Leader: [0-9]+) \(.*\)`).ReplaceAllString(theirs.Stdout, "$1")
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

		in := func(command string) Result {
			return m.Run("systemd-run", "--quiet", "--pipe", "--wait", "--machine=bootc", "bash", "-c", "mkdir -p /var/lib/machines; cd /var/lib/machines; "+command)
		}
		imagesBeside(t, "-M bootc", in, func(command string) Result { return m.Run("bash", "-c", command) })
		// A file of this host passes.
		m.expect(t,
			outcome{"cd /tmp; echo text > imported; machinectl-lite -q -M bootc import-raw imported; machinectl-lite -qM bootc import-raw - piped < imported; machinectl-lite -M bootc show-image -P Path imported piped; ls /var/lib/machines", 0,
				"/var/lib/machines/imported.raw\n\n/var/lib/machines/piped.raw\n", ""},
			outcome{"cd /tmp; machinectl-lite -q -M bootc export-raw imported exported && cat exported; machinectl-lite -q -M bootc export-raw --format=gzip piped | gzip -d; machinectl-lite -q -M bootc export-raw nosuch exported", 1, "text\ntext\n", "Image nosuch not found.\n"},
			outcome{"mkdir /tmp/dir; echo x > /tmp/dir/file; machinectl-lite -q -M bootc import-fs /tmp/dir; machinectl-lite -q -M bootc export-tar dir - | tar -t; machinectl-lite -q -M bootc import-tar /tmp/nosuch", 1, "./\n./file\n", "/no such file/"},
			outcome{"machinectl-lite __complete -M bootc remove '' 2> /dev/null | head -n -1 | sort", 0, "dir\ndisk\nempty\nimported\npiped\ntree\n", ""},
		)

		for command, want := range map[string]string{
			"-M appc":                                 "container appc: its system bus: no such file or directory; a whole system with a bus has to run in it",
			"-M nosuch":                               "container nosuch: No machine 'nosuch' known",
			"-M alice@bootc":                          "--machine: a container's bus is asked as its root, by --machine=bootc alone; as another user: machinectl-lite shell alice@bootc",
			"-M '' list":                              "--machine: a machine's name is never empty",
			"-M bootc exec web true":                  "exec works on its own host alone, not by --machine; .*: machinectl shell bootc /usr/bin/env machinectl-lite exec …",
			"-M nosuch trust list":                    "trust list works on its own host alone, .*",
			"-M bootc tag a b":                        "tag works on its own host alone, .*",
			"-M bootc clean --all":                    "clean: --all spares the images of systemd-nspawn, .*: machinectl … clean --all",
			"-M bootc bind inner x /x":                `bind: with --machine, "x" would be a path there and has to be absolute`,
			"-M bootc copy-from inner /x x":           `copy-from: with --machine, "x" would be a path there and has to be absolute`,
			"-M bootc start nosuch":                   "there is no image nosuch",
			"-M bootc wait --condition=healthy .host": "could not wait for machine: how healthy it is says a file of its own host",
		} {
			m.refuses(t, want, command)
		}
		m.refuses(t, "container bootc: its bus needs root: permission denied; try: sudo machinectl-lite …", `--version >/dev/null; setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite -M bootc list`)

		t.Run("a path out of the container", func(t *testing.T) {
			// The link leads to the host's bus where it is followed on the host, to nothing inside.
			pid := strings.TrimSpace(m.Must("machinectl", "show", "-P", "Leader", "appc"))
			m.Must("nsenter", "--target", pid, "--mount", "sh", "-c", "mkdir -p /run/dbus && ln -s /run/host-bus /run/dbus/system_bus_socket")
			m.Must("sh", "-c", "ln -s dbus/system_bus_socket /run/host-bus")
			m.Must("test", "-S", "/proc/"+pid+"/root/run/dbus/system_bus_socket")
			m.refuses(t, "container appc: its system bus: no such file or directory; .*", "-M appc")
		})
		t.Run("no bus", func(t *testing.T) {
			pid := strings.TrimSpace(m.Must("machinectl", "show", "-P", "Leader", "appc"))
			in := func(script string) {
				m.Must("nsenter", "--target", pid, "--mount", "sh", "-c", "rm -rf /run/dbus; mkdir /run/dbus; "+script)
			}
			in("touch /run/dbus/system_bus_socket")
			m.refuses(t, "container appc: its system bus: connect: connection refused", "-M appc")
			// It says what no bus says.
			in("systemd-socket-activate --listen=/run/dbus/system_bus_socket --accept --inetd /bin/echo nonsense >/dev/null 2>&1 & sleep 1")
			m.refuses(t, "container appc: its system bus: (dbus: authentication protocol error|write .*: broken pipe)", "-M appc")
			m.Must("systemctl", "stop", "appc")
		})
	})
}

// startSSH has root come back to the lab by ssh.
func startSSH(t *testing.T, m *Machine) {
	t.Helper()
	r := m.Script(`
		mkdir -p /root/.ssh /run/sshd
		ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
		cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
		echo 'StrictHostKeyChecking no' >/root/.ssh/config; echo 'LogLevel ERROR' >>/root/.ssh/config; echo 'Host *' >>/root/.ssh/config; echo 'BatchMode yes' >>/root/.ssh/config
		printf '#!/bin/sh\necho "$@" >>/tmp/ssh-arguments; exec ssh "$@"\n' >/usr/local/bin/ssh-noted; chmod +x /usr/local/bin/ssh-noted
		systemctl start ssh
	`)
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	m.Eventually("sshd listens", func() bool { return m.Run("ssh", "localhost", "true").Status == 0 })
}

// TestHostOption compares --host with machinectl's, by a real ssh.
func TestHostOption(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startSSH(t, m)
		bootContainer(t, m, "bootc", "")
		innerMachine(t, m, "bootc")
		for _, args := range [][]string{
			{"--host=localhost"}, {"-H", "root@localhost:22", "list", "--all", "--no-legend"}, {"-H", "localhost/bootc", "list", "--output=json"}, {"-H", "[::1]:22/bootc", "show", "inner"},
			{"-H", "localhost/bootc", "status", "inner"}, {"-H", "localhost", "show", "-p", "Name", "-p", "Leader", "bootc"}, {"-H", "localhost/nosuch", "list"}, {"-H", "nosuch", "list"}, {"-H", "", "list"}, {"-H", "localhost", "terminate", "nosuch"},
			{"-H", "localhost", "shell"}, {"-H", "localhost", "login", "bootc"},
		} {
			m.beside(t, args...)
		}
		t.Run("arguments of ssh", func(t *testing.T) {
			for _, host := range []string{"localhost", "root@localhost:22", "localhost/bootc", "[::1]:22/bootc"} {
				r := m.Run("bash", "-c", "export SYSTEMD_SSH=ssh-noted; for p in machinectl machinectl-lite; do $p -H '"+host+"' >/dev/null; done; uniq -c /tmp/ssh-arguments; rm /tmp/ssh-arguments")
				if !regexp.MustCompile(`^ *2 -xT .*systemd-stdio-bridge.*\n$`).MatchString(r.Stdout) {
					t.Errorf("%s: %s%s", host, r.Stdout, r.Stderr)
				}
			}
		})

		in := func(command string) Result {
			return m.Run("bash", "-c", "mkdir -p /var/lib/machines; cd /var/lib/machines; "+command)
		}
		imagesBeside(t, "-H localhost", in, func(command string) Result { return m.Run("bash", "-c", command) })
		m.expect(t, outcome{"for p in machinectl machinectl-lite; do $p -H localhost/bootc list-images --all --no-legend | cut -d' ' -f1; done; machinectl-lite __complete -H localhost remove '' 2> /dev/null | head -n -1", 0, ".host\n.host\n", ""})

		// What is of this host is not told of the other.
		for what, want := range map[string]string{"status bootc": `\n\t  Leader: \d+\n(.*\n)*\t   Iface: \d+\n`, "list -o wide --no-legend": `^bootc container systemd-nspawn debian +\S+ +\S+ +running`} {
			if out := m.Must("bash", "-c", "machinectl-lite -H localhost --no-pager "+what); !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%s: %s", what, out)
			}
		}
		r := m.Script(`
			m="machinectl-lite -H localhost"
			$m pause bootc; systemctl show -P FreezerState bootc; $m resume bootc
			echo text >/tmp/a; $m copy-to bootc /tmp/a /tmp/a; $m -H localhost/bootc copy-to inner /tmp/a /tmp/b; $m -H localhost/bootc copy-from inner /tmp/b /tmp/c; $m copy-from bootc /tmp/c /tmp/c; cat /tmp/c
			$m -H localhost/bootc kill inner; timeout 20 $m -H localhost/bootc wait inner || :
			$m stop bootc; timeout 60 $m wait bootc || :
			$m list
		`)
		if r.Status != 0 || r.Stdout != "frozen\ntext\nNo machines.\n" {
			t.Errorf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		const usage = `must be \[USER@\]HOST\[:PORT\]\[/CONTAINER\] .*`
		for command, want := range map[string]string{
			"-H localhost exec web true":                    "exec works on its own host alone, not by --host; .*: ssh -t localhost machinectl-lite exec …",
			"-H a@b:22/c logs web":                          "logs works on its own host alone, .*: ssh -t -p 22 a@b machinectl shell c /usr/bin/env machinectl-lite logs …",
			"-H web1 trust remove example.com/x":            "trust remove works on its own host alone, .*: ssh -t web1 machinectl-lite trust remove …",
			"-H localhost shell":                            "shell passes a file or a terminal, which does not go through --host; there: ssh -t localhost machinectl shell …",
			"-H localhost:22/bootc login":                   "login passes .*: ssh -t -p 22 localhost machinectl --machine=bootc login …",
			"-H localhost import-raw - x < /dev/null":       "import-raw passes a file .*: ssh localhost importctl -m import-raw …",
			"-H localhost/bootc export-tar tree":            "export-tar passes a file .*: ssh localhost importctl -m --machine=bootc export-tar …",
			"-H localhost -M bootc":                         "--host and --machine name one place each; .*: --host=localhost/bootc",
			"-H localhost bind bootc x":                     `bind: with --host, "x" would be a path there and has to be absolute`,
			"-H ::1":                                        `invalid argument "::1" for .*` + usage,
			"-H -oProxyCommand=id":                          `invalid argument "-oProxyCommand=id" for .*` + usage,
			"-H 'localhost/x;id'":                           `invalid argument "localhost/x;id" for .*` + usage,
			"-H localhost/x/y":                              `invalid argument .*` + usage,
			"-H localhost/nosuch 2>&1 | sed 1d >&2; exit 1": "connecting to localhost/nosuch: ssh: exit status 1",
			"-H nosuch 2>&1 | sed 1d >&2; exit 1":           "connecting to nosuch: ssh: exit status 255",
		} {
			m.refuses(t, want, command)
		}
		if left := m.Must("bash", "-c", "pgrep -f [s]ystemd-stdio-bridge || :"); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}
