package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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
  machinectl-lite kill --signal=HUP --kill-whom=leader web`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			signal, err := units.ParseSignal(number)
			if err != nil {
				return fmt.Errorf("--signal: %w", err)
			}
			if err := oneOf(new(string), whom, []string{"leader", "supervisor", "all"}); err != nil {
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
	cmd.Flags().StringVarP(&number, "signal", "s", "TERM", "Send this `signal`, by name or number")
	return cmd
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
				unit, ours := host.systemd.MachineUnit(cmd.Context(), name)
				var err error
				if ours {
					err = host.systemd.Restart(cmd.Context(), unit.Name)
				} else {
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
				err := host.instance(cmd.Context(), name, method, func() error {
					unit, err := host.unitOf(cmd.Context(), name)
					if err == nil {
						err = do(host.systemd, cmd.Context(), unit.Name)
					}
					return err
				})
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
			wait := map[string]func(*host, context.Context, string) error{
				"stopped": (*host).awaitEnd, "running": (*host).awaitStart, "healthy": (*host).awaitHealth,
			}[condition]
			if wait == nil {
				return fmt.Errorf("--condition: %q is not one of stopped, running, healthy", condition)
			}
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				if err := wait(host, cmd.Context(), name); err != nil {
					return fmt.Errorf("could not wait for machine: %w", err)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&condition, "condition", "stopped", "Wait until it is `stopped`, running or healthy")
	return cmd
}

// kill sends a signal to a machine's leader, to what machined knows as its supervisor, or to all of its processes.
func (h *host) kill(ctx context.Context, name, whom string, signal int32) error {
	err := h.machined.Kill(ctx, name, whom, signal)
	if unknown(err) && whom != "supervisor" {
		if unit, runs := h.systemd.MachineUnit(ctx, name); runs {
			err = h.systemd.Kill(ctx, unit.Name, whom == "all", signal)
		}
	}
	return err
}

// stop ends a machine. A timeout below 0 is none.
func (h *host) stop(ctx context.Context, name string, timeout int) error {
	unit, ours := h.systemd.MachineUnit(ctx, name)
	if !ours {
		return h.powerOff(ctx, name)
	}
	if timeout >= 0 {
		late := time.AfterFunc(time.Duration(timeout)*time.Second, func() { _ = h.systemd.Kill(ctx, unit.Name, false, int32(unix.SIGKILL)) }) // the others go with it
		defer late.Stop()
	}
	return h.systemd.Stop(ctx, unit.Name)
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

// unitOf gives the unit that a machine is in.
func (h *host) unitOf(ctx context.Context, name string) (dbus.Unit, error) {
	if unit, ours := h.systemd.MachineUnit(ctx, name); ours {
		return unit, nil
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

func (h *host) awaitEnd(ctx context.Context, name string) error {
	if unit, ours := h.systemd.MachineUnit(ctx, name); ours {
		service, err := h.systemd.Follow(ctx, unit.Name)
		if err != nil {
			return err
		}
		status, err := service.Wait(ctx)
		if err == nil {
			fmt.Println(status)
		}
		return err
	}
	if _, err := h.machined.Get(ctx, name); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		_, err := h.machined.Get(ctx, name)
		if unknown(err) {
			return true, nil
		}
		return false, err
	})
}

func (h *host) awaitStart(ctx context.Context, name string) error {
	return poll(ctx, func() (bool, error) {
		if unit, ours := h.systemd.MachineUnit(ctx, name); ours && unit.ActiveState == "active" {
			return true, nil
		}
		_, err := h.machined.Get(ctx, name)
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
		if _, ours := h.systemd.MachineUnit(ctx, name); !ours {
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
			return ctx.Err()
		}
	}
}
