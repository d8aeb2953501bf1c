package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// MountOptions are what of a mount differs from its source's. A new file system allows all.
type MountOptions struct {
	ReadOnly        bool // all mounts that were taken along
	Exec, SUID, Dev *bool
	Slave           bool // later mounts of the host show below it
}

// OpenMount gives a detached mount of a file or directory, with the mounts below it if it is recursive.
func OpenMount(source *os.File, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(source.Fd()), "", flags)
	if err != nil {
		return nil, &fs.PathError{Op: "binding", Path: source.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), source.Name()), nil
}

// NewFileSystem gives a detached mount of a new tmpfs, ramfs or devpts with options as mount(8) has them.
func NewFileSystem(fsType string, options []string) (*os.File, error) {
	return newMount(fsType, 0, options...)
}

// OpenOverlay gives a detached mount of a directory whose changes go to two new directories in writable.
func OpenOverlay(lower *os.File, writable string) (*os.File, error) {
	if err := makeUpper(writable, lower, false); err != nil {
		return nil, err
	}
	return newMount("overlay", 0, "lowerdir+="+fdPath(lower), "upperdir="+path.Join(writable, upperDir), "workdir="+path.Join(writable, workDir),
		"volatile", "source=nspawnd")
}

// SetMountOptions changes a detached mount.
func SetMountOptions(mount *os.File, o MountOptions) error {
	all := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if o.Slave {
		all.Propagation = unix.MS_SLAVE
	}
	if o.ReadOnly {
		all.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	top := unix.MountAttr{}
	for _, a := range []struct {
		allowed *bool
		denies  uint64
	}{{o.Exec, unix.MOUNT_ATTR_NOEXEC}, {o.SUID, unix.MOUNT_ATTR_NOSUID}, {o.Dev, unix.MOUNT_ATTR_NODEV}} {
		switch {
		case a.allowed == nil:
		case *a.allowed:
			top.Attr_clr |= a.denies
		default:
			top.Attr_set |= a.denies
		}
	}
	err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &all)
	if err == nil && top.Attr_set|top.Attr_clr != 0 {
		err = unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &top)
	}
	if err != nil {
		return &fs.PathError{Op: "setting mount options of", Path: mount.Name(), Err: err}
	}
	return nil
}

// Bind mounts what is open, also a namespace, on a file of the host.
func Bind(source *os.File, path string) error {
	if err := unix.Mount(fdPath(source), path, "", unix.MS_BIND, ""); err != nil {
		return &fs.PathError{Op: "mounting on", Path: path, Err: err}
	}
	return nil
}

// MountOn attaches a detached mount to a path of the tree. Symbolic links lead to what they lead to for the machine. What is not there is made,
// as a directory or, for a mount of anything else, as an empty file.
func (r *Root) MountOn(mount *os.File, name string) error {
	at, err := r.mountPoint(mount, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer at.Close()
	err = unix.MoveMount(int(mount.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return &fs.PathError{Op: "mounting on", Path: name, Err: err}
	}
	return nil
}

func (r *Root) mountPoint(mount *os.File, name string) (*os.File, error) {
	info, err := mount.Stat()
	if err != nil {
		return nil, err
	}
	if err := r.MakeMountPoint(name, info.IsDir()); err != nil {
		return nil, err
	}
	at, err := r.openPath(name, 0)
	if err != nil {
		return nil, err
	}
	// What the manager mounts later would hide it, or is taken from there.
	inside, err := r.pathOf(at)
	for _, own := range []string{"/dev", "/proc", "/sys"} {
		if inside == "/" || inside == own || strings.HasPrefix(inside, own+"/") {
			err = fmt.Errorf("leads to the machine's own %s", inside)
		}
	}
	if there, statErr := at.Stat(); err == nil && statErr == nil && there.IsDir() != info.IsDir() {
		err = errors.New("is a directory in the image, and what is mounted there is not")
	}
	if err != nil {
		at.Close()
		return nil, err
	}
	return at, nil
}

// pathOf gives the path in the tree that a handle is for.
func (r *Root) pathOf(handle *os.File) (string, error) {
	link, err := os.Readlink(fdPath(handle))
	root, rootErr := os.Readlink(fdPath(r.dir))
	return path.Join("/", strings.TrimPrefix(link, strings.TrimSuffix(root, "/"))), errors.Join(err, rootErr)
}

// MakeMountPoint makes a directory or an empty file, unless there is something.
func (r *Root) MakeMountPoint(name string, directory bool) (err error) {
	if directory {
		err = r.MkdirAll(name, 0o755, 0, 0)
	} else {
		err = r.makeFile(name)
	}
	if errors.Is(err, fs.ErrExist) {
		err = errors.New("a symbolic link to nothing is in its way")
	}
	return err
}

// makeFile makes an empty file, unless there is something.
func (r *Root) makeFile(name string) error {
	if _, err := r.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.MkdirAll(path.Dir(name), 0o755, 0, 0); err != nil {
		return err
	}
	f, err := r.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// Chown gives all that is in a mount to a user, without following a symbolic link. What is the user's already is not touched.
func Chown(mount *os.File, uid, gid uint32) error {
	info, err := mount.Stat()
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return os.Chown(fdPath(mount), int(uid), int(gid))
	}
	root, err := os.OpenRoot(fdPath(mount))
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid == uid && stat.Gid == gid {
			return nil
		}
		return root.Lchown(name, int(uid), int(gid))
	})
}

// HasContent says whether a directory of the tree is there and not empty.
func (r *Root) HasContent(name string) bool {
	dir, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer dir.Close()
	return !isEmpty(dir)
}

// OpenDirectory opens a directory of the tree.
func (r *Root) OpenDirectory(name string) (*os.File, error) {
	return r.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// OpenPath gives a handle on a file of any kind in the tree.
func (r *Root) OpenPath(name string) (*os.File, error) { return r.openPath(name, 0) }
