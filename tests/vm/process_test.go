package vm

import (
	"fmt"
	"strings"
	"testing"
)

// report is a program whose output says how it was started.
const report = `#!/usr/bin/perl
use Cwd;
$0 = "-";
sub quoted { my $s = shift; $s =~ s/([^ -~]|\\)/sprintf "\\x%02x", ord $1/ge; $s }
print "argument <", quoted($_), ">\n" for @ARGV;
print "variable <", quoted("$_=$ENV{$_}"), ">\n" for grep { !/^(container|HOSTNAME)$/ } sort keys %ENV;
my @dir = stat ".";
print "directory ", getcwd, sprintf(" of %d:%d\n", @dir[4, 5]);
my ($first, @groups) = split / /, $);
print "ids $< $> $first groups ", join(" ", sort { $a <=> $b } @groups), sprintf(" umask %04o\n", umask);
my @account = getpwuid $<;
print "account $account[0] $account[7], group ", scalar(getgrgid $first), "\n";
exit 7;
`

// madeImage stores an image for nspawnd-run and for podman, localhost/NAME, that has the layers of a test image and a "config" object of the test's own.
const madeImage = `mkdir -p /srv/made/blobs/sha256; cd /srv/made
blob() { f=$(mktemp -p .); cat > $f; d=$(sha256sum < $f | cut -d' ' -f1); s=$(stat -c %s $f); mv $f blobs/sha256/$d; }
m=$layout/blobs/sha256/$(jq -r --arg n "$base" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $n).digest[7:]' $layout/index.json)
for d in $(jq -r '.layers[].digest[7:]' $m); do [ -e blobs/sha256/$d ] || cp $layout/blobs/sha256/$d blobs/sha256/; done
blob < <(jq -c --argjson c "$config" '.config = $c' $layout/blobs/sha256/$(jq -r '.config.digest[7:]' $m))
blob < <(jq -c --arg d sha256:$d --argjson s $s '.config.digest = $d | .config.size = $s' $m)
echo '{"imageLayoutVersion":"1.0.0"}' > oci-layout
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"made"}}]}' $d $s > index.json
skopeo --insecure-policy copy --quiet oci:/srv/made:made containers-storage:localhost/$name:latest
machinectl-lite import-oci --quiet --insecure-options=image oci:/srv/made:made localhost/$name:latest 2>/dev/null
`

func (m *Machine) makeImage(name, base, config string) {
	m.helper()()
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	m.must(fmt.Sprintf("layout=%s name=%s base=%s config=%s\n", m.Images(), name, base, quote(config)) + madeImage)
}

