package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"nspawnd/internal/thread"

	"golang.org/x/sys/unix"
)

// Mount returns a detached mount of img: an overlay over its layers that no path shows and that the kernel frees with
// its last user. Changes go to writable, a directory (not on an overlay) in which upper/ and work/ are made; if it is
// "", the mount is read-only. The mount is nodev; setuid and file capabilities work as the image has them.
//
// Changes are for the life of a machine, not beyond: the overlay is volatile, so that neither fsync(2) in a machine nor its end
// waits for the disk below (the end would write out all that the host has to write there). After a crash what is in
// writable is worth nothing. A machine that is kept has its changes on disk, as far as that can be known.
func (s *Store) Mount(img *Image, writable string) (*os.File, error) {
	return s.MountFor(img, writable, nil)
}

// MountFor is Mount for the ids of a user namespace: all in the mount belongs to the ids that the namespace has for those in the image. On disk,
// writable has the image's. Nobody but these ids can make files in it. users is nil for the host's own.
func (s *Store) MountFor(img *Image, writable string, users *Users) (mount *os.File, err error) {
	switch {
	case !KernelAtLeast(6, 15):
		mount, err = s.mountAttached(img, "", writable, users)
	case users != nil:
		thread.Run(func() { mount, err = s.mount(img, "", writable, users, nil) })
	default:
		mount, err = s.mount(img, "", writable, nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: mounting: %w", img.Reference, err)
	}
	return mount, nil
}

// mountMachine returns a detached, read-only mount of what the machine with the directory dir sees of img and has written itself. The machine may run:
// overlayfs takes its upper directory as a lower one beside it.
func (s *Store) mountMachine(img *Image, dir string) (mount *os.File, err error) {
	upper := filepath.Join(dir, upperDir)
	if KernelAtLeast(6, 15) {
		mount, err = s.mount(img, upper, "", nil, nil)
	} else {
		mount, err = s.mountAttached(img, upper, "", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: mounting: %w", dir, err)
	}
	return mount, nil
}

// mountAttached is mount for kernels where overlayfs takes no detached layers: they are attached in a mount namespace that
// nobody else sees and that ends with its thread. overlayfs has its own hold on them by then.
func (s *Store) mountAttached(img *Image, top, writable string, users *Users) (mount *os.File, err error) {
	thread.Run(func() {
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		mount, err = s.mount(img, top, writable, users, func(layer *os.File) error { return Attach(layer, s.path("tmp")) })
	})
	return mount, err
}

// overlayLayer is a directory that overlayfs is made of.
type overlayLayer struct {
	dir      *os.File
	detached bool // it is a mount
}

// prepare gives a layer the ids of a namespace, which makes it a mount of its own, and has mounts attached.
func (l *overlayLayer) prepare(users *Users, attach func(*os.File) error) error {
	if users != nil {
		if !l.detached {
			mount, err := OpenMount(l.dir, false)
			if err != nil {
				return err
			}
			l.dir.Close()
			l.dir, l.detached = mount, true
		}
		if err := users.Map(l.dir); err != nil {
			return err
		}
	}
	if l.detached && attach != nil {
		return attach(l.dir)
	}
	return nil
}

// mount makes the overlay; top, if it is not "", is a directory that lies above the image's layers. With users, its thread can't be used for anything else afterwards.
func (s *Store) mount(img *Image, top, writable string, users *Users, attach func(*os.File) error) (mount *os.File, err error) {
	var layers []overlayLayer // base first
	defer func() {
		for _, l := range layers {
			l.dir.Close()
		}
	}()
	var root *os.File // the layer that has the root directory's attributes
	for _, i := range img.shown() {
		diffID := img.Layers[i]
		dir := s.layerDir(diffID)
		lower, detached, err := backendOf(dir).lower(dir)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", diffID, err)
		}
		layers = append(layers, overlayLayer{lower, detached})
		if i == img.RootLayer {
			root = lower
		}
	}
	if top != "" {
		dir, err := os.Open(top)
		if err != nil {
			return nil, err
		}
		layers = append(layers, overlayLayer{dir: dir})
		root = dir
	}
	if writable != "" {
		if err := makeUpper(writable, root, users != nil); err != nil {
			return nil, err
		}
	}
	// Without an upper directory overlayfs wants two lower ones, and the uppermost shows as the root.
	missing := max(0, 1-len(layers))
	if writable == "" {
		missing = max(1, 2-len(layers))
	}
	for range missing {
		empty, err := newMount("tmpfs", unix.MOUNT_ATTR_NODEV, "size=4k")
		if err != nil {
			return nil, err
		}
		layers = append(layers, overlayLayer{empty, true})
		if err := copyAttributes(root, empty); err != nil {
			return nil, err
		}
	}
	options := []string{
		// The layers' tars were searched for overlayfs's attributes; this says it to the kernel too.
		"redirect_dir=nofollow", "metacopy=off", "index=off",
		// Each layer is a file system of its own, so files of two layers differ in st_dev. xino=on would give them all one, and
		// inode numbers beyond 2^63 that 32-bit programs can't stat and JavaScript can't tell apart.
		"xino=off",
		"source=nspawnd",
	}
	for i := len(layers) - 1; i >= 0; i-- {
		if err := layers[i].prepare(users, attach); err != nil {
			return nil, err
		}
		options = append(options, "lowerdir+="+fdPath(layers[i].dir))
	}
	attributes := unix.MOUNT_ATTR_NODEV
	if writable == "" {
		attributes |= unix.MOUNT_ATTR_RDONLY
	} else {
		path := writable
		if users != nil {
			dir, err := os.Open(writable)
			if err != nil {
				return nil, err
			}
			layers = append(layers, overlayLayer{dir: dir})
			upper := &layers[len(layers)-1]
			if err := upper.prepare(users, attach); err != nil {
				return nil, err
			}
			path = fdPath(upper.dir)
		}
		options = append(options, "upperdir="+filepath.Join(path, upperDir), "workdir="+filepath.Join(path, workDir))
		if !strings.HasSuffix(writable, keptSuffix) {
			options = append(options, "volatile")
		}
	}
	if users != nil { // overlayfs makes its own files, such as whiteouts, as who mounts it
		if err := users.becomeRoot(); err != nil {
			return nil, err
		}
	}
	mount, err = newMount("overlay", attributes, options...)
	runtime.KeepAlive(layers)
	return mount, err
}

// The directories of overlayfs in a writable one.
const (
	upperDir = "upper"
	workDir  = "work"
)

// makeUpper makes overlayfs's two directories in writable. The upper one gets the attributes of the image's root: it is what shows as the root.
// It may be there from an overlay that is no longer mounted: a kept machine's, or with again any.
func makeUpper(writable string, root *os.File, again bool) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(writable, &stat); err != nil {
		return &fs.PathError{Op: "statfs", Path: writable, Err: err}
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("%s is on an overlay, which can't be the writable layer of another", writable)
	}
	if IsKept(writable) {
		return nil
	}
	upper, work := filepath.Join(writable, upperDir), filepath.Join(writable, workDir)
	if again { // a volatile overlay leaves a mark, so that it is not used again after a crash
		if err := os.RemoveAll(work); err != nil {
			return err
		}
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		if again && errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	dir, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer dir.Close()
	return copyAttributes(root, dir)
}

// copyAttributes gives one directory the owner, mode, times and extended attributes of another, or those of a root
// directory that no layer describes.
func copyAttributes(from, to *os.File) error {
	stat := unix.Stat_t{Mode: 0o755}
	path := fdPath(to)
	if from != nil {
		if err := unix.Fstat(int(from.Fd()), &stat); err != nil {
			return err
		}
		names := make([]byte, 64<<10)
		n, err := unix.Listxattr(fdPath(from), names)
		if err != nil {
			return fmt.Errorf("listing attributes: %w", err)
		}
		for name := range bytes.SplitSeq(bytes.Trim(names[:n], "\x00"), []byte{0}) {
			if n == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) || bytes.HasPrefix(name, []byte("user.overlay.")) {
				continue
			}
			value := make([]byte, 64<<10)
			n, err := unix.Getxattr(fdPath(from), string(name), value)
			if err == nil {
				err = unix.Setxattr(path, string(name), value[:n], 0)
			}
			if err != nil && err != unix.ENOTSUP { // as unpackers do
				return fmt.Errorf("attribute %q: %w", name, err)
			}
		}
	}
	if err := unix.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Chmod(path, stat.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Mtim, stat.Mtim}, 0)
}

