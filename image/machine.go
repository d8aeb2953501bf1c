package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// machineImages match files in a machine's directory: the records of the image that it runs on, and of others that it has mounted, which keep
// the layers.
const machineImages = "image*.json"

// Claim keeps the layers and blobs of img for the machine with the directory dir, for as long as that is there. It takes no
// lock: who removes layers looks at the machines after the records, and what is linked here was a record then. The error is
// [ErrChanged] if img is not what is stored under its name any more.
func (s *Store) Claim(img *Image, dir string) error {
	var path string
	err := fs.ErrExist
	for n := 0; errors.Is(err, fs.ErrExist); n++ {
		path = filepath.Join(dir, strings.Replace(machineImages, "*", strings.Repeat("+", n), 1))
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
// holds locked and that owned says no unit has. discard removes one.
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
	dir, err := os.Open(s.Machines())
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", dir.Name(), err)
	}
	return func() { dir.Close() }, nil
}
