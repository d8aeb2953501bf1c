package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

func importOCICommand() *cobra.Command {
	var flags pullFlags
	cmd := &cobra.Command{
		Use:   "import-oci SOURCE [NAME]",
		Short: "Verify an image that is in files and store it",
		Long: `Verify an image that is in files and store it, so that nspawnd-run can start it.

SOURCE is written as for podman and skopeo (containers-transports(5)):

  oci:DIRECTORY[:IMAGE]           an OCI image layout
  oci-archive:FILE[:IMAGE]        the same in a tar
  docker-archive:FILE[:NAME:TAG]  what docker save and podman save write
  dir:DIRECTORY                   what skopeo copy writes, with its signatures

IMAGE is needed if there are several. The tars may be compressed by gzip or zstd.

The image is stored under NAME, which has to be in full, such as localhost/web:1; without it, under the name that the image has in SOURCE.

It is accepted as an image from a registry is (see pull-oci), by what is trusted for its new name; of policy.json, what counts is what it says about SOURCE
(containers-policy.json(5)). Only dir: keeps signatures: for the others, NAME can have the digest of the image's manifest. When it is stored, its
name with the digest is printed.`,
		Example: `  machinectl-lite import-oci oci:build/image:latest localhost/web
  machinectl-lite import-oci --insecure-options=image docker-archive:web.tar.gz`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("%s takes a source and a name (see %s --help)", cmd.Name(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := parseSource(args[0])
			if err != nil {
				return err
			}
			var ref image.Reference
			if len(args) > 1 {
				if ref, err = fullName(args[1]); err != nil {
					return err
				}
			}
			return flags.run(func(store *image.Store, options fetch.Options) (*image.Image, error) {
				return fetch.Import(cmd.Context(), store, source, ref, options)
			})
		},
	}
	flags.register(cmd)
	return cmd
}

func parseSource(s string) (fetch.Source, error) {
	source, ok, err := fetch.ParseSource(s)
	if err == nil && !ok {
		err = fmt.Errorf("%q: begins with none of %s", s, strings.Join(fetch.Transports, ":, ")+":")
	}
	return source, err
}

// fullName wants a name with its host: what an image of one's own is called must not depend on what short names mean.
func fullName(name string) (image.Reference, error) {
	ref, err := image.ParseReference(name)
	if err == nil && !strings.HasPrefix(name, ref.Domain()+"/") {
		err = fmt.Errorf("image name %q: must be in full, such as localhost/%s, or %s if it is that", name, name, ref)
	}
	return ref, err
}
