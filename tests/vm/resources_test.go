package vm

import (
	"strings"
	"testing"
)

// everyLimit is each flag that limits a machine, and more of what a unit can be given, with what the unit then is.
const everyLimit = `--memory 64m --memory-reservation 32m --memory-swap 192m --oom-score-adj 100 --cpu-quota 50000 --cpu-period 50000 --cpu-shares 512 ` +
	`--cpuset-cpus 0 --cpuset-mems 0 --pids-limit 50 --blkio-weight 500 --blkio-weight-device /dev/null:100 --device-read-bps /dev/null:1mb --device-write-bps /dev/null:2mb ` +
	`--device-read-iops /dev/null:100 --device-write-iops /dev/null:200 --ulimit nofile=100:200 --ulimit core=-1 --cgroup-conf memory.high=50331648 ` +
	`--slice batch --description some%text --register no --cgroupns host -p TimeoutSec=20s -p SetCredential=id:100% -p CPUAffinity=0`

var everyLimitShown = map[string]string{
	"MemoryMax": "67108864", "MemoryLow": "33554432", "MemorySwapMax": "134217728", "MemoryHigh": "50331648", "OOMScoreAdjust": "100", "CPUQuotaPerSecUSec": "1s",
	"CPUQuotaPeriodUSec": "50ms", "CPUWeight": "59", "AllowedCPUs": "0", "AllowedMemoryNodes": "0", "TasksMax": "50", "IOWeight": "4500", "IODeviceWeight": "/dev/null 100",
	"IOReadBandwidthMax": "/dev/null 1048576", "IOWriteBandwidthMax": "/dev/null 2097152", "IOReadIOPSMax": "/dev/null 100", "IOWriteIOPSMax": "/dev/null 200",
	"LimitNOFILE": "200", "LimitNOFILESoft": "100", "LimitCORE": "infinity", "Slice": "batch.slice", "Description": "some%text", "ProtectControlGroupsEx": "yes",
	"TimeoutStartUSec": "20s", "TimeoutStopUSec": "20s", "CPUAffinity": "0",
}

// TestResources shows that what is typed reaches the unit and its unit file, and what is refused.
func TestResources(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		with := func(options, command string) string { return "nspawnd-run " + options + " " + tiny + " " + command }

		m.expect(t, outcome{with("-d --name every "+everyLimit, "trap"), 0, "every\n", ""})
		shown := map[string]string{}
		for line := range strings.Lines(m.Must("systemctl", "show", "nspawnd-every")) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			shown[name] = value
		}
		for name, want := range everyLimitShown {
			if shown[name] != want {
				t.Errorf("%s is %q, want %q", name, shown[name], want)
			}
		}
		m.expect(t,
			outcome{"machinectl list --no-legend; machinectl-lite list --no-legend", 0, "/^every +container nspawnd .*\n$/", ""}, // one of them
			outcome{"systemctl stop nspawnd-every", 0, "", ""},
		)

		text := m.Must("bash", "-c", with("--dry-run --name every "+everyLimit, "trap"))
		m.WriteFile("/tmp/every/text", []byte(text), 0o644)
		verify := m.Script(`cd /tmp/every; awk '/^# nspawnd-.*[.]service$/ { file = $2 } file { print > file }' text
			SYSTEMD_UNIT_PATH=/tmp/every: systemd-analyze verify --recursive-errors=no ./nspawnd-every.service || true`)
		if !matches(verify.Stderr, "/^nspawnd-every.service: Command [^ ]+ is not executable: No such file or directory\n$/") { // it is in the image
			t.Errorf("systemd-analyze verify: %s", verify.Stderr)
		}

		m.expect(t,
			outcome{with("--setenv A=b -e C=d --cgroup-parent x-y", "env") + " | grep ^[AC]=", 0, "A=b\nC=d\n", ""},
			outcome{with("-e X=y -p Environment= -p 'Environment=A=1 \"B=x y\"' -p Environment=C=2", "env") + " | grep -v PATH", 0, "A=1\nB=x y\nC=2\n", ""},
			outcome{with("-p StandardOutput=null", "echo hidden"), 0, "", ""},
			outcome{with("-p StandardOutput=file:/tmp/filed", "echo filed") + "; cat /tmp/filed", 0, "filed\n", ""},
			outcome{"ulimit -n 123; ulimit -t 1000; nspawnd-run --ulimit host --entrypoint sh " + redis + " -c 'ulimit -Sn; ulimit -t'", 0, "123\n1000\n", ""},
			outcome{"nspawnd-run -p SetCredential=id:secret -p DynamicUser=yes --uts host -u 0 --entrypoint sh " + redis + " -c 'cat $CREDENTIALS_DIRECTORY/id; [ $(id -u) -gt 60000 ]'", 0, "secret", ""},

			outcome{with("--scope", "true"), 125, "", "/^nspawnd-run: --scope: .*\n$/"},
			outcome{with("--unit x", "true"), 125, "", "/^nspawnd-run: --unit: .*--name.*\n$/"},
			outcome{with("--memory-swappiness 60", "true"), 125, "", "/^nspawnd-run: --memory-swappiness: .*--memory-swap\n$/"},
			outcome{with("--oom-kill-disable", "true"), 125, "", "/^nspawnd-run: --oom-kill-disable: .*\n$/"},
			outcome{with("--cgroups=split", "true"), 125, "", "/^nspawnd-run: --cgroups: .*\n$/"},
			outcome{with("--slice a/b", "true"), 125, "", "/^nspawnd-run: --slice: .*\n$/"},
			outcome{with("--register maybe", "true"), 125, "", "/^nspawnd-run: --register: .*\n$/"},
			outcome{with("--cgroup-conf hugetlb.2MB.max=1", "true"), 125, "", "/^nspawnd-run: --cgroup-conf: no directive of systemd sets .*\n$/"},
			outcome{with("-p RootDirectory=/", "true"), 125, "", "nspawnd-run: --property: RootDirectory= can't be set with --property: the image is the root file system\n"},
			outcome{with("-p MemoryLimit=1", "true"), 125, "", "/^nspawnd-run: .*use MemoryMax=\n$/"},
		)
		if m.Suite == Trixie {
			m.expect(t,
				outcome{with("-p CPUSetPartition=root", "true"), 125, "", "nspawnd-run: --property: CPUSetPartition= needs systemd 261; this one is 257\n"},
				outcome{with("-p PrivateUsers=managed", "true"), 125, "", "nspawnd-run: --property: PrivateUsers=managed needs systemd 260; this one is 257\n"},
			)
		}
		m.nothingLeft(t)
	})
}
