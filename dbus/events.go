package dbus

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"nspawnd/internal/bussender"
	"nspawnd/units"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Event is what happens to a machine.
type Event struct {
	Time    time.Time
	Kind    string // "start", "die"; "health" when its health was asked for; "known", "gone" when machined gets to know or forgets one, of whatever origin
	Machine string
	Status  int // exit status of one that died, 128+n for signal n; -1 if that is not known
}

const (
	machinedName      = "org.freedesktop.machine1"
	machinedInterface = machinedName + ".Manager"
	propertiesChanged = "org.freedesktop.DBus.Properties.PropertiesChanged"
)

// setupTimeout bounds a call to a manager that may not be back on a bus that was restarted.
const setupTimeout = 3 * time.Second

// Events tells of machines, of all origins, as long as the connection lasts: the error then is from the bus. running are those of ours that
// run; it is brought up to date, so that what began and ended between two connections is told of by the second one. follows is called when nothing more is missed.
func (c *Conn) Events(ctx context.Context, running map[string]bool, tell func(Event), follows func()) error {
	signals := make(chan *dbus.Signal, 64)
	c.Bus.Signal(signals)
	defer c.Bus.RemoveSignal(signals)
	for _, match := range []string{
		"type='signal',sender='" + managerName + "',interface='org.freedesktop.DBus.Properties',path_namespace='" + managerPath + "/unit'",
		"type='signal',sender='" + managerName + "',interface='" + managerInterface + "',member='UnitRemoved'",
		"type='signal',sender='" + machinedName + "',interface='" + machinedInterface + "'",
	} {
		if err := c.Bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, match).Err; err != nil {
			return fmt.Errorf("following machines: %w", err)
		}
	}
	var since unix.Timespec // what began before is known, or is over
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &since); err != nil {
		return err
	}
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := c.subscribe(setup); err != nil {
		return fmt.Errorf("following machines: %w", err)
	}
	now, _, err := c.Machines(setup)
	if err != nil {
		return err
	}
	f := &follower{running: running, tell: tell, since: uint64(since.Nano() / 1000), ended: map[string]uint64{}, gone: func(unit string) bool { return !c.loaded(ctx, unit) }}
	f.compare(now)
	registry := bussender.Of(c.Bus, machinedName)
	registry.Ask(setup)
	follows()
	for {
		select {
		case signal, open := <-signals:
			if !open {
				return ErrBusGone
			}
			switch {
			case strings.HasPrefix(signal.Name, machinedInterface+"."):
				if registry.Sent(ctx, signal) {
					f.apply(signal)
				}
			case strings.HasPrefix(string(signal.Path), managerPath) && c.owner.Sent(ctx, signal):
				f.apply(signal)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follower makes events of signals.
type follower struct {
	running map[string]bool
	ended   map[string]uint64 // when the last run of a machine began that has ended (CLOCK_MONOTONIC, microseconds)
	since   uint64            // when it began to follow
	gone    func(unit string) bool
	tell    func(Event)
}

// compare takes in which machines run now.
func (f *follower) compare(names []string) {
	now := map[string]bool{}
	for _, name := range names {
		now[name] = true
		if !f.running[name] {
			f.running[name] = true
			f.tell(Event{time.Now(), "start", name, 0})
		}
	}
	for name := range f.running {
		if !now[name] {
			delete(f.running, name)
			f.tell(Event{time.Now(), "die", name, -1})
		}
	}
}

func (f *follower) apply(signal *dbus.Signal) {
	if len(signal.Body) == 0 {
		return
	}
	switch signal.Name {
	case machinedInterface + ".MachineNew", machinedInterface + ".MachineRemoved":
		name, _ := signal.Body[0].(string)
		kind := map[bool]string{true: "known", false: "gone"}[strings.HasSuffix(signal.Name, "New")]
		f.tell(Event{time.Now(), kind, name, 0})
	case managerInterface + ".UnitRemoved":
		unit, _ := signal.Body[0].(string)
		if name := units.MachineOf(unit); name != "" && f.running[name] && f.gone(unit) { // not in a reload of the manager, and nobody said how it ended
			delete(f.running, name)
			f.tell(Event{time.Now(), "die", name, -1})
		}
	case propertiesChanged:
		unit := unitName(signal.Path)
		if machine, found := strings.CutSuffix(unit, "-health.service"); found && units.MachineOf(machine+".service") != "" {
			f.tell(Event{time.Now(), "health", units.MachineOf(machine + ".service"), 0})
			return
		}
		if name := units.MachineOf(unit); name != "" && len(signal.Body) > 1 && signal.Body[0] == managerName+".Service" {
			changed, _ := signal.Body[1].(map[string]dbus.Variant)
			f.service(name, changed)
		}
	}
}

// service takes in what the manager says of a machine's service. All of it comes together, and what happened in between may be left out: whoever ran for a
// moment only may have begun and ended in one signal.
func (f *follower) service(name string, changed map[string]dbus.Variant) {
	number := func(property string) uint64 { n, _ := changed[property].Value().(uint64); return n }
	began, exited := number("ExecMainStartTimestampMonotonic"), number("ExecMainExitTimestampMonotonic")
	code, _ := changed["ExecMainCode"].Value().(int32)
	if began != 0 && !f.running[name] && began > max(f.since, f.ended[name]) {
		f.running[name] = true
		f.tell(Event{wall(number("ExecMainStartTimestamp")), "start", name, 0})
	}
	if exited >= began && exited != 0 && code != 0 && f.running[name] {
		status, _ := changed["ExecMainStatus"].Value().(int32)
		if code != codeExited {
			status += 128
		}
		f.ended[name] = exited
		delete(f.running, name)
		f.tell(Event{wall(number("ExecMainExitTimestamp")), "die", name, int(status)})
	}
}

func wall(usec uint64) time.Time { return time.UnixMicro(int64(usec)) }

// unitName reads the name of a unit out of its object's path, where "_2d" stands for "-".
func unitName(object dbus.ObjectPath) string {
	var b strings.Builder
	text := strings.TrimPrefix(string(object), managerPath+"/unit/")
	for i := 0; i < len(text); i++ {
		if text[i] == '_' && i+3 <= len(text) {
			if c, err := hex.DecodeString(text[i+1 : i+3]); err == nil {
				b.Write(c)
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
