package vm

import (
	"strings"
	"testing"
)

func TestLifecycle(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", tiny, "true")
		m.Must("machinectl-lite", "pull-oci", redis)
		for name, test := range map[string]func(*testing.T, *Machine){"restarts": restarts, "notes and files": notes, "replace": replaces, "kept": keeps} {
			t.Run(name, func(t *testing.T) { test(t, m.With(t)) })
		}
		m.nothingLeft(t)
	})
}

// shell runs a script as root in a machine made of the redis image.
func shell(options, script string) string {
	return "nspawnd-run -u 0 --entrypoint sh " + options + " " + redis + " -c '" + script + "'"
}

func restarts(t *testing.T, m *Machine) {
	const log = "mkdir -p /srv/log; rm -f /srv/log/*; "
	m.expect(t,
		outcome{"nspawnd-run --restart sometimes " + tiny, 125, "", "/^nspawnd-run: --restart: \"sometimes\" is not one of no, always.*\n$/"},
		outcome{"nspawnd-run --restart always:3 " + tiny, 125, "", "/^nspawnd-run: --restart: .*only on-failure.*\n$/"},
		// In the foreground the command goes on until there is no other start. The writable layer stays.
		outcome{log + shell("--restart=on-failure:2 -v /srv/log:/log", "echo start >> /log/starts; echo x >> /data/kept; wc -l < /data/kept; exit 3") +
			"; echo status $?; cat /srv/log/starts", 0, "1\n2\n3\nstatus 3\nstart\nstart\nstart\n", ""},
		outcome{log + shell("--restart=on-failure -v /srv/log:/log", "echo start >> /log/starts; [ $(wc -l < /log/starts) = 3 ]"), 0, "", ""},
		// Not asked to stop, a status that says "stopped" is a failure.
		outcome{log + shell("--restart=on-failure:1 -v /srv/log:/log", "echo start >> /log/starts; exit 143") + "; echo status $?; cat /srv/log/starts", 0, "status 143\nstart\nstart\n", ""},
		outcome{"nspawnd-run --restart no " + tiny + " exit 4", 4, "", ""},
		// A signal to the client ends it, also between two runs.
		outcome{": > /tmp/ends; nspawnd-run --name ends --restart always " + tiny + " trap > /tmp/ends 2>&1 & pid=$!; await grep -q ready /tmp/ends; kill $pid; wait $pid; echo $?; cat /tmp/ends", 0, "/^0\nready\n(CONT\n)?TERM\n$/", ""},
		outcome{"nspawnd-run --name waits --restart always -p RestartSec=60 " + tiny + " exit 5 & pid=$!; await sh -c '[ $(systemctl show -P SubState nspawnd-waits) = auto-restart ]'; kill $pid; wait $pid", 5, "", ""},
		// The first process of now is machined's leader.
		outcome{"nspawnd-run -d --name again --restart unless-stopped " + tiny + " trap; said again ready; systemctl kill -s KILL --kill-whom=main nspawnd-again;" +
			"await sh -c '[ $(systemctl show -P NRestarts nspawnd-again) = 1 ]'; await sh -c '[ x$(machinectl show -P Leader again 2>/dev/null) = x$(systemctl show -P MainPID nspawnd-again) ]'", 0, "again\n", ""},
		outcome{"machinectl-lite status again", 0, "/Leader: [0-9]+ \\(tiny\\)/", ""},
		outcome{"systemctl stop nspawnd-again; await sh -c 'systemctl is-active nspawnd-again > /dev/null; [ $? = 4 ]'; systemctl is-active nspawnd-again", 4, "inactive\n", ""},
		// The manager's reload, its reexec and a stop of what waits to be started again.
		outcome{": > /tmp/reload1; nspawnd-run --name reload --restart always " + tiny + " trap > /tmp/reload1 & pid=$!; await grep -q ready /tmp/reload1; for i in 1 2 3; do systemctl daemon-reload; systemctl daemon-reexec; done; systemctl stop nspawnd-reload; wait $pid", 0, "", ""},
		outcome{": > /tmp/reload; nspawnd-run --name reload " + tiny + " trap USR1 > /tmp/reload & pid=$!; await grep -q ready /tmp/reload; for i in 1 2 3; do systemctl daemon-reload; systemctl daemon-reexec; done; kill -TERM $pid; await grep -q TERM /tmp/reload; systemctl kill -s USR1 --kill-whom=main nspawnd-reload; wait $pid", 0, "", ""},
	)
	m.nothingLeft(t)
}

