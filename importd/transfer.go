package importd

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// Transfer is one that this client has begun. It goes on when nobody follows it.
type Transfer struct {
	ID uint32

	conn    *dbus.Conn
	path    dbus.ObjectPath
	owner   string // systemd-importd's own name on the bus
	signals chan *dbus.Signal
}

// How a transfer ends, when it is not done.
var (
	ErrFailed   = errors.New("transfer failed") // and has said why
	ErrBusGone  = errors.New("the system bus is gone")
	ErrCanceled = errors.New("transfer was cancelled")
	ErrGone     = errors.New("systemd-importd has ended, and the transfer with it")
)

// begin calls one of the methods that begin a transfer. What it says before its number is known waits for [Transfer.Wait].
func (c *Client) begin(ctx context.Context, method string, args ...any) (*Transfer, error) {
	t := &Transfer{conn: c.conn, signals: make(chan *dbus.Signal, 64)}
	c.conn.Signal(t.signals)
	err := t.begin(ctx, c, method, args)
	if err != nil {
		c.conn.RemoveSignal(t.signals)
		return nil, err
	}
	return t, nil
}

func (t *Transfer) begin(ctx context.Context, c *Client, method string, args []any) error {
	// The matches go with the connection.
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(busName), dbus.WithMatchInterface(transferInterface), dbus.WithMatchPathNamespace(transferPath)},
		{dbus.WithMatchSender(busName), dbus.WithMatchInterface(managerInterface), dbus.WithMatchMember("TransferRemoved")},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, busName)},
	} {
		if err := c.conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("following the transfer: %w", err)
		}
	}
	if err := c.call(ctx, method, args, &t.ID, &t.path); err != nil {
		return err
	}
	// Anybody may send us a signal: only its own count.
	if err := c.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&t.owner); err != nil {
		return ErrGone
	}
	return nil
}

// Wait passes on what a transfer says, with syslog(3)'s priority, and how far it is, from 0 to 1, until it ends; that is reported once. Without an error it is done.
// When the context ends first, the transfer goes on.
func (t *Transfer) Wait(ctx context.Context, said func(priority int, line string), progress func(float64)) error {
	defer t.conn.RemoveSignal(t.signals)
	for {
		var signal *dbus.Signal
		open := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case signal, open = <-t.signals:
		}
		if !open {
			return fmt.Errorf("%w; transfer %d may go on", ErrBusGone, t.ID)
		}
		switch {
		case signal.Name == "org.freedesktop.DBus.NameOwnerChanged" && signal.Sender == "org.freedesktop.DBus":
			// systemd ends the processes that transfer, too, and TransferRemoved never comes.
			if len(signal.Body) == 3 && signal.Body[0] == busName && signal.Body[1] == t.owner {
				return ErrGone
			}
		case signal.Sender != t.owner:
		case signal.Name == transferInterface+".LogMessage" && signal.Path == t.path:
			var priority uint32
			var line string
			if dbus.Store(signal.Body, &priority, &line) == nil {
				said(int(priority&7), line) // without the facility
			}
		case signal.Name == transferInterface+".ProgressUpdate" && signal.Path == t.path:
			var part float64
			if dbus.Store(signal.Body, &part) == nil {
				progress(part)
			}
		case signal.Name == managerInterface+".TransferRemoved":
			var id uint32
			var path dbus.ObjectPath
			var result string
			if dbus.Store(signal.Body, &id, &path, &result) != nil || path != t.path {
				continue
			}
			switch result {
			case "done":
				return nil
			case "canceled":
				return ErrCanceled
			}
			return ErrFailed
		}
	}
}
