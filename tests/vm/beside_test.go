package vm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestExecOtherOrigin runs commands in containers that nspawnd did not start: those of systemd-nspawn, with and without an init, and processes that somebody registered.
func TestExecOtherOrigin(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.buildLook(t)
		m.must("nspawnd-run -d --name source --pull=always --entrypoint sleep " + redis + " inf; mkdir -p /srv/tree; machinectl-lite export source | tar -x -C /srv/tree; machinectl-lite stop -t 0 source; cp -a /srv/tree /srv/mapped")
		for name, test := range map[string]func(*testing.T, *Machine){"confinement": besideConfinement, "outcomes": besideOutcomes, "refused": besideRefused, "hostile": besideHostile, "systemd inside": besideSystemd} {
			t.Run(name, func(t *testing.T) { test(t, m.With(t)) })
		}
	})
}

// container gives the command that starts a program in a tree under systemd-nspawn.
func container(name, options, program string) string {
	tree := "/srv/tree"
	if strings.Contains(options, "--private-users=") {
		tree = "/srv/mapped"
	}
	return "systemd-run --quiet --collect --unit=" + name + " -p Delegate=yes systemd-nspawn --quiet --keep-unit --register=yes --machine=" + name + " --directory=" + tree + " --bind=/srv/look:/look " +
		options + " " + program + "; await machinectl -q show " + name + " > /dev/null; "
}

// registered gives the command that starts a service and registers it, or the first process of that name in it, as a machine.
func registered(name, class, process, options, program string) string {
	return "systemd-run --quiet --collect --unit=" + name + " " + options + " " + program + "; leader() { pgrep --cgroup /system.slice/" + name + ".service -x " + process + "; }; await leader > /dev/null; " +
		"busctl -q call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus " + name + " 0 '' " + class + " $(leader | head -1) ''; "
}

