package vm

import (
	"strings"
	"testing"
)

// The oldest kernel that we run on is Debian 13's 6.12: there overlayfs takes no detached layers, and EROFS from files is new.
func TestImageOnOldestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	tests := imageTests(t)
	result := VM(t, Trixie, `
		uname -r
		modprobe -a overlay erofs
		cd /root
		/image.test -test.short -test.v -test.run 'Same|Mount|Sparse' # what the kernel has a part in
	`, map[string]string{"/image.test": tests})
	t.Logf("%s\n%s", result.Stdout, result.Stderr)
	if result.Status != 0 || !strings.HasPrefix(result.Stdout, "6.12.") || strings.Contains(result.Stdout, "SKIP: TestSameTree") || strings.Contains(result.Stdout, "SKIP: TestMount") {
		t.Errorf("status %d", result.Status)
	}
}
