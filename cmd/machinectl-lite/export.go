package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

func exportOCICommand() *cobra.Command {
	compression := "gzip"
	cmd := &cobra.Command{
		Use:   "export-oci NAME DESTINATION",
		Short: "Write a stored image to files",
		Long: `Write a stored image to files that podman, skopeo, docker and import-oci read.

DESTINATION is oci:DIRECTORY[:IMAGE], oci-archive:FILE[:IMAGE], docker-archive:FILE[:NAME:TAG] or dir:DIRECTORY (containers-transports(5)),
which must not be there yet.

The content is what was pulled and the image's ID stays the same. The digest of its manifest does not, as the store keeps layers uncompressed and they are
compressed anew: no signature holds for what is written.`,
		Example: `  machinectl-lite export-oci registry.example/team/web:1 oci-archive:web.tar
  machinectl-lite export-oci --compression=zstd localhost/web oci:web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s takes an image and a destination (see %s --help)", cmd.Name(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if formats := []string{"gzip", "zstd", "none"}; !slices.Contains(formats, compression) {
				return fmt.Errorf("--compression=%s: must be gzip, zstd or none", compression)
			}
			destination, err := parseSource(args[1])
			if err != nil {
				return err
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			img, err := findImage(store, args[0])
			if err != nil {
				return err
			}
			return fetch.Export(cmd.Context(), store, img, destination, compression)
		},
	}
	cmd.Flags().StringVar(&compression, "compression", compression, "Compress layers by `format`: gzip, zstd or none; a docker-archive's never are")
	return cmd
}