// besideConfinement: what a command is and may do is what the payload is and may do, and it sees what that sees. Only inheritable capabilities it has none: they are of use to nobody.
func besideConfinement(t *testing.T, m *Machine) {
	payload := func(name string) string {
		return "sh -c 'umask 0; { ulimit -Sn; env -u TERM -u NOTIFY_SOCKET -u INVOCATION_ID -u SYSTEMD_EXEC_PID /look/look; grep ^Seccomp_filters /proc/self/status; } 2>&1 | sort > /look/" + name + ".new; mv /look/" + name + ".new /look/" + name + "; sleep inf; :'"
	}
	service := "-p RootDirectory=/srv/tree -p MountAPIVFS=yes -p BindPaths=/srv/look:/look "
	for name, start := range map[string]string{
		"plain":    container("plain", "--chdir=/usr --setenv=A='b \"c' --hostname=other", payload("plain")),
		"caps":     container("caps", "--drop-capability=CAP_CHOWN --capability=CAP_SYS_TIME --system-call-filter=~chroot", payload("caps")),
		"user":     container("user", "--user=redis --ambient-capability=CAP_NET_BIND_SERVICE", payload("user")),
		"limits":   container("limits", "--rlimit=RLIMIT_NOFILE=77:99 --rlimit=RLIMIT_RTTIME=200000 --oom-score-adjust=50 --cpu-affinity=0", payload("limits")),
		"nnp":      container("nnp", "--no-new-privileges=yes --user=redis --private-network", payload("nnp")),
		"users":    container("users", "--private-users=524288:65536 --private-users-ownership=chown --private-network", payload("users")),
		"userstoo": container("userstoo", "--private-users=524288:65536 --private-users-ownership=chown --user=redis --drop-capability=CAP_CHOWN", payload("userstoo")),
		"pid2":     container("pid2", "--as-pid2 --user=redis --setenv=A=b", payload("pid2")),
		"unprivileged": registered("unprivileged", "container", "sh", service+"-p User=games -p SupplementaryGroups=audio -p AmbientCapabilities=CAP_NET_RAW -p CapabilityBoundingSet='CAP_NET_RAW CAP_CHOWN' "+
			"-p SystemCallErrorNumber=EPERM -p SystemCallFilter='~@privileged @mount' -p SystemCallFilter=~kexec_load:EXDEV -p Nice=5 -p PrivateNetwork=yes -p 'Environment=\"ODD=a b\"' -p WorkingDirectory=/usr", payload("unprivileged")),
		"root": registered("root", "container", "sh", service+"-p SystemCallErrorNumber=EPERM -p SystemCallFilter='~@mount' -p SystemCallArchitectures=native -p PrivateUsers=yes", payload("root")),
		"time": registered("time", "container", "sleep", "", "unshare --time --boottime 1000000 --pid --uts --ipc --cgroup --mount-proc --fork --kill-child sleep inf"),
	} {
		m.must("chmod 777 /srv/look; rm -f /srv/look/" + name)
		m.must(await + start)
		if name == "time" {
			m.expect(t, outcome{"machinectl-lite exec time sh -c '[ $(cut -d. -f1 /proc/uptime) -gt 1000000 ] && readlink /proc/self/ns/time && pwd'; machinectl-lite exec -t=false time readlink /proc/1/ns/time", 0, "/^(time:.*)\n/\n(time:.*)\n$/", ""})
		} else {
			m.Eventually("the payload of "+name+" has looked", func() bool { return m.Script("test -e /srv/look/"+name).Status == 0 })
			inheritable := func(s string) string {
				lines := strings.SplitAfter(s, "\n")
				for i, line := range lines {
					if strings.HasPrefix(line, "CapInh:") {
						lines[i] = ""
					}
				}
				return strings.Join(lines, "")
			}
			payload := inheritable(string(m.ReadFile("/srv/look/" + name)))
			exec := m.Script("machinectl-lite exec " + name + " sh -c '{ ulimit -Sn; /look/look; grep ^Seccomp_filters /proc/self/status; } 2>&1 | sort' < /dev/null 2>&1")
			if diff := cmp.Diff(payload, inheritable(exec.Stdout)); diff != "" || strings.Count(payload, "\n") < 60 {
				t.Errorf("%s (-payload +command):\n%s", name, diff)
			}
		}
		m.must(await + "systemctl kill -s KILL " + name + "; await sh -c '! machinectl -q show " + name + " 2> /dev/null > /dev/null; ! systemctl -q is-active " + name + "'")
	}
}

