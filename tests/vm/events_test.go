package vm

import "testing"

// TestEvents: what happens is told, once each, also when it is over at once, and over restarts of the bus and of machined.
func TestEvents(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		// watch starts events; told waits until it has told of something and prints all without time and digests, as JSON.
		const watch = `told() { await grep -q "$1" /tmp/events && sleep 0.3; jq -r 'del(.time) | del(.digest) | [.[]] | @tsv' /tmp/events | tr '\t' ' '; }
			watch() { machinectl-lite events --json=short "$@" > /tmp/events 2> /tmp/errors & watcher=$!; await sh -c "ls -l /proc/$watcher/fd 2>/dev/null | grep -q inotify"; sleep 0.3; }
			`
		const end = "; kill $watcher; wait $watcher; cat /tmp/errors"
		image := " " + tiny + ":latest"
		m.expect(t,
			outcome{watch + "watch; machinectl-lite pull-oci -q " + tiny + " > /dev/null; told image; machinectl-lite tag " + tiny + " localhost/x; machinectl-lite remove localhost/x > /dev/null; told remove" + end, 0,
				"image add" + image + "\nimage add" + image + "\nimage add localhost/x:latest\nimage remove localhost/x:latest\n", ""},
			outcome{watch + "watch --filter type=machine; for i in 1 2 3 4 5; do nspawnd-run --name short " + tiny + " exit $i || :; done; nspawnd-run -d --name web " + tiny + " trap > /dev/null; said web ready; systemctl kill -s KILL nspawnd-web; told 'die.*web'" + end, 0,
				"/^machine start short" + image + "\nmachine die short" + image + " 1\n(machine (start|die) short" + image + "( [2-5])?\n){8}machine start web" + image + "\nmachine die web" + image + " 137\n$/", ""},
			outcome{watch + "watch --filter name=well --filter event=health; nspawnd-run -d --name well --health-retries 1 --health-interval 200ms --health-cmd '[\"tiny\",\"cat\",\"/run/ok\"]' " + tiny + " trap > /dev/null; told unhealthy > /dev/null; touch /proc/$(systemctl show -P MainPID nspawnd-well)/root/run/ok; told '\"healthy'; machinectl-lite stop well" + end, 0,
				"machine health well" + image + " unhealthy\nmachine health well" + image + " healthy\n", ""},
			// Restarts, of the machine, and of who tells.
			outcome{watch + "watch --filter type=machine; nspawnd-run -d --name web " + tiny + " trap > /dev/null; said web ready; systemctl restart systemd-machined; systemctl daemon-reload; systemctl daemon-reexec; await systemctl is-active -q nspawnd-web; await machinectl-lite restart web; await sh -c '[ $(grep -c start /tmp/events) = 2 ]'; machinectl-lite stop web; await sh -c '[ $(grep -c die /tmp/events) = 2 ]'; told die" + end, 0,
				"machine start web" + image + "\nmachine die web" + image + " 0\nmachine start web" + image + "\nmachine die web" + image + " 0\n", ""},
			// Somebody else's.
			outcome{watch + `watch; systemd-run -q --unit=other sleep 1000; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 0 '' container $(systemctl show -P MainPID other) '' > /dev/null
				systemctl stop other; told die` + end, 0, "machine start other\nmachine die other\n", ""},
			outcome{"machinectl-lite events --filter color=red", 1, "", "/^machinectl-lite: --filter: \"color=red\" is not KEY=VALUE with one of the keys type, /"},
			outcome{watch + "watch --json=off; nspawnd-run --name web " + tiny + " true; await grep -q die /tmp/events; kill $watcher; wait $watcher; cut -d' ' -f4- /tmp/events", 0, "machine start web image=" + tiny + ":latest\nmachine die web status=0 image=" + tiny + ":latest\n", ""},
			// The bus itself: last, since much goes with it.
			outcome{watch + "watch --filter name=web; nspawnd-run -d --name web " + tiny + " trap > /dev/null; systemctl restart dbus; await grep -q 'connecting again' /tmp/errors; sleep 1; systemctl stop nspawnd-web; told die; kill $watcher; wait $watcher; grep -c 'connecting again' /tmp/errors", 0,
				"machine start web" + image + "\nmachine die web" + image + " 0\n1\n", ""},
		)
		m.nothingLeft(t)
	})
}
