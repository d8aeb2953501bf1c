package vm

import (
	"strings"
	"testing"
)

// TestAttach leaves machines' terminals and comes back to them.
func TestAttach(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("nspawnd-run", tiny, "true")
		const leave = "\x10\x11"
		ended := func(d *dialog, want int) {
			t.Helper()
			if status, shown := d.end(); status != want {
				t.Errorf("status %d, want %d: %q", status, want, shown)
			}
		}
		d := m.dialog(t, 80, "nspawnd-run --name shell -u 0 -it --entrypoint sh "+redis+"; s=$?; echo; exit $s")
		d.say("echo one-$((1+1))\r")
		d.await("one-2")
		d.say(leave)
		ended(d, 0)
		const attach = "machinectl-lite attach shell; s=$?; echo; exit $s"
		for _, columns := range []uint16{100, 101} { // and again
			d = m.dialog(t, columns, attach)
			d.say("echo two-$((1+2)); stty size\r")
			d.await("two-3\r\n24 10[01]\r\n")
			m.expect(t, outcome{"machinectl-lite attach shell", 125, "", "/^machinectl-lite: shell: somebody else is at its terminal: .*\n$/"})
			d.say(leave)
			ended(d, 0)
		}
		// What nobody saw is in the journal.
		d = m.dialog(t, 80, attach)
		d.say("(until [ -e /left ]; do sleep 0.1; done; echo un''seen) & echo go-$((1+4))\r")
		d.await("go-5")
		d.say(leave)
		ended(d, 0)
		m.expect(t, outcome{"machinectl-lite exec shell touch /left; await sh -c 'journalctl -q -u nspawnd-shell -o cat | grep -q unseen'", 0, "", ""})
		// A client that is killed takes nothing with it.
		d = m.dialog(t, 80, "echo $$ > /run/client; exec machinectl-lite attach shell")
		d.say("echo go-$((1+5))\r")
		d.await("go-6")
		m.must("kill -9 $(cat /run/client)")
		<-d.ended
		d = m.dialog(t, 80, attach)
		d.say("echo three-$((1+3))\r")
		d.await("three-4")
		d.say("exit 7\r")
		ended(d, 7)
		m.must("systemctl reset-failed nspawnd-shell 2>/dev/null || :")

		const detached = "nspawnd-run -dt --name detached " + tiny + " trap"
		m.must(detached)
		d = m.dialog(t, 80, "machinectl-lite attach --detach-keys=x detached; s=$?; echo; exit $s")
		m.raw("machinectl-lite")
		d.say("x")
		ended(d, 0)
		d = m.dialog(t, 80, "exec machinectl-lite attach detached")
		m.raw("machinectl-lite")
		d.say(ctrlC) // a key, for the machine's terminal
		d.await("INT")
		ended(d, 0)
		m.must(detached)
		d = m.dialog(t, 80, "echo $$ > /run/client; exec machinectl-lite attach detached")
		m.raw("machinectl-lite")
		m.must("kill -TERM $(cat /run/client)")
		d.await("TERM")
		ended(d, 0)
		m.expect(t,
			outcome{"machinectl-lite attach detached", 125, "", "/^machinectl-lite: detached: no machine of that name runs\n$/"},
			outcome{"machinectl-lite attach", 125, "", "/^machinectl-lite: attach: one machine.*\n$/"},
			outcome{"nspawnd-run -d --name plain " + tiny + " trap; machinectl-lite attach plain; systemctl stop nspawnd-plain", 0, "plain\n", "/^machinectl-lite: plain: it has no terminal .*logs -f plain.*\n$/"},
		)
		if strings.Contains(m.Must("systemctl", "--failed"), "nspawnd") {
			t.Error("units failed")
		}
		m.nothingLeft(t)
	})
}
