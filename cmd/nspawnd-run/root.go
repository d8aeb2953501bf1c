package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"nspawnd/cmd/internal/launcher"
	"nspawnd/cmd/internal/machinedir"
	"nspawnd/cmd/internal/mountns"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// rootTree is a machine's root file system while its client holds it.
type rootTree struct {
	mount     *os.File     // the overlay, detached or also at path
	terminals *os.File     // the devpts instance in it
	lock      *os.File     // the machine's directory in the store, locked; nil: none
	dir       string       // its path
	users     *image.Users // whose ids the mount has; nil: the image's
	kept      bool
	again     bool // it was there before, and stays
}

// openRoot mounts the image for a machine, whose directory it makes. A dry run mounts it read-only and leaves no trace.
func openRoot(o *options, store *image.Store, img *image.Image, m *units.Machine) (*rootTree, error) {
	t, dryRun := &rootTree{again: o.lifecycle.startKept != ""}, o.unit.dryRun
	run := m.Name + "." + img.ManifestDigest.Short() // a dry run shows this in place of a random one
	if !dryRun {
		var err error
		if t.lock, err = o.lifecycle.machineDir(store, m, o.manager); err != nil {
			return nil, err
		}
		t.dir = t.lock.Name()
		run = filepath.Base(t.dir)
	}
	m.Dir = filepath.Join(store.Machines(), run)
	err := t.open(store, img, m, dryRun)
	if err != nil {
		t.release()
		return nil, err
	}
	return t, nil
}

func (t *rootTree) open(store *image.Store, img *image.Image, m *units.Machine, dryRun bool) (err error) {
	if !dryRun {
		if t.again { // of its start before
			_ = os.Remove(m.RegisteredFile())
			_ = os.Remove(m.HiddenFile())
		}
		if err := store.Claim(img, t.dir); err != nil {
			return err
		}
	}
	t.mount, err = store.Mount(img, t.dir)
	return err
}

// fill completes the tree, and the machine by what only the image's tree can tell: the executable, the account, the home directory.
func (t *rootTree) fill(ctx context.Context, o *options, store *image.Store, img *image.Image, m *units.Machine) error {
	dryRun := o.unit.dryRun
	needsPath := !takesDescriptor(m.Manager)
	if dryRun || needsPath || m.Flavor == units.NspawnFlavor {
		m.Root = machinedir.MountPath(m.Dir)
	}
	if needsPath && m.Detached && m.Hideable() {
		var err error
		if m.Hides, err = os.Executable(); err != nil {
			return err
		}
	}
	var users *image.Users
	if m.Users != nil {
		var err error
		if users, err = o.users.open(m, m.Dir, dryRun); err != nil {
			return err
		}
	}
	if err := t.complete(ctx, o, store, m); err != nil {
		return err
	}
	if users == nil {
		return nil
	}
	return t.mapIDs(ctx, o, store, img, m, users)
}

