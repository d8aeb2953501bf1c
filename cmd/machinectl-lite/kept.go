package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"
)

func startCommand() *cobra.Command {
	by := nspawn
	cmd := &cobra.Command{
		Use:   "start NAME...",
		Short: "Start machines that were kept, and images of systemd-nspawn",
		Long: `Start machines again that nspawnd-run --keep has started and that have stopped: with the same options, environment and image, on what they have
written. They run detached; their images have to be trusted still. One that runs already stays as it is. For a name that is no kept machine's but that of an image in /var/lib/machines,
systemd-nspawn@NAME.service is started, as by machinectl. With --runner=vmspawn names are those of images only.

Exit status: 0, 1, or for one kept machine that of nspawnd-run(1), 125.`,
		Example: `  machinectl-lite start web
  machinectl-lite start debian
  machinectl-lite start -V debian`,
		Args:              machineNames,
		ValidArgsFunction: completeKept,
		RunE: func(cmd *cobra.Command, names []string) error {
			if !options.own() || by == vmspawn { // kept machines are this host's system's, and no virtual machines
				return forEachMachine(cmd.Context(), names, func(host *host, name string) error { return host.startImage(cmd.Context(), by, name, "") })
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			if len(names) == 1 && image.IsKept(store.KeptDir(names[0])) {
				if host, err := connect(cmd.Context()); err == nil { // nspawnd-run says what is wrong with the bus
					active := host.active(cmd.Context(), names[0])
					host.close()
					if active {
						return nil
					}
				}
				run, err := keptCommand(cmd.Context(), store, names[0])
				if err == nil {
					err = os.Chdir(run.Dir)
				}
				if err == nil {
					err = unix.Exec(run.Path, run.Args, run.Env)
				}
				return fmt.Errorf("kept machine %s: %w", names[0], err)
			}
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				if image.IsKept(store.KeptDir(name)) {
					if host.active(cmd.Context(), name) {
						return nil
					}
					run, err := keptCommand(cmd.Context(), store, name)
					if err == nil {
						err = run.Run()
					}
					if cmd.Context().Err() != nil {
						err = errors.New("interrupted; it may have been started")
					}
					if err != nil {
						return fmt.Errorf("kept machine %s: %w", name, err)
					}
					return nil
				}
				return host.startImage(cmd.Context(), by, name, store.KeptDir(name))
			})
		},
	}
	by.addTo(cmd)
	return cmd
}

// active says whether a machine of nspawnd runs, as far as that can be known.
func (h *host) active(ctx context.Context, name string) bool {
	unit, runs, err := h.systemd.MachineUnit(ctx, name)
	return runs && err == nil && unit.ActiveState == "active"
}

// startImage starts an image in /var/lib/machines. Its name might have been a kept machine's too, with this directory; "": there is none.
func (h *host) startImage(ctx context.Context, by runner, name, kept string) error {
	err := h.machined.FindImage(ctx, name)
	switch {
	case errors.Is(err, machined.ErrNoSuchImage) && kept == "":
		return fmt.Errorf("there is no image %s", name)
	case errors.Is(err, machined.ErrNoSuchImage):
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("kept machine %s: %w", name, err)
		}
		return fmt.Errorf("there is neither a kept machine %s nor an image in /var/lib/machines of that name", name)
	case err == nil:
		err = h.systemd.StartUnit(ctx, by.unit(name))
	}
	if err != nil {
		return fmt.Errorf("could not start machine: %s: %w", name, err)
	}
	return nil
}

// keptCommand is nspawnd-run's command line that starts a machine as it was started before.
func keptCommand(ctx context.Context, store *image.Store, name string) (*exec.Cmd, error) {
	kept, _, err := store.KeptMachine(name)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	run := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "nspawnd-run"), append([]string{"--start-kept=" + name, "--detach"}, kept.Args...)...)
	run.Dir, run.Env, run.Stdin, run.Stdout, run.Stderr = kept.Directory, kept.Env, os.Stdin, os.Stdout, os.Stderr
	run.Cancel = func() error { return run.Process.Signal(syscall.SIGTERM) }
	return run, nil
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
			t := table{header: []string{"MACHINE", "STATE", "IMAGE", "USAGE"}, values: []string{"USAGE"}}
			size := cellsFor(options.jsonLayout() != "").size
			for _, name := range names {
				state := "stopped"
				owns, err := host.systemd.OwnsDirectory(cmd.Context(), name)
				if err != nil {
					return err
				}
				if owns {
					state = "running"
				}
				reference := ""
				if _, img, err := store.KeptMachine(name); err == nil {
					reference = img.Reference.String()
				}
				t.rows = append(t.rows, []string{name, state, reference, size(image.DiskUsage(store.KeptDir(name)))})
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
	_, runs, err := h.systemd.MachineUnit(ctx, name)
	if err != nil {
		return err
	}
	if force && runs {
		if err := h.stop(ctx, name, timeout); err != nil {
			return fmt.Errorf("could not stop machine: %w", err)
		}
		if !image.IsKept(store.KeptDir(name)) {
			if free, err := h.systemd.AwaitDirectory(ctx, name); free || err != nil {
				return err
			}
		}
	}
	dir, err := h.stopped(ctx, store, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return image.RemoveKept(dir, machinedir.Discard)
}

// rename gives a kept machine another name.
func (h *host) rename(ctx context.Context, store *image.Store, name, newName string) error {
	if !units.ValidName(newName) {
		return fmt.Errorf("%q is no name for a machine: up to 64 letters and digits, with hyphens and dots between", newName)
	}
	_, runs, err := h.systemd.MachineUnit(ctx, newName)
	if !runs && err == nil {
		if _, err = h.machined.Get(ctx, newName); unknown(err) {
			err = nil
		} else {
			runs = err == nil
		}
	}
	switch {
	case err != nil:
		return err
	case runs:
		return fmt.Errorf("a machine %s runs", newName)
	}
	dir, err := h.stopped(ctx, store, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return store.RenameKept(dir, newName)
}

// stopped gives the directory of a kept machine that does not run, and is not started as long as that is open.
func (h *host) stopped(ctx context.Context, store *image.Store, name string) (dir *os.File, err error) {
	runs := fmt.Errorf("machine %s runs; to end it: machinectl-lite terminate %s", name, name)
	if free, err := h.systemd.AwaitDirectory(ctx, name); err != nil {
		return nil, err
	} else if !free {
		return nil, runs
	}
	if _, _, err := store.KeptMachine(name); err != nil {
		return nil, err
	}
	if dir, err = store.KeepMachine(name, true); err != nil {
		return nil, err
	}
	owns, err := h.systemd.OwnsDirectory(ctx, name)
	if err == nil && owns { // it was started before there was the lock
		err = runs
	}
	if err != nil {
		dir.Close()
	}
	return dir, err
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
