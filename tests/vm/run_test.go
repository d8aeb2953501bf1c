package vm

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nspawnd/internal/thread"

	"golang.org/x/sys/unix"
)

const (
	tiny  = RegistryAddress + "/demo/tiny"
	nginx = RegistryAddress + "/demo/nginx"
	redis = RegistryAddress + "/demo/redis"
)

// signedImages gives the lab a registry whose demo images are signed, and trusts the keys: tiny and redis by sigstore, nginx by GPG.
func (m *Machine) signedImages() {
	m.helper()()
	m.Registry()
	m.Must("machinectl-lite", "trust", "add", "--yes", "--prefix", RegistryAddress+"/demo", m.SignSigstore(tiny+":latest"))
	m.SignSigstore(redis + ":latest")
	m.Must("machinectl-lite", "trust", "add", "--yes", "--prefix", nginx, m.SignGPG(nginx+":latest"))
}

// outcome is what a command line is expected to do. A text between slashes is a regular expression.
type outcome struct {
	command        string
	status         int
	stdout, stderr string
}

func (m *Machine) expect(t *testing.T, cases ...outcome) {
	t.Helper()
	for _, c := range cases {
		r := m.Run("bash", "-c", await+c.command)
		if r.Status != c.status || !matches(r.Stdout, c.stdout) || !matches(r.Stderr, c.stderr) {
			t.Errorf("%s\nstatus %d, want %d\nstdout %q, want %q\nstderr %q, want %q", c.command, r.Status, c.status, r.Stdout, c.stdout, r.Stderr, c.stderr)
		}
	}
}

// await is two shell functions: one that repeats a command until it succeeds, and one that waits for what a machine says. A machine
// that runs is not yet one that handles signals.
const await = `said() { await sh -c "journalctl -q -t $1 -o cat | grep -q '^$2'"; }
await() { for _ in $(seq 600); do "$@" && return; sleep 0.05; done; echo "never: $*" >&2; return 1; }
`

func matches(got, want string) bool {
	if len(want) > 1 && want[0] == '/' && want[len(want)-1] == '/' {
		return regexp.MustCompile(want[1 : len(want)-1]).MatchString(got)
	}
	return got == want
}

// leftovers is what is there of machines: units, mounts, processes, cgroups, directories.
const leftovers = `systemctl list-units --all --no-legend --plain 'nspawnd-*'
	grep -E '^nspawnd | /run/nspawnd/| erofs ' /proc/self/mounts | grep -v ' /run/nspawnd/mounts' || true
	find /sys/fs/cgroup -name 'nspawnd-*'
	find /var/lib/nspawnd/machines /run/nspawnd -mindepth 1 ! -path /run/nspawnd/users ! -path '/run/nspawnd/mounts*' 2>/dev/null || true
	machinectl list --no-legend
	pgrep -a tiny || true`

// nothingLeft waits for the companions' clean-up, which goes on when a command has its answer.
func (m *Machine) nothingLeft(t *testing.T) {
	t.Helper()
	left := ""
	for range 100 {
		if left = m.Script(leftovers).Stdout + m.hiddenMounts(t); left == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left over:\n%s", left)
}

// hiddenMounts lists what is mounted in the mount namespace that nspawnd-run keeps mounts in.
func (m *Machine) hiddenMounts(t *testing.T) string {
	t.Helper()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/root/run/nspawnd/mounts/namespace", m.state.Leader))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	var entries []fs.DirEntry
	thread.Run(func() {
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			entries, err = os.ReadDir("/")
		}
	})
	if err != nil {
		t.Fatalf("looking into %s: %v", namespace.Name(), err)
	}
	var names strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&names, "hidden: %s\n", e.Name())
	}
	return names.String()
}

