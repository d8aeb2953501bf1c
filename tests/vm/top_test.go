package vm

import "testing"

// TestTop: what top shows is what the machine's own processes and the host's ps say.
func TestTop(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.expect(t,
			outcome{"nspawnd-run -d --name web -u 1234 --entrypoint sh " + redis + " -c 'sleep 1000 & exec sh -c \"while :; do :; done\" \"$(printf \"\\033[31m\\n\\377\")\"' > /dev/null; await sh -c 'machinectl-lite top web | grep -q sleep'; sleep 1", 0, "", ""},
			outcome{"machinectl-lite top --json=short web | jq -r '.[] | [.inner, .user, .state, .command] | @tsv' | grep -a '^[0-9]' | sed 's/while.*done/…/' | cut -c1-20", 0, "/^1\t1234\t[RS]\tsh -c …[^\n]*\n[0-9]+\t1234\tS\tsleep 1000\n$/", ""},
			outcome{"machinectl-lite top --no-legend web | LC_ALL=C grep -c \"$(printf '\\033')\"; machinectl-lite top --no-legend web | wc -l", 0, "0\n2\n", ""},
			outcome{"machinectl-lite top --json=short web | jq -r '.[].pid' | sort > /tmp/ours; cat /sys/fs/cgroup/machine.slice/nspawnd-web.service/cgroup.procs | sort | cmp - /tmp/ours", 0, "", ""},
			outcome{"machinectl-lite top --json=short web | jq -r '.[0].time' | awk -F: '{ exit !($1 == 0 && $2 > 0.1 && $2 < 30) }'", 0, "", ""},
			outcome{"machinectl-lite top nosuch", 1, "", "machinectl-lite: could not get processes of machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite top a b", 1, "", "machinectl-lite: top: one machine at a time\n"},
			outcome{"machinectl-lite stop -t 0 web; systemctl reset-failed nspawnd-web 2> /dev/null || :", 0, "", ""},
		)
		m.nothingLeft(t)
	})
}
