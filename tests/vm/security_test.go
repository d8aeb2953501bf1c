package vm

import (
	"strings"
	"testing"
)

// TestSecurity compares what the flags of isolation do with what podman's do, on the same image.
func TestSecurity(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("podman", "pull", "--quiet", redis)
		status := `grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status`
		for _, flags := range []string{
			"", "--user=0", "--user=0 --cap-add=NET_ADMIN", "--user=0 --cap-add=all", "--user=0 --cap-drop=ALL", "--user=0 --cap-drop=ALL --cap-add=chown",
			"--cap-add=CAP_NET_RAW", "--cap-add=net_raw --cap-add=kill --user=4321:4321", "--cap-drop=all --cap-add=chown",
			"--user=0 --privileged", "--privileged", "--user=0 --security-opt=seccomp=unconfined", "--user=0 --security-opt=no-new-privileges",
		} {
			ours := m.Script("nspawnd-run --security-opt=no-new-privileges=false " + flags + " --entrypoint sh " + redis + ` -c "` + status + `"`)
			theirs := m.Script("podman run --rm --network=host --cgroups=disabled --pids-limit=0 " + flags + " --entrypoint sh " + redis + ` -c "` + status + `"`)
			// PrivateDevices= takes MKNOD and SYS_RAWIO away; some directives come with filters of their own.
			want := strings.ReplaceAll(theirs.Stdout, "000001fffeffffff", "000001fff6fdffff")
			if strings.Contains(flags, "--privileged") {
				want = theirs.Stdout
			}
			if strings.Contains(flags, "unconfined") {
				want = strings.ReplaceAll(want, "Seccomp:\t0", "Seccomp:\t2")
			}
			if ours.Status != 0 || ours.Stdout != want {
				t.Errorf("%s:\nnspawnd-run\n%s%s\npodman\n%s%s", flags, ours.Stdout, ours.Stderr, theirs.Stdout, theirs.Stderr)
			}
		}

		in := func(flags, script string) string {
			return "nspawnd-run -u 0 " + flags + " --entrypoint sh " + redis + " -c '" + script + "'"
		}
		deny := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`
		allow := `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]}]}`
		m.WriteFile("/tmp/deny.json", []byte(deny), 0o644)
		m.WriteFile("/tmp/allow.json", []byte(allow), 0o644)
		m.expect(t,
			outcome{in("--security-opt seccomp=/tmp/deny.json", "mkdir /x"), 1, "", "/Operation not supported/"},
			outcome{in("--security-opt seccomp=/tmp/allow.json --dry-run", "true") + " | grep -c '^# /tmp/allow.json: conditions on arguments.*: personality'", 0, "1\n", ""},
			outcome{in("--security-opt seccomp=/no/such", "true"), 125, "", "nspawnd-run: --security-opt: seccomp profile /no/such: open /no/such: no such file or directory\n"},
			outcome{in("--security-opt seccomp=/etc/passwd", "true"), 125, "", "/^nspawnd-run: --security-opt: seccomp profile /etc/passwd: invalid .*\n$/"},
			outcome{in("", "head -c 5 /proc/timer_list"), 0, "", ""},
			outcome{in("--security-opt unmask=ALL", "head -c 5 /proc/timer_list"), 0, "Timer", ""},
			outcome{in("--security-opt unmask=/proc/timer*", "head -c 5 /proc/timer_list; ls /proc/acpi; ls /sys/firmware"), 0, "Timer", ""},
			outcome{in("--security-opt unmask=ALL", "mkdir /sys/x; echo 0 > /sys/kernel/mm/ksm/run"), 2, "", "/Read-only file system/"},
			outcome{in("--security-opt mask=/etc/passwd:/usr/share", "cat /etc/passwd; ls /usr/share"), 0, "", ""},
			outcome{in("--cap-add NOSUCH", "true"), 125, "", "nspawnd-run: --cap-add: \"NOSUCH\" is not a capability\n"},
			outcome{in("", "unshare --mount true"), 1, "", "/Operation not permitted/"},
			outcome{in("--cap-add MKNOD", "true"), 125, "", "/^nspawnd-run: .*CAP_MKNOD can't be had .*--privileged.*\n$/"},
			outcome{in("--security-opt what", "true"), 125, "", "/^nspawnd-run: --security-opt: .*\n$/"},
			outcome{in("--ipc sometimes", "true"), 125, "", "nspawnd-run: --ipc: \"sometimes\" is not one of private, host\n"},
			outcome{in("--cap-add SYS_ADMIN", "unshare --mount true"), 0, "", ""},
			outcome{in("--privileged", "unshare --mount true && test -e /dev/fuse && mkdir /sys/fs/cgroup/mine && echo ok"), 0, "ok\n", ""},
			outcome{in("--privileged", "echo x > /dev/shm/of-privileged") + "; ls /dev/shm/of-privileged", 2, "", "/No such file/"},
			outcome{"touch /tmp/of-host; " + in("--pid=host", "ls -d /proc/1/exe; cat /proc/1/comm; kill -0 1 && echo sees"), 0, "/proc/1/exe\nsystemd\nsees\n", ""},
			outcome{in("--uts=host", "cat /proc/sys/kernel/hostname"), 0, "lab-" + string(m.Suite) + "\n", ""},
		)
		namespaces := `for n in ipc pid uts; do readlink /proc/self/ns/$n; done`
		inside := m.Must("nspawnd-run", "--ipc=host", "--pid=host", "--uts=host", "--entrypoint", "sh", redis, "-c", namespaces)
		if outside := m.Must("sh", "-c", namespaces); strings.Join(strings.Fields(inside), " ") != strings.Join(strings.Fields(outside), " ") {
			t.Errorf("namespaces: inside %s outside %s", inside, outside)
		}
		m.nothingLeft(t)
	})
}
