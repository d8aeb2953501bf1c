// Package machinedir tells whose a machine's directory in the store is, and removes one that is nobody's.
package machinedir

import (
	"os"
	"path/filepath"
	"strings"

	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// HasUnit says whether a companion unit owns a machine's directory. The manager keeps the text of transient units in files as
// long as they are loaded; to look is cheaper than to ask for each machine.
func HasUnit(dir string) bool {
	text, err := os.ReadFile("/run/systemd/transient/" + units.CompanionName(Name(dir)))
	return err == nil && strings.Contains(string(text), "/"+filepath.Base(dir))
}

// Name is that of the machine.
func Name(dir string) string {
	base := filepath.Base(dir)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

// MountPath is where the root of a machine with this directory is mounted, when that has to be on the host.
func MountPath(dir string) string { return filepath.Join("/run/nspawnd", filepath.Base(dir)) }

// Discard removes a machine's mount, if it has one, and its directory. What can't be removed now the next sweep finds.
func Discard(dir string) {
	_ = unix.Unmount(MountPath(dir), unix.MNT_DETACH)
	_ = os.Remove(MountPath(dir))
	_ = os.RemoveAll(dir)
}
