package vm

import (
	"strings"
	"testing"
)

// TestUsersBesidePodman compares machines and containers with users of their own, on the same image.
func TestUsersBesidePodman(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("podman", "pull", "--quiet", redis)
		m.Must("mount", "-t", "tmpfs", "tmpfs", "/srv") // the lab's own file system has no ID-mapped mounts
		flavor := ""
		if m.Suite == Trixie { // whose systemd starts no service in a user namespace
			flavor = "--flavor=nspawn "
		}
		const (
			one  = "--uidmap 0:200000:65536 "
			two  = "--uidmap 0:200000:65536 --gidmap 0:300000:65536 "
			many = "--uidmap 0:200000:1000 --uidmap 1000:400000:64536 "
		)
		const status = "id; grep -E ^Cap /proc/self/status; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; stat -c '%n %u:%g:%a' /etc /root /etc/redis /data /tmp"
		const files = "touch /root/x; chown 33:44 /root/x; stat -c %u:%g /root/x; chown 70000 /root/x; mkdir /opt/d; mv /etc/redis /opt/d; rm -r /opt/d; ls /opt; ls /etc/redis; ls -dln /proc/1 | cut -c1-30"
		look := func(path string) string {
			return "stat -c '%A %u:%g' " + path + "; ls -An " + path + " | cut -d' ' -f1-5; touch " + path + "/new && stat -c %u:%g " + path + "/new && rm " + path + "/new"
		}
		for _, c := range []struct {
			flags, script, host string
			services            bool // systemd-nspawn has ways of its own
		}{
			{one, status, "", true}, {two, status, "", true}, {many, status, "", true}, {one + "-u 4321:55", status, "", true}, {one + "-u redis", status, "", true},
			{one + "--cap-drop=all", status, "", true}, {one + "--cap-drop=all --cap-add=chown -u redis", status, "", true}, {one + "--cap-add=ALL --cap-drop=SYS_ADMIN,MKNOD,SYS_RAWIO", "id", "", true},
			{one, files, "", false}, {two, files, "", true}, {many, files, "", true}, {one + "-u redis", files, "", true}, {one + "--read-only", "touch /x /data/x /tmp/x && ls /data; id", "", true},
			{one + "-v /srv/v:/m", look("/m"), "", false}, {one + "-v /srv/v:/m:ro", look("/m"), "", false},
			{one + "-v /srv/v:/m:U", look("/m"), "stat -c %u:%g /srv/v/f", false}, {two + "-u 4321:55 -v /srv/v:/m:U", look("/m"), "stat -c %u:%g /srv/v/f", true},
			{one + "-v /srv/v:/m:idmap", look("/m") + "; touch /m/by-root; chown 5:6 /m/by-root", "stat -c %u:%g /srv/v/by-root", false},
			{one + "-v fresh:/data", look("/data"), "", false}, {one + "-u 4321:55 -v user:/made/here", look("/made/here"), "", false}, {one + "-v config:/etc/redis", look("/etc/redis"), "", false},
			{one + "-v /anonymous", look("/anonymous"), "", false},
			{one + "--tmpfs /t", look("/t"), "", false}, {one + "--tmpfs /t:mode=0700", look("/t"), "", false}, {one + "-u 4321:55 --tmpfs /t:U", look("/t"), "", true}, {one + "--tmpfs /etc/redis", "ls -ln /etc/redis | cut -d' ' -f1-4", "", true},
			{one + "--tmpfs /run", "touch /run/x && stat -c %u /run", "", true},
			{one + "-t", "stat -c %u:%g:%a $(tty); stat -fc %T $(tty)", "", true}, {one + "-t -u redis", "stat -c %u:%g:%a $(tty); echo hi > $(tty)", "", true},
			{one + "--init", "head -1 /proc/1/status >/dev/null; id -u", "", false},
			{one + "-u redis", "echo out > /dev/stdout; echo by-number > /proc/self/fd/1", "", false},
		} {
			if flavor != "" && c.services {
				continue
			}
			const prepare = `await rm -rf /srv/v 2>/dev/null; mkdir -p /srv/v; echo hi > /srv/v/f
				`
			run := " --entrypoint sh " + c.flags + " " + redis + ` -c "` + oneStream + strings.ReplaceAll(c.script, "$", `\$`) + `" 2>&1; ` + c.host
			if !strings.Contains(c.flags, "-u ") {
				run = " -u 0" + run
			}
			ours := m.Script(await + prepare + "set +e; nspawnd-run " + flavor + run)
			theirs := m.Script(await + prepare + "set +e; podman run --rm --network=host --cgroups=disabled --pids-limit=0" + run)
			if ours.Stdout == "" || ours.Stdout != theirs.Stdout || ours.Status != theirs.Status {
				t.Errorf("%s: %s\nnspawnd-run: %d\n%s%s\npodman: %d\n%s%s", c.flags, c.script, ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
			}
		}
		m.nothingLeft(t)
	})
}

