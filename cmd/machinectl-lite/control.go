package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/dbus"
	"nspawnd/machined"
	"nspawnd/units"
)

// What systemd as a machine's first process understands (systemd(1), "Signals").
const (
	signalPowerOff = 34 + 4 // SIGRTMIN as glibc counts
	signalReboot   = int32(unix.SIGINT)
)

func killCommand() *cobra.Command {
	var whom, number string
	cmd := &cobra.Command{
		Use:   "kill NAME...",
		Short: "Send a signal to processes of machines",
		Example: `  machinectl-lite kill web
  machinectl-lite kill --signal=HUP --kill-whom=leader web
  machinectl-lite kill --signal=list`,
		Args: func(cmd *cobra.Command, args []string) error {
			if listsSignals(number) {
				return nil
			}
			return machineNames(cmd, args)
		},
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			if listsSignals(number) {
				return signalTable().show("signals")
			}
			signal, err := units.ParseSignal(number)
			if err != nil {
				return fmt.Errorf("--signal: %w", err)
			}
			if err := oneOf(new(string), whom, killWhom); err != nil {
				return fmt.Errorf("--kill-whom: %w", err)
			}
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				if err := host.kill(cmd.Context(), name, whom, signal); err != nil {
					return fmt.Errorf("could not kill machine: %w", err)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&whom, "kill-whom", "all", "Send it to the `leader`, to the process that supervises it (supervisor; systemd 262) or to all processes")
	cmd.Flags().StringVarP(&number, "signal", "s", "TERM", "Send this `signal`, by name or number; list shows them")
	completeFlag(cmd, "kill-whom", killWhom...)
	completeFlag(cmd, "signal", signalTable().column(1)...)
	return cmd
}

// killWhom are the processes of a machine that machined sends signals to.
var killWhom = []string{"leader", "supervisor", "all"}

// listsSignals says whether a signal's name asks for their list, as machinectl has it.
func listsSignals(name string) bool { return name == "list" || name == "help" }

func signalTable() table {
	t := table{header: []string{"SIGNAL", "NAME"}, numbers: 1}
	for n := range int32(64) {
		t.rows = append(t.rows, []string{strconv.Itoa(int(n) + 1), units.SignalName(n + 1)})
	}
	return t
}

func stopCommand() *cobra.Command {
	var timeout int
	cmd := &cobra.Command{
		Use:     "stop NAME...",
		Aliases: []string{"poweroff"},
		Short:   "Stop machines",
		Long: `Ask machines to end, and wait until those of nspawnd have: they get their stop signal, and are killed when their time to stop has passed. What is
booted in other machines is asked to power off, as by machinectl, which is not waited for.`,
		Example: `  machinectl-lite stop web
  machinectl-lite stop --timeout=1 web db`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				err := host.stop(cmd.Context(), name, timeout)
				if err != nil {
					return fmt.Errorf("could not stop machine: %w", err)
				}
				return nil
			})
		},
	}
	cmd.Flags().IntVarP(&timeout, "timeout", "t", -1, "Kill it after so many `seconds`, if that is sooner than it says itself")
	return cmd
}

func restartCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "restart NAME...",
		Aliases: []string{"reboot"},
		Short:   "Restart machines",
		Long: `Stop machines of nspawnd and start them again, on what they have written, and wait until they run. What is booted in other machines is asked to
reboot, as by machinectl, which is not waited for.`,
		Example:           `  machinectl-lite restart web`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				unit, ours, err := host.systemd.MachineUnit(cmd.Context(), name)
				switch {
				case err != nil:
				case ours:
					if err = host.thaw(cmd.Context(), unit); err == nil {
						err = host.systemd.Restart(cmd.Context(), unit.Name)
					}
				default:
					err = host.instance(cmd.Context(), name, "Reboot", func() error { return host.machined.Kill(cmd.Context(), name, "leader", signalReboot) })
				}
				if err != nil {
					return fmt.Errorf("could not restart machine: %w", err)
				}
				return nil
			})
		},
	}
}

func pauseCommand() *cobra.Command {
	return freezeCommand("pause", "Pause", "Stop all processes of machines for a while",
		"Freeze the control groups of machines: no process in them runs any more, and none can notice. See resume.",
		"  machinectl-lite pause web\n  machinectl-lite resume web", (*dbus.Conn).Freeze)
}

func resumeCommand() *cobra.Command {
	return freezeCommand("resume", "Resume", "Let paused machines go on", "Thaw what pause has frozen.", "  machinectl-lite resume web", (*dbus.Conn).Thaw)
}

