package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
	"nspawnd/image/fetch"
)

func pullACICommand() *cobra.Command {
	var flags pullFlags
	var id string
	cmd := &cobra.Command{
		Use:   "pull-aci SOURCE",
		Short: "Fetch an image of rkt's own format, verify it and store it",
		Long: `Fetch an App Container Image (ACI), rkt's own format, verify it and store it, so that nspawnd-run can start it.

SOURCE is one of:

  aci:FILE, or a path that begins with / or .    a file
  https://HOST/PATH                              a file on the web
  NAME[:VERSION][,LABEL=VALUE...]                an appc name, such as example.com/app:1.0: it is found by the ac-discovery
                                                 tags of https://example.com/app or of a page above it

The image is accepted if its signature, a file of the same name with .asc added, is by an OpenPGP key that is trusted for the name in its
manifest (see trust), or if it has the ID that --image-id says and no rule is about its name. policy.json has no word about ACIs but its
default. Images that it depends on are found by their names and have to be accepted in the same way.

It is stored under its appc name, with the version asked for or that of its manifest as the tag, "latest" without one. What its manifest says that
has no meaning here is listed in a warning. When it is stored, its name with the digest is printed. The file itself is not kept: to
verify its signature again, pull it again.`,
		Example: `  machinectl-lite trust add --prefix example.com/app pubkeys.gpg
  machinectl-lite pull-aci example.com/app:1.0
  machinectl-lite pull-aci --image-id=sha512-… aci:app.aci`,
		Args: oneArgument("source"),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := fetch.ParseACISource(args[0])
			if err != nil {
				return err
			}
			return flags.run(func(store *image.Store, options fetch.Options) (*image.Image, error) {
				img, unmapped, err := fetch.PullACI(cmd.Context(), store, source, id, options)
				if err == nil && len(unmapped) > 0 {
					fmt.Fprintf(os.Stderr, "%s: image %s: left out, since it has no meaning here: %s\n", program, img.Reference, printable.Line(strings.Join(unmapped, ", ")))
				}
				return img, err
			})
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&id, "image-id", "", "Refuse the image unless its `ID` is this: sha512- and the hash of the uncompressed ACI")
	return cmd
}
