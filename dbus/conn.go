// Package dbus starts, follows and stops the units of machines through org.freedesktop.systemd1. It translates nothing:
// what a unit says comes from package units.
package dbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"nspawnd/internal/bussender"
	"nspawnd/units"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Conn is a connection to a bus with a manager on it: this host's, a container's, another host's, a user's.
type Conn struct {
	Bus     *dbus.Conn // for other services on the same bus
	systemd *systemd.Conn
	owner   *bussender.Owner // of the manager's name
	// Subscribe has the manager send signals to this connection; one call serves all who need them. What is to be fast has it called early, by a
	// goroutine: it takes a millisecond.
	Subscribe func() error
}

// Connect connects to the system bus. The bus, not the manager's private socket: only a bus client can hold a
// reference to a unit (AddRef), and without that the exit status is gone with the unit. With ask, polkit may ask somebody whether a call is allowed, by an agent that is there.
func Connect(ctx context.Context, ask bool) (*Conn, error) {
	bus, err := dbus.ConnectSystemBus(connOptions(ctx, ask)...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the system bus: %w", err)
	}
	return withManager(bus)
}

// ConnectUser connects to the bus of who calls, on which that user's own manager is.
func ConnectUser(ctx context.Context) (*Conn, error) {
	address := os.Getenv("DBUS_SESSION_BUS_ADDRESS")
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); address == "" && runtime != "" {
		address = "unix:path=" + dbus.EscapeBusAddressValue(runtime+"/bus")
	}
	if address == "" {
		return nil, errors.New("connecting to the user's bus: neither $DBUS_SESSION_BUS_ADDRESS nor $XDG_RUNTIME_DIR says where it is: it is there for who has logged in")
	}
	bus, err := dbus.Connect(address, connOptions(ctx, false)...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the user's bus: %w", err)
	}
	return withManager(bus)
}

func connOptions(ctx context.Context, ask bool) []dbus.ConnOption {
	options := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	if ask {
		options = append(options, dbus.WithOutgoingInterceptor(func(message *dbus.Message) {
			if message.Type == dbus.TypeMethodCall {
				message.Flags |= dbus.FlagAllowInteractiveAuthorization
			}
		}))
	}
	return options
}

// withManager gives a connection for the manager on the same bus, too.
func withManager(bus *dbus.Conn) (*Conn, error) {
	manager, err := systemd.NewConnection(func() (*dbus.Conn, error) { return bus, nil })
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	c := &Conn{Bus: bus, systemd: manager, owner: bussender.Of(bus, managerName)}
	c.Subscribe = sync.OnceValue(func() error { return c.subscribe(bus.Context()) })
	return c, nil
}

func (c *Conn) subscribe(ctx context.Context) error {
	c.owner.Ask(ctx)
	err := c.manager().CallWithContext(ctx, managerInterface+".Subscribe", 0).Err
	if isError(err, "org.freedesktop.systemd1.AlreadySubscribed") {
		return nil
	}
	return err
}

// Close closes the connection, and with it the references to units that it holds.
func (c *Conn) Close() { c.Bus.Close() }

func (c *Conn) manager() dbus.BusObject { return c.Bus.Object(managerName, managerPath) }

// Version gives the manager's major version, like 257.
func (c *Conn) Version(ctx context.Context) (int, error) {
	var v string
	err := c.manager().CallWithContext(ctx, getProperty, 0, managerInterface, "Version").Store(&v)
	if err != nil {
		return 0, fmt.Errorf("asking systemd for its version: %w", err)
	}
	return versionNumber(v)
}

// versionNumber reads the major number of a version as distributions write it: 257.13-1~deb13u1, 258~rc1, v262.
func versionNumber(v string) (int, error) {
	digits := strings.TrimPrefix(v, "v")
	if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		digits = digits[:end]
	}
	version, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("systemd's version %q is not a number", v)
	}
	return version, nil
}

const (
	managerName      = "org.freedesktop.systemd1"
	managerPath      = "/org/freedesktop/systemd1"
	managerInterface = "org.freedesktop.systemd1.Manager"
	getProperty      = "org.freedesktop.DBus.Properties.Get"

	unitExists = "org.freedesktop.systemd1.UnitExists"
	noSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
)

func unitPath(name string) dbus.ObjectPath {
	return dbus.ObjectPath(managerPath + "/unit/" + systemd.PathBusEscape(name))
}

// Descriptors are the open files that units get, by the unit and the property that takes them.
type Descriptors map[string]map[string]*os.File

// Set notes a file for a property of a unit.
func (d Descriptors) Set(unit, property string, file *os.File) {
	if d[unit] == nil {
		d[unit] = map[string]*os.File{}
	}
	d[unit][property] = file
}

// properties gives a unit's properties, descriptors among them.
func (d Descriptors) properties(u units.Unit) []systemd.Property {
	properties := convert(u.Properties())
	for _, name := range slices.Sorted(maps.Keys(d[u.Name])) {
		properties = append(properties, systemd.Property{Name: name, Value: dbus.MakeVariant(dbus.UnixFD(d[u.Name][name].Fd()))})
	}
	return properties
}

// ErrNameTaken says that a unit of the name runs already.
var ErrNameTaken = errors.New("name taken")

// isError says whether err is the D-Bus error of that name.
func isError(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}

// rootAlone says in a few words that the bus itself lets only root call, as it does on 257 what came late to it.
func rootAlone(err error) error {
	if isError(err, "org.freedesktop.DBus.Error.AccessDenied") && strings.HasPrefix(err.Error(), "Rejected send message") {
		return fmt.Errorf("the bus lets only root do that: %w", fs.ErrPermission)
	}
	return err
}

// busTrouble says whether a call failed because the bus, or the manager on it, was not there at the moment.
func busTrouble(err error) bool {
	var e dbus.Error
	return !errors.As(err, &e) || slices.Contains([]string{"NoReply", "NameHasNoOwner", "ServiceUnknown", "Disconnected"}, strings.TrimPrefix(e.Name, "org.freedesktop.DBus.Error."))
}
