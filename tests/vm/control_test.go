package vm

import "testing"

// TestControl is the verbs that steer machines: ours, and one that somebody else has registered.
func TestControl(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		start := func(name, options, command string) string {
			return "nspawnd-run -d --name " + name + " " + options + " " + tiny + " " + command + " > /dev/null; said " + name + " ready; "
		}
		sh := func(name, options, script string) string {
			return "nspawnd-run -d --name " + name + " " + options + " -u 0 --entrypoint sh " + redis + " -c '" + script + "' > /dev/null; "
		}
		m.expect(t,
			outcome{start("web", "", "trap USR1") + "machinectl-lite kill -s HUP --kill-whom=leader web; await sh -c 'machinectl-lite logs web | grep -q HUP'; machinectl-lite kill --signal 28 web; await said web WINCH", 0, "", ""},
			outcome{"machinectl-lite pause web; systemctl show -P FreezerState nspawnd-web; machinectl-lite resume web; systemctl show -P FreezerState nspawnd-web", 0, "frozen\nrunning\n", ""},
			outcome{"pid=$(systemctl show -P MainPID nspawnd-web); machinectl-lite restart web; [ $pid != $(systemctl show -P MainPID nspawnd-web) ] && systemctl is-active nspawnd-web", 0, "active\n", ""},
			outcome{"machinectl-lite wait web & sleep 2; machinectl-lite kill -s USR1 web; wait $!", 0, "0\n", ""},
			// Its log is there when it is gone.
			outcome{"machinectl-lite logs -o cat web | grep -c '^ready$'; machinectl-lite logs -o cat -n 1 --since=-1h --grep=^USR1 web; machinectl-lite logs -o cat --until=-1h web", 0, "2\nUSR1\n", ""},
			outcome{sh("ends", "", "sleep 1; exit 7") + "machinectl-lite wait ends; systemctl reset-failed nspawnd-ends", 0, "7\n", ""},
			outcome{sh("dies", "", "sleep 100") + "machinectl-lite wait dies & sleep 0.5; machinectl-lite kill -s KILL dies; wait $!; systemctl reset-failed nspawnd-dies", 0, "137\n", ""},

			outcome{start("web", "", "trap") + "machinectl-lite stop web; systemctl is-active nspawnd-web; said web TERM", 0, "inactive\n", ""},
			outcome{"nspawnd-run -d --name deaf --entrypoint sleep --stop-timeout 60 " + redis + " inf > /dev/null; timeout 20 machinectl-lite stop -t 1 deaf || echo late; systemctl is-active nspawnd-deaf; systemctl reset-failed nspawnd-deaf", 0, "failed\n", ""},
			outcome{start("one", "", "trap") + start("two", "", "trap") + "machinectl-lite stop one nosuch two; echo $?; machinectl-lite list --no-legend", 0, "1\n", "machinectl-lite: could not stop machine: No machine 'nosuch' known\n"},

			// One that was waited for and starts again is not the next one.
			outcome{start("one", "", "trap") + start("two", "", "trap") + "machinectl-lite wait one two > /tmp/waited & waiting=$!; sleep 2; machinectl-lite stop one; await grep -q 0 /tmp/waited; nspawnd-run --name one " + tiny +
				" exit 3; sleep 0.5; machinectl-lite kill -s KILL two; wait $waiting; cat /tmp/waited; systemctl reset-failed nspawnd-two", 0, "0\n137\n", ""},
			// Each has its own status, in whatever order they end, and lets go of its name then; one that has ended, what is known of it.
			outcome{start("one", "", "trap") + start("two", "", "trap") + "machinectl-lite wait one two > /tmp/waited & waiting=$!; await sh -c 'for m in one two; do systemctl show -P Refs nspawnd-$m | grep -q :; done'; machinectl-lite stop two; await nspawnd-run --name two " + tiny +
				" exit 0; machinectl-lite kill -s KILL one; wait $waiting; cat /tmp/waited; systemctl reset-failed nspawnd-one", 0, "137\n0\n", ""},
			outcome{sh("first", "", "sleep 4; exit 3") + sh("second", "", "sleep 2; exit 4") + "machinectl-lite wait first second nosuch; await systemctl is-failed -q nspawnd-first nspawnd-second; machinectl-lite wait second; systemctl reset-failed nspawnd-first nspawnd-second", 0, "3\n4\n4\n",
				"machinectl-lite: could not wait for machine: No machine 'nosuch' known\n"},
			// Between two runs a machine is one that can be stopped; and the limit of starts is its own, which is none.
			outcome{sh("again", "--restart always", "exit 7") + `await sh -c '[ $(systemctl show -P NRestarts nspawnd-again) -ge 6 ]'; systemctl stop nspawnd-again; systemctl reset-failed nspawnd-again 2> /dev/null || :`, 0, "", ""},
			outcome{sh("rests", "--restart always -p RestartSec=300 -p RestartSteps=0", "exit 7") + `await sh -c 'machinectl-lite list --no-legend -o wide | grep -q "^rests .* activating "'
				machinectl-lite status -n 0 rests > /dev/null; machinectl-lite stop rests; machinectl-lite list --no-legend; systemctl reset-failed nspawnd-rests 2> /dev/null || :`, 0, "", ""},
			outcome{start("cold", "", "trap") + "for verb in stop terminate restart; do machinectl-lite pause cold; machinectl-lite $verb cold; await sh -c '[ $(systemctl show -P FreezerState nspawnd-cold) = running ]'; [ $verb = restart ] || { await sh -c '[ $(systemctl show -P ActiveState nspawnd-cold) = inactive ]'; " +
				start("cold", "", "trap") + " }; done; machinectl-lite stop cold", 0, "", ""},
			outcome{"machinectl-lite kill --signal=list | sed -n '1p; /SIGTERM/p'; machinectl-lite kill -s help --no-legend | wc -l", 0, "SIGNAL NAME\n    15 SIGTERM\n64\n", ""},
			outcome{"machinectl-lite logs nosuch; machinectl-lite top .host", 1, "", "machinectl-lite: nosuch: no machine of that name runs, and the journal has nothing of one\nmachinectl-lite: could not get processes of machine: .host is this host; top(1) shows its processes\n"},
			// What nobody got is an error, and does not hang.
			outcome{sh("loud", "", "seq 50000; echo ready; exec sleep inf") + `said loud ready; for verb in list show "show loud" "status -n 100000 loud" "wait --condition=running loud"; do timeout 20 machinectl-lite $verb > /dev/full 2> /tmp/why; echo $? $(grep -c "no space left" /tmp/why); done; machinectl-lite stop -t 0 loud; systemctl reset-failed nspawnd-loud`, 0,
				"1 1\n1 1\n1 1\n1 1\n0 0\n", ""},

			outcome{"(sleep 0.5; " + start("late", "", "trap") + ") & machinectl-lite wait --condition=running late; systemctl is-active nspawnd-late; machinectl-lite stop late; wait", 0, "active\n", ""},
			outcome{sh("well", "--health-interval 1s --health-cmd \"test -e /tmp/well\"", "sleep 2; touch /tmp/well; sleep 60") + "machinectl-lite wait --condition=healthy well; machinectl-lite status well | grep -o 'Health: healthy'; machinectl-lite stop -t 1 well; systemctl reset-failed nspawnd-well", 0, "Health: healthy\n", ""},
			outcome{start("bare", "", "trap") + "machinectl-lite wait --condition=healthy bare; echo $?; machinectl-lite stop bare", 0, "1\n", "machinectl-lite: could not wait for machine: bare has no health check\n"},

			outcome{"machinectl-lite kill nosuch", 1, "", "machinectl-lite: could not kill machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite pause nosuch", 1, "", "machinectl-lite: could not pause machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite restart nosuch", 1, "", "machinectl-lite: could not restart machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite wait nosuch", 1, "", "machinectl-lite: could not wait for machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite wait --condition=gone nosuch", 1, "", "/--condition: \"gone\" is not one of stopped, running, healthy\n$/"},
			outcome{"machinectl-lite kill -s NOPE nosuch", 1, "", "machinectl-lite: --signal: \"NOPE\" is not a signal\n"},
			outcome{"machinectl-lite kill --kill-whom=some nosuch", 1, "", "/--kill-whom: must be one of leader, supervisor, all\n$/"},
			outcome{"machinectl-lite logs a b", 1, "", "machinectl-lite: logs: one machine at a time\n"},

			// Somebody else's: machined is asked, as by machinectl.
			outcome{`systemd-run -q --unit=other sh -c 'trap "echo asked to power off" RTMIN+4; trap "echo asked to reboot" INT; trap "echo hung up" HUP; echo ready; while :; do sleep 0.1; done'
				busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 0 '' container $(systemctl show -P MainPID other) '' > /dev/null
				await sh -c 'machinectl-lite logs other | grep -q ready'; machinectl-lite kill -s HUP --kill-whom=leader other; await sh -c 'machinectl-lite logs other | grep -q "hung up"'
				machinectl-lite restart other; await sh -c 'machinectl-lite logs other | grep -q "asked to reboot"'; machinectl-lite stop other; await sh -c 'machinectl-lite logs other | grep -q "asked to power off"'
				for program in machinectl machinectl-lite; do $program kill --kill-whom=supervisor other 2>&1 | sed 's/.*: //'; done | uniq | grep -c 'No such process\|Invalid kill parameter'
				machinectl-lite pause other; systemctl show -P FreezerState other; machinectl-lite resume other
				machinectl-lite wait other & sleep 2; machinectl-lite kill -s KILL other; wait $!`, 0, "1\nfrozen\n", ""},
		)
		m.nothingLeft(t)
	})
}