func TestRun(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		run := "nspawnd-run " + tiny + " "
		with := func(options, command string) string { return "nspawnd-run " + options + " " + tiny + " " + command }
		cases := func(name string, cases ...outcome) {
			t.Run(name, func(t *testing.T) { m.With(t).expect(t, cases...) })
		}

		cases("fetched, then from the store",
			outcome{"nspawnd-run --version; nspawnd-run --version=false", 125, "/^nspawnd-run version .+\n$/", "/no image given/"},
			outcome{with("--pull=never", "true"), 125, "", "/^nspawnd-run: image .*/demo/tiny:latest: not in the store; to fetch it: machinectl-lite pull-oci .*\n$/"},
			outcome{"nspawnd-run oci:/srv/image true", 125, "", "/^nspawnd-run: image \"oci:/srv/image\": .*import-oci.*\n$/"},
			outcome{run + "echo hello", 0, "hello\n", ""},
			outcome{with("--pull=never", "echo again"), 0, "again\n", ""},
			outcome{with("--pull=always", "echo fetched"), 0, "fetched\n", ""},
			outcome{"systemctl stop lab-registry; " + run + "true; status=$?; systemctl start lab-registry 2>/dev/null; exit $status", 0, "", ""},
		)
		m.Script("systemctl is-active lab-registry || systemd-run --quiet --unit=lab-registry --property=Type=exec docker-registry serve /etc/lab/registry/config.yml")

		cases("exit status",
			outcome{run + "true", 0, "", ""},
			outcome{run + "exit 42", 42, "", ""},
			outcome{run + "exit 255", 255, "", ""},
			outcome{with("--entrypoint /no/such", ""), 127, "", "/^nspawnd-run: tiny.*: \"/no/such\": command not found/"},
			outcome{with("--entrypoint nosuch", ""), 127, "", "/^nspawnd-run: .*command not found/"},
			outcome{with("--entrypoint /bin", ""), 126, "", "/^nspawnd-run: .*not executable/"},
			outcome{with("--entrypoint /etc/hostname", ""), 126, "", "/^nspawnd-run: .*not executable/"},
		)

		cases("input, output and arguments",
			outcome{"printf 'a\\0b\\r\\n' | " + run + "cat | od -An -c", 0, "   a  \\0   b  \\r  \\n\n", ""},
			outcome{run + "stderr oops", 0, "", "oops\n"},
			outcome{run + `args 'a b' '$HOME' '$$' '%n 100%' '\x' '' "it's" '--name'`, 0, `/"a b"\n"\$HOME"\n"\$\$"\n"%n 100%"\n"\\\\x"\n""\n"it's"\n"--name"\n/`, ""},
			outcome{run + "tty < /dev/null", 0, "stdin no\nstdout no\nstderr no\n", ""},
			outcome{"exec <&- ; " + run + "cat", 0, "", ""},
		)

		cases("environment, directory, entrypoint",
			outcome{"LANG=xx SECRET=1 GIVEN=y " + with("--name envs -e A='b c$%' -e GIVEN -e MISSING -e odd.name=1 -e FROM=me", "env"), 0,
				"A=b c$%\nFROM=me\nGIVEN=y\nHOME=/\nHOSTNAME=envs\nPATH=/bin\ncontainer=nspawnd\nodd.name=1\n", ""},
			outcome{run + "env", 0, "/^FROM=tiny\nHOME=/\nHOSTNAME=tiny\\.[0-9a-f]{6}\nPATH=/bin\ncontainer=nspawnd\n$/", ""},
			outcome{with("-w /made/here", "pwd"), 0, "/made/here\n", ""},
			outcome{with("--entrypoint /bin/echo", "x y"), 0, "x y\n", ""},
			outcome{with(`--entrypoint '["echo","-n"]'`, "x"), 0, "x", ""},
			outcome{with("--entrypoint ''", "pwd"), 127, "", "/not found/"},
		)

		cases("user",
			outcome{run + "id", 0, "uid=0 gid=0 groups=\n", ""},
			outcome{with("-u 4321", "id"), 0, "uid=4321 gid=0 groups=0\n", ""},
			outcome{with("--user 1:2", "id"), 0, "uid=1 gid=2 groups=2\n", ""},
			outcome{with("-u nobody", "id"), 125, "", "/^nspawnd-run: .*nobody/"},
			outcome{"nspawnd-run --entrypoint id " + redis, 0, "/^uid=[1-9][0-9]*\\(redis\\) gid=[1-9][0-9]*\\(redis\\)/", ""},
			outcome{"nspawnd-run --entrypoint id -u games:games " + redis, 0, "uid=5(games) gid=60(games) groups=60(games)\n", ""},
		)

		cases("volumes and a read-only root",
			outcome{"mkdir -p /srv/v && echo data > /srv/v/f && " + with("-v /srv/v:/data", "read /data/f"), 0, "data\n", ""},
			outcome{with("-v /srv/v:/data", "write /data/g made") + " && cat /srv/v/g", 0, "made\n", ""},
			outcome{with("-v /srv/v:/data:ro", "write /data/h x"), 1, "", "/read-only file system/"},
			outcome{"cd /srv && " + with("-v ./v:/data:ro", "read /data/f"), 0, "data\n", ""},
			outcome{with("--read-only", "write /x y"), 1, "", "/read-only file system/"},
			outcome{"nspawnd-run --read-only --entrypoint sh " + redis + " -c 'touch /data/x /tmp/x /var/tmp/x && ! touch /x 2>/dev/null'", 0, "", ""},
			outcome{run + "write /x y", 0, "", ""},
			outcome{with("-v /no/such:/x", "true"), 125, "", "nspawnd-run: --volume: stat /no/such: no such file or directory\n"},
		)

		cases("network",
			outcome{"ip link add left type veth peer name right; nspawnd-run --entrypoint ls " + redis + " /sys/class/net", 0, "left\nlo\nright\n", ""},
			outcome{"nspawnd-run --network none --entrypoint ls " + redis + " /sys/class/net", 0, "lo\n", ""},
			outcome{with("--name me --network=none", "read /etc/hosts"), 0, "127.0.0.1\tlocalhost me\n::1\tlocalhost\n", ""},
			outcome{run + "read /etc/hosts", 0, "/registry.test/", ""},
		)

		cases("limits and directives reach the unit",
			outcome{with("-d --name limits --memory 64m --cpus 1.5 --pids-limit 77 -p MemoryHigh=48M -p LimitNOFILE=100:200", "trap") +
				"; said limits ready; systemctl show nspawnd-limits -p MemoryMax,MemorySwapMax,CPUQuotaPerSecUSec,TasksMax,MemoryHigh,LimitNOFILE,LimitNOFILESoft | sort; systemctl stop nspawnd-limits", 0,
				"limits\nCPUQuotaPerSecUSec=1.500000s\nLimitNOFILE=200\nLimitNOFILESoft=100\nMemoryHigh=50331648\nMemoryMax=67108864\nMemorySwapMax=67108864\nTasksMax=77\n", ""},
			outcome{"nspawnd-run -p LimitNOFILE=100:200 --entrypoint sh " + redis + " -c 'ulimit -Sn; ulimit -Hn'", 0, "100\n200\n", ""},
		)

		cases("bad values",
			outcome{"nspawnd-run", 125, "", "/^nspawnd-run: .*\n$/"},
			outcome{"nspawnd-run --no-such-flag x", 125, "", "/^nspawnd-run: unknown flag: --no-such-flag .*--help.*\n$/"},
			outcome{with("--memory lots", "true"), 125, "", "nspawnd-run: --memory: \"lots\" is not an amount of memory (like 512m or 1.5g)\n"},
			outcome{with("--cpus 0", "true"), 125, "", "nspawnd-run: --cpus: \"0\" is not a number of CPUs (like 2 or 0.5)\n"},
			outcome{with("--pids-limit x", "true"), 125, "", "/^nspawnd-run: --pids-limit: .*\n$/"},
			outcome{with("--network bridge", "true"), 125, "", "nspawnd-run: --network: \"bridge\" is neither host nor none\n"},
			outcome{with("--pull sometimes", "true"), 125, "", "/^nspawnd-run: --pull: .*\n$/"},
			outcome{with("--name -x", "true"), 125, "", "/^nspawnd-run: --name: .*\n$/"},
			outcome{with("--name a/b", "true"), 125, "", "/^nspawnd-run: --name: .*\n$/"},
			outcome{with("-v a:b:c:d", "true"), 125, "", "/^nspawnd-run: --volume: .*\n$/"},
			outcome{with("-v .data:/a", "true"), 125, "", "/^nspawnd-run: --volume: stat .*\n$/"},
			outcome{with("-w relative", "true"), 125, "", "/^nspawnd-run: .*not an absolute path\n$/"},
			outcome{with("-e =x", "true"), 125, "", "/^nspawnd-run: --env: .*\n$/"},
			outcome{with("--insecure-options=all", "true"), 125, "", "/^nspawnd-run: --insecure-options: .*\n$/"},
			outcome{with("-p Nonsense=1", "true"), 125, "", "nspawnd-run: --property: Nonsense= can't be set with --property\n"},
			outcome{with("-p MemoryMax=x", "true"), 125, "", "/^nspawnd-run: --property: MemoryMax=: .*\n$/"},
			outcome{with("-p MemoryMax", "true"), 125, "", "/^nspawnd-run: --property: .*NAME=VALUE\n$/"},
			outcome{"nspawnd-run 'UPPER/case'", 125, "", "/^nspawnd-run: .*UPPER.*\n$/"},
			outcome{"nspawnd-run $'evil\\e[31m'", 125, "", "/^nspawnd-run: [^\x1b]*\n$/"},
			outcome{"setpriv --reuid 1000 --clear-groups " + run + "true", 125, "", "/^nspawnd-run: .*needs root.*sudo nspawnd-run.*\n$/"},
		)

		t.Run("isolation", func(t *testing.T) { isolation(t, m.With(t)) })
		t.Run("dry run", func(t *testing.T) { dryRun(t, m.With(t)) })
		t.Run("detached", func(t *testing.T) { detached(t, m.With(t)) })
		t.Run("signals", func(t *testing.T) { signals(t, m.With(t)) })
		t.Run("short runs", func(t *testing.T) { shortRuns(t, m.With(t)) })
		t.Run("names", func(t *testing.T) { names(t, m.With(t)) })
		t.Run("restart and reexec", func(t *testing.T) { restart(t, m.With(t)) })
		t.Run("restarts around it", func(t *testing.T) { aroundIt(t, m.With(t)) })
		t.Run("a stop is graceful", func(t *testing.T) { graceful(t, m.With(t)) })
		t.Run("clients killed at random", func(t *testing.T) { killedClients(t, m.With(t)) })
		t.Run("stopped while they start", func(t *testing.T) { stoppedStarts(t, m.With(t)) })
		t.Run("many at once", func(t *testing.T) { atOnce(t, m.With(t)) })
		t.Run("hostile environment", func(t *testing.T) { hostileEnvironment(t, m.With(t)) })
		t.Run("1 GiB through cat", func(t *testing.T) { pipeline(t, m.With(t)) })
		m.nothingLeft(t)
	})
}

