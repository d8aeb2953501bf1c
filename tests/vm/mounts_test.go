package vm

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// oneStream has a shell's output and errors in their order: podman passes on two pipes, and what comes through one may overtake the other.
const oneStream = "exec 2>&1; "

// TestMountsBesidePodman compares what the flags for files do with what podman's do, on the same image.
func TestMountsBesidePodman(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("machinectl-lite", "pull-oci", "--quiet", tiny)
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("podman", "pull", "--quiet", redis)
		m.Must("podman", "pull", "--quiet", tiny)
		// What a mount lets the payload do, not where podman keeps its volumes.
		look := func(path string) string {
			return "findmnt -no VFS-OPTIONS " + path + "; stat -c '%A %u:%g' " + path + "; ls -A " + path + "; touch " + path + "/new && rm " + path + "/new"
		}
		for _, c := range []struct{ flags, script string }{
			{"-v /srv/v:/m", look("/m")}, {"-v /srv/v:/m:ro", look("/m")}, {"-v /srv/v:/m:noexec", look("/m") + "; /m/run"}, {"-v /srv/v:/m:exec", "/m/run"},
			{"-v /srv/v:/m:nosuid,nodev", look("/m")}, {"-v /srv/v:/m:suid,dev", look("/m")}, {"-v /srv/v:/m:bind", look("/m") + "; ls /m/below"},
			{"-v /srv/v:/m:rbind", "ls /m/below"}, {"-v /srv/v:/m:rslave,z", look("/m")}, {"-v /srv/v:/m:private,Z", look("/m")},
			{"-v /srv/v:/m:O", "echo changed > /m/f; cat /m/f"}, {"-v /srv/v/f:/m", "cat /m"}, {"-v /srv/v/f:/etc/motd:ro", "cat /etc/motd; echo > /etc/motd"},
			{"-v /srv/v:/a/b/c -v /srv/w:/a/b/c/below", "ls /a/b/c /a/b/c/below"}, {"-v /srv/v:/m -v /srv/v:/m", "ls /m"},
			{"-v /srv/v/link:/m", "ls /m"}, {"-v /srv/passwd:/etc/passwd:ro -u me", "id -u"}, {"-v /srv/v:/app --entrypoint /app/run", "x"}, {"-v /srv/v:/m -w /m/made", "pwd"},
			{"-v fresh:/data", look("/data")}, {"-v fresh:/data:ro", look("/data")}, {"-v config:/etc/redis:noexec", look("/etc/redis")}, {"-v config:/x", look("/x")},
			{"-v none:/etc/redis:nocopy", "ls -A /etc/redis | wc -l"}, {"-u 4321:55 -v user:/made/here", look("/made/here")}, {"-u 4321:55 -v owned:/opt", "stat -c %u:%g /opt"},
			{"-u 4321:55 -v owned:/opt:U", look("/opt")}, {"-v /anonymous", look("/anonymous")}, {"-v /etc/redis", look("/etc/redis")}, {"-u 4321:55 -v /anonymous", look("/anonymous")},
			{"--mount type=bind,src=/srv/v,dst=/m,ro=true,bind-propagation=rslave", look("/m")}, {"--mount type=volume,source=config,target=/m,readonly", look("/m")},
			{"--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700", "stat -fc %T:%b /t; stat -c %a /t; touch /t/x"}, {"--mount type=tmpfs,dst=/t", "stat -c %a /t"},
			{"--mount type=ramfs,dst=/t", "stat -fc %T /t"}, {"--mount type=devpts,dst=/t", "stat -fc %T /t; ls /t"}, {"--mount type=image,src=" + tiny + ",dst=/t", "ls /t; touch /t/x"},
			{"--mount type=image,src=" + tiny + ",dst=/t,rw=true", "touch /t/x && ls /t"},
			{"--tmpfs /t:size=1m", "stat -fc %T:%b /t; stat -c %a /t; findmnt -no VFS-OPTIONS /t | grep -o 'nosuid,nodev'"}, {"--tmpfs /etc/redis", "findmnt -no VFS-OPTIONS /etc/redis; stat -c %a /etc/redis; ls -n /etc/redis | sed 's/ [A-Z].*//'"},
			{"--tmpfs /etc/redis:notmpcopyup,noexec", "stat -c %a /etc/redis; ls /etc/redis; findmnt -no VFS-OPTIONS /etc/redis | grep -o noexec"}, {"--tmpfs /etc/redis:mode=0750,ro", "stat -c %a /etc/redis; ls /etc/redis; touch /etc/redis/x"},
			{"-u 4321:55 --tmpfs /t:U", "stat -c %u:%g:%a /t"}, {"--tmpfs /run", "stat -fc %T /run; touch /run/x"}, {"-v /srv/v:/t/m --tmpfs /t", "ls /t /t/m; stat -fc %T /t"},
			{"--shm-size 1m", "stat -fc %T:%b /dev/shm; stat -c %a /dev/shm; touch /dev/shm/x"}, {"--tmpfs /dev/shm:size=2m", "stat -fc %T:%b /dev/shm"}, {"-v /srv/v:/dev/shm", "ls /dev/shm"},
			{"--read-only", "touch /x /run/x /tmp/x /var/tmp/x /dev/shm/x /data/x; ls /x"}, {"--read-only -v /srv/v:/m -v /srv/w:/n:ro -v fresh:/o", "touch /m/new && rm /m/new; touch /n/x; touch /o/x && rm /o/x"},
			{"--read-only --read-only-tmpfs=false", "touch /x; touch /run/x; touch /tmp/x; touch /var/tmp/x; touch /data/x && echo ok"},
			{"--image-volume=tmpfs", "findmnt -no VFS-OPTIONS /data; ls /data"}, {"--image-volume=ignore --read-only", "touch /data/x"}, {"", "stat -c %U:%a /data; ls /data; touch /data/x"},
			{"--device /dev/fuse", "stat -c '%F %t:%T %a %u' /dev/fuse"}, {"--device /dev/fuse:/dev/a/b:r", "stat -c '%F %t:%T' /dev/a/b"}, {"--device /dev/null:/opt/null", "echo x > /opt/null; stat -c '%F %t:%T' /opt/null"},
			{"--device /srv/dev:/dev/dir", "cd /dev/dir; find . | sort"}, {"--device-cgroup-rule 'c 1:3 rwm'", "echo ok"},
		} {
			const prepare = `umount /srv/v/below 2>/dev/null || :; await rm -rf /srv 2>/dev/null; mkdir -p /srv/v/below /srv/w /srv/dev/sub; echo hi > /srv/v/f; printf '#!/bin/sh\necho runs\n' > /srv/v/run; chmod +x /srv/v/run; ln -s ../v /srv/v/link
				mount -t tmpfs x /srv/v/below; touch /srv/v/below/mounted; echo me:x:321:321::/:/bin/sh > /srv/passwd; cp -a /dev/null /dev/zero /srv/dev; cp -a /dev/full /srv/dev/sub
				`
			run := " --entrypoint sh " + c.flags + " " + redis + ` -c "` + oneStream + c.script + `" 2>&1`
			if !strings.Contains(c.flags, "-u ") {
				run = " -u 0" + run
			}
			ours := m.Script(await + prepare + "nspawnd-run" + run)
			theirs := m.Script(await + prepare + "podman run --rm --network=host --cgroups=disabled --pids-limit=0" + run)
			if ours.Stdout == "" || ours.Stdout != theirs.Stdout || ours.Status != theirs.Status {
				t.Errorf("%s: %s\nnspawnd-run: %d\n%s%s\npodman: %d\n%s%s", c.flags, c.script, ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
			}
		}
		m.Must("umount", "/srv/v/below")
		m.nothingLeft(t)
	})
}

