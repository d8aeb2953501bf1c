package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// imageTests builds the tests of package image, to run them where there is more than on the host.
func imageTests(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.test")
	build := exec.Command("go", "test", "-c", "-o", path, "../../image")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// Through either backend, what machinectl-lite pulled shows the tree that podman and umoci give. The comparison itself is beside what it
// is about, in package image.
func TestTreesBesidePeers(t *testing.T) {
	tests, err := os.ReadFile(imageTests(t))
	if err != nil {
		t.Fatal(err)
	}
	Suites(t, func(t *testing.T, m *Machine) {
		registry := m.Registry()
		m.WriteFile("/var/tmp/image.test", tests, 0o755)
		result := m.Script("cd /var/tmp && TREES_REGISTRY=" + registry + " ./image.test -test.v -test.run TestTreesBesidePeers")
		t.Logf("%s%s", result.Stdout, result.Stderr)
		if result.Status != 0 || !strings.Contains(result.Stdout, "--- PASS: TestTreesBesidePeers") {
			t.Errorf("status %d", result.Status)
		}
	})
}