func notes(t *testing.T, m *Machine) {
	m.WriteFile("/tmp/labels", []byte("# ours\ntier=front\napp=old\n"), 0o644)
	m.expect(t,
		outcome{`nspawnd-run -d --name noted --label-file /tmp/labels -l app=web --label 'text=a "b" $c %n' -l flag --annotation by=me --cidfile /tmp/cid --pidfile /tmp/pid ` + tiny + " trap; said noted ready", 0, "noted\n", ""},
		outcome{"cat /tmp/cid; [ $(cat /tmp/pid) = $(systemctl show -P MainPID nspawnd-noted) ]", 0, "noted", ""},
		outcome{"machinectl-lite status noted", 0, "/Label: tier=front\n\t   Label: app=web\n\t   Label: text=a \"b\" \\$c %n\n\t   Label: flag=\n\t    Note: by=me\n/", ""},
		outcome{"journalctl -q NSPAWND_LABEL=app=web NSPAWND_ANNOTATION=by=me -o cat", 0, "/ready\n$/", ""},
		outcome{"nspawnd-run --cidfile /tmp/cid " + tiny, 125, "", "/^nspawnd-run: .*--cidfile: /tmp/cid is there already.*\n$/"},
		outcome{"systemctl stop nspawnd-noted; rm /tmp/cid; nspawnd-run --name noted --cidfile /tmp/cid -p WorkingDirectory=/no/such " + tiny + "; cat /tmp/cid", 1, "", "/No such file/"},
		outcome{"nspawnd-run -l =x " + tiny, 125, "", "/^nspawnd-run: --label: .*KEY=VALUE\n$/"},
		outcome{"nspawnd-run --label-file /no/such " + tiny, 125, "", "/^nspawnd-run: --label-file: .*no such file.*\n$/"},
	)
	m.nothingLeft(t)
}

func replaces(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{"nspawnd-run -d --name web " + tiny + " trap; said web ready; nspawnd-run --replace --name web " + tiny + " echo new", 0, "web\nnew\n", ""},
		outcome{"journalctl -q -t web -o cat", 0, "/^ready\n(CONT\n)?TERM\n$/", ""}, // it was asked to end
		outcome{"nspawnd-run --replace --name nobody " + tiny + " echo first", 0, "first\n", ""},
		// One that waits to be started again.
		outcome{"nspawnd-run -d --name web --restart always -p RestartSec=60 " + tiny + " exit 1; await sh -c '[ $(systemctl show -P SubState nspawnd-web) = auto-restart ]'; nspawnd-run --replace --name web " + tiny + " echo new", 0, "web\nnew\n", ""},
		// Another's machine is not replaced.
		outcome{"systemd-run -q --unit=other sleep 1000; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 0 '' container $(systemctl show -P MainPID other) '' >/dev/null; nspawnd-run --replace --name other " + tiny + " true; systemctl is-active other; systemctl stop other",
			0, "active\n", "/name other is taken: other.service runs/"},
	)
	// Of many at once one runs in the end.
	r := m.Script("for i in $(seq 8); do nspawnd-run -d --replace --name race " + tiny + " trap & done; wait; machinectl-lite list --no-legend | grep -c '^race '; systemctl stop nspawnd-race")
	if last := strings.TrimSpace(r.Stdout); !strings.HasSuffix(last, "\n1") {
		t.Errorf("%s%s", r.Stdout, r.Stderr)
	}
	m.nothingLeft(t)
}

