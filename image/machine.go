package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machines is the directory in which each machine has one of its own.
func (s *Store) Machines() string { return filepath.Join(s.root, "machines") }

// NewMachine makes a new directory for a machine's writable layer. The directory comes open and locked (flock): as long as
// that holds, nobody takes it for abandoned.
func (s *Store) NewMachine(name string) (*os.File, error) {
	unlock, err := s.lockMachines()
	if err != nil {
		return nil, err
	}
	defer unlock()
	path, err := os.MkdirTemp(s.Machines(), name+".")
	if err != nil {
		return nil, fmt.Errorf("making a directory for machine %s: %w", name, err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return dir, nil
}

// A machine that is kept has a directory of its name and keptSuffix, and is one from when that has its options until it has them no more.
const (
	keptSuffix  = ".kept"
	keptOptions = "options.json"
)

// Kept is what it takes to start a kept machine again: nspawnd-run's command line, and where it was called.
type Kept struct {
	Args      []string `json:"args"`
	Env       []string `json:"env"`
	Directory string   `json:"directory"`

	Since time.Time `json:"-"` // it has had its name
}

// KeptDir is the directory of a kept machine.
func (s *Store) KeptDir(name string) string { return filepath.Join(s.Machines(), name+keptSuffix) }

// IsKept says whether a directory is a kept machine's.
func IsKept(dir string) bool {
	if !strings.HasSuffix(dir, keptSuffix) {
		return false
	}
	_, err := os.Lstat(filepath.Join(dir, keptOptions))
	return err == nil
}

// KeepMachine makes the directory of a machine that is to be kept, or opens that of one that is. It comes open and locked, as with [Store.NewMachine].
func (s *Store) KeepMachine(name string, again bool) (*os.File, error) {
	unlock, err := s.lockMachines()
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := s.KeptDir(name)
	if !again {
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, fmt.Errorf("making a directory for machine %s: %w", name, err)
		}
	}
	dir, err := os.Open(path)
	if err == nil && again && !IsKept(path) {
		err = ErrNotFound
	}
	if err == nil {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("it is being started or removed")
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("kept machine %s: %w", name, err)
	}
	return dir, nil
}

// Keep makes the machine of a directory a kept one.
func (k Kept) Keep(dir string) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, keptOptions+".new")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temporary, filepath.Join(dir, keptOptions))
	}
	return errors.Join(err, syncDir(dir), syncDir(filepath.Dir(dir)))
}

// KeptMachine gives a kept machine's options and the image that it runs on.
func (s *Store) KeptMachine(name string) (Kept, *Image, error) {
	var k Kept
	dir := s.KeptDir(name)
	data, err := os.ReadFile(filepath.Join(dir, keptOptions))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil, fmt.Errorf("there is no kept machine %s", name)
	}
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if info, statErr := os.Stat(filepath.Join(dir, keptOptions)); statErr == nil {
		k.Since = info.ModTime()
	}
	var img *Image
	if err == nil {
		img, err = readRecord(filepath.Join(dir, machineImageFile(0)))
	}
	if err != nil {
		return k, nil, fmt.Errorf("kept machine %s: %w", name, err)
	}
	return k, img, nil
}

// RunningMachine gives the directory of a machine that runs, and the image that it runs on. owned says whether a directory is in use.
func (s *Store) RunningMachine(name string, owned func(dir string) bool) (dir string, img *Image, err error) {
	entries, err := readDir(s.Machines())
	for _, entry := range entries {
		dir := filepath.Join(s.Machines(), entry.Name())
		if strings.TrimSuffix(entry.Name(), filepath.Ext(entry.Name())) == name && owned(dir) {
			img, err := readRecord(filepath.Join(dir, machineImageFile(0)))
			return dir, img, err
		}
	}
	if err == nil {
		err = ErrNotFound
	}
	return "", nil, fmt.Errorf("directory of machine %s: %w", name, err)
}

// KeptMachines gives the names of the machines that are kept.
func (s *Store) KeptMachines() (names []string, err error) {
	entries, err := readDir(s.Machines())
	for _, entry := range entries {
		if IsKept(filepath.Join(s.Machines(), entry.Name())) {
			names = append(names, strings.TrimSuffix(entry.Name(), keptSuffix))
		}
	}
	return names, err
}