func isolation(t *testing.T, m *Machine) {
	status := m.Must("nspawnd-run", tiny, "status")
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t00000000800405fb", "CapEff:\t00000000800405fb", "CapBnd:\t00000000800405fb",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "NSpid:\t1\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in /proc/self/status:\n%s", want, status)
		}
	}
	unprivileged := m.Must("nspawnd-run", "-u", "1234", tiny, "status")
	for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t00000000800405fb", "Uid:\t1234\t1234\t1234\t1234"} {
		if !strings.Contains(unprivileged, want) {
			t.Errorf("no %q in /proc/self/status of a user:\n%s", want, unprivileged)
		}
	}
	// Each namespace but the network's is another than the host's.
	script := `for n in pid mnt ipc uts cgroup net; do readlink /proc/self/ns/$n; done`
	inside := strings.Fields(m.Must("nspawnd-run", "--entrypoint", "sh", redis, "-c", script))
	outside := strings.Fields(m.Must("sh", "-c", script))
	for i := range outside {
		if same := inside[i] == outside[i]; same != strings.HasPrefix(outside[i], "net:") {
			t.Errorf("namespaces: inside %s, outside %s", inside[i], outside[i])
		}
	}
	// Nothing of the host: no terminals, shared memory, mounts, processes, files of /run and /tmp, cgroups.
	m.Must("sh", "-c", "touch /dev/shm/of-host /run/of-host /tmp/of-host; sleep 1000 > /dev/null 2>&1 & ")
	seen := m.Must("nspawnd-run", "--entrypoint", "sh", redis, "-c", `ls /dev/shm /dev/pts /run /tmp /dev/mqueue /sys/fs/bpf 2>&1
		ls /sys/kernel/debug /sys/kernel/tracing /dev/hugepages 2>&1; ls -d /proc/[0-9]*; cat /proc/self/cgroup /proc/keys 2>&1; ls /sys/fs/cgroup | head -3`)
	for _, bad := range []string{"of-host", "sleep", "tracing_on", "0::/machine", "keyring"} {
		if strings.Contains(seen, bad) {
			t.Errorf("%s shows in the machine:\n%s", bad, seen)
		}
	}
	// What root in the machine must not be able to do.
	for _, forbidden := range []string{"mount -t tmpfs x /mnt", "hostname x", "echo 1 > /proc/sys/kernel/panic", "echo > /sys/kernel/mm/ksm/run",
		"mknod /dev/x c 1 3", "mknod /x b 7 0 && head -c1 /x", "date -s 2000-01-01", "dd if=/dev/kmsg count=1", "umount /proc/kcore", "cat /proc/kcore",
		"nsenter -t 1 -m true", "chroot / mount -o remount,rw /sys", "echo 0 > /proc/sysrq-trigger", "mkdir /sys/fs/cgroup/x", "rmdir /run", "mv /proc /x"} {
		if r := m.Run("nspawnd-run", "-u", "0", "--entrypoint", "sh", redis, "-c", forbidden); r.Status == 0 {
			t.Errorf("%s succeeded", forbidden)
		}
	}
	// What it must be able to do.
	m.Must("nspawnd-run", "-u", "0", "--entrypoint", "sh", redis, "-c", `chown 5:5 /srv && chmod 4755 /srv && touch /run/x /tmp/x /x && mkdir /var/new && exec 3<>/dev/ptmx && test -c /dev/null &&
		dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null && cat /etc/resolv.conf > /dev/null`)
	// PrivateDevices= and the rest are there for systemctl show and systemd-analyze security.
	m.Must("nspawnd-run", "-d", "--name", "shown", tiny, "trap")
	m.expect(t, outcome{"said shown ready; systemctl show nspawnd-shown -p PrivateDevices,PrivatePIDs,PrivateIPC,NoNewPrivileges,Slice; systemctl stop nspawnd-shown", 0,
		"/^Slice=machine.slice\n(.*\n)*NoNewPrivileges=yes\n/", ""})
}