func besideOutcomes(t *testing.T, m *Machine) {
	defer m.Script("systemctl stop app")
	m.must(await + container("app", "--setenv=FROM=start", "sh -c 'trap exit TERM; while :; do sleep 0.1; done'"))
	m.expect(t,
		outcome{"machinectl-lite exec app sh -c 'echo $FROM; exit 7'", 7, "start\n", ""},
		outcome{"machinectl-lite exec app sh -c 'kill -9 $$'", 137, "", ""},
		outcome{"machinectl-lite exec app nosuch", 127, "", "machinectl-lite: app: nosuch: no such file or directory\n"},
		outcome{"machinectl-lite exec app /etc", 126, "", "machinectl-lite: app: /etc: permission denied\n"},
		outcome{"machinectl-lite exec -w /nosuch app true", 127, "", "machinectl-lite: app: working directory /nosuch: no such file or directory\n"},
		outcome{"machinectl-lite exec -u redis -e FROM=exec -w /opt app sh -c 'id -un; pwd; echo $FROM $HOME $USER $LOGNAME; cat /proc/self/cgroup | grep ^0'", 0, "redis\n/opt\nexec /var/lib/redis redis redis\n0::/\n", ""},
		outcome{"machinectl-lite exec -u nosuch app true", 125, "", "/--user: user \"nosuch\": no such user/"},
		outcome{"seq 100000 | machinectl-lite exec app cat | md5sum; seq 100000 | md5sum", 0, "/^(.*)\n(.*)\n$/", ""},
		outcome{"machinectl-lite exec --privileged app grep -E '^(CapEff|Seccomp):' /proc/self/status", 0, "/^CapEff:\t000001ff[0-9a-f]*ffff\nSeccomp:\t0\n$/", ""},
		outcome{"setpriv --reuid=games --clear-groups machinectl-lite exec app true", 125, "", "machinectl-lite: app: to run a command in a machine needs root: permission denied; try: sudo machinectl-lite …\n"},
		// The first process goes on, and its signals come through, though it is looked at all the time.
		outcome{"for _ in $(seq 20); do machinectl-lite exec app true || echo failed; done; grep State: /proc/$(machinectl show --value -p Leader app)/status; kill -STOP $(machinectl show --value -p Leader app); machinectl-lite exec app echo stopped; " +
			"grep State: /proc/$(machinectl show --value -p Leader app)/status; kill -CONT $(machinectl show --value -p Leader app); await sh -c 'grep State:.S /proc/$(machinectl show --value -p Leader app)/status' | head -1", 0,
			"State:\tS (sleeping)\nstopped\nState:\tT (stopped)\nState:\tS (sleeping)\n", ""},
		outcome{"unit=$(machinectl-lite exec -d app sh -c 'echo said by a command; sleep inf'); await sh -c \"machinectl-lite logs -o cat app | grep -q '^said by'\"; systemctl is-active $unit; systemctl stop $unit; systemctl is-active $unit", 4, "active\ninactive\n", ""},
		outcome{"machinectl-lite pause app; timeout 10 machinectl-lite exec app true; status=$?; timeout 10 machinectl-lite shell app; machinectl-lite resume app; exit $status", 125, "", "machinectl-lite: app: it is paused; to have it go on: machinectl-lite resume app\n" +
			"machinectl-lite: could not open a shell: app: it is paused; to have it go on: machinectl-lite resume app\n"},
	)
	s := m.session(t, "machinectl-lite exec -it app sh -c 'tty; stty size; exit 5'")
	s.saw(`/dev/pts/[0-9]+\r\n24 100\r\n`)
	s.ends(5)
	s = m.session(t, "machinectl-lite shell app")
	s.saw(`[#$] `)
	s.say("tty; echo $FROM; exit 6\r")
	s.saw(`/dev/pts/[0-9]+\r\nstart\r\n`)
	s.ends(6)
	m.expect(t,
		outcome{"machinectl-lite login app", 1, "", "machinectl-lite: could not log in: no systemd runs in app; for a shell: machinectl-lite shell app\n"},
		outcome{"machinectl-lite exec app sleep 4321 & await pgrep -fx 'sleep 4321' > /dev/null; machinectl-lite terminate app; wait $!; [ $? -gt 128 ]", 0, "", ""},
		outcome{"systemctl list-units --all --no-legend 'nspawnd-*exec*'", 0, "", ""},
		// Machines of nspawnd whose unit does not tell all.
		outcome{"nspawnd-run -d --name under --flavor nspawn -u redis -e A=b --cap-drop all --entrypoint sleep " + redis + " inf; machinectl-lite exec under sh -c 'id -un; pwd; echo $A; grep -E ^CapBnd: /proc/self/status'; machinectl-lite stop -t 0 under", 0,
			"/^under\nredis\n/data\nb\nCapBnd:\t0000000000000000\n/", ""},
		outcome{"nspawnd-run -d --name mapped -p PrivateUsers=identity -u 0 --entrypoint sleep " + redis + " inf; machinectl-lite exec mapped sh -c 'cat /proc/self/uid_map; grep Seccomp: /proc/self/status; readlink /proc/self/ns/user'; readlink /proc/$(systemctl show -P MainPID nspawnd-mapped)/ns/user; machinectl-lite stop -t 0 mapped", 0,
			"/^mapped\n +0 +0 +65536\nSeccomp:\t2\n(user:.*)\n(user:.*)\n$/", ""},
	)
}

