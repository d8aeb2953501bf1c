package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
)

// startMachines starts what a host may run: a booted container with a network, an application in a container of
// systemd-nspawn with its own user namespace, and a registered service of ours.
func startMachines(t *testing.T, m *Machine) {
	t.Helper()
	result := m.Script(`
		systemd-run --quiet --unit=bootc --property=Delegate=yes systemd-nspawn --quiet --directory=/ --volatile=yes --machine=bootc \
			--keep-unit --network-veth --boot systemd.unit=basic.target systemd.firstboot=no systemd.mask=systemd-networkd.service
		systemd-run --quiet --unit=appc --property=Delegate=yes systemd-nspawn --quiet --directory=/ --volatile=yes --machine=appc \
			--keep-unit --private-users=65536:65536 --private-users-ownership=off \
			sh -c 'sleep 1d & sleep 2d; : a long argument that no narrow terminal shows in full'
	`)
	if result.Status != 0 {
		t.Fatal(result.Stderr)
	}
	startService(m, "my-web")
	register(m, "my-web")
	m.Eventually("bootc is up", func() bool {
		state := strings.TrimSpace(m.Run("systemctl", "--machine=bootc", "is-system-running").Stdout)
		return state == "running" || state == "degraded"
	})
	m.Eventually("appc is up", func() bool { return m.Run("machinectl", "show", "appc").Status == 0 })
	result = m.Script(`
		ip link set ve-bootc up
		nsenter --net --target $(machinectl show --property=Leader --value bootc) sh -c '
			ip link set host0 addrgenmode none up; ip address add 10.1.2.3/24 dev host0; ip address add fd00::7/64 dev host0 nodad'
	`)
	if result.Status != 0 {
		t.Fatal(result.Stderr)
	}
}

// startService starts a service as nspawnd-run does, whose unit is a machine that nobody has registered.
func startService(m *Machine, name string, properties ...string) {
	args := append([]string{"--quiet", "--unit=nspawnd-" + strings.ReplaceAll(name, "-", `\x2d`), "--slice=machine.slice", "--property=Type=exec",
		"--description=" + name + ": registry.test:5000/demo/nginx:latest"}, properties...)
	m.Must("systemd-run", append(args, "sh", "-c", "echo the first words of "+name+"; exec sleep 1d")...)
	m.must(await + "await sh -c 'journalctl -q -o cat | grep -q \"^the first words of " + name + "\"'")
}

// register does what nspawnd-run does then.
func register(m *Machine, name string) {
	leader := m.Must("systemctl", "show", "--property=MainPID", "--value", "nspawnd-"+strings.ReplaceAll(name, "-", `\x2d`))
	m.Must("busctl", "--quiet", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager",
		"RegisterMachine", "sayssus", name, "0", "nspawnd", "container", strings.TrimSpace(leader), "")
}

// terminal runs a command in a terminal of the lab and gives what it shows.
func (m *Machine) terminal(t *testing.T, columns uint16, env []string, name string, args ...string) string {
	t.Helper()
	cmd := m.Command(name, args...)
	stuck := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	cmd.Env = append(append(cmd.Env, "TERM=xterm-256color"), env...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var output bytes.Buffer
	output.ReadFrom(tty) // to EIO, when the other side is closed
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, output.String())
	}
	return output.String()
}