func dryRun(t *testing.T, m *Machine) {
	m.Must("mkdir", "-p", "/srv/a b%c")
	m.nothingLeft(t)
	before := m.Script(leftovers + "; find /var/lib/nspawnd /run/nspawnd | wc -l").Stdout
	text := m.Must("nspawnd-run", "--dry-run", "--name", "dry", "-m", "1g", "-v", "/srv/a b%c:/x", "-e", "A=1 2", redis)
	for _, want := range []string{"# nspawnd-dry.service\n", "# nspawnd-dry-root.service\n", "MemoryMax=1073741824\n", "RootDirectory=/run/nspawnd/"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if after := m.Script(leftovers + "; find /var/lib/nspawnd /run/nspawnd | wc -l").Stdout; after != before {
		t.Errorf("a dry run changed\n%sto\n%s", before, after)
	}
	// systemd reads it without a complaint.
	main, root, _ := strings.Cut(text, "\n# nspawnd-dry-root.service\n")
	m.WriteFile("/tmp/dry/nspawnd-dry.service", []byte(main), 0o644)
	m.WriteFile("/tmp/dry/nspawnd-dry-root.service", []byte(root), 0o644)
	if r := m.Script("cd /tmp/dry && SYSTEMD_UNIT_PATH=/tmp/dry: systemd-analyze verify --recursive-errors=no ./nspawnd-dry.service ./nspawnd-dry-root.service"); strings.Contains(r.Stderr, "nspawnd") &&
		!matches(r.Stderr, "/^nspawnd-dry.service: Command [^ ]+ is not executable: No such file or directory\n$/") { // it is in the image
		t.Errorf("systemd-analyze verify: %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
}

func detached(t *testing.T, m *Machine) {
	m.expect(t, outcome{"nspawnd-run --detach --name web " + nginx, 0, "web\n", ""})
	m.Eventually("nginx serves its page", func() bool {
		return strings.Contains(m.Run("curl", "-s", "http://localhost/").Stdout, "<h1>demo/nginx</h1>")
	})
	m.expect(t,
		outcome{"machinectl list --no-legend", 0, "/^web +container nspawnd/", ""},
		outcome{"machinectl-lite list --no-legend", 0, "/^web +container nspawnd/", ""},
		outcome{"machinectl status web", 0, "/nspawnd-web.service/", ""},
		outcome{"machinectl-lite status web", 0, "/(?s)nspawnd-web.service.*nginx/", ""},
		outcome{"systemctl status nspawnd-web", 0, "/(?s)Active: active \\(running\\).*nginx/", ""},
		outcome{"systemctl show -P MainPID nspawnd-web | xargs -I{} readlink /proc/{}/exe", 0, "/nginx\n$/", ""},
		outcome{"journalctl -u nspawnd-web -o cat", 0, "/start worker process/", ""},
		outcome{"journalctl -q NSPAWND_IMAGE=" + nginx + ":latest -o cat", 0, "/start worker process/", ""},
		outcome{"journalctl -q -t web -o cat", 0, "/start worker process/", ""},
		outcome{"time systemctl stop nspawnd-web", 0, "", "/real/"},
		outcome{"curl -s http://localhost/", 7, "", ""},
		outcome{"journalctl -u nspawnd-web -o cat", 0, "/signal 3 \\(SIGQUIT\\)/", ""}, // the image's StopSignal, honoured
	)
	m.nothingLeft(t)
	// A failure is there to be looked at, and does not hold the name.
	m.expect(t,
		outcome{"nspawnd-run -d --name sad " + tiny + " exit 3", 0, "sad\n", ""},
		outcome{"await systemctl is-failed -q nspawnd-sad; systemctl show nspawnd-sad -p ExecMainStatus", 0, "ExecMainStatus=3\n", ""},
		outcome{"machinectl-lite status sad", 1, "/^sad\n\t   Since: .*\n\t   Ended: .* ago\n\t  Status: 3\n\t   Image: .*tiny.*\n\t    Unit: nspawnd-sad.service\n$/", "machinectl-lite: machine sad has ended; to forget it: systemctl reset-failed nspawnd-sad.service\n"},
		outcome{"nspawnd-run --name sad " + tiny + " echo better", 0, "better\n", ""},
	)
	// Redis runs as its own user with its volume.
	m.Must("nspawnd-run", "-d", "--name", "cache", redis)
	m.Eventually("redis answers", func() bool {
		return m.Script(`exec 3<>/dev/tcp/127.0.0.1/6379; printf 'PING\r\n' >&3; timeout 1 head -c5 <&3`).Stdout == "+PONG"
	})
	m.expect(t, outcome{"machinectl terminate cache", 0, "", ""})
	m.nothingLeft(t)
}

func signals(t *testing.T, m *Machine) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		c := m.Command("nspawnd-run", tiny, "trap", strconv.Itoa(int(s)))
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		io.ReadFull(out, first) // it says when it is ready
		c.Process.Signal(s)
		rest, _ := io.ReadAll(out)
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %v, %s%s", s, err, first, rest)
		}
	}
	// 128+n: the payload dies of a signal. As PID 1 it can't die of its own, so one of its namespace's parent does it.
	r := m.Script(await + "nspawnd-run --name dies " + tiny + " trap > /tmp/dies & pid=$!; await grep -q ready /tmp/dies; systemctl kill -s KILL --kill-whom=main nspawnd-dies; wait $pid || exit $?")
	if r.Status != 137 {
		t.Errorf("killed payload: status %d, want 137; %s", r.Status, r.Stderr)
	}
	// SIGKILL of the client leaves a machine that can be seen and ended.
	m.expect(t, outcome{`nspawnd-run --name orphan ` + tiny + ` trap > /dev/null & pid=$!
		await sh -c "machinectl-lite list --no-legend | grep -q '^orphan '"
		kill -KILL $pid; wait $pid 2>/dev/null
		machinectl-lite list --no-legend; machinectl-lite terminate orphan`, 0, "/^orphan +container nspawnd/", "/^(.*Killed.*\n)?$/"})
	m.nothingLeft(t)
}