// besideHostile: what root in a machine may do to its processes meanwhile has neither the caller wait for ever, nor gives it more than it has.
func besideHostile(t *testing.T, m *Machine) {
	defer m.Script("systemctl stop hostile inner")
	m.must(await + container("hostile", "--drop-capability=CAP_CHOWN", "sleep inf"))
	m.expect(t,
		// A process has one tracer.
		outcome{"for _ in $(seq 60); do { machinectl-lite exec hostile true || echo failed; } & done; wait", 0, "", ""},
		// A shell, too, is what the machine's /etc/passwd names.
		outcome{"machinectl-lite exec hostile sh -c \"printf 'evil:x:777:7::/:/bin/\\\\033[31m\\\\n' >> /etc/passwd\"; machinectl-lite shell evil@hostile", 127, "machinectl-lite: hostile: \"/bin/\\x1b[31m\": no such file or directory\r\n", ""},
		outcome{"machinectl-lite exec -w $'/no\\e' hostile true", 127, "", "machinectl-lite: hostile: working directory \"/no\\x1b\": no such file or directory\n"},
		// What is not the command yet waits as soon as it is in the control group, and could be traced from the machine.
		outcome{`leader=$(machinectl show --value -p Leader hostile); frozen=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$leader/cgroup)/../frozen; mkdir $frozen; echo $leader > $frozen/cgroup.procs; echo 1 > $frozen/cgroup.freeze
			timeout --preserve-status -k 10 -s INT 3 machinectl-lite exec hostile true & await grep -qv "^$leader$" $frozen/cgroup.procs; grep -E '^(Name|CapPrm):' /proc/$(grep -v "^$leader$" $frozen/cgroup.procs)/status
			status=0; wait $! || status=$?; cat $frozen/cgroup.procs | grep -v "^$leader$" || true; echo 0 > $frozen/cgroup.freeze; machinectl-lite exec hostile true; exit $status`, 130, "/^Name:\tnspawnd-launche\nCapPrm:\t[0-9a-f]{15}[02468ace]\n$/", ""},
	)
	// It ends while commands are started in it.
	m.expect(t, outcome{`for _ in $(seq 30); do machinectl-lite exec hostile sleep inf & done 2> /tmp/said; sleep 0.3; systemctl kill -s KILL hostile; wait; sed -E "s/its first process has ended|the machine does not run|no machine of that name runs|No machine 'hostile' known/gone/" /tmp/said | sort -u`, 0, "/^(machinectl-lite: hostile: gone\n)?$/", ""})
	// Whether its first process has been executed is not told as long as it is what its parent is.
	m.must("ln -sf /bin/sh /srv/inner; " + await + registered("inner", "container", "inner", "", "sh -c \"/srv/inner -c 'sleep inf; :'; :\""))
	m.expect(t, outcome{"timeout --preserve-status -k 30 -s INT 2 machinectl-lite exec inner true", 130, "", ""})
}

func besideRefused(t *testing.T, m *Machine) {
	defer m.Script("systemctl stop guest")
	m.must(await + registered("guest", "vm", "sleep", "", "sleep inf"))
	m.expect(t,
		outcome{"machinectl-lite exec guest true", 125, "", "machinectl-lite: guest: it is no container but of class \"vm\": no process of this kernel can be run in it\n"},
		outcome{"machinectl-lite exec .host true", 125, "", "/^machinectl-lite: .host: it is no container/"},
	)
}

// besideSystemd: what runs in a whole system is no service of its, and has not the limits that its manager has for itself.
func besideSystemd(t *testing.T, m *Machine) {
	bootContainer(t, m, "bootc", "")
	defer m.Script("systemctl stop bootc")
	m.expect(t,
		outcome{"machinectl-lite exec bootc systemctl is-active basic.target; machinectl-lite exec bootc sh -c 'ulimit -Sn; cat /proc/1/comm; grep ^0 /proc/self/cgroup; grep -c . /proc/net/dev; hostname'; machinectl-lite exec bootc sh -c 'exit 4'", 4,
			"/^active\n1024\nsystemd\n0::/init.scope\n4\nbootc\n$/", ""},
		outcome{"machinectl-lite exec -u nobody bootc id -un", 0, "nobody\n", ""},
		outcome{"machinectl-lite exec bootc sleep 4321 & await pgrep -fx 'sleep 4321' > /dev/null; machinectl poweroff bootc; wait $!", 143, "", ""},
	)
}
