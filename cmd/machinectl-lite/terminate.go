package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nspawnd/machined"
)

func terminateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "terminate NAME...",
		Short: "Terminate machines",
		Long: `Stop the units of machines, which ends all their processes, without asking the operating system inside to shut down. Returns
when systemd has taken the order; it does not wait for the end.`,
		Example: `  machinectl-lite terminate web
  machinectl-lite terminate web db cache`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				return host.terminate(cmd.Context(), name)
			})
		},
	}
}

// terminate stops the unit of a machine, also of one of ours that machined does not know.
func (h *host) terminate(ctx context.Context, name string) error {
	byMachined := func() error { return h.machined.Terminate(ctx, name) }
	unit, ours, err := h.systemd.MachineUnit(ctx, name)
	switch {
	case err != nil:
	case !ours:
		err = h.instance(ctx, name, "Terminate", byMachined)
	default:
		if err = h.thaw(ctx, unit); err == nil {
			err = byMachined()
		}
		if unknown(err) {
			err = h.systemd.BeginStop(ctx, unit.Name)
		}
	}
	if err != nil {
		return fmt.Errorf("could not terminate machine: %w", err)
	}
	return nil
}

// unknown reports whether machined does not know the machine, or is not there to know any.
func unknown(err error) bool {
	return errors.Is(err, machined.ErrNoSuchMachine) || errors.Is(err, machined.ErrUnavailable)
}
