package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Space is what things of one kind take in the store.
type Space struct {
	Kind     string // "images" (records, manifests, configurations, signatures), "layers", "machines", "volumes", "leftovers" (of commands)
	Count    int
	InUse    int   // images and volumes that a machine has, layers that something needs, machines that run, what a command still writes
	Size     int64 // bytes on disk
	Freeable int64 // what [Store.Clean] would free of them
}

func (s *Space) add(path string, inUse, goes bool) {
	s.Count++
	if inUse {
		s.InUse++
	}
	s.addSize(path, goes)
}

func (s *Space) addSize(path string, goes bool) {
	size := DiskUsage(path)
	s.Size += size
	if goes {
		s.Freeable += size
	}
}

// Space measures the store, and what Clean would free of it, with all or without. owned says whether a machine's directory is in use. It changes
// nothing, and what others do meanwhile may count on either side.
func (s *Store) Space(all bool, owned func(dir string) bool) ([]Space, error) {
	uses, err := s.machineUses()
	if err != nil {
		return nil, err
	}
	stored, unreadable := s.Images()
	images := Space{Kind: "images"}
	leaving := map[Reference]bool{}
	for _, img := range stored {
		used := userOf(img, uses) != ""
		leaving[img.Reference] = all && !img.ReadOnly && !used
		images.add(s.RecordPath(img.Reference), used, leaving[img.Reference])
	}
	var needed digests
	if unreadable == nil { // else clean frees none
		if needed, err = s.needed(leaving); err != nil {
			return nil, err
		}
	}
	goes := func(digest Digest) bool { return needed != nil && !needed[digest] }
	blobs, err := readDir(s.path("blobs", "sha256"))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, entry := range blobs {
		if digest, err := ParseDigest(sha256Prefix + entry.Name()); err == nil {
			images.addSize(s.path("blobs", "sha256", entry.Name()), goes(digest))
		}
	}
	layers, err := s.layersSpace(goes)
	if err != nil {
		return nil, err
	}
	machines, err := s.machinesSpace(owned)
	if err != nil {
		return nil, err
	}
	stores, err := s.Volumes()
	if err != nil {
		return nil, err
	}
	volumes := Space{Kind: "volumes"}
	for _, v := range stores {
		volumes.add(v.Path, len(v.Users) > 0, false)
	}
	leftovers := Space{Kind: "leftovers"}
	entries, err := readDir(s.path("tmp"))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, entry := range entries {
		path := s.path("tmp", entry.Name())
		written := locked(path)
		leftovers.add(path, written, !written)
	}
	return []Space{images, layers, machines, volumes, leftovers}, unreadable
}

func (s *Store) layersSpace(goes func(Digest) bool) (Space, error) {
	layers := Space{Kind: "layers"}
	entries, err := readDir(s.path("layers"))
	if err != nil {
		return layers, fmt.Errorf("store: %w", err)
	}
	for _, entry := range entries {
		if digest, ok := fromLayerName(entry.Name()); ok {
			layers.add(s.layerDir(digest), !goes(digest), goes(digest))
		}
	}
	return layers, nil
}

func (s *Store) machinesSpace(owned func(dir string) bool) (Space, error) {
	machines := Space{Kind: "machines"}
	entries, err := readDir(s.Machines())
	if err != nil {
		return machines, fmt.Errorf("store: %w", err)
	}
	if len(entries) == 0 {
		return machines, nil
	}
	runs := map[string]bool{}
	unlock, err := s.lockMachines() // or a machine that is just made would find its directory locked
	if err != nil {
		return machines, err
	}
	for _, entry := range entries {
		dir := filepath.Join(s.Machines(), entry.Name())
		runs[dir] = owned(dir) || locked(dir)
	}
	unlock()
	for dir, runs := range runs {
		machines.add(dir, runs, !runs && !IsKept(dir))
	}
	return machines, nil
}

// locked says whether somebody holds a lock (flock) on a file or directory. What is gone nobody does.
func locked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}
