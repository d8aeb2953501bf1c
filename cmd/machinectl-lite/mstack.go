package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"nspawnd/image"
)

func exportMStackCommand() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "export-mstack IMAGE DIRECTORY",
		Short: "Write an image as a mount stack for systemd itself",
		Long: `Write a stored image as a mount stack: a new directory, named NAME.mstack, that systemd 260 and later can run without
nspawnd, by systemd-nspawn --mstack= or a unit's RootMStack= (Linux 6.13 or later). Each layer is a directory in it, with whiteouts as overlayfs
has them; what a machine changes goes to rw/ beside them. The digest of every layer is checked.

Only the tree is exported. What the image says about its command, user or environment, inspect-image shows.`,
		Example: `  machinectl-lite export-mstack web /var/lib/machines/web.mstack
  systemd-nspawn -M web --mstack=/var/lib/machines/web.mstack nginx
  systemd-run --pipe -p RootMStack=/var/lib/machines/web.mstack nginx -v`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || args[0] == "" || args[1] == "" {
				return fmt.Errorf("%s takes an image and a directory (see %s --help)", cmd.Name(), cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completeImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			img, err := findImage(store, args[0])
			if err != nil {
				return err
			}
			return store.ExportMStack(cmd.Context(), img, args[1], readOnly)
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "Leave out rw/, so that nothing can be changed")
	return cmd
}