// Forget makes a machine one that is not kept.
func Forget(dir string) error {
	err := os.Remove(filepath.Join(dir, keptOptions))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveKept removes a kept machine, which does not run, by its directory from [Store.KeepMachine]: from the first step on it is none.
func RemoveKept(dir *os.File, discard func(dir string)) error {
	if err := errors.Join(Forget(dir.Name()), syncDir(dir.Name())); err != nil {
		return fmt.Errorf("removing %s: %w", dir.Name(), err)
	}
	discard(dir.Name())
	return nil
}

// RenameKept gives a kept machine, which does not run, a name that no kept machine has, by its directory from [Store.KeepMachine].
func (s *Store) RenameKept(dir *os.File, name string) error {
	now := time.Now()
	if err := os.Chtimes(filepath.Join(dir.Name(), keptOptions), now, now); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, dir.Name(), unix.AT_FDCWD, s.KeptDir(name), unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("there is a kept machine %s already", name)
	}
	if err = errors.Join(err, syncDir(s.Machines())); err != nil {
		return fmt.Errorf("renaming %s to %s: %w", dir.Name(), s.KeptDir(name), err)
	}
	return nil
}

// machineImages match files in a machine's directory: the records of the image that it runs on, and of others that it has mounted, which keep
// the layers.
const machineImages = "image*.json"

// machineImageFile is the name of the file for a machine's own image, and from 1 on for others.
func machineImageFile(n int) string {
	return strings.Replace(machineImages, "*", strings.Repeat("+", n), 1)
}

func claims(dir string, img *Image) bool {
	files, _ := filepath.Glob(filepath.Join(dir, machineImages))
	return slices.ContainsFunc(files, func(path string) bool {
		claimed, err := readRecord(path)
		return err == nil && claimed.ManifestDigest == img.ManifestDigest && slices.Equal(claimed.Layers, img.Layers)
	})
}

// Claim keeps the layers and blobs of img for the machine with the directory dir, for as long as that is there. It takes no
// lock: who removes layers looks at the machines after the records, and what is linked here was a record then. The error is
// [ErrChanged] if img is not what is stored under its name any more.
func (s *Store) Claim(img *Image, dir string) error {
	if IsKept(dir) && claims(dir, img) { // since it was started first
		return nil
	}
	var path string
	err := fs.ErrExist
	for n := 0; errors.Is(err, fs.ErrExist); n++ {
		path = filepath.Join(dir, machineImageFile(n))
		err = os.Link(s.RecordPath(img.Reference), path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrChanged
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Reference, err)
	}
	claimed, err := readRecord(path)
	if err == nil && (claimed.ManifestDigest != img.ManifestDigest || !slices.Equal(claimed.Layers, img.Layers)) {
		err = ErrChanged
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("image %s: %w", img.Reference, err)
	}
	return nil
}

// machineUse is a machine and the image that it runs on.
type machineUse struct {
	machine string
	image   *Image
}

func (s *Store) machineUses() ([]machineUse, error) {
	var uses []machineUse
	entries, err := readDir(s.Machines())
	for _, entry := range entries {
		records, _ := filepath.Glob(filepath.Join(s.Machines(), entry.Name(), machineImages))
		for _, record := range records {
			img, err := readRecord(record)
			if errors.Is(err, ErrNotFound) {
				continue // going
			}
			name := strings.TrimSuffix(entry.Name(), filepath.Ext(entry.Name()))
			if err != nil {
				return nil, fmt.Errorf("machine %s: %w; it has to end first: machinectl-lite terminate %s", name, err, name)
			}
			uses = append(uses, machineUse{name, img})
		}
	}
	return uses, err
}

// SweepMachines removes the directories of machines whose client was killed before a unit took them over: those that nobody
// holds locked and that owned says no unit has. discard removes one; of a machine that is
// kept, what there is beside the directory.
func (s *Store) SweepMachines(owned func(dir string) bool, discard func(dir string)) error {
	if entries, err := readDir(s.Machines()); len(entries) == 0 {
		return err
	}
	unlock, err := s.lockMachines()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(s.Machines())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(s.Machines(), entry.Name())
		if !entry.IsDir() || owned(path) {
			continue
		}
		dir, err := os.Open(path)
		if err != nil {
			continue
		}
		// In this order: a client lets go of the lock when the unit is there.
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && !owned(path) {
			discard(path)
		}
		dir.Close()
	}
	return nil
}

// lockMachines keeps a directory that was made and is not locked yet from being taken for abandoned.
func (s *Store) lockMachines() (unlock func(), err error) {
	if err := os.MkdirAll(s.Machines(), 0o700); err != nil {
		return nil, err
	}
	dir, err := LockDirectory(s.Machines())
	if err != nil {
		return nil, err
	}
	return func() { dir.Close() }, nil
}

// LockDirectory waits for a directory's lock (flock(2)), which is held until the directory is closed.
func LockDirectory(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return dir, nil
}
