package image

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ExecWatch tells whether anything of a mounted tree has been executed since the watch began.
type ExecWatch struct{ group *os.File }

// WatchExec begins to watch the file system of mount, through whatever mounts of it and in whatever namespaces it is used
// (fanotify_mark(2), FAN_OPEN_EXEC). It has to be closed: events add up.
func WatchExec(mount *os.File) (*ExecWatch, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	group := os.NewFile(uintptr(fd), "fanotify")
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_EXEC, unix.AT_FDCWD, fdPath(mount))
	if err != nil {
		group.Close()
		return nil, fmt.Errorf("fanotify_mark: %w", err)
	}
	return &ExecWatch{group}, nil
}

// Executed says whether there was an execution.
func (w *ExecWatch) Executed() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.group.Fd()), Events: unix.POLLIN}}, 0)
	return n != 0 || err != nil // in doubt, yes
}

// Close ends the watch.
func (w *ExecWatch) Close() error { return w.group.Close() }