// TestShow holds show against machinectl's. It can say a list of interfaces.
func TestShow(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		const register = `systemd-run -q --unit=other sleep 1000
			busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 '' container $(systemctl show -P MainPID other) /srv > /dev/null; `
		m.expect(t,
			outcome{register + "nspawnd-run -d --name web " + tiny + " trap", 0, "web\n", ""},
			outcome{`for args in other web "web other" "-a web" "-p Name -p State other" "--value -p Leader -p Name web" "-P Unit web" "" "-a" "-p Nope web"; do
				machinectl show $args | sed 's/=.unprintable.$/=/' > /tmp/theirs; machinectl-lite show $args > /tmp/ours; cmp /tmp/theirs /tmp/ours || diff /tmp/theirs /tmp/ours; done`, 0, "", ""},
			outcome{"machinectl-lite show nosuch", 1, "", "machinectl-lite: could not get path to machine: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite stop web; nspawnd-run -d --register=no --name web " + tiny + " trap; machinectl-lite show -p Name,Class,Unit web; machinectl-lite stop web", 0, "web\nName=web\nUnit=nspawnd-web.service\nClass=container\n", ""},
			outcome{"systemctl stop other", 0, "", ""},
		)
		m.nothingLeft(t)
	})
}

// TestStats: what is shown is what the control group and the network of a machine say. TestLimits has what needs controllers.
func TestStats(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.expect(t,
			outcome{"nspawnd-run -d --name busy -m 64m --network none " + tiny + " burn 60; nspawnd-run -d --name idle " + tiny + " trap", 0, "busy\nidle\n", ""},
			outcome{"machinectl-lite stats --json=short | jq -r '.[] | [.machine, .received, .cpu != null] | @tsv'", 0, "busy\t0\ttrue\nidle\t\ttrue\n", ""},
			outcome{"machinectl-lite stats --no-stream --no-legend busy nosuch idle | cut -d' ' -f1; machinectl-lite stats --json=short | jq -r '.[] | .cpu | type' | sort -u", 0, "busy\nidle\nnumber\n", "machinectl-lite: could not get what machine uses: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite stats --no-stream --json=short busy | jq -r '.[].cpu' | awk '{ exit !($1 + 0 > 5 && $1 + 0 < 250) }'", 0, "", ""},
			outcome{"machinectl-lite stats --no-legend idle | cut -d' ' -f1,2", 0, "idle 0.0%\n", ""},
			outcome{"machinectl-lite stats nosuch", 1, "", "machinectl-lite: could not get what machine uses: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite stop -t 1 busy idle; systemctl reset-failed 'nspawnd-*' 2> /dev/null; machinectl-lite stats", 0, "No machines.\n", ""},
		)
		s := m.session(t, "nspawnd-run -d --name live "+tiny+" trap; machinectl-lite stats --interval=300ms")
		s.saw(`MACHINE.*SENT(.|\n)*MACHINE.*SENT(.|\n)*MACHINE.*SENT`)
		s.say("\x03")
		s.ends(0)
		m.expect(t, outcome{"machinectl-lite stop live", 0, "", ""})
		m.nothingLeft(t)
	})
}
