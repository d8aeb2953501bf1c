package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Volume is a named directory that outlives machines.
type Volume struct {
	Name    string
	Path    string
	Created time.Time
	Users   []string // names of the machines that have it
}

// ErrVolumeExists says that a volume's name is taken.
var ErrVolumeExists = errors.New("is there already")

// machineVolumes is a directory in a machine's: an empty file for each volume that the machine has, with the volume's name.
const machineVolumes = "volumes"

// VolumePath is where the volume of a name is, or would be.
func (s *Store) VolumePath(name string) string { return s.path("volumes", name) }

// Volumes returns all volumes by name.
func (s *Store) Volumes() ([]Volume, error) {
	entries, err := readDir(s.path("volumes"))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	users, err := s.volumeUsers()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var volumes []Volume
	for _, entry := range entries {
		v := Volume{Name: entry.Name(), Path: s.VolumePath(entry.Name()), Users: users[entry.Name()]}
		var stat unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, v.Path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &stat) != nil {
			continue // gone
		}
		if stat.Mask&unix.STATX_BTIME != 0 {
			v.Created = time.Unix(stat.Btime.Sec, int64(stat.Btime.Nsec))
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// CreateVolume makes an empty volume; the error is [ErrVolumeExists] if there is one of the name.
func (s *Store) CreateVolume(ctx context.Context, name string) error {
	unlock, err := s.lockVolumes(ctx)
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	defer unlock()
	err = os.Mkdir(s.VolumePath(name), 0o755)
	if errors.Is(err, fs.ErrExist) {
		err = ErrVolumeExists
	}
	if err == nil {
		err = syncDir(s.path("volumes"))
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	return nil
}

// UseVolume opens a volume for the machine with the directory machine, and keeps it as long as that is there. A volume that is not there is
// made, for the user with these ids. One that is empty and that no other machine has gets a copy of what is in the directory content, if that is not
// nil, and its attributes: all of it or, after a crash, nothing.
func (s *Store) UseVolume(ctx context.Context, name, machine string, content *os.File, uid, gid uint32) (*os.File, error) {
	dir, err := s.useVolume(ctx, name, machine, content, uid, gid)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	return dir, nil
}

func (s *Store) useVolume(ctx context.Context, name, machine string, content *os.File, uid, gid uint32) (*os.File, error) {
	var filled string // a copy of content
	if content != nil && s.fillable(name, content) {
		if err := os.MkdirAll(s.path("tmp"), 0o700); err != nil {
			return nil, err
		}
		// Of several that fill it at the same time one does, and the others wait.
		lock, err := lockDir(ctx, s.path("tmp", "volume-"+name))
		if err != nil {
			return nil, err
		}
		defer lock.Close()
		defer os.RemoveAll(lock.Name())
		if s.fillable(name, content) {
			if err := removeContent(lock.Name()); err != nil { // of one that was killed
				return nil, err
			}
			filled = filepath.Join(lock.Name(), "content")
			if err := fill(ctx, filled, content, lock); err != nil {
				return nil, err
			}
		}
	}
	unlock, err := s.lockVolumes(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	users, err := s.volumeUsers()
	if err != nil {
		return nil, err
	}
	path := s.VolumePath(name)
	if filled != "" && len(users[name]) == 0 {
		// It replaces an empty directory, and only that; os.Rename would not.
		if err := unix.Rename(filled, path); err != nil && err != unix.ENOTEMPTY && err != unix.EEXIST {
			return nil, err
		}
	}
	switch err := os.Mkdir(path, 0o755); {
	case err == nil:
		if err := os.Chown(path, int(uid), int(gid)); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	if err := syncDir(s.path("volumes")); err != nil {
		return nil, err
	}
	mark := filepath.Join(machine, machineVolumes, name)
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// fillable says whether a volume is not there, or empty while content is not.
func (s *Store) fillable(name string, content *os.File) bool {
	dir, err := os.Open(s.VolumePath(name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer dir.Close()
	return isEmpty(dir) && !isEmpty(content)
}

// isEmpty says whether there is nothing in a directory, or it can't be read.
func isEmpty(dir *os.File) bool {
	entries, _ := os.ReadDir(fdPath(dir))
	return len(entries) == 0
}

// CopyTree copies what is in a directory, and the directory's attributes, into another one. held stays open as long as the copying goes on, also when
// we are killed.
func CopyTree(ctx context.Context, from, to *os.File, held ...*os.File) error {
	files := held
	for _, f := range []*os.File{to, from} {
		dir, err := os.Open(fdPath(f))
		if err != nil {
			return err
		}
		defer dir.Close()
		files = slices.Insert(files, 0, dir)
	}
	cp := exec.CommandContext(ctx, "cp", "--archive", "--", "/proc/self/fd/3/.", "/proc/self/fd/4/")
	cp.ExtraFiles = files
	cp.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	if output, err := cp.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(string(output), "\n")
		return fmt.Errorf("copying what the image has there: %w (%s)", err, first)
	}
	return nil
}

// fill makes a directory that has a copy of what is in content, on disk when it returns.
func fill(ctx context.Context, path string, content, lock *os.File) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := CopyTree(ctx, content, dir, lock); err != nil {
		return err
	}
	return unix.Syncfs(int(dir.Fd()))
}

// RemoveVolumes removes volumes with all that is in them, each unless a machine has it. What went wrong with one comes as an error of its own.
func (s *Store) RemoveVolumes(ctx context.Context, names []string) (removed []Removed, errs []error) {
	for _, name := range names {
		size, err := s.removeVolume(ctx, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
			continue
		}
		removed = append(removed, Removed{"volume", name, size})
	}
	return removed, errs
}

func (s *Store) removeVolume(ctx context.Context, name string) (size int64, err error) {
	if _, err := os.Lstat(s.VolumePath(name)); errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNotFound
	}
	unlock, err := s.lockVolumes(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	users, err := s.volumeUsers()
	if err != nil {
		return 0, err
	}
	if of := users[name]; len(of) > 0 {
		return 0, s.inUse("has", of[0])
	}
	if err := os.MkdirAll(s.path("tmp"), 0o700); err != nil {
		return 0, err
	}
	trash := s.path("tmp", "trash-"+rand.Text())
	if err := os.Rename(s.VolumePath(name), trash); errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNotFound
	} else if err != nil {
		return 0, err
	}
	// Or a power cut may bring back half a volume under its name.
	if err := syncDir(s.path("volumes")); err != nil {
		return 0, err
	}
	unlock()
	size = DiskUsage(trash)
	return size, os.RemoveAll(trash)
}

// volumeUsers returns the machines that have a volume, by its name.
func (s *Store) volumeUsers() (map[string][]string, error) {
	users := map[string][]string{}
	machines, err := readDir(s.Machines())
	for _, machine := range machines {
		marks, err := readDir(filepath.Join(s.Machines(), machine.Name(), machineVolumes))
		if err != nil {
			return nil, err
		}
		for _, mark := range marks {
			users[mark.Name()] = append(users[mark.Name()], strings.TrimSuffix(machine.Name(), filepath.Ext(machine.Name())))
		}
	}
	for _, names := range users {
		slices.Sort(names)
	}
	return users, err
}

// lockVolumes keeps volumes from being made, removed or taken by a machine. It is never held while something is copied.
func (s *Store) lockVolumes(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.path("volumes"), 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(s.path("volumes"))
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, dir, unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil
}