// mapIDs mounts the root anew, with the ids of a user namespace. What there is to look up and to write is done before, with the image's ids.
func (t *rootTree) mapIDs(ctx context.Context, o *options, store *image.Store, img *image.Image, m *units.Machine, users *image.Users) error {
	t.users = users
	root := image.NewRoot(t.mount)
	directories, files := m.MountPoints()
	for i, path := range append(directories, files...) {
		if err := root.MakeMountPoint(path, i < len(directories)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	t.mount.Close()
	if t.terminals != nil {
		t.terminals.Close()
	}
	if m.Root != "" {
		if err := unix.Unmount(m.Root, unix.MNT_DETACH); err != nil {
			return &fs.PathError{Op: "unmounting", Path: m.Root, Err: err}
		}
	}
	var err error
	if t.mount, err = store.MountFor(img, t.dir, users); err != nil {
		return err
	}
	if m.Root != "" {
		if err := t.attach(m.Root); err != nil {
			return err
		}
	}
	root = image.NewRoot(t.mount)
	if err := t.makeMounts(ctx, o, store, root, m, func(units.Mount) bool { return true }); err != nil {
		return err
	}
	if m.Flavor == units.NspawnFlavor {
		return nil
	}
	managers, err := image.NewFileSystem("tmpfs", []string{"mode=0755", "size=64k"})
	if err != nil {
		return err
	}
	defer managers.Close()
	if err := root.MountOn(managers, units.ManagersDir); err != nil {
		return err
	}
	t.terminals, err = root.MountTerminals(units.TerminalsMount, m.HostGID(terminalsGroup))
	return err
}

// terminalsGroup is the group tty of all distributions, as which devpts is mounted by podman too.
const terminalsGroup = 5

// takesDescriptor says whether the root can go to the manager as a descriptor: systemd takes one, and the kernel mounts
// devpts in a tree that is not attached to any path (move_mount(2)).
func takesDescriptor(manager int) bool {
	return manager >= units.RootDescriptorSince && image.KernelAtLeast(6, 15)
}

// complete does what needs no user namespace.
func (t *rootTree) complete(ctx context.Context, o *options, store *image.Store, m *units.Machine) error {
	dryRun := o.unit.dryRun
	root := image.NewRoot(t.mount)
	if err := placeMounts(root, m); err != nil {
		return err
	}
	usersMounted := slices.ContainsFunc(m.Mounts, units.Mount.InEtc)
	if !dryRun {
		if m.Root != "" {
			if err := t.attach(m.Root); err != nil {
				return err
			}
		}
		// Before anything of the host is there, which a link of the image may lead to.
		if err := makeOwnDirectories(root); err != nil {
			return err
		}
		if err := errors.Join(o.names.write(root, m), o.process.writeFiles(root, m)); err != nil {
			return err
		}
		if err := t.makeMounts(ctx, o, store, root, m, units.Mount.InEtc); err != nil {
			return err
		}
	}
	user, err := root.User(m.Payload.User, m.Payload.Groups...)
	if err != nil {
		return err
	}
	m.Account = units.Account{UID: user.UID, GID: user.GID, Groups: user.Groups}
	if err := m.CheckUsers(); err != nil { // before files get owners
		return err
	}
	m.Payload.SetDefault("HOME", cmp.Or(user.Home, m.Payload.WorkingDir)) // podman's choice for those without an account
	m.OwnMounts()
	if !dryRun {
		if !usersMounted {
			if err := o.process.addUser(root, m, user); err != nil {
				return err
			}
		}
		if err := t.makeMounts(ctx, o, store, root, m, func(mount units.Mount) bool { return !mount.InEtc() }); err != nil {
			return err
		}
		if err := makeDirectories(root, m); err != nil {
			return err
		}
	}
	pathVariable, _ := m.Payload.Getenv("PATH")
	m.Path, err = root.LookPath(m.Payload.Argv[0], pathVariable, m.Payload.WorkingDir)
	switch {
	case dryRun && err != nil && onMount(m, m.Payload.Argv[0]):
		m.Path = m.Payload.Argv[0] // where a dry run mounts nothing
	case errors.Is(err, image.ErrCommandNotFound):
		return &statusError{statusNotFound, err}
	case errors.Is(err, image.ErrCommandNotExecutable):
		return &statusError{statusNotExecutable, err}
	case err != nil:
		return err
	}
	if m.NeedsLauncher() {
		if m.Launcher, err = launcher.Find(); err != nil {
			return err
		}
	}
	if dryRun {
		return nil
	}
	// units.Machine names it as the source of a bind mount, and the manager would follow a symbolic link on the host.
	run, err := root.Directory("/run")
	if err != nil {
		return err
	}
	defer run.Close()
	switch m.Flavor {
	case units.ChrootFlavor: // it has the host's
		return nil
	case units.NspawnFlavor: // which makes its own, takes nothing for a system that has no /usr, and can't make the others in one with other ids
		for dir, mode := range map[string]os.FileMode{"/usr": 0o755, "/dev": 0o755, "/proc": 0o755, "/sys": 0o755, "/tmp": 0o755, "/var": 0o755, "/root": 0o750} {
			if err := root.MkdirAll(dir, mode, 0, 0); err != nil {
				return err
			}
		}
		return eachDirectory(image.NewRoot(run), func(d units.RunDirectory) { m.Run = append(m.Run, d) })
	}
	t.terminals, err = root.MountTerminals(units.TerminalsMount, terminalsGroup)
	return err
}

// makeOwnDirectories makes the directories that units.Machine relies on and the image need not have.
func makeOwnDirectories(root *image.Root) error {
	for _, dir := range []string{"/etc", "/run", units.TerminalsMount} {
		if err := root.MkdirAll(dir, 0o755, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// eachDirectory calls f with each directory at the top of a tree.
func eachDirectory(root *image.Root, f func(units.RunDirectory)) error {
	entries, err := root.List(".")
	for _, entry := range entries {
		if stat, ok := entry.Sys().(*syscall.Stat_t); ok && entry.IsDir() {
			f(units.RunDirectory{Name: entry.Name(), Mode: stat.Mode & 0o7777, UID: stat.Uid, GID: stat.Gid})
		}
	}
	return err
}

// makeDirectories makes the image's volumes and the working directory. They are the user's, as with podman.
func makeDirectories(root *image.Root, m *units.Machine) error {
	for _, dir := range m.Payload.Volumes {
		if err := root.MkdirAll(dir, 0o755, m.Account.UID, m.Account.GID); err != nil {
			return err
		}
	}
	err := root.MkdirAll(path.Dir(m.Payload.WorkingDir), 0o755, 0, 0)
	if err == nil {
		err = root.MkdirAll(m.Payload.WorkingDir, 0o755, m.Account.UID, m.Account.GID)
	}
	if err != nil {
		return fmt.Errorf("the working directory: %w", err)
	}
	return nil
}

// attach puts the mount on a path of the host. It stays shared, as /run is: a service that starts later copies it into its
// own mount namespace, and only by propagation does the copy go when the machine's companion unmounts it (tried on 257).
//
// Below it are the directories that the unit binds: what runs as ExecStop= on 257 gets the binds too, when the mount may be hidden.
func (t *rootTree) attach(path string) error {
	for _, dir := range []string{units.TerminalsMount, "/run"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
			return err
		}
	}
	return image.Attach(t.mount, path)
}

// hide unmounts the root from its path when the service has it, and keeps it elsewhere for later starts of the service.
func hide(ctx context.Context, service *dbus.Service, m *units.Machine) error {
	err := os.WriteFile(m.HiddenFile(), nil, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // it has ended
		return nil
	}
	if err == nil {
		err = mountns.Keep(m.Root)
	}
	same := false
	if err == nil {
		// A start from here on finds the file, and waits for us (machinedir.ShowRoot).
		same, err = service.FirstRun(ctx)
	}
	if err != nil || !same {
		return errors.Join(err, mountns.Forget(m.Root), os.RemoveAll(m.HiddenFile()))
	}
	if err := unix.Unmount(m.Root, unix.MNT_DETACH); err != nil {
		return &fs.PathError{Op: "unmounting", Path: m.Root, Err: err}
	}
	return nil
}

// keep leaves the mount and the directory to the machine's units. To be the last who closes the mount costs a millisecond, and that is the manager then.
func (t *rootTree) keep() {
	t.kept = true
	t.closeMounts()
}

func (t *rootTree) closeMounts() {
	for _, mount := range []*os.File{t.mount, t.terminals} {
		if mount != nil {
			mount.Close()
		}
	}
	t.mount, t.terminals = nil, nil
}

// release lets go of the tree and, unless it is kept, removes every trace of it.
func (t *rootTree) release() {
	t.closeMounts()
	if t.users != nil {
		t.users.Namespace.Close()
	}
	if t.lock == nil {
		return
	}
	if !t.kept {
		if !t.again {
			_ = image.Forget(t.dir)
		}
		machinedir.Discard(t.dir)
	}
	t.lock.Close()
}
