package dbus

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

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
	bus, err := dbus.DialUnix(socket, connOptions(ctx)...)
	if err != nil {
		socket.Close()
		return nil, err
	}
	if err := greet(bus, dbus.AuthExternal("0")); err != nil {
		return nil, fmt.Errorf("its system bus: %w", err)
	}
	if err := socket.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return withManager(bus)
}

// dialAs connects to a socket as a user.
func dialAs(uid uint32, path string) (socket *net.UnixConn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread, whose user it is, ends with this function
		const same = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
			err = os.NewSyscallError("setresuid", errno)
			return
		}
		socket, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	}()
	<-done
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