// shortRuns: each of many runs gives its own exit status, also when the system is busy and the payload ends before its start is done: an
// end that the manager misses, or takes for a failed start or for that of another process, is a matter of the order of some
// milliseconds, and of many when the manager has to wait for its turn. What systemd itself has lost is said, never guessed.
func shortRuns(t *testing.T, m *Machine) {
	const runs = `runs() { for i in $(seq 25); do error=$(nspawnd-run ` + tiny + ` exit $1 2>&1); got=$?; [ $got = $1 ] || echo "$got, want $1: $error"; done; }
		while :; do :; done & busy="$busy $!"
		while :; do (sleep 0.002 &); done & busy="$busy $!" # orphans: the manager reaps them
		runs 3 & a=$!; runs 217 & b=$!; runs 7 & wait $a $b $!
		kill $busy`
	const lost = `/^(125, .* systemd (did not see how the process of|took the end of its own helper for).*\n){0,%d}$/`
	manager := m.state.Leader
	for _, c := range []struct{ nice, mostLost int }{{0, 1}, {19, 10}} {
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, manager, c.nice); err != nil {
			t.Fatal(err)
		}
		m.expect(t, outcome{runs, 0, fmt.Sprintf(lost, c.mostLost), ""})
	}
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, manager, 0); err != nil {
		t.Fatal(err)
	}

	m.expect(t,
		// A detached one was started, however it ended.
		outcome{`for i in $(seq 15); do nspawnd-run -d --name brief ` + tiny + ` exit 3 > /dev/null & nspawnd-run --name beside ` + tiny + ` true; wait $! || echo "start: $?"
			await systemctl is-failed -q nspawnd-brief; systemctl show -P ExecMainStatus nspawnd-brief; done | sort | uniq -c | xargs`, 0, "15 3\n", ""},
		outcome{"systemctl reset-failed nspawnd-brief", 0, "", ""},
	)
	m.nothingLeft(t)
}

