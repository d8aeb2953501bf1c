package main

import (
	"errors"
	"slices"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// timeline is what happened when, in microseconds of the monotonic clock. What the manager did comes from the manager's own timestamps
// (org.freedesktop.systemd1(5)), which it sends as it changes the unit; no polling, no monitor of the bus. ExecMainStartTimestampMonotonic is of no use:
// with PrivatePIDs= it is the start of the process in the inner namespace, in clock ticks of 10 ms (tried).
type timeline struct {
	Forked    int64 // the client, just before
	FirstUnit int64 // InactiveExitTimestampMonotonic of the unit that starts first
	MainUnit  int64 // … of the main unit: it has its cgroup, and the manager has forked systemd-executor
	Payload   int64 // ExecMainHandoffTimestampMonotonic: the executor is about to call execve
	Exited    int64 // ExecMainExitTimestampMonotonic: the manager has seen the payload's end
	Waited    int64 // the client, when its status was there
}

// follower runs commands and hears what the manager says of the units that they start.
type follower struct {
	bus     *dbus.Conn
	signals chan *dbus.Signal
}

func newFollower() (*follower, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, err
	}
	f := &follower{bus, make(chan *dbus.Signal, 1024)}
	bus.Signal(f.signals)
	const match = "type='signal',sender='org.freedesktop.systemd1',member='PropertiesChanged',path_namespace='/org/freedesktop/systemd1/unit'"
	err = errors.Join(
		bus.BusObject().Call("org.freedesktop.DBus.AddMatch", 0, match).Err,
		bus.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").Call("org.freedesktop.systemd1.Manager.Subscribe", 0).Err)
	if err != nil {
		bus.Close()
		return nil, err
	}
	return f, nil
}

// run runs a command once. Not every run is known completely: with PrivatePIDs=, 257 now and then doesn't see the end of a
// process that ends at once.
func (f *follower) run(c command, number int) (t timeline, complete bool, err error) {
	t.Forked = monotonic()
	if _, _, err := c.run(number); err != nil {
		return t, false, err
	}
	t.Waited = monotonic()
	units := numbered(c.Units, number)
	late := time.After(time.Second)
	for !t.complete() {
		select {
		case signal := <-f.signals:
			if signal == nil {
				return t, false, errors.New("the connection to the system bus is gone")
			}
			t.apply(signal, units)
		case <-late:
			return t, false, nil
		}
	}
	return t, true, nil
}

func (t *timeline) complete() bool {
	return t.FirstUnit != 0 && t.MainUnit != 0 && t.Payload != 0 && t.Exited != 0
}

// apply takes in one PropertiesChanged signal.
func (t *timeline) apply(signal *dbus.Signal, units []string) {
	const prefix = "/org/freedesktop/systemd1/unit/"
	which := slices.IndexFunc(units, func(unit string) bool { return string(signal.Path) == prefix+systemd.PathBusEscape(unit) })
	if which < 0 || len(signal.Body) < 2 {
		return
	}
	changed, _ := signal.Body[1].(map[string]dbus.Variant)
	at := func(property string, to *int64) {
		if value, _ := changed[property].Value().(uint64); value != 0 {
			*to = int64(value)
		}
	}
	var began int64
	at("InactiveExitTimestampMonotonic", &began)
	if began != 0 && (t.FirstUnit == 0 || began < t.FirstUnit) {
		t.FirstUnit = began
	}
	if which != 0 {
		return
	}
	at("InactiveExitTimestampMonotonic", &t.MainUnit)
	at("ExecMainHandoffTimestampMonotonic", &t.Payload)
	at("ExecMainExitTimestampMonotonic", &t.Exited)
}

// monotonic reads the clock that the manager's timestamps are of, in its unit.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // every Linux has it
	}
	return now.Nano() / 1000
}