// TestProcessBesidePodman starts images of all kinds of configurations with podman and with nspawnd-run: the process sees the same.
func TestProcessBesidePodman(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.WriteFile("/srv/report", []byte(report), 0o755)
		m.WriteFile("/srv/env", []byte("  A=file\n# comment\n\nB =b  \r\nQ=\"q\" # x\nGIVEN\nLC_*\nNOPE\n"), 0o644)
		count := 0
		// compare runs an image of this config with each of the flags.
		compare := func(base, config, command string, flags ...string) {
			t.Helper()
			count++
			name := fmt.Sprintf("made%d", count)
			m.makeImage(name, base, config)
			for _, f := range flags {
				run := func(program string) Result {
					return m.Script("export GIVEN=given LC_GIVEN=1; unset LANG; " + program + " -v /srv/report:/report:ro " + f + " localhost/" + name + " " + command)
				}
				ours, theirs := run("nspawnd-run --name made"), run("podman run --rm --network=host --cgroups=disabled --pids-limit=0 --hostname=made")
				if ours.Stdout != theirs.Stdout || ours.Status != theirs.Status {
					t.Errorf("%s\n%s %s\nnspawnd-run: %d\n%s%s\npodman: %d\n%s%s", config, f, command,
						ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
				}
			}
		}
		const path = `"PATH=/usr/bin:/bin"`

		compare("redis", `{"Entrypoint":["perl","/report","a b","$HOME","$$","%n","","\"'\\","x\ny\t\u0001é"],"Cmd":["last"],"WorkingDir":"/srv",
			"Env":[`+path+`,"A=b c","odd.name=1","a-b=2","1=digit","N=x\ny","Q=\"'$H ${H} %n\\","C=\u0001\u001b[31m","E=","A=twice","MAINPID=1","LANG=C","TERM=t","U=\ufffdé"]}`, "",
			"", "-e A=mine -e GIVEN -e NOPE -e LC_*", "--env-file /srv/env -e B=2", "--env-merge 'PATH=$PATH:/x' --env-merge 'M=${NONE:-d}${A}' --unsetenv E --unsetenv C",
			"--unsetenv-all -e X=1 -e PATH=/usr/bin", "--umask 077", "--entrypoint '[\"perl\",\"/report\",\"-x\"]'", "--entrypoint '[\"/rep'", "--group-add games --group-add 999 --user 4321")
		compare("redis", `{"Entrypoint":null,"Cmd":["perl","/report"],"Env":null,"WorkingDir":"","User":"","Volumes":null,"Labels":null,"ExposedPorts":null,"StopSignal":"",
			"Hostname":"old","Domainname":"old","AttachStdout":true,"Tty":false,"OpenStdin":true,"Memory":1,"MemorySwap":1,"CpuShares":2,"NetworkDisabled":true,"MacAddress":"02:00:00:00:00:01",
			"OnBuild":["RUN false"],"ArgsEscaped":true,"Shell":["/bin/x"]}`, "", "", "--entrypoint '[]'")
		compare("redis", `{"Entrypoint":["sh"],"Cmd":["perl","/report","cmd"],"WorkingDir":"srv"}`, "", "", "--entrypoint '[]'")
		compare("redis", `{"Entrypoint":[],"Cmd":["sh"],"Env":[]}`, "perl /report args", "")
		compare("redis", `{"Cmd":[]}`, "/report", "--entrypoint perl")
		compare("redis", `{"Entrypoint":["perl","/report"],"User":"games","WorkingDir":"/made/for/me","Env":[`+path+`]}`, "",
			"", "-u games:staff", "-u 5", "-u 4321", "-u 4321:99", "-u games:99", "-u :5", "-u root", "-u 0:0", "-u redis", "-u 4321 --passwd=false -e HOME=/x",
			"-u games --group-add tape --group-add 5", "-w /bin", "-w /etc/../usr")
		compare("redis", `{"Entrypoint":["perl","/report"],"User":"root","WorkingDir":"/bin"}`, "", "") // a symbolic link
		// What the process ends with.
		compare("redis", `{"Cmd":["sh"]}`, `sh -c 'kill -TERM $$'`, "--init")
		compare("redis", `{"Cmd":["sh"]}`, `sh -c 'exit 200'`, "", "--init")
		compare("redis", `{"Cmd":["/nosuch"]}`, ``, "")
		compare("redis", `{"Cmd":["/etc/passwd"]}`, ``, "")
		// One static program, no /etc.
		compare("tiny", `{"Entrypoint":["/bin/tiny"],"Cmd":["id"]}`, "", "", "-u 0", "-u 4321:99", "--group-add 5")

		const all = `{"Cmd":["x"],"ExposedPorts":{"80/tcp":{}},"Labels":{"a":"b"},"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN x"],"Shell":["sh"],"ArgsEscaped":true,"Memory":1,"MemorySwap":1,
			"CpuShares":1,"Domainname":"d","Hostname":"h","AttachStdin":true,"Tty":true,"OpenStdin":true,"NetworkDisabled":true,"MacAddress":"m","Evil\u001b]0;x":1}`
		m.makeImage("all", "redis", all)
		dry := m.Must("nspawnd-run", "--dry-run", "--name", "dry", "localhost/all", "true")
		for _, field := range []string{"ExposedPorts", "Labels", "OnBuild", "Shell", "ArgsEscaped", "Memory", "MemorySwap", "CpuShares",
			"Domainname", "Hostname", "AttachStdin", "Tty", "OpenStdin", "NetworkDisabled", "MacAddress", `"Evil\x1b]0;x"`} {
			if !strings.Contains(dry, "# "+field+" is not mapped: ") {
				t.Errorf("%s is not among the notes of\n%.2000s", field, dry)
			}
		}
		m.nothingLeft(t)
	})
}

