package vm

import (
	"os"
	"strings"
	"testing"
)

// TestLimits shows that the kernel enforces what the options say, on a host with cgroup v2 controllers.
func TestLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	layout, err := Images(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	result := VM(t, Trixie, `
		echo '{"version": 0.1, "storage": {"filesystem": {"rootdirectory": "/var/tmp/registry"}}, "http": {"addr": "127.0.0.1:5000"}}' > /tmp/registry.yml
		systemd-run --quiet --unit=registry --property=Type=exec --setenv=OTEL_TRACES_EXPORTER=none docker-registry serve /tmp/registry.yml
		printf '[[registry]]\nlocation = "localhost:5000"\ninsecure = true\n' > /etc/containers/registries.conf.d/lab.conf
		for _ in $(seq 300); do curl -sf http://localhost:5000/v2/ && break; sleep 0.2; done > /dev/null
		skopeo --insecure-policy copy -q --dest-tls-verify=false oci:/images:tiny docker://localhost:5000/tiny
		machinectl-lite pull-oci -q --insecure-options=image localhost:5000/tiny > /dev/null

		machinectl-lite events --filter type=machine > /tmp/events & watcher=$!
		for _ in $(seq 300); do ls -l /proc/$watcher/fd | grep -q inotify && break; sleep 0.2; done; sleep 1
		nspawnd-run --name hog --memory 64M localhost:5000/tiny hog 256 || echo "hog: $?"
		journalctl -q -k -o cat | grep -c 'Killed process.*tiny'
		nspawnd-run --memory 64M localhost:5000/tiny hog 16 && echo "hog fits"
		nspawnd-run --pids-limit 20 localhost:5000/tiny forks 100 || echo "forks: $?"

		nspawnd-run -d --keep --name gone --memory 64M localhost:5000/tiny hog 256 > /dev/null
		for _ in $(seq 300); do systemctl is-failed -q nspawnd-gone && break; sleep 0.2; done
		machinectl-lite status gone 2> /dev/null | sed -n 's/.*Status: //p'; systemctl reset-failed nspawnd-gone
		machinectl-lite status gone 2> /dev/null | sed -n 's/.*Status: //p'; machinectl-lite remove-machine gone

		# One machine has ended by it, another goes on.
		nspawnd-run -d --name live --memory 64M localhost:5000/tiny trap
		machinectl-lite exec live tiny hog 256 || echo "exec: $?"
		for _ in $(seq 300); do grep -q 'oom live' /tmp/events && break; sleep 0.2; done
		kill $watcher; wait $watcher
		sed -n '/ hog \| live /s/.* machine \(.*\) image=.*/\1/p' /tmp/events
		cat /sys/fs/cgroup/machine.slice/nspawnd-live.service/memory.max
		systemctl set-property --runtime nspawnd-live MemoryMax=32M TasksMax=15 CPUQuota=20%
		cd /sys/fs/cgroup/machine.slice/nspawnd-live.service; cat memory.max pids.max cpu.max; cd /
		machinectl-lite stats --no-stream --no-legend live | awk '{ print $1, $4, ($5 > 0) }'
		systemctl stop nspawnd-live

		flags="--memory 64m --memory-reservation 32m --cpuset-cpus 0 --pids-limit 30 --cpu-quota 20000 --cpu-period 50000"
		nspawnd-run -d --name flags $flags --memory-swap 96m --cpu-shares 512 localhost:5000/tiny trap
		cd /sys/fs/cgroup/machine.slice/nspawnd-flags.service; cat memory.low memory.swap.max cpuset.cpus.effective cpu.weight cpu.max; cd /
		scope=libpod-$(podman run -q -d --network=none $flags localhost:5000/tiny trap).scope
		for unit in nspawnd-flags.service $scope; do
			systemctl show $unit -p MemoryMax,MemoryLow,TasksMax,CPUQuotaPerSecUSec,CPUQuotaPeriodUSec,AllowedCPUs > /tmp/${unit%%-*}
		done
		diff /tmp/nspawnd /tmp/libpod && grep -c . /tmp/libpod
		podman kill -a > /dev/null
		systemctl stop nspawnd-flags

		# Opened, it has nothing to read; without leave it is not opened.
		modprobe loop
		device() { nspawnd-run "$@" localhost:5000/tiny read /dev/x 2>&1 | grep -o 'invalid argument\|not permitted'; }
		device --device /dev/loop-control:/dev/x
		device --device /dev/loop-control:/dev/x:w
		device -v /dev/loop-control:/dev/x
		device -v /dev/loop-control:/dev/x --device-cgroup-rule 'c 10:237 r'
		device -v /dev/loop-control:/dev/x --device-cgroup-rule 'c 10:* rw'

		# Mounts, on a kernel that has none in a tree that is not attached.
		nspawnd-run -v data:/v -v /etc:/e:O,noexec -v /own --mount type=image,src=localhost:5000/tiny,dst=/i localhost:5000/tiny write /v/x kept
		nspawnd-run -v data:/v:ro localhost:5000/tiny read /v/x

		for _ in $(seq 300); do systemctl is-system-running --quiet && break; sleep 0.2; done # the last machine's units go
		systemctl is-system-running
	`, map[string]string{"/images": layout})
	t.Logf("%s: %s", Trixie, result.Duration)
	want := []string{"hog: 137", "1", "holding 16 MiB", "hog fits", "started", "forks: 1", "137 (SIGKILL), out of memory", "137 (SIGKILL), out of memory", "live", "exec: 137",
		"start hog", "oom hog", "die hog status=137", "start live", "oom live", "67108864", "33554432", "15", "20000 100000", "live 32M 1",
		"flags", "33554432", "33554432", "0", "59", "20000 50000", "6",
		"invalid argument", "not permitted", "not permitted", "invalid argument", "invalid argument", "kept", "running"}
	got := strings.Split(strings.TrimSpace(result.Stdout), "\n")
	for i := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], want[i]) {
			t.Fatalf("line %d is not %q in\n%s\n%s", i, want[i], result.Stdout, result.Stderr)
		}
	}
	if strings.Contains(got[4], "100 of 100") {
		t.Errorf("the limit on processes did not hold: %s", got[4])
	}
}
