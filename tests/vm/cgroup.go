package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroup2 is mounted: /sys/fs/cgroup, or …/unified where the controllers are still in v1.
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		mount, source, found := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); found && len(fields) > 4 && strings.HasPrefix(source, "cgroup2 ") {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted here: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// makeCgroup makes a lab's cgroup with all the controllers that the host can delegate.
func makeCgroup(name string) (string, error) {
	root, err := cgroupRoot()
	if err != nil {
		return "", err
	}
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return "", err
	}
	// One at a time, errors ignored: a host that cannot delegate one (a container's root group holds processes) still has labs,
	// where that limit shows as a property and is not enforced.
	for _, controller := range strings.Fields(string(controllers)) {
		os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	path := filepath.Join(root, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return path, nil
}

// removeCgroup ends every process below a lab's cgroup and removes it. A cgroup that is gone is no error.
func removeCgroup(path string) error {
	events, err := os.Open(filepath.Join(path, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("killing cgroup %s: %w", path, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		buffer := make([]byte, 256)
		n, err := events.ReadAt(buffer, 0)
		if n == 0 && err != nil {
			return err
		}
		if bytes.Contains(buffer[:n], []byte("populated 0")) {
			break
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cgroup %s still has processes after cgroup.kill", path)
		}
		// The kernel raises POLLPRI when cgroup.events changes.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return err
		}
	}
	return removeCgroupTree(path)
}

func removeCgroupTree(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroupTree(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	// rmdir(2) and nothing else: os.Remove would try unlink first, and the files of a cgroup cannot be removed anyway.
	return unix.Rmdir(path)
}
