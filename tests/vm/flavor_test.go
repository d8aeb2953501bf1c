package vm

import "testing"

// TestFlavors runs the same images under systemd-nspawn and with nothing but a root directory of their own.
func TestFlavors(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("machinectl-lite", "pull-oci", "--quiet", redis)
		nspawn := func(options, command string) string {
			return "nspawnd-run --flavor=nspawn " + options + " " + tiny + " " + command
		}
		shell := func(options, script string) string {
			return "nspawnd-run --flavor=nspawn " + options + " --entrypoint sh " + redis + " -c '" + script + "'"
		}
		chroot := func(options, script string) string {
			return "nspawnd-run --flavor=chroot " + options + " --entrypoint sh " + redis + " -c '" + script + "'"
		}
		cases := func(name string, cases ...outcome) {
			t.Run(name, func(t *testing.T) { m.With(t).expect(t, cases...) })
		}
		cases("nspawn: process",
			outcome{nspawn("", "true"), 0, "", ""},
			outcome{nspawn("", "exit 42"), 42, "", ""},
			outcome{nspawn("", "kill-self KILL"), 137, "", ""},
			outcome{nspawn("", "kill-self TERM"), 143, "", ""},
			outcome{"printf 'a\\0b' | " + nspawn("", "cat") + " | od -An -c", 0, "   a  \\0   b\n", ""},
			outcome{nspawn("", `args 'a b' '$HOME' '%n' "it's"`), 0, "\"a b\"\n\"$HOME\"\n\"%n\"\n\"it's\"\n", ""},
			outcome{nspawn("--name me -e A='b c$%' -e odd.name=1", "env") + " | grep -v ^container_uuid", 0, "/^A=b c\\$%\n(.*\n)*HOSTNAME=me\n(.*\n)*odd.name=1\n/", ""},
			outcome{nspawn("-u 4321:7", "id"), 0, "uid=4321 gid=7 groups=7\n", ""},
			outcome{nspawn("-w /made/here", "pwd"), 0, "/made/here\n", ""},
			outcome{nspawn("--name me", "hostname"), 0, "me\n", ""},
			outcome{"nspawnd-run --flavor=nspawn --entrypoint id " + redis, 0, "/^uid=[1-9][0-9]*\\(redis\\)/", ""},
			outcome{nspawn("--entrypoint nosuch", ""), 127, "", "/command not found/"},
		)
		cases("nspawn: files, network, capabilities",
			outcome{"mkdir -p /srv/v:1 && echo data > /srv/v:1/f && nspawnd-run --flavor=nspawn -v /srv:/data " + tiny + " read /data/v:1/f", 0, "data\n", ""},
			outcome{nspawn("-v /srv:/data:ro", "write /data/h x"), 1, "", "/read-only file system/"},
			outcome{nspawn("--read-only", "write /x y"), 1, "", "/read-only file system/"},
			outcome{"mkdir -p /srv/w; " + shell("-u 0 --read-only -v /srv/w:/m -v /srv/w:/run/w:ro -v empty:/d:ro --tmpfs /t", "touch /m/x /t/x && ls /d /run/w; touch /run/w/y; touch /d/y; touch /y"), 1, "/d:\n\n/run/w:\nx\n", "/(Read-only file system\n.*){3}/"},
			outcome{shell("-u 0 -v data:/data -v /srv/w:/m:noexec --tmpfs /etc/redis", "ls /data /etc/redis && findmnt -no VFS-OPTIONS /m | grep -o noexec"), 0, "/data:\nREADME\n\n/etc/redis:\nredis.conf\nnoexec\n", ""},
			outcome{shell("--read-only -v data:/data", "true"), 125, "", "/^nspawnd-run: .*: /data: with systemd-nspawn's --read-only there can only be .*\n$/"},
			outcome{shell("--network none", "ls /sys/class/net"), 0, "lo\n", ""},
			outcome{shell("-u 0", "grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status"), 0, "CapBnd:\t00000000800405fb\nNoNewPrivs:\t1\n", ""},
			outcome{shell("-u 0 --cap-drop=all", "grep CapBnd /proc/self/status"), 0, "CapBnd:\t0000000000000000\n", ""},
			outcome{shell("-u 0 -p LimitNOFILE=100:200", "ulimit -Sn; ulimit -Hn"), 0, "100\n200\n", ""},
			outcome{shell("", "touch /run/lock/x && stat -c %U:%a /run/lock"), 0, "root:1777\n", ""},
		)
		cases("nspawn: a machine",
			outcome{`nspawnd-run -d --name box --flavor=nspawn -m 64m ` + tiny + ` trap; said box ready; machinectl show -p Service -p Unit box; systemctl show -p MemoryMax,Type nspawnd-box
				systemctl stop nspawnd-box; journalctl -qu nspawnd-box -o cat | grep TERM; systemctl is-failed nspawnd-box || :`, 0,
				"/^box\nService=systemd-nspawn\nUnit=nspawnd-box.service\n(Type=notify\nMemoryMax=67108864|MemoryMax=67108864\nType=notify)\nTERM\ninactive\n/", ""},
			// A killed systemd-nspawn is not in the way of the next.
			outcome{"for _ in 1 2; do nspawnd-run -d --name box --flavor=nspawn " + tiny + " trap && machinectl-lite stop -t 0 box; done; systemctl reset-failed nspawnd-box", 0, "box\nbox\n", ""},
			outcome{nspawn("--dry-run --name dry", "true") + " | grep -c '^ExecStart=.*systemd-nspawn.* --machine=dry '", 0, "1\n", ""},
			outcome{nspawn("--ipc=host", "true"), 125, "", "/^nspawnd-run: .*--flavor=nspawn can't do --ipc=host.*\n$/"},
			outcome{nspawn("--privileged", "true"), 125, "", "/^nspawnd-run: .*--flavor=nspawn can't do --privileged.*\n$/"},
			outcome{nspawn("-p User=games", "true"), 125, "", "/^nspawnd-run: .*--flavor=nspawn can't do User=\n$/"},
		)
		cases("nspawn in place",
			outcome{nspawn("--in-place", "exit 7"), 7, "", ""},
			outcome{"systemd-run --quiet --wait --pipe -p Delegate=yes nspawnd-run --flavor=nspawn --name mine " + tiny + " exit 8", 8, "", ""},
			outcome{`systemd-run --quiet --unit=own -p Type=notify -p Delegate=yes -p KillMode=mixed nspawnd-run --flavor=nspawn --name mine ` + tiny + ` trap
				await sh -c 'journalctl -qu own -o cat | grep -q ready'; machinectl show -p Unit mine; cat /proc/$(systemctl show -p MainPID --value own)/comm
				nspawnd-run ` + tiny + ` true; ls /var/lib/nspawnd/machines
				systemctl stop own; journalctl -qu own -o cat | grep TERM; nspawnd-run ` + tiny + ` true`, 0, "/^Unit=own.service\nsystemd-nspawn\nmine\\..*\n(tiny.*\n)?TERM\n$/", ""},
			outcome{"nspawnd-run --in-place " + tiny + " true", 125, "", "/^nspawnd-run: --in-place: .*--flavor=nspawn.*\n$/"},
			outcome{nspawn("--in-place -m 64m", "true"), 125, "", "/^nspawnd-run: --in-place: limits.*\n$/"},
			outcome{nspawn("--in-place -d", "true"), 125, "", "/^nspawnd-run: --in-place and --detach: .*\n$/"},
		)
		namespaces := `for n in ipc pid uts net cgroup; do readlink /proc/self/ns/$n; done`
		cases("chroot",
			outcome{"a=$(" + namespaces + "); b=$(" + chroot("", namespaces) + `); [ "$a" = "$b" ]`, 0, "", ""},
			outcome{chroot("-u 0", "grep CapBnd /proc/self/status; test -e /dev/fuse && test -e /proc/1/exe && echo host; cat /etc/hostname"), 0, "/^CapBnd:\t000001ff[ef]*\nhost\nredis.*\n$/", ""},
			outcome{chroot("", "exit 9"), 9, "", ""},
			outcome{chroot("", "id -un; pwd"), 0, "redis\n/data\n", ""},
			outcome{chroot("--network=none", "true"), 125, "", "/--flavor=chroot can't do --network=none/"},
			outcome{chroot("--cap-drop=all", "true"), 125, "", "/--flavor=chroot can't do options of isolation/"},
			outcome{"nspawnd-run --flavor=vm " + tiny, 125, "", "nspawnd-run: --flavor: \"vm\" is not one of service, chroot, nspawn\n"},
			outcome{`nspawnd-run -d --name loose --flavor=chroot ` + tiny + ` trap; said loose ready; systemctl stop nspawnd-loose; journalctl -qu nspawnd-loose -o cat | grep TERM`, 0, "loose\nTERM\n", ""},
		)
		m.nothingLeft(t)
	})
}
