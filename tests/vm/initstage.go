package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// plan is what the supervisor tells the init stage: paths of the host, and where in the lab they appear.
type plan struct {
	Suite     Suite
	Root      string            // the cached root, the overlay's lower directory
	State     string            // a directory of the host to mount over
	Disk      string            // a directory of the host for the lab's store, on a disk
	Console   string            // a terminal, the lab's /dev/console
	Notify    string            // a datagram socket that PID 1 says READY=1 to
	Copies    map[string]string // files of the host to install, by their path in the lab
	ReadOnly  map[string]string // files and directories of the host to bind read-only, by their path in the lab
	MachineID string
}

// Paths in the lab that nspawnd and its peers put overlays, EROFS images and whole systems on: never overlayfs, where an upper
// directory cannot be.
var plainDirectories = []struct {
	path string
	mode string
}{
	{"/tmp", "1777"},
	{"/var/tmp", "1777"},
	{"/var/lib/containers", "0755"},
	{"/var/lib/machines", "0700"},
}

var hostDevices = []string{
	"null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun",
	"loop-control", "loop0", "loop1", "loop2", "loop3", "loop4", "loop5", "loop6", "loop7",
}

const labShellCgroup = "system.slice/lab-shell.service"

// initStage is PID 1 of the lab's namespaces until it becomes the root's own init. Standard input is the plan, read to its end: the supervisor
// closes it when everything that the plan names is there.
func initStage([]string) error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	// Here and not by the clone: a cgroup namespace's root is the group that its maker is in, which for a clone is the parent's.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unsharing the cgroup namespace: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("lab-" + string(p.Suite))); err != nil {
		return err
	}
	if err := mountRoot(p); err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"container=nspawnd-lab",
		"container_uuid=" + p.MachineID,
		"NOTIFY_SOCKET=/run/lab/notify",
		"TERM=dumb",
		"LANG=C.UTF-8",
	})
}

func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// mountRoot makes the lab's file system and makes it /.
func mountRoot(p plan) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making / private: %w", err)
	}
	if err := mount("tmpfs", p.State, "tmpfs", 0, "mode=0700"); err != nil {
		return err
	}
	root := filepath.Join(p.State, "root")
	upper, work := filepath.Join(p.State, "upper"), filepath.Join(p.State, "work")
	for _, dir := range []string{root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", p.Root, upper, work)
	if err := mount("overlay", root, "overlay", 0, options); err != nil {
		return err
	}

	for _, dir := range plainDirectories {
		if err := mount("tmpfs", root+dir.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode="+dir.mode); err != nil {
			return err
		}
	}
	// EROFS does not mount files of a tmpfs.
	store := root + "/var/lib/nspawnd"
	if err := os.MkdirAll(store, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(p.Disk, store, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", store, err)
	}
	for _, m := range []struct {
		kind, path string
		flags      uintptr
		options    string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		// Read-only, as in any container: the host's devices are not the lab's, and udev stays away.
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY, ""},
		{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
	} {
		if err := mount(m.kind, root+m.path, m.kind, m.flags, m.options); err != nil {
			return err
		}
	}
	if err := makeDevices(root, p); err != nil {
		return err
	}
	if err := bind(p.Notify, root+"/run/lab/notify", false); err != nil {
		return err
	}
	for path, source := range p.ReadOnly {
		if err := bind(source, root+path, true); err != nil {
			return err
		}
	}
	for path, source := range p.Copies {
		if err := copyFile(source, root+path); err != nil {
			return err
		}
	}
	if err := os.WriteFile(root+"/etc/hostname", []byte("lab-"+p.Suite+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/etc/machine-id", []byte(p.MachineID+"\n"), 0o444); err != nil {
		return err
	}

	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	// As on a host: systemd's credentials, among others, come to a unit by propagation.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making / shared: %w", err)
	}
	return unix.Chdir("/")
}

func makeDevices(root string, p plan) error {
	// The kernel makes a loop device when one is asked for and none is free, which a lab would not see any more: two labs need more than there are at first.
	if control, err := os.Open("/dev/loop-control"); err == nil {
		for n := range 8 {
			_ = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, n) // it may be there
		}
		control.Close()
	}
	for _, name := range hostDevices {
		if _, err := os.Stat("/dev/" + name); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := bind("/dev/"+name, root+"/dev/"+name, false); err != nil {
			return err
		}
	}
	for _, dir := range []string{"pts", "shm", "mqueue"} {
		if err := os.Mkdir(root+"/dev/"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("devpts", root+"/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	if err := mount("tmpfs", root+"/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	if err := bind(p.Console, root+"/dev/console", false); err != nil {
		return err
	}
	for link, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, root+"/dev/"+link); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mounting %s on %s (%s): %w", kind, target, options, err)
	}
	return nil
}

// bind makes a file or directory of the host appear at target, which is created.
func bind(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		var file *os.File
		if file, err = os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
			file.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	if readOnly {
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("binding %s to %s read-only: %w", source, target, err)
		}
	}
	return nil
}

// copyFile installs a file with its mode.
func copyFile(source, target string) error {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	to, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return err
	}
	return to.Close()
}

// inCgroup says whether a process is in a lab's cgroup or below it, that is: whether the number still means that lab's process.
func inCgroup(pid int, cgroup string) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if path, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
			return strings.Contains(path+"/", "/"+filepath.Base(cgroup)+"/")
		}
	}
	return false
}
