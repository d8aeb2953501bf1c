package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/printable"
	"nspawnd/dbus"
	"nspawnd/machined"
	"nspawnd/units"
)

func enableCommand() *cobra.Command {
	return enablingCommand("enable", "Have machines of systemd-nspawn started at boot",
		`Have images in /var/lib/machines started at boot, each by systemd-nspawn@NAME.service or, with --runner=vmspawn, systemd-vmspawn@NAME.service, as by machinectl. A machine
of nspawnd is no such image.`,
		"Start them now, too", "machinectl-lite enable --now debian",
		func(c *dbus.Conn, ctx context.Context, names []string) ([]dbus.Change, error) {
			return c.Enable(ctx, append([]string{"machines.target"}, names...)...)
		},
		func(host *host, ctx context.Context, by runner, name string) error {
			return host.systemd.StartUnit(ctx, by.unit(name))
		})
}

func disableCommand() *cobra.Command {
	return enablingCommand("disable", "Have machines of systemd-nspawn not started at boot any more",
		`Take back what enable did.`,
		"Ask them to power off now, too", "machinectl-lite disable debian",
		func(c *dbus.Conn, ctx context.Context, names []string) ([]dbus.Change, error) {
			return c.Disable(ctx, names...)
		},
		func(host *host, ctx context.Context, _ runner, name string) error {
			err := host.powerOff(ctx, name)
			if errors.Is(err, machined.ErrNoSuchMachine) || errors.Is(err, syscall.ESRCH) { // it does not run
				return nil
			}
			return err
		})
}

// runner is what runs an image in /var/lib/machines.
type runner string

const (
	nspawn  runner = "nspawn"
	vmspawn runner = "vmspawn" // as a virtual machine
)

func (r *runner) Set(value string) error {
	return oneOf((*string)(r), value, []string{string(nspawn), string(vmspawn)})
}

func (r *runner) String() string { return string(*r) }
func (r *runner) Type() string   { return "runner" }

// addTo gives a verb the options that choose it; the last one counts.
func (r *runner) addTo(cmd *cobra.Command) {
	cmd.Flags().Var(r, "runner", "Run the image by nspawn or vmspawn")
	cmd.Flags().BoolFuncP("V", "V", "Same as --runner=vmspawn", func(string) error { return r.Set(string(vmspawn)) })
}

// unit is the one that runs an image.
func (r runner) unit(image string) string { return "systemd-" + string(r) + "@" + image + ".service" }

func enablingCommand(verb, short, long, nowHelp, example string, do func(c *dbus.Conn, ctx context.Context, units []string) ([]dbus.Change, error),
	atOnce func(host *host, ctx context.Context, by runner, name string) error) *cobra.Command {
	var now, quiet bool
	by := nspawn
	cmd := &cobra.Command{
		Use: verb + " NAME...", Short: short, Long: long, Example: "  " + example,
		Args:              machineNames,
		ValidArgsFunction: completePool,
		RunE: func(cmd *cobra.Command, names []string) error {
			ctx := cmd.Context()
			host, err := connect(ctx)
			if err != nil {
				return err
			}
			defer host.close()
			var services []string
			for _, name := range names { // all of them before anything is changed
				if err := host.machined.FindImage(ctx, name); err != nil {
					return fmt.Errorf("could not %s machine: %s: %w", verb, name, err)
				}
				services = append(services, by.unit(name))
			}
			changes, err := do(host.systemd, ctx, services)
			if err != nil {
				return fmt.Errorf("could not %s machine: %w", verb, err)
			}
			if !quiet {
				showChanges(changes)
			}
			var failed failures
			for _, name := range names {
				if !now {
					break
				}
				if err := atOnce(host, ctx, by, name); err != nil {
					failed = append(failed, fmt.Errorf("%s: %w", name, err))
				}
			}
			return failed.orNil()
		},
	}
	by.addTo(cmd)
	cmd.Flags().BoolVar(&now, "now", false, nowHelp)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Do not say which links were made or removed")
	return cmd
}

func showChanges(changes []dbus.Change) {
	arrow := "->"
	if newTerminal(os.LookupEnv, os.Stderr).utf8 {
		arrow = "→"
	}
	for _, c := range changes {
		if c.Removed {
			fmt.Fprintf(os.Stderr, "Removed '%s'.\n", printable.Line(c.Link))
		} else {
			fmt.Fprintf(os.Stderr, "Created symlink '%s' %s '%s'.\n", printable.Line(c.Link), arrow, printable.Line(c.Destination))
		}
	}
}

func setLimitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set-limit [NAME] BYTES",
		Short: "Limit the size of an image in /var/lib/machines, or of all",
		Long: `Limit the size of an image in /var/lib/machines or, without a name, of all of them together, as by machinectl: a number of bytes, which may end in K, M, G or T, or - for no limit. It takes
btrfs. Images of nspawnd have no limit of their own.`,
		Example: "  machinectl-lite set-limit debian 10G\n  machinectl-lite set-limit -- -",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("set-limit wants a size, and at most one image before it (see %s --help)", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			limit := uint64(machined.NoLimit)
			if size := args[len(args)-1]; size != "-" && size != "infinity" {
				var err error
				if limit, err = units.ParseSize(size); err != nil {
					return fmt.Errorf("set-limit: %w", err)
				}
			}
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			if len(args) == 1 {
				err = host.machined.SetPoolLimit(cmd.Context(), limit)
			} else {
				err = host.machined.SetImageLimit(cmd.Context(), args[0], limit)
			}
			if err != nil {
				return fmt.Errorf("could not set limit: %w", err)
			}
			return nil
		},
	}
}
