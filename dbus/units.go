package dbus

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"nspawnd/units"

	"github.com/godbus/dbus/v5"
)

// callTimeout bounds a call that only asks; it is sd-bus's own default.
const callTimeout = 25 * time.Second

// running are the states of a unit that has a machine in it.
var running = []string{"active", "reloading", "refreshing", "deactivating"}

// restarting says whether Restart= is about to start a service again, which has no process until then.
func restarting(active, sub string) bool {
	return active == "activating" && strings.HasPrefix(sub, "auto-restart")
}

// Machines gives the names of our machines whose units run, and of those that are about to be restarted. machined does not know all of them: a unit's client may have died before
// it registered the machine, and a unit that systemd restarts by itself is not registered again.
func (c *Conn) Machines(ctx context.Context) (names, again []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	listed, err := c.systemd.ListUnitsByPatternsContext(ctx, append([]string{"activating"}, running...), []string{"nspawnd-*.service"})
	if err != nil {
		return nil, nil, fmt.Errorf("listing units: %w", err)
	}
	for _, u := range listed {
		switch name := units.MachineOf(u.Name); {
		case name == "":
		case u.ActiveState != "activating":
			names = append(names, name)
		case restarting(u.ActiveState, u.SubState):
			again = append(again, name)
		}
	}
	return names, again, nil
}

// Unit is what the manager tells of a unit. What a unit of its type does not have is empty.
type Unit struct {
	Name         string
	ActiveState  string
	Frozen       bool // or about to be
	Restarting   bool
	Description  string
	ControlGroup string
	MainPID      uint32
	Started      time.Time
	Labels       units.Labels
	job          dbus.ObjectPath // "/" if none
}

// Unit asks for a unit of any type.
func (c *Conn) Unit(ctx context.Context, name string) (Unit, error) {
	values, err := c.Properties(ctx, name)
	return unitOf(name, values), err
}

func unitOf(name string, values map[string]any) Unit {
	u := Unit{Name: name}
	u.ActiveState, _ = values["ActiveState"].(string)
	sub, _ := values["SubState"].(string)
	u.Restarting = restarting(u.ActiveState, sub)
	freezer, _ := values["FreezerState"].(string)
	u.Frozen = strings.HasPrefix(freezer, "frozen") || strings.HasPrefix(freezer, "freezing") // also by a parent
	u.Description, _ = values["Description"].(string)
	u.ControlGroup, _ = values["ControlGroup"].(string)
	u.MainPID, _ = values["MainPID"].(uint32)
	fields, _ := values["LogExtraFields"].([][]byte)
	u.Labels = units.LabelsOf(fields)
	if started, _ := values["InactiveExitTimestamp"].(uint64); started != 0 {
		u.Started = time.UnixMicro(int64(started))
	}
	if job, ok := values["Job"].([]any); ok && len(job) == 2 { // its number and its path
		u.job, _ = job[1].(dbus.ObjectPath)
	}
	return u
}

// absence is how long a manager that is executed anew (systemctl daemon-reexec) may be away from the bus.
const absence = 3 * time.Second

// Properties gives all that the manager tells of a unit of any type.
func (c *Conn) Properties(ctx context.Context, name string) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		values, err := c.systemd.GetAllPropertiesContext(ctx, name)
		var answer dbus.Error
		if errors.As(err, &answer) && busTrouble(err) && time.Since(begin) < absence {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking for %s: %w", name, err)
		}
		return values, nil
	}
}

// MachineUnit gives the unit of our machine of that name, if it runs or is about to be restarted. With an error that is not known.
func (c *Conn) MachineUnit(ctx context.Context, machine string) (u Unit, runs bool, err error) {
	service := units.ServiceName(machine)
	if units.MachineOf(service) != machine {
		return u, false, nil
	}
	u, err = c.Unit(ctx, service)
	if isError(err, noSuchUnit) {
		return u, false, nil
	}
	return u, slices.Contains(running, u.ActiveState) || u.Restarting, err
}

// End is how a service's main process ended.
type End struct {
	Unit
	At     time.Time
	Exited bool // else a signal ended it
	Status int  // the exit status, or the signal
}

// MachineEnd tells how our machine of that name ended, if the manager still knows: for a detached one that failed.
func (c *Conn) MachineEnd(ctx context.Context, machine string) (e End, ended bool) {
	service := units.ServiceName(machine)
	if units.MachineOf(service) != machine {
		return e, false
	}
	values, err := c.Properties(ctx, service)
	unit := unitOf(service, values)
	if err != nil || unit.ActiveState != "failed" && unit.ActiveState != "inactive" {
		return e, false
	}
	code, _ := values["ExecMainCode"].(int32)
	status, _ := values["ExecMainStatus"].(int32)
	at, _ := values["ExecMainExitTimestamp"].(uint64)
	return End{unit, time.UnixMicro(int64(at)), code == codeExited, int(status)}, code != 0
}

// OwnsDirectory says whether the companion of our machine of that name is there, or comes or goes, and with it what it owns. One that has stopped is
// loaded for as long as a service that failed is. With an error that is not known.
func (c *Conn) OwnsDirectory(ctx context.Context, machine string) (bool, error) {
	u, err := c.Unit(ctx, units.CompanionName(machine))
	if isError(err, noSuchUnit) {
		return false, nil
	}
	return u.ActiveState != "inactive" && u.ActiveState != "failed", err
}