// TestMounts is what podman has no part in: what later mounts of the host do, what stays and what goes, hostile images, and volumes.
func TestMounts(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		in := func(flags, script string) string {
			return "nspawnd-run -u 0 " + flags + " --entrypoint sh " + redis + " -c '" + script + "'"
		}
		stay := func(name, flags string) string {
			return "nspawnd-run -d --name " + name + " -u 0 " + flags + " --entrypoint sh " + redis + " -c 'trap \"exit 0\" TERM; echo start >> /log; echo ready; while :; do sleep 1000 & wait; done' >/dev/null; said " + name + " ready\n" +
				"leader() { systemctl show -P MainPID nspawnd-" + name + "; }; inside() { nsenter -m -p -t $(leader) \"$@\"; }\n"
		}
		const end = "\nsystemctl stop nspawnd-stay"
		m.Must("mkdir", "-p", "/srv/v/sub")
		later := "mount -t tmpfs x /srv/v/sub; inside findmnt -no FSTYPE -M /m/sub || echo hidden; umount /srv/v/sub" + end
		m.expect(t,
			outcome{stay("stay", "-v /srv/v:/m") + later, 0, "hidden\n", ""},
			outcome{stay("stay", "-v /srv/v:/m:rslave") + later, 0, "tmpfs\n", ""},
			outcome{in("-v /srv/v:/m:rshared", "true"), 125, "", "/^nspawnd-run: --volume: .*rslave.*\n$/"},
			outcome{in("-v /srv/v:/m:unbindable", "true"), 125, "", "/^nspawnd-run: --volume: .*unbindable mounts.*\n$/"},
			outcome{in("-v /srv/v:/m:idmap", "true"), 125, "", "/^nspawnd-run: .*: idmap: .*--userns=auto or --uidmap\n$/"},
			outcome{in("-v /srv/v:/m -v /srv:/m", "true"), 125, "", "nspawnd-run: --volume: two different mounts on /m\n"},
			outcome{in("-v /srv/v:/dev/x:noexec", "true"), 125, "", "/: /dev/x: below /dev, /proc and /sys there can only be .*\n$/"},
			outcome{"touch /srv/f; " + in("-v /srv/f:/bin", "true"), 125, "", "/^nspawnd-run: .*: /bin: is a directory in the image, and what is mounted there is not\n$/"},
			outcome{in("--device vendor.com/gpu=all", "true"), 125, "", "/^nspawnd-run: --device: .*CDI.*\n$/"},
			outcome{in("--device /dev/net", "ls /dev/net"), 125, "", "nspawnd-run: --device: /dev/net is not a device, nor a directory with one\n"},
			// podman 5.4 leaves it writable in some runs.
			outcome{in("--read-only --read-only-tmpfs=false", "touch /dev/shm/x"), 1, "", "/Read-only file system/"},
			// The node is the host's.
			outcome{in("--device /dev/fuse", "chmod 666 /dev/fuse || chown 1 /dev/fuse"), 1, "", "/Read-only file system/"},
			outcome{"stat -c %a:%u /dev/fuse", 0, "600:0\n", ""},
			outcome{in("-v /dev/log:/dev/log -v /sys/fs/cgroup:/sys/fs/cgroup:ro", "test -S /dev/log && ls -d /sys/fs/cgroup/system.slice"), 0, "/sys/fs/cgroup/system.slice\n", ""},
			outcome{in("--dry-run -v /srv/v:/m:ro --tmpfs /t --device /dev/fuse -v data:/d", "true") + " | grep -E '^# mounted|^TemporaryFileSystem=.?/t|^[BD].*fuse' | sort", 0,
				"# mounted in the root before the start: /d: volume data\n# mounted in the root before the start: /m: bind /srv/v, read-only\nBindReadOnlyPaths=/dev/fuse:/dev/fuse\nDeviceAllow=/dev/fuse rwm\nTemporaryFileSystem=/t:\"nosuid,nodev,mode=1777,size=50%\"\n", ""},
			outcome{"ls /var/lib/nspawnd/volumes 2>/dev/null | wc -l", 0, "0\n", ""},
			outcome{"nspawnd-run --dry-run -v /srv/v:/app --entrypoint /app/run " + redis + " | grep -c ExecStart=.*/app/run", 0, "1\n", ""},

			// What stays over a restart, and what does not; the volume's files stay when the machine is gone.
			outcome{stay("stay", "-v data:/d -v /own -v /srv/v:/m:noexec,O --tmpfs /t") + `inside sh -c "touch /d/x /own/x /m/x /t/x"; systemctl restart nspawnd-stay
				for _ in $(seq 600); do [ $(inside cat /log | wc -l) = 2 ] && break; sleep 0.1; done; inside ls /d /own /m /t; inside findmnt -no VFS-OPTIONS /m` + end + "; ls /srv/v", 0,
				"/d:\nx\n\n/m:\nsub\nx\n\n/own:\nx\n\n/t:\nrw,noexec,relatime\nsub\n", ""},
			outcome{in("-v data:/d", "ls /d"), 0, "x\n", ""},
			outcome{in("-v data:/d:ro --mount type=volume,src=data,dst=/e,subpath=../../x", "touch /d/y"), 1, "", "/Read-only file system/"},
		)
		m.nothingLeft(t)
		t.Run("volumes", func(t *testing.T) { volumes(t, m.With(t), in, stay) })
		t.Run("hostile images", func(t *testing.T) { hostileMounts(t, m.With(t)) })
		t.Run("killed", func(t *testing.T) { killedWithVolumes(t, m.With(t)) })
	})
}

