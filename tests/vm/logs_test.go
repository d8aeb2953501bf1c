package vm

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLogs: what a detached machine says is in the journal, under its unit's name, to the last line, and by whatever name it opens its output.
func TestLogs(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		for _, name := range []string{"nginx", "nginx-logs", "httpd", "redis", "shell", "tiny"} {
			m.importImage(name)
		}
		m.Must("sh", "-c", `mkdir -p /etc/systemd/journald.conf.d; printf '[Journal]\nRateLimitIntervalSec=0\n' > /etc/systemd/journald.conf.d/lab.conf; systemctl restart systemd-journald`)
		test := func(name string, f func(t *testing.T, m *Machine)) {
			t.Run(name, func(t *testing.T) { f(t, m.With(t)); m.With(t).nothingLeft(t) })
		}
		relayed := "systemctl is-active nspawnd-%s-log; "

		test("only who needs it has a relay", func(t *testing.T, m *Machine) {
			for _, c := range []struct{ options, image, command, want string }{
				{"", "nginx", "", "inactive"},
				{"", "redis", "", "inactive"},
				{"", "shell", "sleep 100", "inactive"},
				{"", "nginx-logs", "", "active"},
				{"", "httpd", "", "active"},
				{"--log-opt relay=never", "nginx-logs", "sleep 100", "inactive"},
				{"--log-opt relay=always", "redis", "", "active"},
				{"", "shell", "sh -c 'sleep 100 > /dev/stderr'", "active"},
				{"-e LOG=/proc/self/fd/1", "shell", "sleep 100", "active"},
				{"--log-driver=none -e LOG=/proc/self/fd/1", "shell", "sleep 100", "inactive"},
				{"-p StandardOutput=append:/tmp/out -p StandardError=null -e LOG=/proc/self/fd/1", "shell", "sleep 100", "inactive"},
			} {
				m.expect(t, outcome{"nspawnd-run -d --name r -p TimeoutStopSec=1 " + c.options + " localhost/" + c.image + " " + c.command + " >/dev/null; " +
					fmt.Sprintf(relayed, "r") + "systemctl stop nspawnd-r; systemctl reset-failed nspawnd-r 2>/dev/null; await sh -c '! systemctl is-active -q nspawnd-r-log nspawnd-r-root'", 0, c.want + "\n", ""})
			}
		})
		test("the log of a server", func(t *testing.T, m *Machine) {
			for _, image := range []string{"nginx-logs", "httpd"} {
				m.Must("nspawnd-run", "-d", "--name", "web", "localhost/"+image)
				m.expect(t,
					outcome{"await curl -s -o /dev/null http://localhost/first; curl -s -o /dev/null http://localhost/" + image, 0, "", ""},
					outcome{"await sh -c 'journalctl -u nspawnd-web -o cat | grep -q \"GET /" + image + " HTTP/1.1. 404\"'", 0, "", ""},
					outcome{"systemctl status -n 50 nspawnd-web | grep -c 'GET /" + image + " HTTP/1.1. 404'", 0, "1\n", ""},
					outcome{"machinectl-lite status -n 50 web | grep -c 'GET /" + image + " HTTP/1.1. 404'", 0, "1\n", ""},
					outcome{"journalctl -q -t web -o cat NSPAWND_IMAGE=localhost/" + image + ":latest | grep -c 'GET /" + image + " HTTP/1.1. 404'", 0, "1\n", ""},
					outcome{"systemctl stop nspawnd-web", 0, "", ""},
				)
				m.nothingLeft(t)
			}
		})
		test("memory of a relay", func(t *testing.T, m *Machine) {
			m.Must("nspawnd-run", "-d", "--name", "mem", "localhost/httpd")
			rss, _ := strconv.Atoi(strings.TrimSpace(m.Must("sh", "-c", `awk '/^VmRSS/ {print $2}' /proc/$(systemctl show -P MainPID nspawnd-mem-log)/status`)))
			if t.Logf("%d KiB", rss); rss == 0 || rss >= 3<<10 {
				t.Errorf("a relay takes %d KiB", rss)
			}
			m.Must("systemctl", "stop", "nspawnd-mem")
		})
		test("no line is lost in stops under load", func(t *testing.T, m *Machine) {
			// The payload counts what it has written, and may be interrupted before it has counted the last line; the stop signal makes it say how far it came.
			const count = `trap "echo last \$i; exit 0" TERM; while :; do echo line $((i+1)); i=$((i+1)); done > /proc/self/fd/1`
			m.WriteFile("/tmp/stops", []byte(`for n in $(seq 8); do
				nspawnd-run -d --name n$n localhost/shell bash -c '`+count+`' > /dev/null
				sleep 0.3
				systemctl stop nspawnd-n$n
			done
			for n in $(seq 8); do
				for _ in $(seq 600); do systemctl is-active -q nspawnd-n$n-log || break; sleep 0.1; done
			done
			journalctl --sync
			for n in $(seq 8); do
				journalctl -q -u nspawnd-n$n -o cat > /tmp/log
				# A shell that the signal interrupts while it writes its last line may write that again.
				last=$(sed -n 's/^last //p' /tmp/log); grep '^line' /tmp/log | uniq > /tmp/lines; lines=$(wc -l < /tmp/lines)
				[ -n "$last" ] && [ $lines -ge $last ] && [ $lines -le $((last+1)) ] || echo "stop $n: $lines lines of $last"
				awk '$2 != NR {print "stop '$n': line " $2 " at " NR; exit}' /tmp/lines
				total=$((total+lines))
			done
			echo $total > /tmp/total`), 0o755)
			m.expect(t, outcome{"bash /tmp/stops", 0, "", ""})
			t.Logf("%s lines", strings.TrimSpace(m.Must("cat", "/tmp/total")))
		})
		test("as it was said", func(t *testing.T, m *Machine) {
			// A relay shows the same as the journal's own socket.
			const say = `printf 'one\\ntwo\\0three\\n'; printf '%060000d\\n' 7; echo err >&2; printf 'no end'`
			for _, relay := range []string{"always", "never"} {
				m.Must("sh", "-c", `nspawnd-run -d --name say-`+relay+` --log-opt relay=`+relay+` localhost/shell bash -c "`+say+`"`)
			}
			m.expect(t, outcome{`for r in always never; do await sh -c "journalctl -q -t say-$r -o cat | grep -q 'no end'"; journalctl -q -t say-$r -o export | grep -a '^MESSAGE=\|^PRIORITY=' > /tmp/$r; done
				grep -vE 'Started|Starting|Deactivated' /tmp/always > /tmp/a; grep -vE 'Started|Starting|Deactivated' /tmp/never > /tmp/n; cmp /tmp/a /tmp/n && grep -c MESSAGE /tmp/a`, 0, "7\n", ""})
		})
		test("100 MB", func(t *testing.T, m *Machine) {
			started := time.Now()
			// journalctl may print a line twice when the journal's file is replaced while it reads.
			m.expect(t, outcome{`nspawnd-run -d --name burst --log-opt relay=always localhost/shell bash -c "seq -f '%0999.0f' 100000"
				await true; for _ in $(seq 600); do systemctl is-active -q nspawnd-burst-log || break; sleep 0.2; done
				journalctl --sync; journalctl -q -u nspawnd-burst -o cat | uniq | grep -c '^0'`, 0, "burst\n100000\n", ""})
			t.Logf("100,000 lines in %s", time.Since(started).Round(time.Second))
		})
		test("over restarts", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run -d --name again localhost/nginx-logs; await curl -s -o /dev/null http://localhost/one", 0, "again\n", ""},
				outcome{"pid=$(systemctl show -P MainPID nspawnd-again-log); systemctl restart nspawnd-again; await curl -s -o /dev/null http://localhost/two; [ $pid = $(systemctl show -P MainPID nspawnd-again-log) ]", 0, "", ""},
				outcome{"systemctl daemon-reexec; systemctl restart nspawnd-again; await curl -s -o /dev/null http://localhost/three", 0, "", ""},
				outcome{"systemctl restart systemd-journald; curl -s -o /dev/null http://localhost/four", 0, "", ""},
				outcome{"systemctl kill -s KILL nspawnd-again-log; sleep 0.5; curl -s -o /dev/null http://localhost/five", 0, "", ""},
				outcome{"systemctl stop nspawnd-again; await sh -c '! systemctl is-active -q nspawnd-again-log'; journalctl --sync; for n in one two three four five; do journalctl -qu nspawnd-again -o cat | grep -c \"GET /$n HTTP/1.1. 404\"; done", 0, "1\n1\n1\n1\n1\n", ""},
			)
		})
		test("the caller's output is a socket", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"systemd-run -q --wait --unit=caller nspawnd-run localhost/shell sh -c 'id -un > /dev/stdout; echo to stderr > /dev/stderr'; await sh -c 'journalctl -qu caller -o cat | grep -x \"to stderr\"'; journalctl -qu caller -o cat | grep -cx root", 0, "to stderr\n1\n", ""},
				outcome{"nspawnd-run -u games localhost/shell sh -c 'echo to a pipe > /dev/stdout' | cat", 0, "to a pipe\n", ""},
			)
		})
		test("drivers and options", func(t *testing.T, m *Machine) {
			m.expect(t,
				outcome{"nspawnd-run -d --name o --log-opt tag=front localhost/tiny echo tagged; await sh -c 'journalctl -q -t front -o cat | grep -x tagged'", 0, "o\ntagged\n", ""},
				outcome{"nspawnd-run -d --name o --log-driver none localhost/tiny echo lost; sleep 0.5; journalctl -q -u nspawnd-o -o cat | grep -c lost", 1, "o\n0\n", ""},
				outcome{"nspawnd-run -d --name o --log-driver passthrough localhost/tiny echo here | cat", 0, "/^(o\nhere|here\no)\n$/", ""},
				outcome{"nspawnd-run --log-driver none localhost/tiny echo seen", 0, "seen\n", ""},
				outcome{"rm -f /srv/log; nspawnd-run -d --name o -p StandardOutput=append:/srv/log localhost/tiny echo kept; await grep kept /srv/log", 0, "o\nkept\n", ""},
				outcome{"nspawnd-run --log-driver k8s-file localhost/tiny", 125, "", "/^nspawnd-run: --log-driver=k8s-file: .*append:PATH.*\n$/"},
				outcome{"nspawnd-run --log-driver syslog localhost/tiny", 125, "", "/^nspawnd-run: --log-driver: .*\n$/"},
				outcome{"nspawnd-run --log-opt max-size=1m localhost/tiny", 125, "", "/^nspawnd-run: --log-opt max-size=: .*journald.conf.*\n$/"},
				outcome{"nspawnd-run --log-opt relay=x localhost/tiny", 125, "", "/^nspawnd-run: --log-opt relay=: .*\n$/"},
			)
		})
	})
}
