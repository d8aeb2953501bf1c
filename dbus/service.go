package dbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"nspawnd/units"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Service is a running service that this connection started, or follows.
type Service struct {
	Name    string
	conn    atomic.Pointer[Conn] // another one after the bus was restarted
	signals chan *dbus.Signal
	state   state
	again   atomic.Bool // Restart= may start it again after it has ended
}

// state is what the manager's signals have told about a service so far.
type state struct {
	active     string // ActiveState
	begun      bool   // it was seen in another state than inactive or failed
	mainPID    uint32
	handedOver bool  // the manager's child went on to execve(2) of the payload
	exitCode   int32 // si_code: CLD_EXITED, CLD_KILLED or CLD_DUMPED; 0: no process ended yet
	exitStatus int32 // exit status or signal
	result     string
}

// Start starts a set of units in one transaction, waits until the payload's executable runs or, with Type=notify, says that it is ready, and
// follows the main unit. A payload that has ended by then has been started, and Wait says how it ended; but not one that was to become ready, if
// nobody holds it.
// With hold, the exit status can be had from Wait even when the unit goes at once.
//
// A failed or finished unit of the same name is replaced. A running one is ErrNameTaken. The error can also be a *StartError, and ErrLost.
func (c *Conn) Start(ctx context.Context, set units.Set, fds Descriptors, hold bool) (*Service, error) {
	properties := fds.properties(set.Main)
	if hold {
		properties = append(properties, systemd.Property{Name: "AddRef", Value: dbus.MakeVariant(true)})
	}
	aux := make([]systemd.PropertyCollection, len(set.Aux))
	for i, u := range set.Aux {
		aux[i] = systemd.PropertyCollection{Name: u.Name, Properties: fds.properties(u)}
	}

	restart, _ := set.Main.Get("Restart").(string)
	s := &Service{Name: set.Main.Name}
	s.again.Store(restart != "" && restart != "no")
	if err := s.follow(ctx, c); err != nil {
		return nil, err
	}
	job, err := c.systemd.StartTransientUnitAux(ctx, s.Name, "fail", properties, aux, nil)
	if isError(err, unitExists) {
		if err := s.clear(ctx, set, false); err != nil {
			return nil, err
		}
		job, err = c.systemd.StartTransientUnitAux(ctx, s.Name, "fail", properties, aux, nil)
	}
	if isError(err, unitExists) {
		return nil, fmt.Errorf("%s: %w", s.Name, ErrNameTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Name, err)
	}
	// The manager sends what changed in the unit before it says that the job is gone, so the state is complete then.
	for {
		signal, err := s.next(ctx)
		if err != nil {
			return nil, fmt.Errorf("starting %s: %w", s.Name, err)
		}
		result, ended := jobResult(signal, job)
		switch {
		case !ended:
		case s.state.lost():
			return nil, fmt.Errorf("starting %s: %w", s.Name, ErrLost)
		case result == "done" || s.state.payloadEnded() && s.state.result != "timeout" && (hold || set.Main.Get("Type") != "notify"):
			return s, nil
		default:
			return nil, &StartError{s.Name, result, s.state.result, int(s.state.exitStatus)}
		}
	}
}

// ErrLost says that the manager took the end of its own child for that of the payload, and killed what there was of the payload:
// on its way, or running for a moment. With PrivatePIDs= the child forks the payload, tells the manager and exits with 0; a manager that
// is about to reap some other process may reap this one before it has read the message (seen on 262 in 1 of 2,400 starts on a busy
// machine).
var ErrLost = errors.New("systemd took the end of its own helper for that of the process, and killed it; it may have run for a moment; to try again, start it again")