// TestUsers is what podman has no part in: which ids a machine gets, and what becomes of them.
func TestUsers(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("mount", "-t", "tmpfs", "tmpfs", "/srv")
		m.Script("echo lab:500000:1000 >> /etc/subuid; echo lab:500000:1000 >> /etc/subgid; echo lab:600000:64536 >> /etc/subgid; echo few:1:0 >> /etc/subuid")
		flavor := ""
		if m.Suite == Trixie {
			flavor = "--flavor=nspawn "
		}
		in := func(flags, script string) string {
			return "nspawnd-run " + flavor + "-u 0 " + flags + " --entrypoint sh " + redis + " -c '" + script + "'"
		}
		const map1 = "tr -s \" \" < /proc/self/uid_map"
		const taken = "ls /run/nspawnd/users | wc -l"
		m.expect(t,
			outcome{in("--userns=auto --name a", map1), 0, "/^ 0 [0-9]+ 65536\n$/", ""},
			outcome{"await sh -c '[ $(" + taken + ") = 0 ]'; one=$(" + in("--userns=auto --name a", map1) + "); await sh -c '[ $(" + taken + ") = 0 ]'; [ \"$one\" = \"$(" + in("--userns=auto --name a", map1) + ")\" ]", 0, "", ""}, // mostly the same ones
			outcome{"await sh -c '[ $(" + taken + ") = 0 ]'; for n in a b c; do nspawnd-run " + flavor + "--userns=auto -d --name $n " + tiny + " trap >/dev/null; said $n ready; done; " + taken + `
				for n in a b c; do machinectl-lite show -p Leader --value $n; done | while read leader; do tr -s " " < /proc/$leader/uid_map; done | sort -u | wc -l
				systemctl stop nspawnd-a nspawnd-b nspawnd-c; await sh -c '[ $(` + taken + `) = 0 ]'; findmnt -n | grep nspawnd/users || echo none`, 0, "3\n3\nnone\n", ""},
			outcome{"mkdir -p /run/nspawnd/users; eval $(" + in("--userns=auto --name x --dry-run", "true") + " | grep -o 'users/[0-9]*+' | head -1 | sed 's,.*/,first=,; s,+,,'); : > /run/nspawnd/users/$first+65536@other.1; " +
				in("--userns=auto --name x", map1) + " | grep -c \" $first \"; rm /run/nspawnd/users/*other.1", 0, "0\n", ""}, // somebody else has them
			outcome{in("--userns=auto:size=1000", map1), 0, "/^ 0 [0-9]+ 1000\n$/", ""},
			outcome{in("--userns=auto -v kept:/data", "echo mine > /data/f; chown 33 /data/f; id -u"), 0, "0\n", ""},
			outcome{in("--uidmap 0:700000:65536 -v kept:/data", "stat -c %u /data/f; echo more >> /data/f; cat /data/f"), 0, "33\nmine\nmore\n", ""},
			outcome{in("-v kept:/data", "stat -c %u /data/f"), 0, "33\n", ""}, // on disk the image's ids
			outcome{in("--userns=auto --keep --name kept -d", "trap \"exit 0\" TERM; echo start >> /root/log; chown 44 /root/log; stat -c %u /root/log; cat /root/log; echo ready; sleep 1000 & wait") + `; said kept ready; systemctl stop nspawnd-kept; machinectl-lite start kept; await sh -c 'journalctl -qt kept -o cat | grep -c ready | grep 2'
				journalctl -qt kept -o cat; systemctl stop nspawnd-kept; machinectl-lite remove-machine kept`, 0, "/^kept\n(kept\n)?2\n44\nstart\nready\n44\nstart\nstart\nready\n/", ""},
			outcome{in("--userns=host", map1), 0, " 0 0 4294967295\n", ""},
			outcome{in("--uidmap 0:200000:10", "true") + "; " + in("--uidmap 0:200000:10 -u 10", "true"), 125, "", "/^nspawnd-run: .*: the machine's user namespace does not have its user or one of its groups \\(10,.*\\)\n$/"},
			outcome{"mkdir -p /srv/u; chown 7 /srv/u; " + in("--uidmap 0:200000:10 -v /srv/u:/m:U -u 4321", "true") + "; stat -c %u /srv/u", 0, "7\n", "/does not have its user/"},
			outcome{in("--uidmap 1:200000:10", "true"), 125, "", "nspawnd-run: --uidmap, --gidmap: id 0, the machine's root, is not mapped\n"},
			outcome{in("--uidmap 0:200000:10 --uidmap 5:300000:10", "true"), 125, "", "/^nspawnd-run: --uidmap, --gidmap: the ranges .* overlap\n$/"},
			outcome{in("--uidmap 0:4294967290:10", "true"), 125, "", "/^nspawnd-run: --uidmap: .* is not a range of ids\n$/"},
			outcome{in("--uidmap x", "true"), 125, "", "/^nspawnd-run: --uidmap: \"x\" is not INSIDE:OUTSIDE:COUNT\n$/"},
			outcome{in("--subuidname nobody-has", "true"), 125, "", "/^nspawnd-run: --subuidname: /etc/subuid: no ids are given to \"nobody-has\"\n$/"},
			outcome{in("--subuidname few", "true"), 125, "", "/^nspawnd-run: --subuidname: .*few:1:0.*\n$/"},
			outcome{in("--userns=auto --uidmap 0:1:1", "true"), 125, "", "/^nspawnd-run: --userns=auto, --uidmap .*only one of them .*\n$/"},
			outcome{in("--userns=auto:size=0", "true"), 125, "", "/^nspawnd-run: --userns=auto: size=0 is not a number from 1 to .*\n$/"},
			outcome{in("--userns=keep-id", "true"), 125, "", "/^nspawnd-run: --userns=keep-id: .*\n$/"},
			outcome{in("-v /srv:/m:idmap", "true"), 125, "", "/^nspawnd-run: .*: idmap: .*--userns=auto or --uidmap\n$/"},
			outcome{in("--userns=auto --sysctl net.ipv4.ip_forward=1 --network=none", "true"), 125, "", "/^nspawnd-run: .*: --sysctl: .*\n$/"},
			outcome{"nspawnd-run --flavor=chroot --userns=auto " + tiny + " true", 125, "", "/^nspawnd-run: .*: --userns, --uidmap: --flavor=chroot has the host's users\n$/"},
		)
		if m.Suite == Trixie {
			m.expect(t,
				outcome{"nspawnd-run --userns=auto " + tiny + " true", 125, "", "/^nspawnd-run: .*: a service's user namespace needs systemd 259, and this is 257; --flavor=nspawn has one here\n$/"},
				outcome{in("--uidmap 0:200000:100 --uidmap 200:400000:100", "true"), 125, "", "/^nspawnd-run: .*--flavor=nspawn takes one range .*\n$/"},
				outcome{"systemd-run --quiet --wait --pipe -p Delegate=yes " + in("--in-place --userns=auto", map1) + "; nspawnd-run " + tiny + " true", 0, "/^ 0 [0-9]+ 65536\n$/", ""},
			)
		} else {
			m.expect(t,
				outcome{in("--subuidname lab", map1+"; tr -s \" \" < /proc/self/gid_map"), 0, " 0 500000 1000\n 0 500000 1000\n", ""},
				outcome{in("--subuidname lab --subgidname lab", "tr -s \" \" < /proc/self/gid_map"), 0, " 0 500000 1000\n 1000 600000 64536\n", ""},
				outcome{"echo secret > /srv/s; " + in("--userns=auto --secret one,src=/srv/s,uid=33,mode=0440 --secret two,src=/srv/s,type=env,target=VAR", "stat -c %u:%a /run/secrets/one; cat /run/secrets/one; echo $VAR"), 0, "33:440\nsecret\nsecret\n", ""},
				outcome{"mkdir -p /srv/only; echo host > /srv/only/one; chmod 600 /srv/only/one; " + in("--userns=auto -v /srv/only:/only:ro -e CREDENTIALS_DIRECTORY=/only --secret one,src=/srv/s", "cat /run/secrets/one; echo $CREDENTIALS_DIRECTORY; cat /only/one"),
					1, "secret\n/only\n", "/Permission denied/"},
				outcome{in("--userns=auto --network=none --hostname h", "ls /sys/class/net; hostname"), 0, "lo\nh\n", ""},
				outcome{in("--userns=auto --privileged", "grep CapBnd /proc/self/status; mount -t tmpfs x /mnt || echo not the host"), 0, "/^CapBnd:\t000001ff[ef]*\nnot the host\n/", "/mount/"},
				outcome{in("--userns=auto -p TemporaryFileSystem=/made/here -p BindReadOnlyPaths=/srv:/made/there", "ls /made /made/there"), 0, "/made:\nhere\nthere\n\n/made/there:\nonly\ns\nu\n", ""},
				outcome{"nspawnd-run --userns=auto --sdnotify=container --entrypoint sh -u 0 " + redis + ` -c 'exit 3'`, 3, "", ""},
				outcome{in("--userns=auto --restart=on-failure:2 -d --name again", "echo run; id -u; exit 3") + "; await systemctl is-failed -q nspawnd-again; journalctl -qt again -o cat; systemctl reset-failed nspawnd-again", 0, "/^again\n(run\n0\n){3}/", ""},
				outcome{in("--userns=auto --sdnotify=healthy --health-interval 200ms --health-cmd \"test \\$(id -u) = 0\"", "sleep 2; echo healthy"), 0, "healthy\n", ""},
				outcome{"nspawnd-run -d --name x --userns=auto --user 33 " + tiny + " trap; " +
					"machinectl-lite exec x tiny id; machinectl-lite exec -u 0 x tiny id; machinectl-lite exec x tiny exit 3; echo $?; machinectl-lite exec x nosuch 2>&1; echo $?; machinectl-lite exec x /etc 2>&1; echo $?; " +
					"machinectl-lite exec x tiny kill-self KILL; echo $?; seq 100000 | machinectl-lite exec -i x tiny cat | tail -1; systemctl stop nspawnd-x", 0,
					"x\nuid=33 gid=0 groups=0\nuid=0 gid=0 groups=0\n3\nmachinectl-lite: x: nosuch: no such file or directory\n127\nmachinectl-lite: x: /etc: permission denied\n126\n137\n100000\n", ""},
				outcome{"nspawnd-run -d --name x --userns=auto --entrypoint sleep " + redis + " inf; machinectl-lite exec -t x sh -c 'stat -c %u:%g:%a $(tty)' < /dev/null; machinectl-lite kill -s KILL x; await sh -c '! systemctl is-active -q nspawnd-x'; systemctl reset-failed nspawnd-x", 0, "x\n100:5:620\r\n", ""},
			)
		}
		m.nothingLeft(t)
	})
}
