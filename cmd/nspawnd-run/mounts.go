package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"nspawnd/image"
	"nspawnd/units"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// mountFlags say which files and devices the machine sees.
type mountFlags struct {
	volumes, mounts, tmpfs []string
	imageVolumes, shmSize  string
	readOnly, readOnlyTmp  bool
	devices, deviceRules   []string
}

func (g *mountFlags) register(f *pflag.FlagSet) {
	f.StringArrayVarP(&g.volumes, "volume", "v", nil, "mount `[HOST:|NAME:]PATH[:OPTIONS]` in it: a path of the host, the volume NAME of the store, or one of its own; ro, noexec, nosuid, nodev, bind, rslave, nocopy, U (give it to the user), O (changes go with the machine)")
	f.StringArrayVar(&g.mounts, "mount", nil, "the same as `type=TYPE,src=SOURCE,dst=PATH[,OPTIONS]`: bind, volume, image, tmpfs, ramfs or devpts")
	f.StringArrayVar(&g.tmpfs, "tmpfs", nil, "mount a tmpfs on `PATH[:OPTIONS]`: size, mode, noexec, notmpcopyup (without what the image has there)")
	f.StringVar(&g.imageVolumes, "image-volume", "bind", "what the image declares as volumes is `bind|tmpfs|ignore`: kept with the machine, in memory, nothing special")
	f.StringVar(&g.shmSize, "shm-size", "", "`SIZE` of /dev/shm (default 64m)")
	f.BoolVar(&g.readOnly, "read-only", false, "mount the root file system read-only (/run, /tmp and /var/tmp stay writable)")
	f.BoolVar(&g.readOnlyTmp, "read-only-tmpfs", true, "with --read-only=true: whether /run, /tmp, /var/tmp and /dev/shm are writable")
	f.StringArrayVar(&g.devices, "device", nil, "let it use the device, or the devices in a directory, `HOST[:PATH][:rwm]`")
	f.StringArrayVar(&g.deviceRules, "device-cgroup-rule", nil, "let it use devices that it has by other ways, `\"TYPE MAJOR:MINOR ACCESS\"`")
}

func (g *mountFlags) apply(m *units.Machine, _ *units.Options) error {
	m.ReadOnly, m.ReadOnlyTmp, m.ShmSize, m.ImageVolumes = g.readOnly, !g.readOnlyTmp, g.shmSize, g.imageVolumes
	if err := oneOf("--image-volume", g.imageVolumes, "bind", "tmpfs", "ignore"); err != nil {
		return err
	}
	if g.shmSize != "" {
		if err := units.CheckShmSize(g.shmSize); err != nil {
			return fmt.Errorf("--shm-size: %w", err)
		}
	}
	for _, kind := range []struct {
		flag   string
		values []string
		parse  func(string) (units.Mount, error)
	}{{"--volume", g.volumes, units.ParseVolume}, {"--mount", g.mounts, units.ParseMount}, {"--tmpfs", g.tmpfs, units.ParseTmpfs}} {
		for _, value := range kind.values {
			mount, err := kind.parse(value)
			if err == nil {
				err = addMount(m, mount)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", kind.flag, err)
			}
		}
	}
	for _, device := range g.devices {
		if err := addDevices(m, device); err != nil {
			return fmt.Errorf("--device: %w", err)
		}
	}
	for _, rule := range g.deviceRules {
		allowed, err := units.ParseDeviceRule(rule)
		if err != nil {
			return fmt.Errorf("--device-cgroup-rule: %w", err)
		}
		m.Devices = append(m.Devices, allowed...)
	}
	return nil
}

