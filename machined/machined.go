// Package machined is a typed client of systemd-machined, org.freedesktop.machine1(5): the host's registry of machines.
//
// It owns everything that is said to machine1: registering a machine whose unit runs already, listing machines, reading
// their properties, addresses and operating system, signalling and ending them. It must not start units or know systemd1;
// the caller hands in a connection of the system bus, so that one connection serves both.
//
// Every call waits for one reply, for no longer than its context and [Client.Timeout] allow. What comes back was written by
// machines, so by strangers: names are as machined checked them, every other string is to be escaped before it is printed.
package machined

import (
	"context"
	"errors"
	"syscall"
	"time"

	"nspawnd/internal/buserror"

	"github.com/godbus/dbus/v5"
)

// callTimeout bounds a call by default; it is sd-bus's own default.
const callTimeout = 25 * time.Second

const (
	busName          = "org.freedesktop.machine1"
	managerPath      = dbus.ObjectPath("/org/freedesktop/machine1")
	managerInterface = busName + ".Manager"
	machineInterface = busName + ".Machine"
	noSuchMachine    = busName + ".NoSuchMachine"
)

// Client talks to machine1 over a connection that it neither opens nor closes. It is safe for concurrent use.
type Client struct {
	conn    *dbus.Conn
	Timeout time.Duration // of a call
	Runtime string        // directory of the sockets of the same systemd: /run, or a user's $XDG_RUNTIME_DIR; "": they are out of reach
}

// New gives a client that uses conn, a connection of the system bus.
func New(conn *dbus.Conn) *Client { return &Client{conn: conn, Timeout: callTimeout} }

// The reasons of machine1 by which a caller decides. errors.Is tells them; the error's text is what machined said.
var (
	ErrNoSuchMachine = errors.New("no such machine")
	ErrNoSuchImage   = errors.New("no such image")
	ErrMachineExists = errors.New("machine exists already")
	ErrUnavailable   = errors.New("systemd-machined is not available")
)

// reasons maps the bus's error names to ours.
var reasons = map[string]error{
	noSuchMachine:                          ErrNoSuchMachine,
	"org.freedesktop.machine1.NoSuchImage": ErrNoSuchImage,
	busName + ".MachineExists":             ErrMachineExists,

	// A machine's object path, once the machine is gone.
	"org.freedesktop.DBus.Error.UnknownObject": ErrNoSuchMachine,

	"org.freedesktop.DBus.Error.UnixProcessIdUnknown": syscall.ESRCH, // sd-bus's name for it
}

// reason gives err the sentinel that the bus's name for it stands for.
func reason(err error) error {
	return buserror.Explain(err, "systemd-machined", ErrUnavailable, reasons)
}

// OwnService and OwnClass are what our machines are registered as.
const (
	OwnService = "nspawnd"
	OwnClass   = "container"
)

// Machine is what machined is told about a machine when it is registered.
type Machine struct {
	Name          string   // hostname-like, at most 64 characters
	ID            [16]byte // the payload's machine ID; all zero when it has none
	Service       string   // the program that manages the machine: "nspawnd"
	Class         string   // "container" or "vm"
	Leader        uint32   // its first process as the host numbers it; the machine's unit is the one that this process is in
	RootDirectory string   // absolute host path of its root, empty when the host has none; only shown, never opened
}

// Register makes the unit that the leader runs in known as a machine, in one round trip; the machine goes when the leader or
// the unit does. The error is [ErrMachineExists] when the name is taken, and [syscall.ESRCH] when the leader has ended already.
// Root only before systemd 258.
func (c *Client) Register(ctx context.Context, m Machine) error {
	return c.call(ctx, "RegisterMachine", []any{m.Name, m.ID[:], m.Service, m.Class, m.Leader, m.RootDirectory}, new(dbus.ObjectPath))
}

// Terminate stops the unit of a machine; it does not wait until the unit is gone.
func (c *Client) Terminate(ctx context.Context, name string) error {
	return c.call(ctx, "TerminateMachine", []any{name})
}

// Kill sends a signal to a machine's "leader", to "all" its processes or, with newer systemd (262; not 257), to its "supervisor", such as systemd-nspawn.
func (c *Client) Kill(ctx context.Context, name, whom string, signal int32) error {
	return c.call(ctx, "KillMachine", []any{name, whom, signal})
}

// call calls one method of the manager and stores its reply.
func (c *Client) call(ctx context.Context, method string, args []any, reply ...any) error {
	return c.callObject(ctx, managerPath, managerInterface+"."+method, args, reply...)
}

func (c *Client) callObject(ctx context.Context, path dbus.ObjectPath, method string, args []any, reply ...any) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return reason(c.conn.Object(busName, path).CallWithContext(ctx, method, 0, args...).Store(reply...))
}
