package machinedir

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nspawnd/image"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// IDs are ids of the host that a machine's user namespace has.
type IDs struct{ First, Count uint32 }

// idsDir has a file for each machine with a user namespace, on which that is mounted if the manager needs it. Its name says which ids are taken, and by
// which directory of a machine.
const idsDir = "/run/nspawnd/users"

// Ranges for containers, by systemd's "Users, Groups, UIDs and GIDs on systemd Systems"; each machine has whole slots of 2^16.
const (
	slot      = 1 << 16
	firstSlot = 0x00080000 / slot
	endSlot   = 0x70000000 / slot
)

// TakeIDs takes ids for the machine with the directory, until ReleaseIDs. With choose they are as many as ids says, and nobody else's; otherwise they are
// taken as they are. A dry run takes none.
func TakeIDs(dir string, ids IDs, choose, dryRun bool) (taken IDs, file string, err error) {
	name := func() string {
		return filepath.Join(idsDir, fmt.Sprintf("%d+%d@%s", ids.First, ids.Count, filepath.Base(dir)))
	}
	if !dryRun {
		if err := os.MkdirAll(idsDir, 0o755); err != nil {
			return ids, "", err
		}
		lock, err := image.LockDirectory(idsDir)
		if err != nil {
			return ids, "", err
		}
		defer lock.Close()
		ReleaseIDs(dir) // what a client left that was killed
	}
	if choose {
		if ids.First, err = freeIDs(filepath.Base(dir), ids.Count); err != nil {
			return ids, "", err
		}
	}
	if dryRun {
		return ids, name(), nil
	}
	return ids, name(), os.WriteFile(name(), nil, 0o600)
}

// freeIDs looks for slots in a row that no machine has, neither one of nspawnd nor one that systemd-nspawn picked ids for. Where it begins to look
// depends on the name, so that a machine mostly gets the same ones again.
func freeIDs(name string, count uint32) (uint32, error) {
	var used []IDs
	files, err := os.ReadDir(idsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, f := range files {
		var ids IDs
		if _, err := fmt.Sscanf(f.Name(), "%d+%d@", &ids.First, &ids.Count); err == nil {
			used = append(used, ids)
		}
	}
	nspawns, _ := os.ReadDir("/run/systemd/nspawn-uid")
	for _, f := range nspawns {
		ids := IDs{Count: slot}
		if _, err := fmt.Sscanf(f.Name(), "%d", &ids.First); err == nil {
			used = append(used, ids)
		}
	}
	machine, _, _ := strings.Cut(name, ".")
	hash := fnv.New32a()
	hash.Write([]byte(machine))
	slots := (count + slot - 1) / slot
	choices := endSlot - firstSlot - slots + 1
	for i := range choices {
		candidate := IDs{(firstSlot + (hash.Sum32()+i)%choices) * slot, slots * slot}
		if !slices.ContainsFunc(used, func(u IDs) bool { return units.Overlap(candidate.First, candidate.Count, u.First, u.Count) }) {
			return candidate.First, nil
		}
	}
	return 0, fmt.Errorf("no %d ids in a row are free for its user namespace; machines that run have all", count)
}

// ReleaseIDs gives back what the machine with the directory has taken.
func ReleaseIDs(dir string) {
	files, _ := filepath.Glob(filepath.Join(idsDir, "*@"+filepath.Base(dir)))
	for _, file := range files {
		for unix.Unmount(file, unix.MNT_DETACH) == nil { // as often as a client that was killed had mounted it
		}
		_ = os.Remove(file)
	}
}
