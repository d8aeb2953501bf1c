package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	result := VM(t, Trixie, `
		systemctl is-system-running
		cat /sys/fs/cgroup/cgroup.controllers
		modprobe -a overlay erofs
		cat /data/dir/file
		# A limit that the kernel enforces.
		systemd-run --quiet --wait --property=MemoryMax=20M --property=MemorySwapMax=0 \
			sh -c 'head -c 100M /dev/zero | tail -c 100M > /dev/null' || echo "over the limit: $?" >&2
		exit 42
	`, map[string]string{"/data/dir": "testdata/vm"})
	t.Logf("%s: %s", Trixie, result.Duration)
	lines := strings.Split(result.Stdout, "\n")
	if len(lines) != 4 || lines[0] != "running" || lines[2] != "a file of the host" {
		t.Errorf("standard output:\n%s", result.Stdout)
	} else {
		for _, controller := range []string{"memory", "pids", "cpu", "io"} {
			if !strings.Contains(" "+lines[1]+" ", " "+controller+" ") {
				t.Errorf("no controller %s in %s", controller, lines[1])
			}
		}
	}
	if !strings.HasPrefix(result.Stderr, "over the limit: ") || result.Status != 42 {
		t.Errorf("status %d, standard error:\n%s", result.Status, result.Stderr)
	}
}

// On a host with everything in cgroup2, mounted with nsdelegate as systemd does, the limits of a lab's units are enforced.
func TestLabOnCgroup2(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	lab := filepath.Join(t.TempDir(), "lab")
	build := exec.Command("go", "build", "-o", lab, "./lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	root, err := rootName(Trixie)
	if err != nil {
		t.Fatal(err)
	}
	// The VM's own root serves as the lab's.
	result := VM(t, Trixie, `
		mkdir -p /cache/`+root+`
		mount --bind / /cache/`+root+`
		export NSPAWND_LAB_CACHE=/cache
		lab trixie sh -c '
			systemctl is-system-running
			cat /sys/fs/cgroup/cgroup.controllers
			systemd-run --wait --property=MemoryMax=20M --property=MemorySwapMax=0 \
				sh -c "head -c 100M /dev/zero | tail -c 100M > /dev/null" 2>&1 | grep result'
		ls /run/nspawnd-lab
		ls -d /sys/fs/cgroup/*/
	`, map[string]string{"/usr/local/bin/lab": lab})
	if result.Status != 0 {
		t.Fatalf("status %d\n%s%s", result.Status, result.Stdout, result.Stderr)
	}
	for _, want := range []string{"running\n", " memory ", " pids", "result: oom-kill"} {
		if !strings.Contains(result.Stdout, want) {
			t.Errorf("no %q in\n%s", want, result.Stdout)
		}
	}
	if strings.Contains(result.Stdout, cgroupPrefix) {
		t.Errorf("something is left:\n%s", result.Stdout)
	}
}
