package vm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExec(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.importImage("shell")
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("nspawnd-run", tiny, "true")
		for name, test := range map[string]func(*testing.T, *Machine){
			"as podman": execAsPodman, "statuses and signals": execOutcomes, "terminal": execTerminal, "ends with the machine": execEnds, "refused": execRefused, "confinement": execConfinement,
		} {
			t.Run(name, func(t *testing.T) {
				test(t, m.With(t))
				m.With(t).nothingLeft(t)
			})
		}
	})
}

// execAsPodman compares with podman-exec(1) in a container of the same image.
func execAsPodman(t *testing.T, m *Machine) {
	m.Must("podman", "pull", "--quiet", redis)
	defer m.Script("podman rm -f -t 0 same; systemctl stop nspawnd-same")
	status := `sh -c "id; pwd; echo $HOME $FROM; grep -E '^(Cap(Bnd|Eff|Amb)|NoNewPrivs):' /proc/self/status"`
	m.WriteFile("/tmp/variables", []byte("# a comment\n  FROM=file\nQUOTED=\"a b\"\nNOVALUE\nHOM*\n"), 0o644)
	for _, machine := range []string{"", "-u 0 --cap-add net_raw", "-u 33:33 -w /opt -e FROM=run", "-u 4321 --cap-add net_raw"} {
		start := " -d --name same --security-opt=no-new-privileges=false " + machine + " --entrypoint sh " + redis + " -c 'trap exit TERM; while :; do sleep 0.1; done'"
		m.Must("bash", "-c", "nspawnd-run"+start+"; podman run --network=host --cgroups=disabled --pids-limit=0"+start)
		for _, command := range []string{
			"same " + status, "-u 0 same " + status, "-u redis same " + status, "-u redis:0 same " + status, "-u 77 same " + status, "-w /tmp -e FROM=exec same " + status,
			"same sh -c 'exit 9'", "same nosuch", "same /etc/passwd", "same sh -c 'kill -9 $$'", "-w /nosuch same true", "--env-file /tmp/variables same sh -c 'echo $FROM $QUOTED $NOVALUE $HOME'",
			"--env-file /tmp/variables -e FROM=both same sh -c 'echo $FROM $QUOTED'", "--env-file /nosuch same true", "-u nosuch same true", "nosuchmachine true",
		} {
			ours, theirs := m.Run("bash", "-c", "machinectl-lite exec "+command), m.Run("bash", "-c", "podman exec "+command)
			if strings.Contains(command, "-u nosuch") {
				theirs.Status = 125 // it says 126, though nothing was executed
			}
			if strings.Contains(machine, "4321") { // its payload has not the group of that name that it makes
				theirs.Stdout = strings.ReplaceAll(theirs.Stdout, ",4321(4321)", "")
			}
			if ours.Status != theirs.Status || ours.Stdout != theirs.Stdout || (ours.Stderr == "") != (theirs.Stderr == "") {
				t.Errorf("machine %q, exec %s\nours %d\n%s%s\npodman %d\n%s%s", machine, command, ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
			}
		}
		m.Script("podman rm -f -t 0 same; systemctl stop nspawnd-same")
	}
}

func execOutcomes(t *testing.T, m *Machine) {
	defer m.Script("systemctl stop nspawnd-one")
	m.expect(t,
		outcome{"nspawnd-run -d --name one -e 'a.b=c d' -e 'Q=\"x $y %n' " + tiny + " trap; said one ready", 0, "one\n", ""},
		outcome{`machinectl-lite exec one tiny echo 'a "b" $c %n' -x --help`, 0, "a \"b\" $c %n -x --help\n", ""},
		outcome{`machinectl-lite exec -e 'N=a
b' one tiny env | grep -E -A1 '^(a.b|Q|N|FROM)='`, 0, "FROM=tiny\nHOME=/\n--\nN=a\nb\n--\nQ=\"x $y %n\na.b=c d\ncontainer=nspawnd\n", ""},
		outcome{"seq 300000 | machinectl-lite exec -i one tiny cat | md5sum; seq 300000 | md5sum", 0, "/^(.*)\n(.*)\n$/", ""},
		outcome{"machinectl-lite exec one tiny exit 3", 3, "", ""},
		outcome{"machinectl-lite exec one tiny exit 255", 255, "", ""},
		outcome{"machinectl-lite exec one nosuch", 127, "", "machinectl-lite: one: nosuch: no such file or directory\n"},
		outcome{"machinectl-lite exec one /etc", 126, "", "machinectl-lite: one: /etc: permission denied\n"},
		outcome{"machinectl-lite exec -w /nosuch one tiny echo", 127, "", "machinectl-lite: one: working directory /nosuch: no such file or directory\n"},
		// The client's signals are the command's.
		outcome{": > /tmp/trap; machinectl-lite exec one tiny trap USR1 > /tmp/trap & pid=$!; await grep -q ready /tmp/trap; kill -INT $pid; await grep -q INT /tmp/trap; kill $pid; await grep -q TERM /tmp/trap; kill -USR1 $pid; wait $pid; cat /tmp/trap", 0, "/^ready\nINT\n(CONT\n)?TERM\nUSR1\n$/", ""},
		outcome{": > /tmp/trap; machinectl-lite exec one tiny sleep infinity & pid=$!; await sh -c 'pgrep -f \"sleep infinity\" > /dev/null'; sleep 0.2; kill -HUP $pid; wait $pid", 129, "", ""},
		// Its unit is one like others.
		outcome{"unit=$(machinectl-lite exec -d one tiny trap HUP); await sh -c '[ $(machinectl-lite logs -o cat one | grep -c ^ready) = 2 ]'; systemctl is-active $unit; systemctl stop $unit & await sh -c '[ $(machinectl-lite logs -o cat one | grep -c ^TERM) = 1 ]'; systemctl kill --kill-whom=main -s 64 $unit; wait; systemctl is-active $unit; pgrep -c tiny", 0, "active\ninactive\n1\n", ""},
		outcome{"systemctl list-units --all --no-legend 'nspawnd-one-exec*'", 0, "", ""},
	)
}

func execTerminal(t *testing.T, m *Machine) {
	m.Must("nspawnd-run", "-d", "--name", "tty", shellImage, "sleep", "infinity")
	defer m.Script(await + "machinectl-lite kill -s KILL tty; await systemctl is-failed -q nspawnd-tty; systemctl reset-failed nspawnd-tty")
	s := m.session(t, "machinectl-lite exec tty sh -c 'tty; stty size; echo $TERM; tty <&2; tty < /dev/tty; exit 5'")
	s.saw(`/dev/pts/0\r\n24 100\r\nxterm-256color\r\n/dev/pts/0\r\n/dev/(tty|pts/0)\r\n`)
	s.ends(5)
	s = m.session(t, "machinectl-lite exec -u games tty sh -c 'tty; id -un; stat -c %U /dev/pts/0; echo reopened > /dev/stdout'")
	s.saw(`/dev/pts/0\r\ngames\r\ngames\r\nreopened\r\n`)
	s.ends(0)
	s = m.session(t, "machinectl-lite exec tty sh -c 'tty; echo complaint >&2' 2> /tmp/errors; cat /tmp/errors | od -c")
	s.saw(`/dev/pts/0\r\n`)
	s.saw(`c   o   m   p   l   a   i   n   t  \\n`)
	s.ends(0)
	s = m.session(t, "machinectl-lite exec -it -e PS1='> ' tty bash --norc -i")
	s.saw(`> $`)
	s.controlsJobs()
	s.say("kill %1; exit 7\r")
	s.ends(7)
	// It is left as podman's; what it says then is in the journal, and its end ends the unit that writes that.
	for _, keys := range []struct{ option, typed, word string }{{"", "\x10\x11", "two"}, {"--detach-keys=ctrl-a,x", "\x01x", "three"}} {
		s = m.session(t, "machinectl-lite exec "+keys.option+" tty sh -c 'read x; echo got $x; read y; until test -e /left-$y; do sleep 0.1; done; echo unseen-$y'")
		s.say("one\r")
		s.saw(`got one\r\n`)
		s.say(keys.word + "\r" + keys.typed)
		s.ends(0)
		m.expect(t, outcome{"machinectl-lite exec tty touch /left-" + keys.word + "; await sh -c 'machinectl-lite logs -o cat tty | grep -q ^unseen-" + keys.word + "'; await sh -c '! systemctl list-units --no-legend \"nspawnd-tty-exec*\" | grep .'; systemctl --failed --no-legend", 0, "", ""})
	}
	s = m.session(t, "machinectl-lite exec --detach-keys= tty sh -c 'stty raw -echo; echo ready; dd bs=1 count=2 status=none | od -An -tx1'")
	s.saw(`ready`)
	s.say("\x10\x11")
	s.saw(`10 11`)
	s.ends(0)
	m.expect(t,
		outcome{"machinectl-lite exec --detach-keys=nosuch tty true", 125, "", "/^machinectl-lite: --detach-keys: .*\n$/"},
		outcome{"machinectl-lite exec tty tty | cat", 0, "not a tty\n", ""},
		// The end of the input is one, also for what sets its terminal up later.
		outcome{"timeout 30 machinectl-lite exec -t tty bash --norc -i < /dev/null > /dev/null; echo $?; echo 'exit 5' | timeout 30 machinectl-lite shell tty bash --norc -i > /dev/null", 5, "0\n", ""},
		outcome{"machinectl-lite exec -t tty sh -c 'tty; stty size' < /dev/null", 0, "/^/dev/pts/[0-9]\r\n24 80\r\n$/", ""},
		outcome{"machinectl-lite exec -d -t tty true", 125, "", "machinectl-lite: exec: --detach leaves nobody for --interactive or --tty\n"},
		// A terminal that goes takes the command with it, as any.
		outcome{"machinectl-lite exec -t tty sleep 77 < /dev/zero > /dev/null & pid=$!; disown; await sh -c 'pgrep -fx \"sleep 77\" > /dev/null'; sleep 0.2; kill -KILL $pid; await sh -c '! pgrep -fx \"sleep 77\" > /dev/null'", 0, "", ""},
	)
}

// execEnds: the command is in the machine's control group and PID namespace and ends with these, and the machine does not wait for it.
func execEnds(t *testing.T, m *Machine) {
	for name, options := range map[string]string{"own": "", "host": "--pid=host", "loose": "--flavor=chroot"} {
		m.expect(t,
			outcome{"nspawnd-run -d --name " + name + " " + options + " " + tiny + " trap; said " + name + " ready", 0, name + "\n", ""},
			outcome{"machinectl-lite exec " + name + " tiny trap HUP & pid=$!; await sh -c '[ $(systemd-cgls -u nspawnd-" + name + " | grep -c \"tiny trap\") = 2 ]'; " +
				"machinectl-lite status -n0 " + name + " | grep -c 'tiny trap'; SECONDS=0; systemctl stop nspawnd-" + name + "; [ $SECONDS -lt 5 ] || echo slow; wait $pid", 137, "/^(ready\n)?2\n(ready\n|TERM\n|CONT\n)*$/", ""},
		)
		m.nothingLeft(t)
	}
	m.expect(t,
		// What it leaves behind is the machine's.
		outcome{"nspawnd-run -d --name left " + shellImage + " sleep infinity; machinectl-lite exec left sh -c 'sleep 78 > /dev/null 2>&1 &'; systemctl list-units --no-legend 'nspawnd-left-exec*'; systemd-cgls -u nspawnd-left | grep -c 'sleep 78'", 0, "left\n1\n", ""},
		// It is not started again with the machine.
		outcome{"machinectl-lite exec -d left sh -c 'echo once; sleep 79' > /dev/null; await sh -c '[ $(machinectl-lite logs -o cat left | grep -c ^once) = 1 ]'; systemctl kill -s KILL --kill-whom=main nspawnd-left; await sh -c '! pgrep -fx \"sleep 79\" > /dev/null'; systemctl reset-failed nspawnd-left; machinectl-lite exec left true", 125, "", "machinectl-lite: left: no machine of that name runs\n"},
		outcome{"nspawnd-run -d --name again --restart always " + tiny + " trap; said again ready; machinectl-lite exec -d again tiny trap > /dev/null; await sh -c '[ $(machinectl-lite logs -o cat again | grep -c ^ready) = 2 ]'; machinectl-lite restart again; await sh -c '[ $(machinectl-lite logs -o cat again | grep -c ^ready) = 3 ]'; systemctl list-units --no-legend 'nspawnd-again-exec*'; systemd-cgls -u nspawnd-again | grep -c trap; systemctl stop nspawnd-again", 0, "again\n1\n", ""},
		outcome{"nspawnd-run -d --name init --init " + tiny + " trap; said init ready; machinectl-lite exec init tiny cat /proc/1/comm; machinectl-lite exec init tiny cat /proc/self/cgroup | grep ^0; systemctl stop nspawnd-init", 0, "init\nnspawnd-launche\n0::/\n", ""},
	)
}

func execRefused(t *testing.T, m *Machine) {
	defer m.Script("systemctl stop nspawnd-paused")
	m.expect(t,
		outcome{"machinectl-lite exec", 125, "", "/exec: no machine named/"},
		outcome{"machinectl-lite exec nosuch", 125, "", "/exec: no command given/"},
		outcome{"machinectl-lite exec --nosuch x y", 125, "", "/unknown flag: --nosuch/"},
		outcome{"nspawnd-run -d --name paused " + tiny + " trap; said paused ready; machinectl-lite pause paused; timeout 10 machinectl-lite exec paused tiny echo; status=$?; machinectl-lite resume paused; exit $status", 125, "paused\n", "/^machinectl-lite: paused: it is paused; to have it go on: machinectl-lite resume paused\n$/"},
		outcome{"machinectl-lite exec -w tmp paused tiny echo", 125, "", "/--workdir: \"tmp\" is not an absolute path/"},
		outcome{"machinectl-lite exec -u nosuch paused tiny echo", 125, "", "/--user: user \"nosuch\": no such user/"},
		// A directive that came later, which the payload does not have, confines the command all the same; where there is one that it can't have, the payload itself tells.
		outcome{"mkdir -p /run/systemd/system/nspawnd-paused.service.d; cd /run/systemd/system/nspawnd-paused.service.d; printf '[Service]\nLimitNOFILE=77\nCapabilityBoundingSet=\\\\\\n CAP_CHOWN\n' > a.conf; systemctl daemon-reload; machinectl-lite exec paused tiny cat /proc/self/limits | grep -o 'open files *77'; machinectl-lite exec paused tiny cat /proc/self/status | grep CapBnd; " +
			"echo AppArmorProfile=x >> a.conf; systemctl daemon-reload; machinectl-lite exec paused tiny cat /proc/self/limits | grep -c 'open files *77'; rm -r /run/systemd/system/nspawnd-paused.service.d; systemctl daemon-reload", 0, "/^open files *77\nCapBnd:\t0000000000000001\n0\n$/", ""},
	)
}

// execConfinement: what a command is and may do is what the payload is and may do, and it sees what that sees.
func execConfinement(t *testing.T, m *Machine) {
	m.buildLook(t)
	machines := map[string]string{
		"root": "-u 0", "user": "-u 1234:56 -e odd.name=x", "ambient": "-u 1234 --cap-add SYS_PTRACE", "network": "-u 0 --network none --pids-limit 100 --memory 64m", "cap": "-u 0 -p CapabilityBoundingSet=CAP_CHOWN",
		"filter": "-u 0 -p SystemCallFilter=~mknod:EXDEV -p LimitNOFILE=99:100 -p OOMScoreAdjust=77", "none": "-u 0 --cap-drop all",
		"seccomp": "-u 0 --security-opt seccomp=unconfined --security-opt no-new-privileges=false", "deny": "-u 0 -p MemoryDenyWriteExecute=yes -p RestrictSUIDSGID=yes -p IOSchedulingClass=idle -p Nice=5 -p CPUAffinity=0",
	}
	if m.withUsers(machines); m.Suite != Trixie {
		machines["both"] = "-u 1234 --cap-add SYS_PTRACE --userns=auto"
	}
	for name, options := range machines {
		m.Must("sh", "-c", "chmod 777 /srv/look; rm -f /srv/look/p*")
		r := m.Script("nspawnd-run -d --name " + name + " " + options + ` -w /opt -e 'A=b "c' -v /srv/look:/look --entrypoint sh ` + redis + " -c '{ ulimit -Sn; /look/look; } | sort > /look/payload.new 2>&1; mv /look/payload.new /look/payload; sleep 1000 & wait'")
		if r.Status != 0 {
			t.Fatal(r.Stderr)
		}
		m.Eventually("the payload has looked", func() bool { return m.Script("test -e /srv/look/payload").Status == 0 })
		payload := string(m.ReadFile("/srv/look/payload"))
		exec := m.Script("machinectl-lite exec " + name + " sh -c '{ ulimit -Sn; /look/look; } | sort' < /dev/null 2>&1")
		if diff := cmp.Diff(payload, exec.Stdout); diff != "" || strings.Count(payload, "\n") < 60 {
			t.Errorf("%s (-payload +command):\n%s", name, diff)
		}
		group := m.Script("machinectl-lite exec " + name + " cat /proc/self/cgroup")
		if !strings.Contains(group.Stdout, "0::/\n") {
			t.Errorf("%s: its control group: %s", name, group.Stdout)
		}
		m.Script("systemctl kill -s KILL --kill-whom=main nspawnd-" + name + "; systemctl stop nspawnd-" + name + "; systemctl reset-failed nspawnd-" + name)
	}
	m.expect(t,
		outcome{"nspawnd-run -d --name little -u 1234 --entrypoint sleep " + redis + " inf; machinectl-lite exec --privileged -u 0 little grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; machinectl-lite exec --privileged little sh -c 'id -u; cat /proc/self/cgroup' | grep -vE '^[1-9].*:'; machinectl-lite kill -s KILL little; await systemctl is-failed -q nspawnd-little; systemctl reset-failed nspawnd-little", 0,
			"/^little\nCapEff:\t000001ff[0-9a-f]*ffff\nNoNewPrivs:\t0\nSeccomp:\t0\n1234\n0::/\n$/", ""},
	)
}