// TestProcess is what flags about the process do where podman is no measure.
func TestProcess(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		for _, name := range []string{"tiny", "redis"} {
			m.must("machinectl-lite import-oci --quiet --insecure-options=image oci:" + m.Images() + ":" + name + " localhost/" + name + ":latest 2>/dev/null")
		}
		with := func(options, command string) string {
			return "nspawnd-run " + options + " localhost/tiny " + command
		}
		sh := func(options, script string) string {
			return "nspawnd-run " + options + " -u 0 --entrypoint sh localhost/redis -c '" + script + "'"
		}
		cases := func(name string, cases ...outcome) {
			t.Run(name, func(t *testing.T) { m.With(t).expect(t, cases...) })
		}

		cases("what the bus refuses",
			outcome{with("", `args $'a\xffb' 'c d' '' '"'`), 0, `"a\xffb"` + "\n\"c d\"\n\"\"\n\"\\\"\"\n", ""},
			outcome{with(`-e $'X=\xff'`, "env") + " | grep -c $'X=\xff'", 0, "1\n", ""},
			outcome{with(`-w $'/\xff'`, "env"), 125, "", "/^nspawnd-run: .*not UTF-8.*\n$/"},
			// The manager keeps all of it over a reload.
			outcome{"nspawnd-run -d --name kept -e $'N=a\\nb' -e $'C=\\x01' -e 'Q=\"x\" $H %n \\' localhost/tiny sleep 600 'a b' '' $'x\\ty' '$H %n' >/dev/null; systemctl daemon-reload; systemctl restart nspawnd-kept" +
				"; p=/proc/$(systemctl show -P MainPID nspawnd-kept); await grep -q ^/bin/tiny $p/cmdline; tr '\\0' ';' < $p/cmdline; echo; grep -zE '^[NCQ]=' $p/environ | tr '\\0' ';' | cat -A; systemctl stop nspawnd-kept; systemctl reset-failed nspawnd-kept || :", 0,
				"/bin/tiny;sleep;600;a b;;x\ty;$H %n;\nN=a$\nb;Q=\"x\" $H %n \\;C=^A;", ""},
		)
		cases("hostname",
			outcome{with("--name m1", "hostname"), 0, "m1\n", ""},
			outcome{with("--name m1 -h a.b-c.d", "hostname"), 0, "a.b-c.d\n", ""},
			outcome{with("--name m1 -h other -u 7", "env") + " | grep HOSTNAME", 0, "HOSTNAME=other\n", ""},
			outcome{with("--hostname other", "cat /etc/hostname"), 0, "other\n", ""},
			outcome{with("--hostname other --no-hostname", "cat /etc/hostname"), 1, "", "/no such file/"},
			outcome{with("--hostname other --network none", "cat /etc/hosts"), 0, "/localhost other\n/", ""},
			outcome{with("--hostname a_b", "true"), 125, "", "nspawnd-run: --hostname: \"a_b\" is not a hostname\n"},
			outcome{with("--hostname x --uts host", "true"), 125, "", "/^nspawnd-run: .*--uts=host\n$/"},
			outcome{sh("", "hostname x; unshare -Ur hostname x; unshare -Uru hostname x; cat /proc/sys/kernel/hostname >/dev/null"), 0, "", "/^(hostname: .*\n){3}$/"},
			outcome{"cat /proc/sys/kernel/hostname", 0, "lab-" + string(m.Suite) + "\n", ""},
			// What the launcher needs for it nobody else has, on each thread.
			outcome{sh("--init", "cat /proc/1/task/*/status | grep -E ^Cap | sort -u"), 0,
				"CapAmb:\t0000000000000000\nCapBnd:\t00000000800405fb\nCapEff:\t00000000800405fb\nCapInh:\t0000000000000000\nCapPrm:\t00000000800405fb\n", ""},
			outcome{sh("--cap-drop all", "grep -E ^Cap.*[^0] /proc/self/status | grep -v 0000000000000000"), 1, "", ""},
			// A user's own restrictions come before the name.
			outcome{with("-p SystemCallFilter=~unshare", "true"), 0, "", ""},
		)
		cases("init",
			outcome{with("--init", "ps") + " | cut -d' ' -f2-", 0, "0 /run/nspawnd-launcher --init -- /bin/tiny /bin/tiny ps\n1 /bin/tiny ps\n", ""},
			outcome{"nspawnd-run --init --name in localhost/tiny trap USR1 > /tmp/in & pid=$!; await grep -q ready /tmp/in; kill -HUP $pid; await grep -q HUP /tmp/in; kill -USR1 $pid; wait $pid; cat /tmp/in", 0, "ready\nHUP\nUSR1\n", ""},
			outcome{sh("--init", "(sleep 0.1 &); sleep 0.5; grep -h ^State /proc/[0-9]*/status | sort | uniq -c | grep -c Z"), 1, "0\n", ""}, // no zombies
			outcome{sh("--init", "(: >> /proc/1/exe) || (: > /run/nspawnd-launcher) || rm /run/nspawnd-launcher"), 1, "", "/busy/"},
			outcome{"nspawnd-run -d --init --name in localhost/tiny trap >/dev/null; said in ready; systemctl stop nspawnd-in; journalctl -qt in -o cat | tail -1; systemctl is-failed -q nspawnd-in", 4, "TERM\n", ""},
		)
		cases("sysctls",
			outcome{sh("--network none --sysctl kernel.shmmax=1000000 --sysctl net.ipv4.ip_forward=1 --sysctl fs.mqueue.msg_max=20 --sysctl \"kernel.sem=1 2 3 4\" --sysctl net/core/somaxconn=77",
				"cd /proc/sys; cat kernel/shmmax net/ipv4/ip_forward fs/mqueue/msg_max kernel/sem net/core/somaxconn; echo 3 > kernel/shmmax"), 2, "1000000\n1\n20\n1\t2\t3\t4\n77\n", "/Read-only file system/"},
			outcome{sh("--sysctl kernel.msgmax=9000", "grep CapBnd /proc/self/status"), 0, "CapBnd:\t00000000800405fb\n", ""},
			outcome{"nspawnd-run -d --name sys --sysctl kernel.shmmni=99 localhost/tiny trap >/dev/null; for i in 1 2; do await nsenter -a -t $(systemctl show -P MainPID nspawnd-sys) /bin/cat /proc/sys/kernel/shmmni; systemctl restart nspawnd-sys; done; systemctl stop nspawnd-sys; systemctl reset-failed nspawnd-sys 2>/dev/null || :", 0, "99\n99\n", ""},
			outcome{with("--sysctl net.ipv4.ip_forward=1", "true"), 125, "", "/^nspawnd-run: .*would be the host's.*\n$/"},
			outcome{with("--ipc host --sysctl kernel.sem=1", "true"), 125, "", "/^nspawnd-run: .*would be the host's.*\n$/"},
			outcome{with("--sysctl kernel.panic=1", "true"), 125, "", "/^nspawnd-run: .*belongs to the host.*\n$/"},
			outcome{with("--sysctl net.x/../../kernel/panic=1", "true"), 125, "", "/^nspawnd-run: .*is not NAME=VALUE\n$/"},
			outcome{with("--sysctl kernel.sem", "true"), 125, "", "/^nspawnd-run: .*is not NAME=VALUE\n$/"},
			outcome{with("--network none --sysctl net.no.such=1", "true"), 125, "", "/^nspawnd-launcher: .*no such file.*\n$/"},
		)
		cases("readiness",
			outcome{"nspawnd-run -d --name ready --sdnotify=container localhost/tiny notify 1; systemctl show -P StatusText nspawnd-ready; systemctl stop nspawnd-ready", 0, "ready\nas ready as can be\n", ""},
			outcome{"nspawnd-run -d --name late -p TimeoutStartSec=1 --sdnotify=container localhost/tiny sleep 30; systemctl reset-failed nspawnd-late 2>/dev/null || :", 0, "", "/late.*timeout/"},
			outcome{"nspawnd-run -d --name late --sdnotify=container localhost/tiny true; systemctl reset-failed nspawnd-late 2>/dev/null || :", 0, "", "/late.*protocol/"},
			outcome{with("--sdnotify=container", "exit 3"), 3, "", ""},
			outcome{sh("--sdnotify=container -p WatchdogSec=9", "echo $WATCHDOG_PID $WATCHDOG_USEC; test -S $NOTIFY_SOCKET"), 0, "9000000\n", ""},
			outcome{with("--sdnotify=healthy", "true"), 125, "", "/^nspawnd-run: .*no health check; give one by --health-cmd\n$/"},
			// A service that has us as its main process.
			outcome{"systemd-run -q --unit outer -p Type=notify nspawnd-run --name inner localhost/tiny trap; systemctl is-active outer nspawnd-inner; systemctl stop outer; systemctl show -P Result outer; await sh -c '! machinectl-lite list | grep -q inner'", 0, "active\nactive\nsuccess\n", ""},
			outcome{"systemd-run -q --unit outer -p Type=notify -p TimeoutStartSec=2 nspawnd-run --name inner --sdnotify=container localhost/tiny sleep 20 2>/dev/null; echo $?; await sh -c '! systemctl is-active -q nspawnd-inner'", 0, "1\n", ""},
		)
		cases("signals and times",
			outcome{"nspawnd-run --name sig localhost/tiny trap > /tmp/sig & pid=$!; await grep -q ready /tmp/sig; for s in USR1 USR2 WINCH HUP CONT QUIT; do kill -$s $pid; await grep -q $s /tmp/sig; done; wait $pid; cat /tmp/sig", 0,
				"ready\nUSR1\nUSR2\nWINCH\nHUP\nCONT\nQUIT\n", ""},
			outcome{"nspawnd-run --name sig --sig-proxy=false localhost/tiny trap > /tmp/unproxied & pid=$!; await grep -q ready /tmp/unproxied; kill -TERM $pid; wait $pid; echo $?; cat /tmp/unproxied; systemctl is-active nspawnd-sig; systemctl stop nspawnd-sig", 0,
				"/^143\nready\nactive\n$/", "/^(.*Terminated.*\n)?$/"},
			outcome{"nspawnd-run -d --name st --stop-signal USR1 --stop-timeout 30 localhost/tiny trap USR1 >/dev/null; said st ready; systemctl show nspawnd-st -p KillSignal,TimeoutStopUSec | sort; systemctl stop nspawnd-st; journalctl -qt st -o cat | tail -1", 0,
				"KillSignal=10\nTimeoutStopUSec=30s\nUSR1\n", ""},
			outcome{"nspawnd-run -d --name st --stop-timeout -1 localhost/tiny trap >/dev/null; systemctl show nspawnd-st -p TimeoutStopUSec; systemctl stop nspawnd-st", 0, "TimeoutStopUSec=infinity\n", ""},
			outcome{"nspawnd-run -d --name st --stop-timeout 0 --entrypoint sleep localhost/redis inf >/dev/null; timeout 5 systemctl stop nspawnd-st || echo late; systemctl reset-failed nspawnd-st 2>/dev/null || :", 0, "", ""},
			outcome{with("--stop-signal NOPE", "true"), 125, "", "/--stop-signal: \"NOPE\" is not a signal\n$/"},
			outcome{with("--stop-timeout x", "true"), 125, "", "/--stop-timeout: \"x\" is not a number of seconds\n$/"},
			outcome{with("--timeout 1", "trap"), 0, "/^ready\n(CONT\n)?TERM\n(CONT\n)?$/", ""},
			outcome{"nspawnd-run --timeout 1 --stop-timeout 1 --entrypoint sleep localhost/redis inf", 137, "", ""},
			outcome{with("--timeout x", "true"), 125, "", "/--timeout: \"x\" is not a number of seconds\n$/"},
		)
		m.WriteFile("/usr/share/zoneinfo/Test/Zone", timeZone("TST-5"), 0o644)
		cases("the rest",
			outcome{sh("--tz Test/Zone", "date +%Z; test ! -L /etc/localtime"), 0, "TST\n", ""},
			outcome{with("--tz ../passwd", "true"), 125, "", "/^nspawnd-run: --tz: .*\n$/"},
			outcome{with("--tz Not/There", "true"), 125, "", "/^nspawnd-run: --tz: .*no such file.*\n$/"},
			outcome{sh("--personality LINUX32", "uname -m"), 0, "i686\n", ""},
			outcome{with("--personality BSD", "true"), 125, "", "/^nspawnd-run: .*neither LINUX nor LINUX32\n$/"},
			outcome{with("-u 0:nosuch", "true"), 125, "", "/^nspawnd-run: .*no such group in the image's /etc/group: \"nosuch\"\n$/"},
			outcome{with("--group-add nosuch", "true"), 125, "", "/^nspawnd-run: .*no such group in the image's /etc/group: \"nosuch\"\n$/"},
			outcome{with("--umask 9", "true"), 125, "", "/^nspawnd-run: .*--umask: .*\n$/"},
			outcome{with("--group-add keep-groups", "true"), 125, "", "/^nspawnd-run: --group-add: keep-groups .*\n$/"},
			outcome{with("--env-file /no/such", "true"), 125, "", "nspawnd-run: --env-file /no/such: open /no/such: no such file or directory\n"},
			outcome{"echo =x | " + with("--env-file /dev/stdin", "true"), 125, "", "nspawnd-run: --env-file /dev/stdin: line 1: \"=x\" is not NAME=VALUE\n"},
			outcome{"GIVEN=1 " + with("--env-host", "env") + " | grep -E 'GIVEN|FROM|PATH'", 0, "FROM=tiny\nGIVEN=1\nPATH=/bin\n", ""},
			outcome{"GIVEN=1 no_proxy=.test HTTPS_PROXY=http://proxy.test " + with("--http-proxy", "env") + " | grep -iE 'GIVEN|proxy' | sort", 0, "HTTPS_PROXY=http://proxy.test\nno_proxy=.test\n", ""},
			outcome{with("--platform linux/amd64", "true"), 0, "", ""},
			outcome{with("--platform linux/arm64 --pull never", "true"), 125, "", "/^nspawnd-run: image localhost/tiny:latest: the stored one is for linux/amd64, not linux/arm64; .*--platform=linux/arm64.*\n$/"},
			outcome{with("--arch riscv64 --dry-run", "true"), 125, "", "/not linux/riscv64/"},
			outcome{with("--platform linux", "true"), 125, "", "/^nspawnd-run: --platform: .*\n$/"},
			outcome{with("--platform linux/amd64 --arch amd64", "true"), 125, "", "/^nspawnd-run: --platform .*\n$/"},
		)
		m.nothingLeft(t)
	})
}

// timeZone is a file of a time zone without transitions (tzfile(5)); rule is as in $TZ.
func timeZone(rule string) []byte {
	header := "TZif2" + strings.Repeat("\x00", 15+4*4) + "\x00\x00\x00\x01" + "\x00\x00\x00\x04"
	block := header + "\x00\x00\x46\x50\x00\x00" + "TST\x00"
	return []byte(block + block + "\n" + rule + "\n")
}