func volumes(t *testing.T, m *Machine, in func(flags, script string) string, stay func(name, flags string) string) {
	verb := func(words string) string { return "machinectl-lite " + words }
	m.expect(t,
		outcome{verb("create-volume b a") + " && " + verb("list-volumes --json=short") + " | jq -r '.[].name'", 0, "a\nb\ndata\n", ""},
		outcome{verb("create-volume a ../x"), 1, "", "/^machinectl-lite: \"\\.\\./x\" is not a volume's name .*\n$/"},
		outcome{verb("create-volume a"), 1, "", "machinectl-lite: volume a: is there already\n"},
		outcome{in("-v a:/etc/redis", "ls /etc/redis"), 0, "redis.conf\n", ""}, // it was empty
		outcome{in("-v a:/data", "ls /data"), 0, "redis.conf\n", ""},
		outcome{stay("user", "-v a:/d -v b:/e") + verb("remove-volume a none"), 1, "",
			"machinectl-lite: volume a: machine user has it; to end that: machinectl-lite terminate user\nmachinectl-lite: volume none: not in the store; machinectl-lite list-volumes shows what is there\n"},
		outcome{verb("list-volumes --no-legend") + " | grep -c user; " + verb("volume-status a --json=short") + " | jq -r '.[] | .machines, .path, (.size > 100000)'", 0, "2\nuser\n/var/lib/nspawnd/volumes/a\ntrue\n", ""},
		outcome{verb("clean --all") + " > /dev/null; ls /var/lib/nspawnd/volumes", 0, "a\nb\ndata\n", ""},
		outcome{verb("terminate user; ") + verb("remove-volume a b"), 0, "/^Removed volume 'a'\nRemoved volume 'b'\nFreed [0-9.]+K: 2 volumes\n$/", ""},
		outcome{verb("__complete remove-volume '' 2>/dev/null") + "; ls /var/lib/nspawnd/volumes /var/lib/nspawnd/tmp", 0, "data\n:4\n/var/lib/nspawnd/tmp:\n\n/var/lib/nspawnd/volumes:\ndata\n", ""},
		// A machine that is kept has its volumes still; what it changed in a host's directory with "O" is gone.
		outcome{"mkdir -p /srv/o; nspawnd-run -d --keep --name kept -u 0 -v kv:/data -v /own -v /srv/o:/o:O --entrypoint sh " + redis + ` -c 'trap "exit 0" TERM; echo "$(ls /data /own /o | xargs)"; touch /data/d /own/own /o/o; echo ready; while :; do sleep 1000 & wait; done' > /dev/null
			said kept ready; systemctl stop nspawnd-kept; await sh -c '[ -z "$(systemctl list-units --plain --no-legend "nspawnd-kept*")" ]'; machinectl-lite start kept > /dev/null; await sh -c '[ $(journalctl -qt kept -o cat | grep -c ready) = 2 ]'
			journalctl -qt kept -o cat; systemctl stop nspawnd-kept; machinectl-lite remove-volume kv`, 1, "/data: README /o: /own:\nready\n/data: README d /o: /own: own\nready\n",
			"machinectl-lite: volume kv: machine kept has it; to end that: machinectl-lite remove-machine kept\n"},
		outcome{"machinectl-lite remove-machine kept && machinectl-lite remove-volume kv", 0, "/Removed volume 'kv'/", ""},
		// Of many at the same time one fills it, and all see all of it.
		outcome{"for i in 1 2 3 4 5 6; do " + in("-v many:/etc/redis", "wc -c < /etc/redis/redis.conf") + " & done | sort | uniq -c | wc -l; wait", 0, "1\n", ""},
		outcome{"nspawnd-run -v $'a\\e[31m:/x' " + redis + " true", 125, "", "/^nspawnd-run: --volume: [^\x1b]*\n$/"},
	)
	m.nothingLeft(t)
}

