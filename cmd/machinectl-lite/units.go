package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/godbus/dbus/v5"

	"nspawnd/units"
)

// Our machines are units named after them. What follows finds those that machined does not know: a unit's client may have died
// before it registered the machine, and a unit that systemd restarts by itself is not registered again.
const (
	ownService = "nspawnd" // what our machines are registered as
	ownClass   = "container"
)

// unitMachine gives the name of the machine whose payload a unit runs, "" when there is none. A machine's name has no slash,
// which an unescaped dash stands for: so nspawnd-NAME-root.service, which belongs to a machine too, runs none.
func unitMachine(name string) string {
	machine := unit.UnitNameUnescape(strings.TrimSuffix(strings.TrimPrefix(name, "nspawnd-"), ".service"))
	if machine == "" || strings.Contains(machine, "/") || units.ServiceName(machine) != name {
		return ""
	}
	return machine
}

// systemd reads units from org.freedesktop.systemd1 and stops them.
type systemd struct {
	conn *dbus.Conn
}

const busTimeout = 25 * time.Second // as sd-bus's own

func (s systemd) call(ctx context.Context, path dbus.ObjectPath, method string, reply any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	return s.conn.Object("org.freedesktop.systemd1", path).CallWithContext(ctx, method, 0, args...).Store(reply)
}

func (s systemd) manager(ctx context.Context, method string, reply any, args ...any) error {
	return s.call(ctx, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager."+method, reply, args...)
}

// running are the states of a unit that has a machine in it.
var running = []string{"active", "reloading", "refreshing", "deactivating"}

// machines gives the names of our machines whose units run.
func (s systemd) machines(ctx context.Context) ([]string, error) {
	var listed []struct {
		Name, Description, Load, Active, Sub, Following string
		Path                                            dbus.ObjectPath
		JobID                                           uint32
		JobType                                         string
		JobPath                                         dbus.ObjectPath
	}
	if err := s.manager(ctx, "ListUnitsByPatterns", &listed, running, []string{"nspawnd-*.service"}); err != nil {
		return nil, fmt.Errorf("listing units: %w", err)
	}
	var names []string
	for _, u := range listed {
		if name := unitMachine(u.Name); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// unitState is what status shows of a unit.
type unitState struct {
	Name         string
	ActiveState  string
	Description  string
	ControlGroup string
	MainPID      uint32
	Started      time.Time
}

func (s systemd) unit(ctx context.Context, name string) (unitState, error) {
	state := unitState{Name: name}
	var started uint64
	var values map[string]dbus.Variant
	path := dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + sd.PathBusEscape(name))
	if err := s.call(ctx, path, "org.freedesktop.DBus.Properties.GetAll", &values, ""); err != nil {
		return state, fmt.Errorf("unit %s: %w", name, err)
	}
	for property, field := range map[string]any{
		"ActiveState":           &state.ActiveState,
		"Description":           &state.Description,
		"ControlGroup":          &state.ControlGroup,
		"MainPID":               &state.MainPID,
		"InactiveExitTimestamp": &started,
	} {
		if value, ok := values[property]; ok { // a scope has no MainPID
			if err := value.Store(field); err != nil {
				return state, fmt.Errorf("unit %s: property %s: %w", name, property, err)
			}
		}
	}
	state.Started = time.UnixMicro(int64(started))
	return state, nil
}

// machine gives the unit of our machine called name, if it runs.
func (s systemd) machine(ctx context.Context, name string) (state unitState, runs bool) {
	service := units.ServiceName(name)
	if unitMachine(service) != name {
		return state, false
	}
	state, err := s.unit(ctx, service)
	return state, err == nil && slices.Contains(running, state.ActiveState)
}

// process is a process of a unit.
type process struct {
	ControlGroup string
	PID          uint32
	Command      string
}

func (s systemd) processes(ctx context.Context, unit string) ([]process, error) {
	var processes []process
	err := s.manager(ctx, "GetUnitProcesses", &processes, unit)
	return processes, err
}

// stop has the unit stopped and does not wait for that.
func (s systemd) stop(ctx context.Context, unit string) error {
	return s.manager(ctx, "StopUnit", new(dbus.ObjectPath), unit, "replace")
}
