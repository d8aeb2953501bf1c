package vm

import (
	"strings"
	"testing"
)

// TestNames compares what the flags for names of hosts make of /etc/hosts and /etc/resolv.conf with what podman's do.
func TestNames(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("podman", "pull", "--quiet", redis)
		m.must(`printf 'search host.example other.example\nnameserver 9.9.9.9\noptions ndots:3 edns0\n' > /etc/resolv.conf; printf '7.7.7.7 base\n' > /tmp/hosts`)
		// Ours names the machine too, and is the host's file as it is; podman writes it anew.
		const script = ` -c "` + oneStream + `grep -v myhost /etc/hosts 2>/dev/null | tr '\t' ' '; cat /etc/resolv.conf" 2>&1`
		for _, flags := range []string{
			"", "--add-host foo:1.2.3.4 --add-host 'bar;baz:::1'", "--add-host registry.test:1.2.3.4", "--hosts-file /tmp/hosts", "--hosts-file none", "--hosts-file /tmp/hosts --add-host x:5.5.5.5",
			"--no-hosts", "--dns 1.1.1.1 --dns 2.2.2.2", "--dns ::1,1.1.1.1", "--dns-search a.b --dns-search c.d", "--dns-search .", "--dns-option ndots:2 --dns-option rotate", "--dns none",
			"--dns-search a.b --dns 1.1.1.1 --dns-option ndots:1",
		} {
			run := " -u 0 --hostname myhost --entrypoint sh " + flags + " " + redis + script
			ours, theirs := m.Script("nspawnd-run"+run), m.Script("podman run --rm --network=host --cgroups=disabled --pids-limit=0"+run)
			// podman 5.4 adds to the host's; 5.8, as docker, replaces them.
			theirs.Stdout = strings.NewReplacer("c.d host.example other.example", "c.d", "a.b host.example other.example", "a.b", "rotate ndots:3 edns0", "rotate", "ndots:1 ndots:3 edns0", "ndots:1").Replace(theirs.Stdout)
			if ours.Stdout == "" || ours.Stdout != theirs.Stdout || ours.Status != theirs.Status {
				t.Errorf("%s\nnspawnd-run: %d\n%s\npodman: %d\n%s", flags, ours.Status, ours.Stdout, theirs.Status, theirs.Stdout)
			}
		}
		refused := func(flags, why string) outcome {
			return outcome{"nspawnd-run " + flags + " " + redis + " true", 125, "", "/^nspawnd-run: --" + why + ".*\n$/"}
		}
		m.expect(t,
			refused("--add-host foo", "add-host: .*ADDRESS"), refused("--add-host a:host-gateway", "add-host: host-gateway: "), refused("--add-host 'a:b'", "add-host: .*not an address"),
			refused("--no-hosts --add-host a:1.1.1.1", "no-hosts: "), refused("--no-hosts --hosts-file none", "no-hosts: "), refused("--hosts-file /no/such", "hosts-file: open /no/such"),
			refused("--dns bad", "dns: .*not an address"), refused("--dns none --dns-search x", "dns=none: "), refused("--dns-search 'a b'", "dns-search: "), refused("--network none --dns 1.1.1.1", "dns, .*--network=none"),
			outcome{"nspawnd-run --network none --hostname me --add-host db:1.2.3.4 --entrypoint cat " + redis + " /etc/hosts", 0, "1.2.3.4\tdb\n127.0.0.1\tlocalhost me\n::1\tlocalhost\n", ""},
			outcome{"nspawnd-run --add-host db:127.0.0.9 --entrypoint getent " + redis + " hosts db", 0, "127.0.0.9       db\n", ""},
			// A file of the user's is mounted over ours, and not written to.
			outcome{"nspawnd-run -v /tmp/hosts:/etc/hosts -v /tmp/hosts:/etc/passwd -v /tmp/hosts:/etc/hostname -u 7 --add-host a:1.1.1.1 --entrypoint cat " + redis + " /etc/hosts; cat /tmp/hosts", 0, "7.7.7.7 base\n7.7.7.7 base\n", ""},
		)
		m.nothingLeft(t)
	})
}