// hostileMounts: where the image has symbolic links, a mount is where they lead inside; the host is not touched.
func hostileMounts(t *testing.T, m *Machine) {
	const image = RegistryAddress + "/unsigned/hostile:1"
	m.must(`mkdir -p /tmp/hostile/root; cd /tmp/hostile/root
		ln -s /etc link; ln -s ../../../.. up; ln -s /no/where dangling; ln -s /proc toproc; ln -s /dev todev; ln -s loop2 loop1; ln -s loop1 loop2; touch file; mkfifo fifo; ln -s ../../../../run/host out
		cd ..; tar -cf layer.tar -C root .; skopeo --insecure-policy copy -q oci:` + m.Images() + `:redis oci:oci:hostile; umoci raw add-layer --image oci:hostile layer.tar
		skopeo --insecure-policy copy -q oci:oci:hostile docker://` + image + `; skopeo --insecure-policy copy -q oci:oci:hostile containers-storage:` + image + `
		mkdir -p /srv/v /srv/empty; machinectl-lite pull-oci -q --insecure-options=image ` + image + ` 2>/dev/null`)
	const where = ` -c "grep -c ' /srv/v ' /proc/self/mountinfo; grep -o '/[^ ]* rw' /proc/self/mountinfo | head -0; findmnt -rno TARGET | grep -E '^/(etc|file|run/host|no|link|up|dangling|loop|new|fifo)' | grep -vE '^/etc/(hosts|hostname|resolv.conf)$|^/run/.containerenv|^/run/host'"`
	const host = "ls -A / /etc /srv/v /dev /no /run/host 2>/dev/null | md5sum"
	before := m.must(host)
	for target, fails := range map[string]string{
		"/link/new": "", "/link": "", "/up/new": "", "/up": "leads to the machine's own /", "/toproc/x": "leads to the machine's own /proc", "/todev/x": "leads to the machine's own /dev",
		"/loop1": "too many levels of symbolic links", "/file": "not a directory", "/file/x": "not a directory", "/out/x": "symbolic link to nothing", "/dangling": "symbolic link to nothing", "/dangling/x": "symbolic link to nothing", "/fifo": "not a directory",
	} {
		for _, mount := range []string{"-v /srv/empty:" + target, "--mount type=volume,src=h,dst=" + target} {
			run := " -u 0 " + mount + " --entrypoint sh " + image + where
			ours := m.Script("nspawnd-run --insecure-options=image" + run)
			theirs := m.Script("podman run --rm --network=host --cgroups=disabled" + run)
			t.Logf("%s: %d %q %q; podman: %d %q %q", mount, ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
			if after := m.must(host); after != before {
				t.Errorf("%s: the host was\n%s, is\n%s", mount, before, after)
				before = after
			}
			switch {
			case fails == "" && (ours.Stdout != theirs.Stdout || ours.Status > 1):
				t.Errorf("%s: %s%s", mount, ours.Stdout, ours.Stderr)
			case fails != "" && (ours.Status != 125 || !strings.Contains(ours.Stderr, fails)):
				t.Errorf("%s: status %d: %s", mount, ours.Status, ours.Stderr)
			}
		}
	}
	m.nothingLeft(t)
}

// killedWithVolumes: whenever a start is killed that makes and fills a volume, the volume is whole or not there, and the next start fills it.
func killedWithVolumes(t *testing.T, m *Machine) {
	m.expect(t, outcome{`whole() { nspawnd-run -u 0 --entrypoint sh -v big:/usr/share ` + redis + ` -c "find /usr/share | wc -l"; }
		want=$(nspawnd-run -u 0 --entrypoint sh ` + redis + ` -c "find /usr/share | wc -l")
		for i in $(seq ` + kills(10) + `); do
			machinectl-lite remove-volume big > /dev/null 2>&1 || :
			whole > /dev/null 2>&1 & sleep "0.$(printf %03d $((i * 37 % 600)))"; pkill -KILL -P $! -x nspawnd-run || kill -KILL $! 2>/dev/null; wait $! 2>/dev/null
			[ ! -e /var/lib/nspawnd/volumes/big ] || [ "$(find /var/lib/nspawnd/volumes/big | wc -l)" = "$want" ] || echo "half a volume"
			got=$(whole); [ "$got" = "$want" ] || echo "$got of $want"
		done; machinectl-lite clean > /dev/null; ls /var/lib/nspawnd/tmp`, 0, "", ""})
	// And a removal.
	m.expect(t, outcome{`for i in $(seq ` + kills(10) + `); do
			nspawnd-run -u 0 --entrypoint true -v big:/usr/share ` + redis + `
			machinectl-lite remove-volume big > /dev/null & sleep "0.$(printf %03d $((i * 7 % 60)))"; kill -KILL $! 2>/dev/null; wait $! 2>/dev/null
			n=$(find /var/lib/nspawnd/volumes/big 2>/dev/null | wc -l); [ $n = 0 ] || [ $n = "$(nspawnd-run -u 0 --entrypoint sh ` + redis + ` -c "find /usr/share | wc -l")" ] || echo "half a volume: $n"
		done; machinectl-lite clean > /dev/null; ls /var/lib/nspawnd/tmp`, 0, "", ""})
	m.nothingLeft(t)
}

// kills is how often something is killed, unless $NSPAWND_KILLS says it.
func kills(n int) string {
	if given := os.Getenv("NSPAWND_KILLS"); given != "" {
		return given
	}
	return strconv.Itoa(n)
}
