package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/image"
)

func startCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "start NAME",
		Short: "Start a machine that was kept",
		Long: `Start a machine again that nspawnd-run --keep has started and that has stopped: with the same options, environment and image, on what it has
written. It runs detached; its image has to be trusted still.`,
		Example:           `  machinectl-lite start web`,
		Args:              oneKeptMachine,
		ValidArgsFunction: completeKept,
		RunE: func(_ *cobra.Command, names []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			kept, _, err := store.KeptMachine(names[0])
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			if err := os.Chdir(kept.Directory); err != nil {
				return fmt.Errorf("kept machine %s was started in: %w", names[0], err)
			}
			program := filepath.Join(filepath.Dir(self), "nspawnd-run")
			argv := append([]string{"nspawnd-run", "--start-kept=" + names[0], "--detach"}, kept.Args...)
			return fmt.Errorf("%s: %w", program, unix.Exec(program, argv, kept.Env))
		},
	}
}

func listKeptCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list-kept",
		Short:   "List machines that are kept",
		Long:    `List the machines that nspawnd-run --keep has started, whether they run or have stopped, and how much they have written.`,
		Example: `  machinectl-lite list-kept`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			names, err := store.KeptMachines()
			if err != nil {
				return err
			}
			t := table{header: []string{"MACHINE", "STATE", "IMAGE", "USAGE"}}
			for _, name := range names {
				state := "stopped"
				if host.systemd.OwnsDirectory(cmd.Context(), name) {
					state = "running"
				}
				reference := ""
				if _, img, err := store.KeptMachine(name); err == nil {
					reference = img.Reference.String()
				}
				t.rows = append(t.rows, []string{name, state, reference, bytesWords(image.DiskUsage(store.KeptDir(name)))})
			}
			return t.show("kept machines")
		},
	}
}

func removeMachineCommand() *cobra.Command {
	var force bool
	timeout := -1
	cmd := &cobra.Command{
		Use:     "remove-machine NAME...",
		Aliases: []string{"rm"},
		Short:   "Remove machines that were kept",
		Long: `Remove machines that nspawnd-run --keep has started and that have stopped, with all that they have written. With --force, machines that run are
stopped first, also those that are not kept, which are gone then.`,
		Example: `  machinectl-lite remove-machine web
  machinectl-lite rm --force web db`,
		Args:              machineNames,
		ValidArgsFunction: completeKept,
		RunE: func(cmd *cobra.Command, names []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				return host.remove(cmd.Context(), store, name, force, timeout)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Stop what runs")
	cmd.Flags().IntVarP(&timeout, "timeout", "t", timeout, "With --force, kill it after so many `seconds`, if that is sooner than it says itself")
	return cmd
}

// remove removes a kept machine; force stops it first, kept or not.
func (h *host) remove(ctx context.Context, store *image.Store, name string, force bool, timeout int) error {
	_, runs := h.systemd.MachineUnit(ctx, name)
	if force && runs {
		if err := h.stop(ctx, name, timeout); err != nil {
			return fmt.Errorf("could not stop machine: %w", err)
		}
	}
	ends := h.systemd.AwaitDirectory(ctx, name)
	if force && runs && !image.IsKept(store.KeptDir(name)) {
		return nil
	}
	if !ends {
		return fmt.Errorf("machine %s runs; to end it: machinectl-lite terminate %s", name, name)
	}
	if _, _, err := store.KeptMachine(name); err != nil {
		return err
	}
	return store.RemoveKept(name, machinedir.Discard)
}

func oneKeptMachine(cmd *cobra.Command, args []string) error {
	if err := machineNames(cmd, args); err != nil {
		return err
	}
	if len(args) > 1 {
		return errors.New("start: one machine at a time")
	}
	return nil
}

// completeKept offers the names of the machines that are kept.
func completeKept(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	store, err := image.Open(cmp.Or(storeRoot, image.DefaultRoot))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, _ := store.KeptMachines()
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
}
