package machined

import (
	"context"
	"os"

	"nspawnd/internal/bussender"

	"github.com/godbus/dbus/v5"
)

// Host is the name of the host itself among machines.
const Host = ".host"

// OpenShell has a program started on a new terminal of a machine in which systemd runs, by that systemd, and gives the terminal's controlling end. What is
// empty is root, and the user's shell. How the program ends, nobody says.
func (c *Client) OpenShell(ctx context.Context, name, user, path string, argv, env []string) (*os.File, error) {
	return c.openTerminal(ctx, "OpenMachineShell", name, user, path, append([]string{}, argv...), append([]string{}, env...))
}

// OpenLogin has a login prompt started on a new terminal of such a machine.
func (c *Client) OpenLogin(ctx context.Context, name string) (*os.File, error) {
	return c.openTerminal(ctx, "OpenMachineLogin", name)
}

func (c *Client) openTerminal(ctx context.Context, method string, args ...any) (*os.File, error) {
	var fd dbus.UnixFD
	var path string // in the machine: a stranger's text
	if err := c.call(ctx, method, args, &fd, &path); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal of a machine"), nil
}

// Gone gives a channel that is closed when a machine goes, or the connection. The host never does.
func (c *Client) Gone(ctx context.Context, name string) (<-chan struct{}, error) {
	gone := make(chan struct{})
	if name == Host {
		return gone, nil
	}
	signals := make(chan *dbus.Signal, 16)
	c.conn.Signal(signals)
	err := c.conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(busName), dbus.WithMatchInterface(managerInterface), dbus.WithMatchMember("MachineRemoved"), dbus.WithMatchArg(0, name))
	if err != nil {
		return nil, err
	}
	if _, err := c.Get(ctx, name); err != nil {
		return nil, err
	}
	registry := bussender.Of(c.conn, busName)
	registry.Ask(ctx)
	go func() {
		defer close(gone)
		for signal := range signals { // which ends with the connection
			if signal.Name == managerInterface+".MachineRemoved" && len(signal.Body) > 0 && signal.Body[0] == name && registry.Sent(ctx, signal) {
				return
			}
		}
	}()
	return gone, nil
}