// addMount adds a mount whose source is there.
func addMount(m *units.Machine, mount units.Mount) error {
	if mount.Type == "bind" {
		var err error
		if mount.Source, err = filepath.Abs(mount.Source); err != nil { // "./data": relative to the caller, as podman reads it
			return err
		}
		if _, err := os.Stat(mount.Source); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(m.Mounts, func(other units.Mount) bool { return other.Target == mount.Target }); i >= 0 {
		if reflect.DeepEqual(m.Mounts[i], mount) { // as podman, for scripts
			return nil
		}
		return fmt.Errorf("two different mounts on %s", mount.Target)
	}
	m.Mounts = append(m.Mounts, mount)
	return nil
}

// addDevices adds a device, or all that are in a directory and below.
func addDevices(m *units.Machine, value string) error {
	host, target, access, err := units.ParseDevice(value)
	if err != nil {
		return err
	}
	found := false
	// The manager wants the node and not a link to it.
	node, err := filepath.EvalSymlinks(host)
	if err != nil {
		return err
	}
	err = filepath.WalkDir(node, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeDevice == 0 {
			return err
		}
		found = true
		rule := path
		if !strings.HasPrefix(path, "/dev/") { // the manager takes no other paths
			var stat unix.Stat_t
			if err := unix.Stat(path, &stat); err != nil {
				return &fs.PathError{Op: "stat", Path: path, Err: err}
			}
			rule = fmt.Sprintf("/dev/block/%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
			if entry.Type()&fs.ModeCharDevice != 0 {
				rule = strings.Replace(rule, "block", "char", 1)
			}
		}
		m.Devices = append(m.Devices, units.Pair{First: rule, Second: access})
		// Read-only: the payload can use the device, but not change the node's owner and mode, which are the host's.
		return addMount(m, units.Mount{Type: "bind", Source: path, Target: target + strings.TrimPrefix(path, node), ReadOnly: true})
	})
	if err == nil && !found {
		err = fmt.Errorf("%s is not a device, nor a directory with one", host)
	}
	return err
}

// placeMounts decides how each mount comes about, from what the image has there.
func placeMounts(root *image.Root, m *units.Machine) error {
	switch m.ImageVolumes {
	case "tmpfs":
		for _, dir := range m.Payload.Volumes {
			if !slices.ContainsFunc(m.Mounts, func(other units.Mount) bool { return other.Target == dir }) {
				m.Mounts = append(m.Mounts, units.Mount{Type: "tmpfs", Target: dir})
			}
		}
		m.Payload.Volumes = nil
	case "ignore":
		m.Payload.Volumes = nil
	}
	for i := range m.Mounts {
		// A tmpfs has the mode of what the image has there.
		mount := &m.Mounts[i]
		if mount.Type != "tmpfs" {
			continue
		}
		mode := uint32(0o1777)
		switch info, err := root.Stat(mount.Target); {
		case err == nil && !info.IsDir():
			return fmt.Errorf("%s: is not a directory in the image", mount.Target)
		case err == nil:
			mode = info.Sys().(*syscall.Stat_t).Mode & 0o7777
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: in the image: %w", mount.Target, err)
		}
		if _, given := mount.Mode(); !given {
			mount.Options = append(mount.Options, fmt.Sprintf("mode=%04o", mode))
		}
	}
	slices.SortStableFunc(m.Mounts, func(a, b units.Mount) int { return strings.Compare(a.Target, b.Target) })
	return m.PlaceMounts(func(mount units.Mount) bool {
		return !mount.NoCopy && root.HasContent(mount.Target) || strings.HasPrefix(m.Payload.WorkingDir+"/", mount.Target+"/")
	})
}

// onMount says whether a path is on one of the mounts.
func onMount(m *units.Machine, path string) bool {
	return slices.ContainsFunc(m.Mounts, func(mount units.Mount) bool { return strings.HasPrefix(path+"/", mount.Target+"/") })
}

// makeMounts mounts in the root what the client has to prepare there, of those mounts that chosen says.
func (t *rootTree) makeMounts(ctx context.Context, o *options, store *image.Store, root *image.Root, m *units.Machine, chosen func(units.Mount) bool) error {
	for i := range m.Mounts {
		mount := &m.Mounts[i]
		if !chosen(*mount) {
			continue
		}
		if !mount.Prepared {
			// systemd-nspawn makes no mount point in a read-only root, and its own /run and /tmp.
			if m.Flavor == units.NspawnFlavor && !strings.HasPrefix(mount.Target, "/run/") && !strings.HasPrefix(mount.Target, "/tmp/") {
				info, err := os.Stat(mount.Source)
				if err := root.MakeMountPoint(mount.Target, err != nil || info.IsDir()); err != nil {
					return fmt.Errorf("%s: %w", mount.Target, err)
				}
			}
			continue
		}
		made, err := t.makeMount(ctx, o, store, root, m, mount)
		if err != nil {
			return fmt.Errorf("%s: %w", mount.Target, err)
		}
		err = root.MountOn(made, mount.Target)
		made.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// makeMount gives a mount, detached yet.
func (t *rootTree) makeMount(ctx context.Context, o *options, store *image.Store, root *image.Root, m *units.Machine, mount *units.Mount) (made *os.File, err error) {
	options := image.MountOptions{ReadOnly: mount.ReadOnly, Exec: mount.Exec, SUID: mount.SUID, Dev: mount.Dev, Slave: mount.Propagation == "slave"}
	never := false
	if mount.Type != "bind" && options.SUID == nil {
		options.SUID = &never
	}
	if mount.Type != "bind" && mount.Type != "devpts" && options.Dev == nil {
		options.Dev = &never
	}
	if made, err = t.openMount(ctx, o, store, root, m, mount); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			made.Close()
		}
	}()
	// Before the ids are mapped, it has those that the image means; what is not mapped gets the host's afterwards.
	if mapped := mount.Type == "volume" || mount.MapIDs; mount.Chown && mount.Type != "tmpfs" && (m.Users == nil || mapped != (t.users != nil)) {
		owner := m.Account
		if !mapped {
			owner = m.HostAccount()
		}
		if err := image.Chown(made, owner.UID, owner.GID); err != nil {
			return nil, err
		}
	}
	return made, image.SetMountOptions(made, options)
}

func (t *rootTree) openMount(ctx context.Context, o *options, store *image.Store, root *image.Root, m *units.Machine, mount *units.Mount) (*os.File, error) {
	switch mount.Type {
	case "devpts":
		return image.NewFileSystem("devpts", mount.Options)
	case "tmpfs", "ramfs":
		made, err := image.NewFileSystem(mount.Type, mount.Options)
		if err == nil && !mount.NoCopy && root.HasContent(mount.Target) {
			if err = copyUp(ctx, root, mount, made, m.HostAccount()); err != nil {
				made.Close()
			}
		}
		return made, err
	case "image":
		return t.openImage(ctx, o, store, m, mount)
	}
	source, err := t.openSource(ctx, o, store, root, m, mount)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if mount.Subpath != "" {
		part, err := image.NewRoot(source).OpenPath(mount.Subpath)
		if err != nil {
			return nil, err
		}
		defer part.Close()
		source = part
	}
	if t.users != nil && (mount.MapIDs || mount.Type == "volume" && mount.Source != "") {
		mapped, err := image.OpenMount(source, !mount.NoRecursive)
		if err != nil {
			return nil, err
		}
		if err := t.users.Map(mapped); err != nil || !mount.Overlay {
			return mapped, err
		}
		defer mapped.Close()
		source = mapped
	}
	if !mount.Overlay {
		return image.OpenMount(source, !mount.NoRecursive)
	}
	writable, err := t.newWritable(m, mount)
	if err != nil {
		return nil, err
	}
	return image.OpenOverlay(source, writable)
}

// copyUp copies what the image has where a tmpfs goes. The owner of the directory stays the image's, unless it is to be the user.
func copyUp(ctx context.Context, root *image.Root, mount *units.Mount, made *os.File, account units.Account) error {
	content, err := root.OpenDirectory(mount.Target)
	if err != nil {
		return err
	}
	defer content.Close()
	if err := image.CopyTree(ctx, content, made); err != nil {
		return err
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(made.Fd()))
	if mount.Chown {
		if err := os.Chown(path, int(account.UID), int(account.GID)); err != nil {
			return err
		}
	}
	if mode, given := mount.Mode(); given {
		return unix.Chmod(path, mode)
	}
	return nil
}

// openImage mounts an image of the store, which the rules of today have to accept.
func (t *rootTree) openImage(ctx context.Context, o *options, store *image.Store, m *units.Machine, mount *units.Mount) (*os.File, error) {
	ref, err := store.Name(mount.Source)
	if err != nil {
		return nil, err
	}
	img, err := store.Image(ref)
	if err != nil {
		return nil, fmt.Errorf("%w; to fetch it: machinectl-lite pull-oci %s", err, mount.Source)
	}
	if err := checkTrust(ctx, o.source.root, img, o.source.insecure); err != nil {
		return nil, err
	}
	if err := store.Claim(img, t.dir); err != nil {
		return nil, err
	}
	writable := ""
	if !mount.ReadOnly {
		if writable, err = t.newWritable(m, mount); err != nil {
			return nil, err
		}
	}
	return store.MountFor(img, writable, t.users)
}

// newWritable makes a directory of the machine's for what it changes in a mount. What a machine that is kept had changed when it ran before is gone,
// as with podman.
func (t *rootTree) newWritable(m *units.Machine, mount *units.Mount) (string, error) {
	n := slices.IndexFunc(m.Mounts, func(other units.Mount) bool { return other.Target == mount.Target })
	path := filepath.Join(t.dir, "overlay-"+strconv.Itoa(n))
	if err := os.RemoveAll(path); err != nil {
		return "", err
	}
	return path, os.Mkdir(path, 0o700)
}

// openSource opens the file or directory that is mounted.
func (t *rootTree) openSource(ctx context.Context, o *options, store *image.Store, root *image.Root, m *units.Machine, mount *units.Mount) (*os.File, error) {
	switch {
	case mount.Type == "bind":
		fd, err := unix.Open(mount.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: mount.Source, Err: err}
		}
		return os.NewFile(uintptr(fd), mount.Source), nil
	case mount.Source == "":
		// One of the machine's own is what it has there anyway, with a volume's mount options: it goes with the machine, stays over restarts,
		// and has what the image has.
		if err := root.MkdirAll(mount.Target, 0o755, m.Account.UID, m.Account.GID); err != nil {
			return nil, err
		}
		return root.OpenDirectory(mount.Target)
	}
	var content *os.File
	if !mount.NoCopy {
		var err error
		if content, err = root.OpenDirectory(mount.Target); err == nil {
			defer content.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return store.UseVolume(ctx, mount.Source, t.dir, content, m.Account.UID, m.Account.GID)
}