// newMount makes a detached mount of a new file system; options are NAME=VALUE or NAME.
func newMount(fsType string, attributes int, options ...string) (*os.File, error) {
	ctx, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fsType, err)
	}
	defer unix.Close(ctx)
	for _, option := range options {
		name, value, hasValue := strings.Cut(option, "=")
		var err error
		if hasValue {
			err = unix.FsconfigSetString(ctx, name, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", fsType, option, contextError(ctx, err))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", fsType, contextError(ctx, err))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", fsType, contextError(ctx, err))
	}
	return os.NewFile(uintptr(fd), fsType), nil
}

// contextError adds what the kernel says about a failed step.
func contextError(ctx int, err error) error {
	message := make([]byte, 1024)
	n, _ := unix.Read(ctx, message)
	if n <= 2 { // "e " and the text
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(message[2:n])))
}

// Attach mounts the detached mount on the host directory path.
func Attach(mount *os.File, path string) error {
	err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &fs.PathError{Op: "mounting on", Path: path, Err: err}
	}
	return nil
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// KernelAtLeast says whether the running kernel is of this version or later; one whose version can't be read is old.
func KernelAtLeast(major, minor int) bool {
	var haveMajor, haveMinor int
	fmt.Sscanf(kernelRelease(), "%d.%d", &haveMajor, &haveMinor)
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
