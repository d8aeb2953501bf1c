package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
)

func diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff NAME",
		Short: "Show what a machine has changed of its image's files",
		Long: `Show what a machine of nspawnd, that runs or is kept, has added (A), changed (C) and deleted (D) in its image's files. What is in volumes and other
mounts is not shown, nor what nspawnd-run and systemd make for each machine.`,
		Example: `  machinectl-lite diff web
  machinectl-lite diff --json=short web | jq -r '.[] | select(.change == "A").path'`,
		Args:              oneMachine,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			store, dir, img, err := machineFiles(names[0])
			if err != nil {
				return err
			}
			changes, err := store.MachineChanges(cmd.Context(), img, dir)
			if err != nil {
				return err
			}
			if options.jsonLayout() != "" {
				t := table{header: []string{"CHANGE", "PATH"}}
				for _, c := range changes {
					t.rows = append(t.rows, []string{string(c.Kind), c.Path})
				}
				return t.show("changes")
			}
			for _, c := range changes {
				if _, err := fmt.Printf("%c %s\n", c.Kind, printable.Line(c.Path)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func exportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export NAME [FILE]",
		Short: "Write the files of a machine as a tar",
		Long: `Write the whole tree of a machine of nspawnd, that runs or is kept, as a tar: its image's files as it has changed them, without what is in volumes and
other mounts. It goes to standard output, unless that is a terminal, or to FILE, which must not be there yet. A file that is written meanwhile may be half
old and half new; see pause.`,
		Example: `  machinectl-lite export web | tar -t
  machinectl-lite export web web.tar`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 {
				return fmt.Errorf("export takes a machine and a file (see %s --help)", cmd.CommandPath())
			}
			return machineNames(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			store, dir, img, err := machineFiles(args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if term.IsTerminal(int(os.Stdout.Fd())) {
					return errors.New("export: a tar is nothing for a terminal; name a file or redirect the output")
				}
				return store.ExportMachine(cmd.Context(), img, dir, os.Stdout)
			}
			file, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			if err := errors.Join(store.ExportMachine(cmd.Context(), img, dir, file), file.Close()); err != nil {
				os.Remove(file.Name())
				return err
			}
			return nil
		},
	}
}

func commitCommand() *cobra.Command {
	var c image.Commit
	var pause bool
	cmd := &cobra.Command{
		Use:   "commit NAME IMAGE",
		Short: "Make an image of a machine",
		Long: `Make an image of a machine of nspawnd, that runs or is kept: its image's layers and one more with what it has changed (see diff). IMAGE has to be a name in
full, such as localhost/web:2. The name with the digest is printed.

Nobody has signed such an image, and its record says that it was committed here. It is treated as one that was imported with --insecure-options=image: it
runs under a name that no rule is for, and under one that a rule is for only with that option.

--change has instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR.`,
		Example: `  machinectl-lite commit web localhost/web:2
  machinectl-lite commit --pause --message 'with the new site' --change 'CMD ["nginx"]' web localhost/web:2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("commit takes a machine and an image's name (see %s --help)", cmd.CommandPath())
			}
			return machineNames(cmd, args)
		},
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			var store *image.Store
			var err error
			c.Machine = args[0]
			if c.As, err = fullName(args[1]); err != nil {
				return err
			}
			if store, c.Dir, c.Base, err = machineFiles(c.Machine); err != nil {
				return err
			}
			if pause {
				resume, err := freeze(cmd.Context(), c.Machine)
				if err != nil {
					return err
				}
				defer resume()
			}
			img, err := c.Run(cmd.Context(), store)
			if err != nil {
				return err
			}
			fmt.Println(img.Reference.Repository() + "@" + string(img.ManifestDigest))
			return nil
		},
	}
	cmd.Flags().StringVar(&c.Author, "author", "", "Note this `author`")
	cmd.Flags().StringVarP(&c.Message, "message", "m", "", "Note this `text` with the layer")
	cmd.Flags().StringArrayVarP(&c.Changes, "change", "c", nil, "Change the configuration by an `instruction`")
	cmd.Flags().BoolVarP(&pause, "pause", "p", false, "Pause the machine meanwhile")
	return cmd
}

// freeze pauses a machine that runs.
func freeze(ctx context.Context, name string) (resume func(), err error) {
	host, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	unit, runs, err := host.systemd.MachineUnit(ctx, name)
	if err == nil && (!runs || unit.Restarting) {
		return host.close, nil
	}
	if err == nil {
		err = host.systemd.Freeze(ctx, unit.Name)
	}
	if err != nil {
		host.close()
		return nil, fmt.Errorf("could not pause machine: %w", err)
	}
	return func() {
		_ = host.systemd.Thaw(context.WithoutCancel(ctx), unit.Name) // also when the user has given up
		host.close()
	}, nil
}

// machineFiles gives the directory of a machine that runs or is kept, and the image that it was made of.
func machineFiles(name string) (store *image.Store, dir string, img *image.Image, err error) {
	if store, err = image.Open(storeRoot); err != nil {
		return nil, "", nil, err
	}
	if dir, img, err = store.RunningMachine(name, machinedir.Owned); errors.Is(err, image.ErrNotFound) {
		if dir = store.KeptDir(name); !image.IsKept(dir) {
			return nil, "", nil, fmt.Errorf("%s is no machine of nspawnd that runs or is kept", name)
		}
		_, img, err = store.KeptMachine(name)
	}
	return store, dir, img, err
}

// oneMachine wants one machine's name.
func oneMachine(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s: one machine at a time", cmd.Name())
	}
	return machineNames(cmd, args)
}