// freezeCommand does something with the control group of machines of any origin, by their units, or by a method of what runs them.
func freezeCommand(verb, method, short, long, example string, do func(c *dbus.Conn, ctx context.Context, unit string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, Long: long, Example: example,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				unit, ours, err := host.systemd.MachineUnit(cmd.Context(), name)
				switch {
				case err != nil:
				case ours:
					err = do(host.systemd, cmd.Context(), unit.Name)
				default:
					err = host.instance(cmd.Context(), name, method, func() error {
						unit, err := host.unitOf(cmd.Context(), name)
						if err == nil {
							err = do(host.systemd, cmd.Context(), unit.Name)
						}
						return err
					})
				}
				if err != nil {
					return fmt.Errorf("could not %s machine: %w", verb, err)
				}
				return nil
			})
		},
	}
}

func waitCommand() *cobra.Command {
	var condition string
	cmd := &cobra.Command{
		Use:   "wait NAME...",
		Short: "Wait until machines have ended, or run, or are healthy",
		Long: `Wait until machines have ended, one after the other. Of a machine of nspawnd the exit status is printed: that of its first process, or 128+n when
signal n ended it. With --condition=running, wait until it runs; with --condition=healthy, until its health check says so.`,
		Example: `  machinectl-lite wait web
  machinectl-lite wait --condition=healthy web`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			until := conditions[condition]
			if until == nil {
				return fmt.Errorf("--condition: %q is not one of stopped, running, healthy", condition)
			}
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			// All are followed before the first is waited for: how one ended is forgotten when nobody follows it.
			type end struct {
				status string
				err    error
			}
			var ends []chan end
			var failed failures
			for _, name := range names {
				wait, err := until(host, cmd.Context(), name)
				if err != nil {
					failed = append(failed, fmt.Errorf("could not wait for machine: %w", err))
					continue
				}
				ended := make(chan end, 1)
				go func() {
					status, err := wait()
					ended <- end{status, err}
				}()
				ends = append(ends, ended)
			}
			for _, ended := range ends { // in the order of their names
				e := <-ended
				if e.err == nil && e.status != "" {
					_, e.err = fmt.Println(e.status)
				}
				if e.err != nil {
					failed = append(failed, fmt.Errorf("could not wait for machine: %w", e.err))
				}
			}
			return failed.orNil()
		},
	}
	cmd.Flags().StringVar(&condition, "condition", "stopped", "Wait until it is `stopped`, running or healthy")
	completeFlag(cmd, "condition", slices.Collect(maps.Keys(conditions))...)
	return cmd
}

// conditions are what a machine is waited for to be. Each begins to follow it, and gives what waits, and then what is to be printed.
var conditions = map[string]func(*host, context.Context, string) (func() (string, error), error){
	"stopped": (*host).followEnd,
	"running": func(h *host, ctx context.Context, name string) (func() (string, error), error) {
		return func() (string, error) { return "", h.awaitStart(ctx, name) }, nil
	},
	"healthy": func(h *host, ctx context.Context, name string) (func() (string, error), error) {
		return func() (string, error) { return "", h.awaitHealth(ctx, name) }, nil
	},
}

// kill sends a signal to a machine's leader, to what machined knows as its supervisor, or to all of its processes.
func (h *host) kill(ctx context.Context, name, whom string, signal int32) error {
	err := h.machined.Kill(ctx, name, whom, signal)
	if unknown(err) && whom != "supervisor" {
		var unit dbus.Unit
		if unit, err = h.unregistered(ctx, name, err); err == nil {
			err = h.systemd.Kill(ctx, unit.Name, whom == "all", signal)
		}
	}
	return err
}

// stop ends a machine. A timeout below 0 is none.
func (h *host) stop(ctx context.Context, name string, timeout int) error {
	unit, ours, err := h.systemd.MachineUnit(ctx, name)
	switch {
	case err != nil:
		return err
	case !ours:
		return h.powerOff(ctx, name)
	}
	if err := h.thaw(ctx, unit); err != nil {
		return err
	}
	if timeout >= 0 {
		late := time.AfterFunc(time.Duration(timeout)*time.Second, func() { _ = h.systemd.Kill(ctx, unit.Name, false, int32(unix.SIGKILL)) }) // the others go with it
		defer late.Stop()
	}
	return h.systemd.Stop(ctx, unit.Name)
}

// thaw lets a paused machine go on that is to end: the manager stops none that is frozen.
func (h *host) thaw(ctx context.Context, unit dbus.Unit) error {
	if !unit.Frozen {
		return nil
	}
	return h.systemd.Thaw(ctx, unit.Name)
}

// powerOff asks what is booted in a machine to power off, and does not wait for it.
func (h *host) powerOff(ctx context.Context, name string) error {
	return h.instance(ctx, name, "PowerOff", func() error { return h.machined.Kill(ctx, name, "leader", signalPowerOff) })
}

