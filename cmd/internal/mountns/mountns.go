// Package mountns keeps mounts in a mount namespace of nspawnd's own, where they are in nobody's way: systemd before 259 takes a service's root by a path of
// the host, and its executor reads the whole mount table of the host for each path that it masks, so each machine would make the next start slower. No
// process is in the namespace, a file holds it.
package mountns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nspawnd/image"
	"nspawnd/internal/thread"

	"golang.org/x/sys/unix"
)

// The directory is a private mount: what is mounted in it, as the namespace's file is, must not propagate (mount_namespaces(7)).
const (
	dir  = "/run/nspawnd/mounts"
	file = dir + "/namespace"
)

// Keep puts a copy of the mount on path, and of all below it, into the namespace. It replaces one that was kept before.
func Keep(path string) error {
	namespace, err := openOrMake()
	if err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	defer namespace.Close()
	tree, err := copyOf(path)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := image.SetMountOptions(tree, image.MountOptions{}); err != nil { // private
		return err
	}
	return within(namespace, func() error {
		if err := forget(path); err != nil {
			return err
		}
		if err := os.Mkdir(inside(path), 0o700); err != nil {
			return err
		}
		return image.Attach(tree, inside(path))
	})
}

// Show mounts what is kept for path there again. It stays kept.
func Show(path string) error {
	namespace, err := os.Open(file)
	if err != nil {
		return err
	}
	defer namespace.Close()
	var tree *os.File
	err = within(namespace, func() (err error) {
		tree, err = copyOf(inside(path))
		return err
	})
	if err != nil {
		return err
	}
	defer tree.Close()
	return image.Attach(tree, path)
}

// copyOf gives a detached copy of what is mounted on a path, and of all below it.
func copyOf(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return image.OpenMount(dir, true)
}

// Forget unmounts what is kept for path, if anything is.
func Forget(path string) error {
	namespace, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer namespace.Close()
	return within(namespace, func() error { return forget(path) })
}

func forget(path string) error {
	for unix.Unmount(inside(path), unix.MNT_DETACH) == nil {
	}
	err := os.Remove(inside(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// inside is where the mount on a path of the host is in the namespace.
func inside(path string) string { return "/" + filepath.Base(path) }

// within runs f in the namespace.
func within(namespace *os.File, f func() error) (err error) {
	thread.Run(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil { // the other threads stay where they are
			return
		}
		if err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
			err = &fs.PathError{Op: "entering", Path: file, Err: err}
			return
		}
		err = f()
	})
	return err
}

// openOrMake opens the namespace, of which there is one until the host stops.
func openOrMake() (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := image.LockDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	var kind unix.Statfs_t
	if unix.Statfs(file, &kind) == nil && kind.Type == unix.NSFS_MAGIC {
		return os.Open(file)
	}
	err = inTurn(
		func() error { return os.WriteFile(file, nil, 0o600) },
		func() error { return os.NewSyscallError("mount", unix.Mount(dir, dir, "", unix.MS_BIND, "")) },
		func() error { return os.NewSyscallError("mount", unix.Mount("", dir, "", unix.MS_PRIVATE, "")) },
		makeNamespace)
	if err != nil {
		return nil, err
	}
	return os.Open(file)
}

// inTurn takes steps until one fails.
func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// makeNamespace makes a mount namespace that has an empty root, and so keeps no file system of the host busy, and binds it to the file. The kernel binds only
// namespaces that are newer than the one they are bound in, and takes those for older whose number is lower. It numbers them by batches that each CPU has
// of its own (6.18), so on some CPU a new one has a higher number.
func makeNamespace() error {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	err := error(unix.EINVAL)
	for cpu := 0; errors.Is(err, unix.EINVAL) && cpu < len(cpus)*64; cpu++ {
		if cpus.IsSet(cpu) {
			err = makeNamespaceOn(cpu)
		}
	}
	return err
}

func makeNamespaceOn(cpu int) (err error) {
	made, bound := make(chan int), make(chan error)
	go func() { // by a thread that stays outside
		bound <- os.NewSyscallError("mount", unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", <-made), file, "", unix.MS_BIND, ""))
	}()
	thread.Run(func() {
		defer func() {
			made <- unix.Gettid()
			err = errors.Join(err, <-bound)
		}()
		var here unix.CPUSet
		here.Set(cpu)
		err = inTurn(
			func() error { return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &here)) },
			func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNS)) },
			func() error {
				return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			},
			func() error {
				return os.NewSyscallError("mount", unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=1m"))
			},
			func() error { return os.NewSyscallError("chdir", unix.Chdir(dir)) },
			func() error { return os.NewSyscallError("pivot_root", unix.PivotRoot(".", ".")) },
			func() error { return os.NewSyscallError("umount", unix.Unmount(".", unix.MNT_DETACH)) })
	})
	return err
}