func names(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{"nspawnd-run -d --name my-app " + tiny + " trap; said my-app ready", 0, "my-app\n", ""},
		outcome{"nspawnd-run -d --name my-app " + tiny + " true", 125, "", "/^nspawnd-run: the name my-app is taken: nspawnd-my.x2dapp.service .*machinectl-lite status my-app.*\n$/"},
		outcome{"nspawnd-run --name my-app " + tiny + " true", 125, "", "/name my-app is taken/"},
		outcome{"machinectl list --no-legend", 0, "/^my-app +container/", ""},
		outcome{"machinectl-lite terminate my-app", 0, "", ""},
		outcome{"for i in 1 2 3 4 5; do nspawnd-run --name same " + tiny + " echo $i; done", 0, "1\n2\n3\n4\n5\n", ""},
		outcome{"for i in 1 2 3 4 5; do nspawnd-run -d --name same " + tiny + " trap; machinectl-lite list --no-legend | grep -c '^same '; await sh -c '[ $(journalctl -q -t same -o cat | grep -c ready) = '$i' ]'; systemctl stop nspawnd-same; done | sort | uniq -c | xargs", 0, "5 1 5 same\n", ""},
		outcome{"nspawnd-run --name a_b " + tiny + " true", 125, "", "/^nspawnd-run: --name: \"a_b\" is not a machine name .*\n$/"},
		// A machine of another origin holds its name too.
		outcome{"systemd-run -q --unit=other sleep 1000; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus other 0 '' container $(systemctl show -P MainPID other) '' >/dev/null; nspawnd-run --name other " + tiny + " true",
			125, "", "/name other is taken: other.service runs/"},
		outcome{"systemctl stop other", 0, "", ""},
	)
	m.nothingLeft(t)
}

func restart(t *testing.T, m *Machine) {
	m.Must("nspawnd-run", "-d", "--name", "keep", "-v", "/srv", "--entrypoint", "sh", redis, "-c",
		"echo started >> /tmp/log; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")
	count := func(want int) {
		t.Helper()
		m.Eventually(fmt.Sprintf("%d starts in the writable layer", want), func() bool {
			pid := strings.TrimSpace(m.Must("systemctl", "show", "-P", "MainPID", "nspawnd-keep"))
			return strings.Count(m.Run("cat", "/proc/"+pid+"/root/tmp/log").Stdout, "started") == want
		})
	}
	// machined knows the process that runs: with that of the start before, it would stop the service when it is started again itself (257).
	registered := func() {
		t.Helper()
		m.Eventually("machined knows the process", func() bool {
			return m.Must("systemctl", "show", "-P", "MainPID", "nspawnd-keep") == m.Run("machinectl", "show", "-P", "Leader", "keep").Stdout
		})
	}
	count(1)
	// Each mount on the host makes each start on it slower (systemd before 259).
	if mounts := m.Must("cat", "/proc/self/mounts"); strings.Contains(mounts, "/run/nspawnd/keep") {
		t.Errorf("the machine's mounts are on the host:\n%s", mounts)
	}
	inside := func() string {
		return m.Must("sh", "-c", "grep -c ' /srv ' /proc/$(systemctl show -P MainPID nspawnd-keep)/mounts")
	}
	if inside() != "1\n" {
		t.Error("its volume is not in the machine")
	}
	m.Must("systemctl", "restart", "nspawnd-keep")
	count(2)
	registered()
	if inside() != "1\n" {
		t.Error("its volume is not in the machine that was restarted")
	}
	m.Must("systemctl", "restart", "systemd-machined")
	m.Must("systemctl", "is-active", "nspawnd-keep")
	registered()
	pid := m.Must("systemctl", "show", "-P", "MainPID", "nspawnd-keep")
	m.Must("systemctl", "daemon-reload")
	m.Must("systemctl", "daemon-reexec")
	if now := m.Must("systemctl", "show", "-P", "MainPID", "nspawnd-keep"); now != pid {
		t.Errorf("main process %s before the manager's reexec, %s after", pid, now)
	}
	count(2)
	m.Must("machinectl-lite", "restart", "keep")
	count(3)
	registered()
	m.Must("systemctl", "stop", "nspawnd-keep")
	m.nothingLeft(t)
}

