// Package bussender tells who sent a signal. Anybody on a bus may send signals to a connection, of any name and path, whatever that has asked for.
package bussender

import (
	"context"
	"sync"

	"github.com/godbus/dbus/v5"
)

// Owner is who owns a service's name on a bus. It is safe for concurrent use.
type Owner struct {
	bus        *dbus.Conn
	name       string
	lock       sync.Mutex
	connection string // that owned it when last asked for
}

// Of gives the owner of a name, such as org.freedesktop.systemd1.
func Of(bus *dbus.Conn, name string) *Owner { return &Owner{bus: bus, name: name} }

// Ask asks for who it is now, so that Sent need not.
func (o *Owner) Ask(ctx context.Context) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.ask(ctx)
}

func (o *Owner) ask(ctx context.Context) {
	var connection string
	if o.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, o.name).Store(&connection) == nil {
		o.connection = connection
	}
}

// Sent says whether the owner sent a signal. A service that was started again is another one, which is asked for.
func (o *Owner) Sent(ctx context.Context, signal *dbus.Signal) bool {
	o.lock.Lock()
	defer o.lock.Unlock()
	if signal.Sender != o.connection {
		o.ask(ctx)
	}
	return signal.Sender == o.connection && o.connection != ""
}
