package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a mounted image tree. It is reached through its descriptor alone: absolute paths and symbolic links stay
// inside (openat2(2), RESOLVE_IN_ROOT), and only regular files and directories are ever opened, so that no device and
// no FIFO of a stranger's is touched.
type Root struct{ dir *os.File }

// NewRoot returns the tree below dir, which stays the caller's to close.
func NewRoot(dir *os.File) *Root { return &Root{dir} }

// openPath gives a handle on what path leads to, without opening it.
func (r *Root) openPath(name string, flags uint64) (*os.File, error) {
	return r.open(name, unix.O_PATH|flags, 0)
}

func (r *Root) open(name string, flags uint64, mode fs.FileMode) (*os.File, error) {
	f, err := r.openHow(name, &unix.OpenHow{Flags: flags, Mode: uint64(mode.Perm()), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

func (r *Root) openHow(name string, how *unix.OpenHow) (*os.File, error) {
	how.Flags |= unix.O_CLOEXEC
	// With a Resolve that keeps it inside the kernel gives up with EAGAIN when something was renamed meanwhile.
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// Directory gives a handle on a directory that has no symbolic link in its path: one that means the same to somebody who reads
// the path on the host, below the root.
func (r *Root) Directory(name string) (*os.File, error) {
	dir, err := r.openHow(strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, fmt.Errorf("%s in the image: %w", name, err)
	}
	return dir, nil
}

// MountTerminals mounts a new devpts instance on a directory of the tree, with podman's mount options, and gives the mount. Terminals are for a group.
func (r *Root) MountTerminals(name string, group uint32) (*os.File, error) {
	terminals, err := newMount("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode=620", fmt.Sprintf("gid=%d", group), "ptmxmode=666")
	if err != nil {
		return nil, err
	}
	at, err := r.Directory(name)
	if err != nil {
		terminals.Close()
		return nil, err
	}
	defer at.Close()
	err = unix.MoveMount(int(terminals.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		terminals.Close()
		return nil, fmt.Errorf("mounting devpts: %w", err)
	}
	return terminals, nil
}

// reopenRegular opens the file that a handle of openPath is for, if it is a regular one.
func reopenRegular(handle *os.File, flags int) (*os.File, error) {
	info, err := handle.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: handle.Name(), Err: errors.New("not a regular file")}
	}
	fd, err := unix.Open(fdPath(handle), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: handle.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), handle.Name()), nil
}

// ReadFile returns the content of a regular file of at most limit bytes.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	handle, err := r.openPath(name, 0)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	f, err := reopenRegular(handle, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return data, err
}

// WriteFile creates or overwrites a regular file. Symbolic links are followed inside the root, also one that leads to a
// file which is not there yet. What can't be written to (a link to nowhere, a loop, a FIFO, a device) is replaced.
func (r *Root) WriteFile(name string, data []byte, mode fs.FileMode) error {
	var f *os.File
	handle, err := r.openPath(name, 0)
	switch {
	case err == nil:
		defer handle.Close()
		f, err = reopenRegular(handle, unix.O_WRONLY|unix.O_TRUNC)
	case errors.Is(err, fs.ErrNotExist):
		// Whatever appears here meanwhile: a FIFO doesn't block and a device is not opened on a nodev mount.
		f, err = r.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, mode)
	}
	if err != nil {
		f, err = r.replaceFile(name, mode, err)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// ReplaceFile makes a regular file in place of what is there under the name, without following a symbolic link at its end.
func (r *Root) ReplaceFile(name string, data []byte, mode fs.FileMode) error {
	f, err := r.replaceFile(name, mode, &fs.PathError{Op: "replace", Path: name, Err: errors.New("can't be replaced")})
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// replaceFile removes what is there under a name, itself and not what it leads to, and opens a new file for writing. cause is why
// it is needed, and the error if it fails.
func (r *Root) replaceFile(name string, mode fs.FileMode, cause error) (*os.File, error) {
	dir, err := r.openPath(path.Dir(path.Clean("/"+name)), unix.O_DIRECTORY)
	if err != nil {
		return nil, cause
	}
	defer dir.Close()
	base := path.Base(name)
	if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, cause
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return nil, cause
	}
	return os.NewFile(uintptr(fd), name), nil
}

// MkdirAll makes path and its missing parents; those that it makes have mode and belong to uid and gid. What is there
// already stays as it is.
func (r *Root) MkdirAll(name string, mode fs.FileMode, uid, gid uint32) error {
	name = path.Clean("/" + name)
	dir, err := r.openPath(name, unix.O_DIRECTORY)
	if err == nil {
		return dir.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parentName, base := path.Split(name)
	if err := r.MkdirAll(parentName, mode, uid, gid); err != nil {
		return err
	}
	parent, err := r.openPath(parentName, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), base, uint32(mode.Perm())); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	made, err := NewRoot(parent).openPath(base, unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer made.Close()
	if err := unix.Chown(fdPath(made), int(uid), int(gid)); err != nil {
		return &fs.PathError{Op: "chown", Path: name, Err: err}
	}
	if err := unix.Chmod(fdPath(made), uint32(mode.Perm())); err != nil { // the umask had its say in mkdir
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

// maxEntries bounds what List returns.
const maxEntries = 1000

// List gives what is in a directory.
func (r *Root) List(name string) ([]fs.FileInfo, error) {
	dir, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.Readdir(maxEntries)
	if err == io.EOF {
		err = nil
	}
	if len(entries) == maxEntries {
		err = &fs.PathError{Op: "list", Path: name, Err: fmt.Errorf("%d entries or more", maxEntries)}
	}
	return entries, err
}

// Stat follows symbolic links.
func (r *Root) Stat(name string) (fs.FileInfo, error) {
	handle, err := r.openPath(name, 0)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	return handle.Stat()
}