// What differs from machinectl, and why:
//   - the time since when a machine runs, which goes on between the two calls;
//   - 257 puts "UID Shift" out of line, newer ones and ours write "ID Shift";
//   - newer ones set grey in two ways at once;
//   - for machines of nspawnd ours shows the image, and what they logged before they were registered.
var normalize = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(Since: [^;]*); .* ago`), "$1; x ago"},
	{regexp.MustCompile(`(?m)^  UID Shift:`), "\tID Shift:"},
	{regexp.MustCompile("\x1b\\[0;90m(\x1b\\[0;38:5:245m)"), "$1"},
}

func comparable(output string) string {
	for _, n := range normalize {
		output = n.what.ReplaceAllString(output, n.with)
	}
	return output
}

func TestMachinectlSame(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startMachines(t, m)
		m.Must("systemd-run", "--quiet", "--unit=log", "--wait", "true") // a log line after the machines'
		commands := [][]string{
			nil,
			{"list"},
			{"list", "--all", "--full"},
			{"list", "--no-legend"},
			{"list", "--max-addresses=0"},
			{"list", "--max-addresses=2"},
			{"list", "--max-addresses=all"},
			{"list", "--output=json"},
			{"list", "--output=json-pretty"},
			{"list", "--output=json-sse", "--max-addresses=0"},
			{"list", "--output=json-seq", "-a"},
			{"status", "bootc"},
			{"status", "appc", "bootc", "appc"},
			{"status", "--lines=0", "appc"},
			{"-n", "2", "-o", "cat", "status", "bootc"},
			{"status", "--output=short-monotonic", "--all", "bootc"},
		}
		for _, command := range commands {
			t.Run(strings.Join(command, " "), func(t *testing.T) {
				// An address of IPv6 is there when the kernel has found that nobody else has it.
				m.Eventually("addresses are settled", func() bool { return m.Must("ip", "-6", "address", "show", "tentative") == "" })
				stock, ours := m.Run("machinectl", command...), m.Run("machinectl-lite", command...)
				if diff := cmp.Diff(comparable(stock.Stdout), comparable(ours.Stdout)); diff != "" {
					t.Error(diff)
				}
				if stock.Status != ours.Status || ours.Stderr != "" {
					t.Errorf("stock: status %d, %s\nours: status %d, %s", stock.Status, stock.Stderr, ours.Status, ours.Stderr)
				}
			})
		}
		terminals := []struct {
			columns uint16
			env     string
			command string
		}{
			{120, "X=", "list --no-pager"},
			{120, "X=", "list"}, // through less
			{40, "X=", "list --no-pager"},
			{40, "X=", "list --no-pager --full"},
			{40, "X=", "list --no-pager --max-addresses=2 --all"},
			{40, "COLUMNS=60", "list --no-pager"},
			{40, "LANG=C", "list --no-pager"},
			{120, "NO_COLOR=1", "list --no-pager"},
			{120, "SYSTEMD_COLORS=0", "list --no-pager"},
			{120, "TERM=dumb", "list"},
			{120, "PAGER=cat", "list"},
			{120, "X=", "list --no-pager --output=json"},
			{120, "X=", "list --no-pager --output=json-pretty"},
			{50, "X=", "status --no-pager appc"},
			{50, "X=", "status --no-pager --full appc"},
			{50, "X=", "status appc"}, // through less
			{50, "LANG=C", "status --no-pager appc bootc"},
		}
		for _, test := range terminals {
			t.Run(fmt.Sprintf("terminal %d %s %s", test.columns, test.env, test.command), func(t *testing.T) {
				args := strings.Fields(test.command)
				stock := m.terminal(t, test.columns, []string{test.env}, "machinectl", args...)
				ours := m.terminal(t, test.columns, []string{test.env}, "machinectl-lite", args...)
				if diff := cmp.Diff(comparable(stock), comparable(ours)); diff != "" {
					t.Error(diff)
				}
			})
		}
	})
}

func TestMachinectlOurMachines(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startService(m, "my-web")
		register(m, "my-web")
		startService(m, "lost") // its client was killed before it registered it
		m.Must("systemd-run", "--quiet", "--unit=nspawnd-lost-root", "--property=Type=oneshot", "--property=RemainAfterExit=yes", "true")
		m.Must("systemd-run", "--quiet", "--unit=nspawnd-gone", "--property=RemainAfterExit=no", "--wait", "true")

		t.Run("list", func(t *testing.T) {
			want := "" +
				`lost   container nspawnd -      -(\s+)-` + "\n" +
				`my-web container nspawnd debian \S+(\s+)-` + "\n"
			if got := m.Must("machinectl-lite", "list", "--no-legend"); !regexp.MustCompile("^" + want + "$").MatchString(got) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
		t.Run("json", func(t *testing.T) {
			for _, flag := range []string{"-j", "--json=short", "--json=pretty"} {
				var got []map[string]any
				if err := json.Unmarshal([]byte(m.Must("machinectl-lite", flag)), &got); err != nil {
					t.Fatal(err)
				}
				want := map[string]any{"machine": "lost", "class": "container", "service": "nspawnd", "os": nil, "version": nil, "addresses": nil}
				if diff := cmp.Diff(want, got[0]); diff != "" {
					t.Error(diff)
				}
			}
		})
		t.Run("status", func(t *testing.T) {
			for _, name := range []string{"my-web", "lost"} {
				unit := "nspawnd-" + strings.ReplaceAll(name, "-", `\x2d`) + ".service"
				m.Eventually("its first words are in the journal", func() bool {
					return strings.Contains(m.Run("journalctl", "--quiet", "--output=cat", "--unit="+unit).Stdout, "the first words")
				})
				got := m.Must("machinectl-lite", "status", name)
				for _, want := range []string{
					name + "\n\t   Since: ", "\t  Leader: ", " (sleep)\n",
					"\t Service: nspawnd; class container\n",
					"\t   Image: registry.test:5000/demo/nginx:latest\n",
					"\t    Unit: " + unit + "\n\t\t  └─",
					"sleep 1d\n", "the first words of " + name + "\n",
				} {
					if !strings.Contains(got, want) {
						t.Errorf("no %q in\n%s", want, got)
					}
				}
			}
		})
		t.Run("completion", func(t *testing.T) {
			if got := m.Must("machinectl-lite", "__complete", "status", ""); !strings.HasPrefix(got, "lost\nmy-web\n") {
				t.Error(got)
			}
		})
		t.Run("terminate", func(t *testing.T) {
			result := m.Run("machinectl-lite", "terminate", "my-web", "nosuch", "lost", "gone", "lost-root", "lost/root", `my\x2dweb`)
			var want string
			for _, name := range []string{"nosuch", "gone", "lost-root", "lost/root", `my\x2dweb`} {
				want += "machinectl-lite: could not terminate machine: No machine '" + name + "' known\n"
			}
			if diff := cmp.Diff(want, result.Stderr); diff != "" || result.Status != 1 {
				t.Errorf("status %d: %s", result.Status, diff)
			}
			for _, unit := range []string{`nspawnd-my\x2dweb`, "nspawnd-lost"} {
				m.Eventually(unit+" is gone", func() bool { return m.Run("systemctl", "is-active", unit).Status != 0 })
			}
			if got := m.Must("machinectl-lite"); got != "No machines.\n" {
				t.Error(got)
			}
		})
	})
}

func TestMachinectlTerminateOfOtherOrigin(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startMachines(t, m)
		if m.Suite == Forky {
			m.Must("machinectl-lite", "kill", "--kill-whom=supervisor", "appc") // systemd-nspawn
		} else {
			m.Must("machinectl-lite", "terminate", "appc")
		}
		m.Must("machinectl-lite", "terminate", "bootc")
		m.Eventually("only ours is left", func() bool {
			return regexp.MustCompile(`^my-web \S+ nspawnd \S.*\n$`).MatchString(m.Must("machinectl", "list", "--no-legend"))
		})
	})
}

// What a machine says of itself reaches the terminal as text.
func TestMachinectlHostileMachine(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.WriteFile("/srv/evil/usr/lib/os-release", []byte("ID=\"\x1b[31mred\"\nVERSION_ID=\"1\u202e2\"\nPRETTY_NAME=\"\x1b]0;owned\x07\"\n"), 0o644)
		startService(m, "evil", "--property=TemporaryFileSystem=/etc", "--property=BindReadOnlyPaths=/srv/evil/usr/lib/os-release:/usr/lib/os-release",
			"--property=RuntimeDirectory=evil", "--property=SyslogIdentifier=evil")
		register(m, "evil")
		m.Must("machinectl-lite", "list")
		for _, args := range [][]string{{"list"}, {"status", "evil"}, {"list", "--json=pretty"}, {"list", "-o", "json"}} {
			got := m.Must("machinectl-lite", args...)
			for _, r := range got {
				if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == '\u202e' {
					t.Errorf("%v: %q in %q", args, r, got)
					break
				}
			}
			t.Logf("%v:\n%s", args, got)
		}
		var rows []struct{ OS string }
		if err := json.Unmarshal([]byte(m.Must("machinectl-lite", "-j")), &rows); err != nil || len(rows) != 1 {
			t.Errorf("%v %v", rows, err)
		}
	})
}

// Machines come and go while they are listed and looked at.
func TestMachinectlVanishingMachines(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		result := m.Script(`
			for i in $(seq 30); do
				systemd-run --quiet --unit=nspawnd-v$i --property=Type=exec sleep 1d
				busctl --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager \
					RegisterMachine sayssus v$i 0 nspawnd container $(systemctl show --property=MainPID --value nspawnd-v$i) ""
			done
			(for i in $(seq 30); do systemctl stop nspawnd-v$i; done) &
			while kill -0 $! 2>/dev/null; do machinectl-lite list >/dev/null; machinectl-lite status v15 v30 >/dev/null 2>>errors || :; done
			# A reader of the journal may come while its file grows.
			grep -v "No machine 'v[0-9]*' known\|^Journal file .* is truncated, ignoring file.$" errors && exit 1
			machinectl-lite list
		`)
		if result.Status != 0 || result.Stderr != "" || result.Stdout != "No machines.\n" {
			t.Errorf("status %d\n%s%s", result.Status, result.Stdout, result.Stderr)
		}
	})
}

func TestMachinectlWithoutMachined(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startService(m, "web")
		m.Must("rm", "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service")
		m.Must("systemctl", "reload", "dbus.service")
		m.Must("systemctl", "stop", "systemd-machined.*")
		if got, want := m.Must("machinectl-lite", "list", "--no-legend"), "web container nspawnd - - -\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		m.Must("machinectl-lite", "status", "web")
		m.Must("machinectl-lite", "terminate", "web")
		if result := m.Run("machinectl-lite", "terminate", "web"); result.Status != 1 || strings.Count(result.Stderr, "\n") != 1 {
			t.Errorf("status %d: %s", result.Status, result.Stderr)
		}
	})
}

func TestMachinectlWithoutRoot(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		startService(m, "web")
		register(m, "web")
		startService(m, "lost")
		nobody := func(args ...string) Result {
			return m.Run("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "machinectl-lite"}, args...)...)
		}
		if result := nobody("list", "--no-legend"); result.Status != 0 || strings.Count(result.Stdout, "\n") != 2 {
			t.Errorf("list: status %d: %s%s", result.Status, result.Stdout, result.Stderr)
		}
		if result := nobody("status", "web", "lost"); result.Status != 0 || strings.Count(result.Stdout, "sleep 1d") != 2 {
			t.Errorf("status: status %d: %s%s", result.Status, result.Stdout, result.Stderr)
		}
		result := nobody("terminate", "web", "lost")
		if lines := strings.Count(result.Stderr, "\n"); result.Status != 1 || lines != 2 {
			t.Errorf("status %d: %s", result.Status, result.Stderr)
		}
		m.Must("systemctl", "is-active", "nspawnd-web", "nspawnd-lost")
	})
}

func TestMachinectlErrors(t *testing.T) {
	m := Lab(t, Trixie)
	for command, want := range map[string]string{
		"status":             "status: no machine named (see machinectl-lite status --help)",
		"terminate":          "terminate: no machine named (see machinectl-lite terminate --help)",
		"status nosuch":      "could not get path to machine: No machine 'nosuch' known",
		"status ''":          "status: a machine's name is never empty",
		"liste":              `unknown verb "liste", did you mean list?`,
		"nonsense":           `unknown verb "nonsense" (see machinectl-lite --help)`,
		"list web":           "list takes no argument (see machinectl-lite list --help)",
		"list --nonsense":    "unknown flag: --nonsense (see machinectl-lite list --help)",
		"--lines=-1":         `invalid argument "-1" for "-n, --lines" flag: must be a number (see machinectl-lite --help)`,
		"--lines=":           `invalid argument "" for "-n, --lines" flag: must be a number (see machinectl-lite --help)`,
		"--max-addresses=":   `invalid argument "" for "--max-addresses" flag: must be a number or all (see machinectl-lite --help)`,
		"--max-addresses=-1": `invalid argument "-1" for "--max-addresses" flag: must be a number or all (see machinectl-lite --help)`,
		"--json=yes":         `invalid argument "yes" for "--json" flag: must be one of short, pretty, off (see machinectl-lite --help)`,
	} {
		result := m.Script("machinectl-lite " + command)
		if result.Status != 1 || result.Stdout != "" || result.Stderr != "machinectl-lite: "+want+"\n" {
			t.Errorf("%s: status %d, %s%swant %s", command, result.Status, result.Stdout, result.Stderr, want)
		}
	}
	if result := m.Run("machinectl-lite", "list", "--output="); result.Status != 1 {
		t.Errorf("an empty --output was taken")
	}
	if result := m.Script("machinectl-lite list >/dev/full"); result.Status != 1 || !strings.Contains(result.Stderr, "no space left") {
		t.Errorf("a full disk: status %d, %s", result.Status, result.Stderr)
	}
	stock, ours := m.Must("machinectl", "--output=help"), m.Must("machinectl-lite", "status", "--output=help")
	if diff := cmp.Diff(stock, ours); diff != "" {
		t.Error(diff)
	}
	m.Must("systemctl", "stop", "dbus.socket", "dbus.service")
	if result := m.Run("machinectl-lite"); result.Status != 1 || !strings.HasPrefix(result.Stderr, "machinectl-lite: connecting to the system bus: ") {
		t.Errorf("no bus: status %d, %s", result.Status, result.Stderr)
	}
}