func keeps(t *testing.T, m *Machine) {
	const run = "nspawnd-run -d --name pet --keep -e MINE -l a=b -v ./v:/v -v pets:/n -v ./v:/o:O -u 0 --entrypoint sh " + redis + " -c 'trap \"exit 0\" TERM; echo $MINE >> /etc/starts; cp /etc/starts /v/; cp /etc/starts /n/; touch /o/x; echo up; while :; do sleep 1000 & wait; done'; "
	const up = "await systemctl is-active -q nspawnd-pet; await test -s /srv/v/starts; cat /srv/v/starts; rm /srv/v/starts; "
	const down = "systemctl stop nspawnd-pet; await sh -c '[ $(systemctl show -P ActiveState nspawnd-pet-root) = inactive ]'; "
	m.expect(t,
		outcome{"mkdir -p /srv/v; cd /srv; export MINE=first; " + run + up + down, 0, "pet\nfirst\n", ""},
		outcome{"await sh -c 'machinectl-lite inspect pet | grep -q success'; machinectl-lite list-kept --no-legend; machinectl-lite status pet", 1,
			"/^pet +stopped +.*redis.*\npet\n\t   Since: .*\n\t   Ended: .* ago\n\t  Status: success\n\t   Image: .*redis.*\n\t    Unit: nspawnd-pet.service\n$/", "/has stopped and is kept; to start it/"},
		outcome{"machinectl-lite clean; machinectl-lite remove " + redis, 1, "", "/machine pet uses it/"},
		outcome{"nspawnd-run --name pet " + tiny + " true", 125, "", "/name is a kept machine's/"},
		// As after a reboot: nothing of it is in the manager, and /run is empty.
		outcome{"systemctl daemon-reexec; umount -Rq /run/nspawnd/mounts; rm -rf /run/nspawnd; machinectl-lite start pet; " + up + "machinectl-lite list-kept --no-legend; machinectl-lite status pet | grep Label", 0, "/^pet\nfirst\nfirst\npet +running.*\n.*Label: a=b\n$/", ""},
		outcome{"machinectl-lite start pet", 0, "", ""}, // as systemctl start
		outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite start pet", 1, "", "/^machinectl-lite: kept machine pet: .*permission denied; try: sudo machinectl-lite …\n$/"},
		outcome{"machinectl-lite remove-machine pet", 1, "", "/machine pet runs; to end it/"},
		outcome{"machinectl-lite rename pet cat", 1, "", "machinectl-lite: machine pet runs; to end it: machinectl-lite terminate pet\n"},
		outcome{down + "machinectl-lite start pet; " + up + down, 0, "pet\nfirst\nfirst\nfirst\n", ""},
		// By another name it goes on with what it has written, which is its unit's and its host's too.
		outcome{"nspawnd-run -d --keep --name taken " + tiny + " trap; nspawnd-run -d --name runs " + tiny + " trap; machinectl-lite rename pet taken; machinectl-lite rename pet runs; machinectl-lite rename pet a/b; machinectl-lite rename pet; machinectl-lite stop -t 0 runs taken; machinectl-lite rm taken; systemctl reset-failed nspawnd-runs nspawnd-taken 2> /dev/null || :", 0, "taken\nruns\n",
			"machinectl-lite: a machine taken runs\nmachinectl-lite: a machine runs runs\nmachinectl-lite: \"a/b\" is no name for a machine: up to 64 letters and digits, with hyphens and dots between\nmachinectl-lite: rename takes a name and a new one (see machinectl-lite rename --help)\n"},
		outcome{"machinectl-lite __complete rename p 2> /dev/null | grep -x pet; machinectl-lite rename pet cat; machinectl-lite status cat; machinectl-lite list-kept --no-legend; machinectl-lite start cat; await test -s /srv/v/starts; wc -l < /srv/v/starts; rm /srv/v/starts; machinectl-lite exec cat cat /proc/sys/kernel/hostname; machinectl-lite stop cat; machinectl-lite rename cat pet", 0,
			"/^pet\ncat +stopped .*redis.*\ncat\n4\ncat\n$/", "/^machinectl-lite: machine cat has stopped and is kept; to start it: machinectl-lite start cat\n/"},
		// What has lost its trust does not start.
		outcome{"mv /etc/nspawnd/trust.d /etc/nspawnd/trust.off; machinectl-lite start pet; status=$?; mv /etc/nspawnd/trust.off /etc/nspawnd/trust.d; exit $status", 125, "", "/^nspawnd-run: .*redis/"},
		outcome{"ls -d /var/lib/nspawnd/machines/pet.kept/overlay-* | wc -l; machinectl-lite remove-machine pet nosuch || machinectl-lite remove-volume pets > /dev/null; ls /var/lib/nspawnd/machines", 0, "1\n", "machinectl-lite: there is no kept machine nosuch\n"},
		outcome{"machinectl-lite start pet", 1, "", "machinectl-lite: there is neither a kept machine pet nor an image in /var/lib/machines of that name\n"},
		outcome{"nspawnd-run --name bad --keep -p WorkingDirectory=/no/such " + tiny + "; machinectl-lite list-kept --no-legend", 0, "", "/^nspawnd-run: bad: .*\n$/"},
		outcome{"nspawnd-run --keep --rm " + tiny, 125, "", "nspawnd-run: --keep and --rm are opposites\n"},
	)
	// Who is interrupted starts no more.
	m.expect(t, outcome{"for k in late other; do nspawnd-run -d --keep --name $k --sdnotify=container " + tiny + " notify 3 && systemctl stop nspawnd-$k; done; await sh -c '[ $(machinectl-lite list-kept --no-legend | grep -c stopped) = 2 ]'; " +
		"machinectl-lite start late other & starting=$!; await sh -c '[ $(systemctl show -P ActiveState nspawnd-late) = activating ]'; kill $starting; wait $starting; status=$?; systemctl is-active nspawnd-other; machinectl-lite rm -f late other; exit $status", 1,
		"late\nother\nlate\ninactive\n", "machinectl-lite: kept machine late: interrupted; it may have been started\nmachinectl-lite: interrupted before other\n"})
	// How it ended, from the manager and then from the journal.
	m.expect(t,
		outcome{"nspawnd-run -d --keep --name ends " + tiny + " exit 3; await systemctl is-failed -q nspawnd-ends; machinectl-lite status ends; systemctl reset-failed nspawnd-ends; await sh -c 'machinectl-lite inspect ends | grep -q ExitStatus'; machinectl-lite status ends", 1,
			"/^ends\n(ends\n\t   Since: .*\n\t   Ended: .* ago\n\t  Status: 3\n\t   Image: .*tiny:latest\n\t    Unit: nspawnd-ends.service\n){2}$/", "/^(machinectl-lite: machine ends has stopped and is kept; to start it: machinectl-lite start ends\n){2}$/"},
		outcome{"machinectl-lite inspect ends | jq -c '.[] | [.State, .End.ExitStatus, .End.Signal, .End.Result, .End.OutOfMemory, .End.Time > .Started]'", 0, "[\"stopped\",3,null,null,false,true]\n", ""},
		outcome{"machinectl-lite rm ends; nspawnd-run --keep --name ends " + tiny + " trap > /tmp/ends & pid=$!; await grep -q ready /tmp/ends; machinectl-lite inspect -f '{{.State}} {{json .End}}' ends; machinectl-lite kill -s KILL ends; wait $pid; echo $?; " +
			"await sh -c 'machinectl-lite inspect ends | grep -q Signal'; machinectl-lite inspect -f '{{.End.ExitStatus | json}} {{.End.Signal}}' ends; machinectl-lite status ends | grep Status; machinectl-lite rm ends", 0, "running null\n137\n137 SIGKILL\n\t  Status: 137 (SIGKILL)\n", "/^machinectl-lite: machine ends has stopped and is kept.*\n$/"},
		// What the journal has of a machine that had the name before says nothing.
		outcome{"nspawnd-run -d --keep --name ends " + tiny + " exit 3; await sh -c 'machinectl-lite inspect ends | grep -q ExitStatus'; systemctl reset-failed nspawnd-ends; touch -d 'now + 1 minute' /var/lib/nspawnd/machines/ends.kept/options.json; machinectl-lite status ends || machinectl-lite rm ends", 0,
			"ends\n", "machinectl-lite: machine ends has stopped and is kept; to start it: machinectl-lite start ends\n"},
	)
	// Killed at any point: a kept machine that starts, or none, and one that was there stays.
	m.Script(`for i in $(seq 20); do nspawnd-run -d --keep --name "k$i" ` + tiny + ` trap > /dev/null 2>&1 & sleep "0.0$(printf %02d $((i * 5 % 100)))"; kill -KILL $! || :; done; wait; systemctl stop 'nspawnd-k*.service'`)
	m.expect(t,
		outcome{"machinectl-lite clean > /dev/null; for k in $(machinectl-lite list-kept --no-legend | cut -d' ' -f1); do machinectl-lite start $k > /dev/null && systemctl stop nspawnd-$k && await sh -c \"[ \\$(systemctl show -P ActiveState nspawnd-$k-root) = inactive ]\"; machinectl-lite remove-machine $k; done; systemctl reset-failed 'nspawnd-k*'", 0, "", ""},
		outcome{"nspawnd-run -d --keep --name still " + tiny + " trap > /dev/null; systemctl stop nspawnd-still; await sh -c '[ $(systemctl show -P ActiveState nspawnd-still-root) = inactive ]';" +
			"for i in $(seq 10); do machinectl-lite start still > /dev/null 2>&1 & sleep 0.0$i; kill -KILL $! 2>/dev/null; wait $! 2>/dev/null; systemctl stop nspawnd-still 2>/dev/null; await sh -c '[ $(systemctl show -P ActiveState nspawnd-still-root) = inactive ]'; done; machinectl-lite start still; systemctl stop nspawnd-still;" +
			"await sh -c '[ $(systemctl show -P ActiveState nspawnd-still-root) = inactive ]'; machinectl-lite remove-machine still; systemctl reset-failed 'nspawnd-still*' 2>/dev/null || :", 0, "still\n", ""},
	)
	m.nothingLeft(t)
}
