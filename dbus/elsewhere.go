package dbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"nspawnd/internal/thread"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// ConnectContainer connects to the system bus in a container, of which root is the root directory, as its root: uid is what that user is on this host. The
// container's user namespace need not be entered for that: the kernel tells the bus who connects in the numbers of the container.
func ConnectContainer(ctx context.Context, root *os.File, uid uint32) (*Conn, error) {
	// What is in there the container decides: no link leads out of it.
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	path, err := unix.Openat2(int(root.Fd()), "/run/dbus/system_bus_socket", &how)
	if err != nil {
		return nil, fmt.Errorf("its system bus: %w", err)
	}
	defer unix.Close(path)
	socket, err := dialAs(uid, "/proc/self/fd/"+strconv.Itoa(path))
	if err != nil {
		return nil, fmt.Errorf("its system bus: %w", err)
	}
	if err := socket.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, err
	}
	bus, err := dbus.DialUnix(socket, connOptions(ctx, false)...)
	if err != nil {
		socket.Close()
		return nil, err
	}
	if err := greet(bus, dbus.AuthExternal("0")); err != nil {
		return nil, fmt.Errorf("its system bus: %w", err)
	}
	c, err := withManager(bus)
	if err != nil {
		return nil, err
	}
	if err := socket.SetDeadline(time.Time{}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// dialAs connects to a socket as a user.
func dialAs(uid uint32, path string) (socket *net.UnixConn, err error) {
	thread.Run(func() { // whose user it is
		const same = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
			err = os.NewSyscallError("setresuid", errno)
			return
		}
		socket, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if failed := new(net.OpError); errors.As(err, &failed) { // without a path that nobody knows
			err = failed.Err
		}
	})
	return socket, err
}

// greet begins a connection, or closes it.
func greet(bus *dbus.Conn, auth dbus.Auth) error {
	err := bus.Auth([]dbus.Auth{auth})
	if err == nil {
		err = bus.Hello()
	}
	if err != nil {
		bus.Close()
	}
	return err
}

// ConnectThrough connects to the system bus that a program has at its standard input and output, as systemd-stdio-bridge(1) does, which may be on another host. What
// the program says on standard error passes on. Descriptors do not.
func ConnectThrough(ctx context.Context, ask bool, argv ...string) (*Conn, error) {
	bridge := exec.CommandContext(ctx, argv[0], argv[1:]...)
	bridge.Stderr = os.Stderr
	in, err := bridge.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := bridge.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := bridge.Start(); err != nil {
		return nil, err
	}
	end := sync.OnceValue(func() error {
		in.Close()
		late := time.AfterFunc(endTimeout, func() { _ = bridge.Process.Kill() })
		defer late.Stop()
		return bridge.Wait()
	})
	bus, err := dbus.NewConn(stream{out, in, end}, connOptions(ctx, ask)...)
	if err != nil {
		end()
		return nil, err
	}
	// The bridge speaks to the bus as the user that it runs as, whatever is said here.
	if err := greet(bus, dbus.AuthAnonymous()); err != nil {
		var status *exec.ExitError
		if errors.As(end(), &status) {
			return nil, fmt.Errorf("%s: %w", argv[0], status)
		}
		return nil, err
	}
	return withManager(bus)
}

// endTimeout is how long a bridge may live on when its input has ended.
const endTimeout = 5 * time.Second

// stream is a program's streams.
type stream struct {
	io.Reader
	io.Writer
	end func() error
}

func (s stream) Close() error { return s.end() }