// aroundIt: the bus, the manager, machined and the journal are restarted while machines run, in the foreground and detached. Nothing of them ends, and a
// client still passes signals on and has the exit status.
func aroundIt(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{`nspawnd-run -d --name apart ` + tiny + ` trap > /dev/null; pid=$(systemctl show -P MainPID nspawnd-apart)
			for what in dbus systemd-machined systemd-journald; do
				: > /tmp/fore; nspawnd-run --name fore ` + tiny + ` trap USR1 > /tmp/fore & client=$!; await grep -q ready /tmp/fore
				systemctl restart $what; systemctl daemon-reload; systemctl daemon-reexec
				kill -HUP $client; await grep -q HUP /tmp/fore; await sh -c '[ $(machinectl-lite list --no-legend 2> /dev/null | grep -c "^apart \|^fore ") = 2 ]' # 262's machined may take its time
				kill -USR1 $client; wait $client; echo $what: $?
			done
			: > /tmp/fore; nspawnd-run --name fore --entrypoint sh ` + redis + ` -c 'echo ready; sleep 3; exit 7' > /tmp/fore & client=$!; await grep -q ready /tmp/fore; systemctl restart dbus; wait $client; echo $?
			[ $pid = $(systemctl show -P MainPID nspawnd-apart) ]; systemctl kill -s HUP nspawnd-apart; await said apart HUP; systemctl stop nspawnd-apart`,
			0, "dbus: 0\nsystemd-machined: 0\nsystemd-journald: 0\n7\n", ""},
		// Anybody may send signals: that it has ended the manager alone can say.
		outcome{`nspawnd-run --name job ` + tiny + ` trap > /tmp/job & client=$!; await grep -q ready /tmp/job
			for name in $(busctl list --json=short | jq -r '.[] | select(.process == "nspawnd-run") | .name'); do
				setpriv --reuid=65534 --regid=65534 --clear-groups busctl emit --destination=$name /org/freedesktop/systemd1/unit/nspawnd_2djob_2eservice org.freedesktop.DBus.Properties PropertiesChanged 'sa{sv}as' \
					org.freedesktop.systemd1.Service 4 ExecMainHandoffTimestampMonotonic t 1 ExecMainCode i 1 ExecMainStatus i 0 ActiveState s inactive 0 && echo sent
			done; sleep 0.5; systemctl kill -s KILL nspawnd-job; wait $client; echo $?`, 0, "sent\n137\n", ""},
		outcome{`nspawnd-run -d --name slow --entrypoint sh ` + redis + ` -c "trap 'sleep 5; exit' TERM; echo up; while :; do sleep 0.1; done" > /dev/null; said slow up
			machinectl-lite stop slow & stopping=$!; await sh -c '[ $(systemctl show -P ActiveState nspawnd-slow) = deactivating ]'; systemctl restart dbus; wait $stopping`, 1, "",
			"/^machinectl-lite: could not stop machine: stopping nspawnd-slow.service: the connection to the system bus is gone\n$/"},
		outcome{"await sh -c '[ $(systemctl show -P ActiveState nspawnd-slow) = inactive ]'", 0, "", ""},
	)
	m.nothingLeft(t)
}

// graceful: the first process gets the stop signal and its time, on 257 too.
func graceful(t *testing.T, m *Machine) {
	m.expect(t, outcome{`nspawnd-run -d --name slow --entrypoint sh ` + redis + ` -c "trap 'sleep 0.7; echo bye; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"
		said slow up
		systemctl stop nspawnd-slow; journalctl -qu nspawnd-slow -o cat | grep -c bye; systemctl is-failed nspawnd-slow || :`, 0, "slow\n1\ninactive\n", ""})
	// One process that ignores the signal is killed when its time is over.
	m.expect(t, outcome{`nspawnd-run -d --name deaf -p TimeoutStopSec=1 --entrypoint sleep ` + redis + ` infinity
		before=$(date +%s%N); systemctl stop nspawnd-deaf; ms=$(( ($(date +%s%N)-before)/1000000 )); [ $ms -ge 900 ] && [ $ms -lt 8000 ] || echo stopped after $ms ms
		systemctl reset-failed nspawnd-deaf 2>/dev/null || :`, 0, "deaf\n", ""})
	m.nothingLeft(t)
}

// killedClients: whatever instruction a client dies at, its machine runs or the next start removes what it had made.
func killedClients(t *testing.T, m *Machine) {
	users := "--userns=auto"
	if m.Suite == Trixie {
		users += " --flavor=nspawn"
	}
	m.Script(`for i in $(seq ` + kills(100) + `); do
		more=; [ $((i % 3)) != 0 ] || more="` + users + `"; [ $((i % 5)) != 0 ] || more="$more -v data:/data"
		nspawnd-run --name "k$i" $more ` + tiny + ` trap > /dev/null 2>&1 & sleep "0.$(printf %03d $((i * 7 % 160)))"; kill -KILL $! || :
		done; wait || :
		systemctl stop 'nspawnd-k*.service'`)
	m.Must("nspawnd-run", tiny, "true")
	m.Run("machinectl-lite", "remove-volume", "data")
	m.nothingLeft(t)
}

