package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

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
	var mount *os.File
	var err error
	if KernelAtLeast(6, 15) {
		mount, err = s.mount(img, writable, nil)
	} else {
		mount, err = s.mountAttached(img, writable)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: mounting: %w", img.Reference, err)
	}
	return mount, nil
}

// mountAttached is mount for kernels where overlayfs takes no detached layers: they are attached in a mount namespace that
// nobody else sees and that ends with its thread. overlayfs has its own hold on them by then.
func (s *Store) mountAttached(img *Image, writable string) (mount *os.File, err error) {
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		mount, err = s.mount(img, writable, func(layer *os.File) error { return Attach(layer, s.path("tmp")) })
	})
	return mount, err
}

// onThread runs f on a thread that ends with it. That can't be the process's first thread, which stays as long as the process and is what
// /proc/self shows.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread must not run anything else
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(f) // while this one is taken
			return
		}
		f()
	}()
	<-done
}

func (s *Store) mount(img *Image, writable string, attach func(*os.File) error) (mount *os.File, err error) {
	var lowers []*os.File // base first
	defer func() {
		for _, lower := range lowers {
			lower.Close()
		}
	}()
	var root *os.File // the layer that has the root directory's attributes
	for _, i := range img.shown() {
		diffID := img.Layers[i]
		dir := s.layerDir(diffID)
		lower, err := backendOf(dir).lower(dir, attach)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", diffID, err)
		}
		lowers = append(lowers, lower)
		if i == img.RootLayer {
			root = lower
		}
	}
	var upper string
	if writable != "" {
		if upper, err = makeUpper(writable, root); err != nil {
			return nil, err
		}
	}
	// Without an upper directory overlayfs wants two lower ones, and the uppermost shows as the root.
	missing := max(0, 1-len(lowers))
	if upper == "" {
		missing = max(1, 2-len(lowers))
	}
	for range missing {
		empty, err := newMount("tmpfs", unix.MOUNT_ATTR_NODEV, "size=4k")
		if err != nil {
			return nil, err
		}
		lowers = append(lowers, empty)
		if err := copyAttributes(root, empty); err != nil {
			return nil, err
		}
		if attach != nil {
			if err := attach(empty); err != nil {
				return nil, err
			}
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
	for i := len(lowers) - 1; i >= 0; i-- {
		options = append(options, "lowerdir+="+fdPath(lowers[i]))
	}
	attributes := unix.MOUNT_ATTR_NODEV
	if upper == "" {
		attributes |= unix.MOUNT_ATTR_RDONLY
	} else {
		options = append(options, "upperdir="+upper, "workdir="+filepath.Join(writable, "work"))
		if !strings.HasSuffix(writable, keptSuffix) {
			options = append(options, "volatile")
		}
	}
	mount, err = newMount("overlay", attributes, options...)
	runtime.KeepAlive(lowers)
	return mount, err
}

// makeUpper makes overlayfs's two directories in writable. The upper one gets the attributes of the image's root: it is
// what shows as the root.
func makeUpper(writable string, root *os.File) (string, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(writable, &stat); err != nil {
		return "", &fs.PathError{Op: "statfs", Path: writable, Err: err}
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "", fmt.Errorf("%s is on an overlay, which can't be the writable layer of another", writable)
	}
	upper := filepath.Join(writable, "upper")
	if IsKept(writable) {
		return upper, nil
	}
	if err := os.Mkdir(filepath.Join(writable, "work"), 0o700); err != nil {
		return "", err
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		return "", err
	}
	dir, err := os.Open(upper)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	return upper, copyAttributes(root, dir)
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