// AwaitEnd waits, if our machine of that name is ending or has ended, until its companion has removed what it had.
func (c *Conn) AwaitEnd(ctx context.Context, machine string) {
	c.waitWhile(ctx, func() bool { return c.ends(ctx, machine) && c.loaded(ctx, units.CompanionName(machine)) })
}

// AwaitDirectory waits a while, if our machine of that name is ending or has ended, until its companion lets go of what it owns, and says whether it
// has. With an error that is not known.
func (c *Conn) AwaitDirectory(ctx context.Context, machine string) (free bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c.waitWhile(waiting, func() bool {
		owns, err := c.OwnsDirectory(ctx, machine)
		return owns && err == nil && c.ends(ctx, machine)
	})
	owns, err := c.OwnsDirectory(ctx, machine)
	return !owns, err
}

// waitWhile asks again whenever a unit or a job has gone.
func (c *Conn) waitWhile(ctx context.Context, condition func() bool) {
	signals := make(chan *dbus.Signal, 64)
	c.Bus.Signal(signals)
	defer c.Bus.RemoveSignal(signals)
	// Units that go and, for one that is restarted after all, jobs.
	changes := fmt.Sprintf("type='signal',sender='%s',interface='%s'", managerName, managerInterface)
	if c.Bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, changes).Err != nil {
		return
	}
	defer c.Bus.BusObject().Go("org.freedesktop.DBus.RemoveMatch", dbus.FlagNoReplyExpected, nil, changes)
	if c.Subscribe() != nil {
		return
	}
	for condition() {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
	}
}

// ends says whether our machine of that name stops or does not run, and is not about to.
func (c *Conn) ends(ctx context.Context, machine string) bool {
	u, err := c.Unit(ctx, units.ServiceName(machine))
	if err != nil {
		return isError(err, noSuchUnit)
	}
	return c.ending(ctx, u)
}

func (c *Conn) ending(ctx context.Context, u Unit) bool {
	var job string // none: it is done, or there was none
	_ = c.Bus.Object(managerName, u.job).CallWithContext(ctx, getProperty, 0, managerName+".Job", "JobType").Store(&job)
	return job == "stop" || job == "" && slices.Contains([]string{"deactivating", "inactive", "failed"}, u.ActiveState)
}

// Process is a process of a unit.
type Process struct {
	ControlGroup string
	PID          uint32
	Command      string
}

// Processes gives the processes of a unit.
func (c *Conn) Processes(ctx context.Context, unit string) ([]Process, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var processes []Process
	err := c.manager().CallWithContext(ctx, managerInterface+".GetUnitProcesses", 0, unit).Store(&processes)
	if err != nil {
		return nil, fmt.Errorf("asking for the processes of %s: %w", unit, err)
	}
	return processes, nil
}

// BeginStop has a unit stopped and does not wait for that.
func (c *Conn) BeginStop(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.systemd.StopUnitContext(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("stopping %s: %w", unit, err)
	}
	return nil
}

// Running is what the manager tells of how the payload of a service that runs was started.
type Running struct {
	Unit
	Argv       []string
	Env        []string
	WorkingDir string
	Slice      string
	Account    units.Account // root's without User=
	Files      []string      // its unit file and what is laid over that
}

// Running asks for a service that runs.
func (c *Conn) Running(ctx context.Context, u Unit) (Running, error) {
	r := Running{Unit: u}
	values, err := c.Properties(ctx, u.Name)
	if err != nil {
		return r, err
	}
	if commands, ok := values["ExecStart"].([][]any); ok && len(commands) > 0 && len(commands[0]) > 1 {
		r.Argv, _ = commands[0][1].([]string)
	}
	r.Env, _ = values["Environment"].([]string)
	dir, _ := values["WorkingDirectory"].(string)
	r.WorkingDir = strings.TrimPrefix(dir, "!") // it may be missing
	r.Slice, _ = values["Slice"].(string)
	const none = 1<<32 - 1
	if uid, _ := values["UID"].(uint32); uid != none {
		r.Account.UID = uid
	}
	if gid, _ := values["GID"].(uint32); gid != none {
		r.Account.GID = gid
	}
	groups, _ := values["SupplementaryGroups"].([]string)
	for _, group := range groups {
		gid, err := groupNumber(group)
		if err != nil {
			return r, fmt.Errorf("its supplementary group: %w", err)
		}
		r.Account.Groups = append(r.Account.Groups, gid)
	}
	fragment, _ := values["FragmentPath"].(string)
	dropIns, _ := values["DropInPaths"].([]string)
	r.Files = append([]string{fragment}, dropIns...)
	return r, nil
}

// groupNumber reads a group of the host, by number or name.
func groupNumber(group string) (uint32, error) {
	if _, err := strconv.ParseUint(group, 10, 32); err != nil {
		found, err := user.LookupGroup(group)
		if err != nil {
			return 0, err
		}
		group = found.Gid
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	return uint32(gid), err
}