// atOnce: 20 clients start machines at the same time, each its own, and then all of them one with the same name, which one of them gets.
// machined takes its time to forget those that were stopped.
func atOnce(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{`for c in $(seq 20); do (for i in $(seq ` + kills(2) + `); do nspawnd-run -d --name "m$c.$i" ` + tiny + ` trap > /dev/null || echo "m$c.$i: $?"; done) & done; wait
			list() { machinectl-lite list --no-legend | grep -c '^m[0-9]'; }
			want=$((20 * ` + kills(2) + `)); [ "$(list)" = $want ] || echo "$(list) of $want"; [ $(systemctl list-units --no-legend 'nspawnd-m*.service' | grep -c ' running ') = $want ] || echo not all run
			systemctl stop 'nspawnd-m*.service' 2> /dev/null; none() { [ "$(list)" = 0 ]; }; await none; list`, 1, "0\n", ""},
		outcome{`for c in $(seq 20); do nspawnd-run -d --name one ` + tiny + ` trap >> /tmp/won 2>> /tmp/lost & done; wait; cat /tmp/won; grep -c 'name one is taken' /tmp/lost; wc -l < /tmp/lost; systemctl stop nspawnd-one`, 0, "one\n19\n19\n", ""},
	)
	m.nothingLeft(t)
}

// stoppedStarts: a stop while the service starts, with a command for after it, was the death of systemd 257 (docs/architecture.md).
func stoppedStarts(t *testing.T, m *Machine) {
	m.Script(`for i in $(seq 30); do
		after=; [ $((i % 3)) != 0 ] || after='-p ExecStopPost=-/bin/true'
		nspawnd-run -d --name "s$i" --stop-timeout 1 $after ` + tiny + ` trap > /dev/null 2>&1 &
		sleep "0.$(printf %03d $((i * 7 % 100)))"; systemctl stop "nspawnd-s$i" 2> /dev/null || :; wait; systemctl stop "nspawnd-s$i" 2> /dev/null || :
		done`)
	m.expect(t, outcome{"systemctl reset-failed 'nspawnd-s*' 2> /dev/null; nspawnd-run " + tiny + " true", 0, "", ""})
	if m.Suite == Trixie {
		m.Script("rmdir /sys/fs/cgroup/machine.slice/nspawnd-s*.service 2> /dev/null || :") // 257 leaves those whose last process was still dying
	}
	m.nothingLeft(t)
}

// hostileEnvironment: nothing that an image or a user sets in the payload's environment reaches a command on the host.
func hostileEnvironment(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{"sleep 300 & victim=$!; nspawnd-run -e MAINPID=$victim -e LD_PRELOAD=/no/such.so " + tiny + " true; kill -0 $victim && kill $victim", 0, "", ""},
		outcome{`sleep 300 & victim=$!
			nspawnd-run -d --name env -e MAINPID=$victim -e LD_PRELOAD=/x -e PATH=/nowhere --entrypoint /bin/tiny ` + tiny + ` trap; said env ready
			systemctl stop nspawnd-env; journalctl -qt env -o cat; kill -0 $victim && kill $victim`, 0, "/^env\nready\n(CONT\n)?TERM\n(CONT\n)?$/", ""},
		outcome{"time -p nspawnd-run -e MAINPID=1 " + tiny + " exit 3", 3, "", "/^real [01]\\./"},
		// Nor is a program in the machine taken for one of the host's.
		outcome{`nspawnd-run -u 0 --entrypoint sh ` + redis + ` -c 'p=/usr/local/lib/nspawnd/nspawnd-launcher; mkdir -p ${p%/*}
			printf "#!/bin/sh\necho ran with all privileges\n" > $p; chmod 755 $p'; sleep 0.5`, 0, "", ""},
		outcome{"systemctl cat 'nspawnd-*-root.service' 2>/dev/null | grep Environment", 1, "", ""},
		outcome{"nspawnd-run --entrypoint sh " + redis + " -c 'grep SigIgn /proc/self/status; [ $(ulimit -Sn) = $(ulimit -Hn) ]'", 0,
			"/^SigIgn:\t[0-9a-f]{12}[02468ace]/", ""}, // SIGPIPE, number 13, is not ignored
		outcome{"nspawnd-run -w /proc/self " + tiny, 125, "", "/^nspawnd-run: .*working directory.*\n$/"},
	)
}

// pipeline sends 1 GiB through a machine: the descriptors are the payload's own.
func pipeline(t *testing.T, m *Machine) {
	c := m.Command("nspawnd-run", tiny, "cat")
	sent, received := sha256.New(), sha256.New()
	c.Stdin = io.TeeReader(io.LimitReader(rand.Reader, 1<<30), sent)
	c.Stdout = received
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprintf("%x", sent.Sum(nil)), fmt.Sprintf("%x", received.Sum(nil)); a != b {
		t.Errorf("sent %s, received %s", a, b)
	}
}
