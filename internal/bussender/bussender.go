// Package bussender tells who sent a signal. Anybody on a bus may send signals to a connection, of any name and path, whatever that has asked for.
package bussender

import (
	"context"
	"sync"

	"github.com/godbus/dbus/v5"
)

// Owner is who owns a service's name on a bus. It is safe for concurrent use.
type Owner struct {
	bus         *dbus.Conn
	name        string
	lock        sync.Mutex
	connections map[string]bool // that owned it whenever it was asked for: the bus gives no connection's name twice
}

// Of gives the owner of a name, such as org.freedesktop.systemd1.
func Of(bus *dbus.Conn, name string) *Owner {
	return &Owner{bus: bus, name: name, connections: map[string]bool{}}
}

// Ask asks for who it is now: what it sends is known then, also when it is gone.
func (o *Owner) Ask(ctx context.Context) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.ask(ctx)
}

func (o *Owner) ask(ctx context.Context) {
	var connection string
	if o.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, o.name).Store(&connection) == nil {
		o.connections[connection] = true
	}
}

// Sent says whether the owner sent a signal, or one that it had before, which may have come since. A service that was started again is another one, which is asked for.
func (o *Owner) Sent(ctx context.Context, signal *dbus.Signal) bool {
	o.lock.Lock()
	defer o.lock.Unlock()
	if !o.connections[signal.Sender] {
		o.ask(ctx)
	}
	return o.connections[signal.Sender]
}