// next gives the manager's next signal that is about the service, or about all, and keeps what it says about the service. The connection may follow other
// services too.
func (s *Service) next(ctx context.Context) (*dbus.Signal, error) {
	c, path := s.conn.Load(), unitPath(s.Name)
	for {
		select {
		case signal, open := <-s.signals:
			if !open {
				return nil, ErrBusGone
			}
			if (signal.Path == path || signal.Path == managerPath) && c.owner.Sent(ctx, signal) {
				s.state.apply(signal)
				return signal, nil
			}
		case <-c.Bus.Context().Done():
			return nil, ErrBusGone
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// jobResult reads JobRemoved(u id, o job, s unit, s result).
func jobResult(signal *dbus.Signal, id int) (result string, ended bool) {
	if signal.Name != managerInterface+".JobRemoved" || len(signal.Body) < 4 {
		return "", false
	}
	removed, _ := signal.Body[0].(uint32)
	result, _ = signal.Body[3].(string)
	return result, int(removed) == id
}

// StartError says that a unit's start job did not succeed.
type StartError struct {
	Unit   string
	Job    string // systemd's job result: failed, dependency, timeout, canceled
	Result string // the service's own result: exit-code, resources, …
	Status int    // of the process that the manager forked; from 200 on the step that failed (systemd.exec(5))
}

func (e *StartError) Error() string {
	reason := e.Job
	if e.Result != "" && e.Result != "success" {
		reason = e.Result
	}
	if step := systemdStep(e.Status); step != "" {
		reason = step
	}
	return fmt.Sprintf("starting %s: %s", e.Unit, reason)
}

// StatusExec is the exit status of a manager's child that could not run the executable (systemd.exec(5)).
const StatusExec = 203

// systemdStep names the step of starting a process that an exit status of the manager's own child stands for
// (systemd.exec(5), "Process exit codes"); "" for those that don't tell a user more than the journal does.
func systemdStep(status int) string {
	return map[int]string{
		200:        "its working directory can't be entered (200/CHDIR)",
		StatusExec: "its executable can't be run (203/EXEC)",
		209:        "its standard output can't be set up (209/STDOUT)",
		218:        "its capabilities can't be set (218/CAPABILITIES)",
		219:        "its control group can't be set up (219/CGROUP)",
		225:        "its network namespace can't be set up (225/NETWORK)",
		226:        "its mounts can't be set up (226/NAMESPACE)",
		228:        "its system call filter can't be set (228/SECCOMP)",
	}[status]
}

// ErrBusGone says that the connection to the bus is lost.
var ErrBusGone = errors.New("the connection to the system bus is gone")

// follow has the connection's signals of this unit come here. Of this unit alone: with a match on all units, each of many clients would wake for each
// machine.
func (s *Service) follow(ctx context.Context, c *Conn) error {
	s.conn.Store(c)
	s.signals = make(chan *dbus.Signal, 64)
	c.Bus.Signal(s.signals)
	match := fmt.Sprintf("type='signal',sender='%s',path='%s',member='PropertiesChanged'", managerName, unitPath(s.Name))
	err := c.Bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, match).Err
	if err == nil {
		err = c.Subscribe()
	}
	if err != nil {
		return fmt.Errorf("following %s: %w", s.Name, err)
	}
	return nil
}

// busTimeout is how long a bus that is restarted, and the manager's return to it, are waited for.
const busTimeout = 30 * time.Second

// reconnect follows the service over a new connection to the bus, and holds it by that.
func (s *Service) reconnect(ctx context.Context) error {
	for end := time.Now().Add(busTimeout); ; {
		err := s.overAgain(ctx)
		switch {
		case err == nil:
			return nil
		case isError(err, noSuchUnit):
			return errors.New("it ended while the system bus was away, and how is not known")
		case time.Now().After(end):
			return fmt.Errorf("%w: %w", ErrBusGone, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// overAgain follows and holds the service over a new connection.
func (s *Service) overAgain(ctx context.Context) error {
	c, err := Connect(ctx, false)
	if err != nil {
		return err
	}
	if err := s.hold(ctx, c); err != nil {
		c.Close()
		return err
	}
	return nil
}

// hold follows a service that was started before, and keeps the manager from forgetting how it ended.
func (s *Service) hold(ctx context.Context, c *Conn) error {
	if err := s.follow(ctx, c); err != nil {
		return err
	}
	if err := c.manager().CallWithContext(ctx, managerInterface+".RefUnit", 0, s.Name).Err; err != nil {
		return fmt.Errorf("holding %s: %w", s.Name, err)
	}
	return s.read(ctx)
}

// Follow follows a service that runs, so that Wait can say how it ended.
func (c *Conn) Follow(ctx context.Context, name string) (*Service, error) {
	s := &Service{Name: name}
	if err := s.hold(ctx, c); err != nil {
		return nil, err
	}
	s.state.begun = true
	return s, nil
}

// Release ends what Follow began, so that the manager may forget the service, and its name can be another's.
func (s *Service) Release(ctx context.Context) {
	c := s.conn.Load()
	c.Bus.RemoveSignal(s.signals)
	_ = c.manager().CallWithContext(ctx, managerInterface+".UnrefUnit", 0, s.Name).Err // it may be gone with the connection
}

// read asks for the state that the signals tell of.
func (s *Service) read(ctx context.Context) error {
	properties, err := s.conn.Load().systemd.GetAllPropertiesContext(ctx, s.Name)
	if err != nil {
		return fmt.Errorf("asking how %s is: %w", s.Name, err)
	}
	s.state.active, _ = properties["ActiveState"].(string)
	s.state.exitCode, _ = properties["ExecMainCode"].(int32)
	s.state.exitStatus, _ = properties["ExecMainStatus"].(int32)
	handoff, _ := properties["ExecMainHandoffTimestampMonotonic"].(uint64)
	s.state.handedOver = handoff != 0
	restart, _ := properties["Restart"].(string)
	s.again.Store(restart != "" && restart != "no")
	return nil
}

// apply takes in one PropertiesChanged signal.
func (st *state) apply(signal *dbus.Signal) {
	if signal.Name != propertiesChanged || len(signal.Body) < 2 {
		return
	}
	changed, _ := signal.Body[1].(map[string]dbus.Variant)
	for name, v := range changed {
		switch name {
		case "ActiveState":
			st.active, _ = v.Value().(string)
			st.begun = st.begun || !st.stopped()
		case "MainPID":
			if pid, _ := v.Value().(uint32); pid != 0 {
				st.mainPID = pid
			}
		case "ExecMainHandoffTimestampMonotonic":
			at, _ := v.Value().(uint64)
			st.handedOver = at != 0
			st.begun = st.begun || st.handedOver
		case "ExecMainCode":
			st.exitCode, _ = v.Value().(int32)
		case "ExecMainStatus":
			st.exitStatus, _ = v.Value().(int32)
		case "Result":
			st.result, _ = v.Value().(string)
		}
	}
}

func (st *state) stopped() bool { return st.active == "inactive" || st.active == "failed" }

// payloadEnded says whether the payload itself has ended, and not the manager's child on the way to it, which exits with 200 or more
// (systemd.exec(5)): a Type=exec start job fails when the payload fails before the manager has seen that it runs. The message of the
// hand-over may come too late as well.
func (st *state) payloadEnded() bool {
	exited := st.exitCode == codeExited
	return st.exitCode != 0 && st.handedOver && !(exited && st.exitStatus == StatusExec) || exited && st.exitStatus > 0 && st.exitStatus < 200
}

// lost says whether what has ended can only be the manager's child: see ErrLost.
func (st *state) lost() bool {
	return st.exitCode == codeExited && st.exitStatus == 0 && !st.handedOver
}

// MainPID gives the payload's process in the host's numbering; 0: it ended before its start was seen.
func (s *Service) MainPID() uint32 { return s.state.mainPID }

// FirstRun says whether the payload of the start that this connection asked for still runs.
func (s *Service) FirstRun(ctx context.Context) (bool, error) {
	u, err := s.conn.Load().Unit(ctx, s.Name)
	return u.MainPID != 0 && u.MainPID == s.state.mainPID && slices.Contains(running, u.ActiveState), err
}

// Wait waits until the service has ended and is not started again: until its main process has, and with it all processes of its PID
// namespace. What the manager still does then (ExecStopPost=) changes nothing of how it ended. The status is 128+n when signal n ended it.
func (s *Service) Wait(ctx context.Context) (status int, err error) {
	for {
		for !(s.state.begun && (s.state.stopped() || !s.again.Load() && s.state.exitCode != 0)) {
			_, err := s.next(ctx)
			if errors.Is(err, ErrBusGone) {
				err = s.reconnect(ctx)
			}
			if err != nil {
				return 0, fmt.Errorf("waiting for %s: %w", s.Name, err)
			}
		}
		if s.state.exitCode != 0 && !s.again.Load() {
			break
		}
		// The signals did not say it; better no status than a wrong one. Or it may be about to be started again, before which it is "failed"
		// or "inactive" for an instant: when the manager answers, that is over.
		if err := s.read(ctx); err != nil {
			return 0, err
		}
		if !s.again.Load() || s.state.stopped() {
			break
		}
	}
	if s.state.exitCode == 0 || s.state.lost() {
		return 0, fmt.Errorf("systemd did not see how the process of %s ended", s.Name)
	}
	return s.state.exit(), nil
}

const codeExited = 1 // CLD_EXITED

// exit gives the status of a shell for what waitid(2) gives: exitCode is si_code, exitStatus is si_status.
func (st *state) exit() int {
	if st.exitCode == codeExited {
		return int(st.exitStatus)
	}
	return 128 + int(st.exitStatus)
}

// Signal sends a signal to the service's main process. One that is to end a service which would then be started again stops it, as with
// docker-run(1): also when there is no process at the moment. While the bus is restarted, it waits for that.
func (s *Service) Signal(ctx context.Context, signal syscall.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	for {
		c, err := s.conn.Load(), error(nil)
		if s.again.Load() && slices.Contains([]syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}, signal) {
			err = c.BeginStop(ctx, s.Name)
		} else {
			err = c.Kill(ctx, s.Name, false, int32(signal))
		}
		if err == nil || !busTrouble(err) || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Stop stops a unit and waits until it has stopped.
func (c *Conn) Stop(ctx context.Context, unit string) error {
	result, err := c.awaitJob(ctx, c.systemd.StopUnitContext, unit)
	switch {
	case err != nil:
		return fmt.Errorf("stopping %s: %w", unit, err)
	case result != "done":
		return fmt.Errorf("stopping %s: %s", unit, result)
	}
	return nil
}

// Restart stops a unit and starts it again, and waits until it runs.
func (c *Conn) Restart(ctx context.Context, unit string) error {
	result, err := c.awaitJob(ctx, c.systemd.RestartUnitContext, unit)
	switch {
	case err != nil:
		return fmt.Errorf("restarting %s: %w", unit, err)
	case result != "done":
		return fmt.Errorf("restarting %s: %s; journalctl -u %s tells more", unit, result, unit)
	}
	return nil
}

// awaitJob has a job made for a unit, and waits for its result.
func (c *Conn) awaitJob(ctx context.Context, enqueue func(ctx context.Context, unit, mode string, done chan<- string) (int, error), unit string) (result string, err error) {
	signals := make(chan *dbus.Signal, 64)
	c.Bus.Signal(signals)
	defer c.Bus.RemoveSignal(signals)
	if err := c.Subscribe(); err != nil {
		return "", err
	}
	job, err := enqueue(ctx, unit, "replace", nil)
	if err != nil {
		return "", err
	}
	for {
		select {
		case signal, open := <-signals:
			if !open {
				return "", ErrBusGone
			}
			if result, ended := jobResult(signal, job); ended && c.owner.Sent(ctx, signal) {
				return result, nil
			}
		case <-c.Bus.Context().Done():
			return "", ErrBusGone
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// Kill sends a signal to the main process of a unit, or to all of its processes.
func (c *Conn) Kill(ctx context.Context, unit string, all bool, signal int32) error {
	target := systemd.Main
	if all {
		target = systemd.All
	}
	return c.systemd.KillUnitWithTarget(ctx, unit, target, signal)
}

// Freeze stops the processes of a unit for a while.
func (c *Conn) Freeze(ctx context.Context, unit string) error {
	return rootAlone(c.systemd.FreezeUnit(ctx, unit))
}

// Thaw lets them go on.
func (c *Conn) Thaw(ctx context.Context, unit string) error {
	return rootAlone(c.systemd.ThawUnit(ctx, unit))
}

// Replace stops the units of a set that run, and waits until the manager has forgotten them, so that the set can be started.
func (c *Conn) Replace(ctx context.Context, set units.Set) error {
	s := &Service{Name: set.Main.Name}
	if err := s.follow(ctx, c); err != nil {
		return err
	}
	defer c.Bus.RemoveSignal(s.signals)
	return s.clear(ctx, set, true)
}

// clear makes the names of a set free where they are held by units that have failed or finished, or also by running ones, and waits until
// the manager has forgotten them.
func (s *Service) clear(ctx context.Context, set units.Set, running bool) error {
	c := s.conn.Load()
	u, err := c.Unit(ctx, s.Name)
	if err != nil {
		return err
	}
	// It may not have begun to start: another client has just asked for that.
	if !running && (u.MainPID != 0 || u.ActiveState == "activating" || !c.ending(ctx, u)) {
		return fmt.Errorf("%s is %s: %w", s.Name, u.ActiveState, ErrNameTaken)
	}
	removed := fmt.Sprintf("type='signal',sender='%s',member='UnitRemoved'", managerName)
	if err := c.Bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, removed).Err; err != nil {
		return fmt.Errorf("following %s: %w", s.Name, err)
	}
	defer c.Bus.BusObject().Go("org.freedesktop.DBus.RemoveMatch", dbus.FlagNoReplyExpected, nil, removed)
	all := append([]units.Unit{set.Main}, set.Aux...)
	if running { // for as long as TimeoutStopSec= lets it
		if err := c.Stop(ctx, s.Name); err != nil && !isError(err, noSuchUnit) {
			return err
		}
	}
	// Its process is gone; what the units do before they are gone too takes a moment.
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, ErrNameTaken)
	defer cancel()
	for _, u := range all {
		if err := c.Stop(ctx, u.Name); err != nil && !isError(err, noSuchUnit) {
			return err
		}
		if err := c.systemd.ResetFailedUnitContext(ctx, u.Name); err != nil && !isError(err, noSuchUnit) {
			return fmt.Errorf("resetting %s: %w", u.Name, err)
		}
	}
	// A start that fails because of an auxiliary unit leaves the main unit with our own reference.
	_ = c.manager().CallWithContext(ctx, managerInterface+".UnrefUnit", 0, s.Name).Err
	for _, u := range all {
		for c.loaded(ctx, u.Name) {
			if err := s.untilRemoved(ctx, u.Name); err != nil {
				return fmt.Errorf("waiting for the end of %s: %w", u.Name, err)
			}
		}
	}
	return nil
}

// loaded says whether the manager has a unit in memory.
func (c *Conn) loaded(ctx context.Context, unit string) bool {
	err := c.manager().CallWithContext(ctx, managerInterface+".GetUnit", 0, unit).Err
	return !isError(err, noSuchUnit)
}

func (s *Service) untilRemoved(ctx context.Context, unit string) error {
	for {
		signal, err := s.next(ctx)
		if err != nil {
			return err
		}
		if signal.Name == managerInterface+".UnitRemoved" && len(signal.Body) > 0 && signal.Body[0] == unit {
			return nil
		}
	}
}

func convert(properties []units.Property) []systemd.Property {
	out := make([]systemd.Property, len(properties))
	for i, p := range properties {
		out[i] = systemd.Property{Name: p.Name, Value: dbus.MakeVariant(p.Value)}
	}
	return out
}