// instance has what runs a machine do something with it or, where nothing does but the kernel, does something else.
func (h *host) instance(ctx context.Context, name, method string, otherwise func() error) error {
	if h.elsewhere {
		// Its socket is on its own host.
		const first = 261
		properties, err := h.machined.Get(ctx, name)
		version, versionErr := h.systemd.Version(ctx)
		if err == nil && properties.Service == "systemd-vmspawn" && (versionErr != nil || version >= first) {
			return fmt.Errorf("%s: systemd-vmspawn, from %d on, is asked on its own host alone; there: %smachinectl %s %[1]s", name, first, options.host.ssh("-t "), strings.ToLower(method))
		}
	}
	if err := h.machined.Instance(ctx, name, method, nil); !errors.Is(err, machined.ErrNoInstance) {
		return err
	}
	return otherwise()
}

// suspended says whether what runs a virtual machine has paused it, which its control group does not show.
func (h *host) suspended(ctx context.Context, name, class string) bool {
	var instance struct{ Status string }
	return class == "vm" && !h.elsewhere && h.machined.Instance(ctx, name, "Describe", &instance) == nil && instance.Status == "paused"
}

// unregistered gives the unit of a machine of nspawnd that runs, though machined says that it does not know it, or this error of machined's.
func (h *host) unregistered(ctx context.Context, name string, notKnown error) (dbus.Unit, error) {
	unit, runs, err := h.systemd.MachineUnit(ctx, name)
	if err == nil && !runs {
		err = notKnown
	}
	return unit, err
}

// unitOf gives the unit that a machine is in.
func (h *host) unitOf(ctx context.Context, name string) (dbus.Unit, error) {
	unit, ours, err := h.systemd.MachineUnit(ctx, name)
	if ours || err != nil {
		return unit, err
	}
	properties, err := h.machined.Get(ctx, name)
	if err == nil && properties.Unit == "" {
		err = fmt.Errorf("%s has no unit of its own", name)
	}
	if err != nil {
		return dbus.Unit{}, err
	}
	return h.systemd.Unit(ctx, properties.Unit)
}

// pollInterval is between two looks at what no signal tells of.
const pollInterval = 100 * time.Millisecond

// followEnd follows a machine, and gives what waits for its end and then gives the exit status of one of nspawnd's: also of one that has ended, as far as that is known.
func (h *host) followEnd(ctx context.Context, name string) (wait func() (status string, err error), err error) {
	unit, ours, err := h.systemd.MachineUnit(ctx, name)
	if err != nil {
		return nil, err
	}
	if ours {
		service, err := h.systemd.Follow(ctx, unit.Name)
		return func() (string, error) {
			defer service.Release(ctx) // its name is free again, while we wait for others
			status, err := service.Wait(ctx)
			return strconv.Itoa(status), err
		}, err
	}
	_, err = h.machined.Get(ctx, name)
	if unknown(err) {
		kept, img, _ := keptHere(name)
		if end, ended := h.ended(ctx, name, kept, img); ended && (end.result == "" || end.result == "success") {
			status := 0
			if end.result == "" {
				status, _ = end.status()
			}
			return func() (string, error) { return strconv.Itoa(status), nil }, nil
		}
	}
	return func() (string, error) {
		return "", poll(ctx, func() (bool, error) {
			_, err := h.machined.Get(ctx, name)
			if errors.Is(err, machined.ErrNoSuchMachine) {
				return true, nil
			}
			return false, err
		})
	}, err
}

func (h *host) awaitStart(ctx context.Context, name string) error {
	return poll(ctx, func() (bool, error) {
		unit, ours, err := h.systemd.MachineUnit(ctx, name)
		if err != nil || ours && unit.ActiveState == "active" {
			return err == nil, err
		}
		_, err = h.machined.Get(ctx, name)
		if unknown(err) {
			return false, nil
		}
		return err == nil, err
	})
}

func (h *host) awaitHealth(ctx context.Context, name string) error {
	if h.elsewhere {
		return errors.New("how healthy it is says a file of its own host")
	}
	return poll(ctx, func() (bool, error) {
		_, ours, err := h.systemd.MachineUnit(ctx, name)
		if err != nil {
			return false, err
		}
		if !ours {
			return false, fmt.Errorf("%s is not a machine of nspawnd that runs", name)
		}
		timer, err := h.systemd.Unit(ctx, units.HealthTimerName(name))
		if err != nil || timer.ActiveState != "active" {
			return false, fmt.Errorf("%s has no health check", name)
		}
		text, err := os.ReadFile(units.HealthFile(name))
		if errors.Is(err, os.ErrNotExist) { // before the first probe has ended
			return false, nil
		}
		return units.ParseHealthStatus(string(text)).State == "healthy", err
	})
}

// poll asks until the answer is yes.
func poll(ctx context.Context, done func() (bool, error)) error {
	for {
		if yes, err := done(); yes || err != nil {
			return err
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
