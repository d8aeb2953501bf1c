package vm

import "testing"

// TestInspect: what inspect says is what systemd, the store and the kernel say.
func TestInspect(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		inspect := func(name, filter string) string {
			return "machinectl-lite inspect " + name + " | jq -r '.[]|" + filter + "'"
		}
		m.expect(t,
			outcome{"nspawnd-run -d --name web -m 64m --pids-limit 50 -l app=web --annotation by=me -v 'data:/srv/a b' --health-interval 200ms --health-cmd '[\"tiny\",\"echo\",\"well\"]' " + tiny + " trap; said web ready; " +
				"machinectl-lite wait --condition=healthy web", 0, "web\n", ""},
			outcome{inspect("web", "[.Name,.State,.Kept,.Unit,.Service,.Class,.Image.Name,.Image.Trust.kind] | @tsv"), 0, "web\trunning\tfalse\tnspawnd-web.service\tnspawnd\tcontainer\t" + tiny + ":latest\tsigstoreSigned\n", ""},
			outcome{"[ $(" + inspect("web", ".Leader") + ") = $(systemctl show -P MainPID nspawnd-web) ]; machinectl-lite inspect-image " + tiny + " | jq .[].Trust > /tmp/image; " + inspect("web", ".Image.Trust") + " | cmp - /tmp/image; " +
				"[ $(" + inspect("web", ".Image.Digest") + ") = $(machinectl-lite inspect-image -f '{{.Digest}}' " + tiny + ") ]; test -e $(" + inspect("web", ".Directory") + ")/upper", 0, "", ""},
			outcome{inspect("web", "[.Limits.MemoryMax,.Limits.TasksMax,.Labels.app,.Annotations.by,.Health.State,.Health.Output] | @tsv"), 0, "67108864\t50\tweb\tme\thealthy\twell\\n\n", ""},
			outcome{inspect("web", ".Mounts[] | select(.Destination == \"/srv/a b\") | .Source"), 0, "/.*volumes/data\\]\n$/", ""},
			outcome{"machinectl-lite pause web; machinectl-lite inspect -f '{{.State}} {{json .Labels}}' web; machinectl-lite resume web", 0, "paused {\"app\":\"web\"}\n", ""},
			outcome{"date -d $(" + inspect("web", ".Started") + ") +%s > /tmp/ours; date -d \"$(systemctl show -P InactiveExitTimestamp nspawnd-web)\" +%s | cmp - /tmp/ours", 0, "", ""},
			outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite inspect web | jq -r '.[] | .State, .Image.Name'", 0, "running\n" + tiny + ":latest\n", ""},
			outcome{"machinectl-lite inspect web nosuch | jq length", 0, "1\n", "machinectl-lite: could not inspect machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite inspect -f '{{.Nope}}' web", 1, "", "/^machinectl-lite: --format: .*Nope.*\n$/"},

			// Kept, running and then not.
			outcome{"nspawnd-run -d --keep --name pet " + tiny + " trap; " + inspect("pet", ".State, .Kept") + "; machinectl-lite stop pet; await sh -c 'machinectl-lite inspect pet | grep -q stopped'; " + inspect("pet", ".State, .Kept, .Image.Name, .Directory") + "; machinectl-lite rm -f pet web", 0,
				"pet\nrunning\ntrue\nstopped\ntrue\n" + tiny + ":latest\n/var/lib/nspawnd/machines/pet.kept\n", ""},

			// What a machine says is text, and UTF-8.
			outcome{`nspawnd-run -d --name evil -u 0 -l "x=$(printf 'a\033[31m\u202e')" --entrypoint sh --health-interval 200ms --health-cmd 'printf "\033[31m\377\376"' ` + redis + ` -c 'sleep 100' > /dev/null
				machinectl-lite wait --condition=healthy evil; machinectl-lite inspect evil > /tmp/evil; iconv -f utf-8 -t utf-8 /tmp/evil > /dev/null && jq -r '.[].State' /tmp/evil; LC_ALL=C grep -c "$(printf '\033')" /tmp/evil; machinectl-lite stop -t 0 evil; systemctl reset-failed 'nspawnd-evil*' 2> /dev/null || :`, 0, "running\n0\n", ""},

			// Somebody else's.
			outcome{`systemd-run -q --unit=other sleep 1000; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 '' container $(systemctl show -P MainPID other) /srv > /dev/null
				` + inspect("other", ".State, .Unit, .ID, .Root, .Image") + `; systemctl stop other`, 0, "running\nother.service\n0102030405060708090a0b0c0d0e0f10\n/srv\nnull\n", ""},
		)
		m.nothingLeft(t)
	})
}
