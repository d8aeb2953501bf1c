package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/machined"
)

func listImagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list-images",
		Short: "List images",
		Long: `List the images in the store: the bytes that an image's layers take on disk (a layer that images share counts for each), when
it was built and when it was stored here, why it was accepted, and the digest of its manifest. Among them are the images of systemd-nspawn and others that
systemd-machined knows; with --all also hidden ones.` + aboutThere,
		Example: `  machinectl-lite list-images
  machinectl-lite list-images --json=pretty`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !options.own() {
				return listPool(cmd.Context())
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			images, err := store.Images()
			if images == nil && err != nil {
				return err
			}
			pool, poolErr := poolImages(cmd.Context())
			return errors.Join(imageTable(store, images, pool, options.jsonLayout() != "").show("images"), err, poolErr)
		},
	}
}

// imageTable has machinectl's columns and, after them, our own; for people, or exact.
func imageTable(store *image.Store, images []*image.Image, pool []machined.Image, exact bool) table {
	t := table{header: []string{"NAME", "TYPE", "RO", "USAGE", "CREATED", "MODIFIED", "TRUST", "DIGEST"}, size: 4, values: []string{"RO", "USAGE", "CREATED", "MODIFIED"}}
	c := cellsFor(exact)
	for _, img := range images {
		digest := string(img.ManifestDigest)
		if !exact {
			digest = img.ManifestDigest.Short()
		}
		t.rows = append(t.rows, []string{img.Reference.String(), imageType, c.flag(img.ReadOnly), c.size(img.Size), c.when(readBlobs(store, img).created()), c.when(img.Pulled),
			trustWords(img.Trust, exact), digest})
	}
	for _, img := range pool {
		t.rows = append(t.rows, append(poolRow(img, c), "", ""))
	}
	slices.SortStableFunc(t.rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return t
}

// imageType is what images of the store are called beside those of machined, which are directories, subvolumes, …
const imageType = "oci"

// imageBlobs are the documents that an image came with; nil where the store's copy is missing or damaged.
type imageBlobs struct{ manifest, config []byte }

func readBlobs(store *image.Store, img *image.Image) imageBlobs {
	var b imageBlobs
	b.manifest, _ = store.Blob(img.ManifestDigest)
	b.config, _ = store.Blob(img.ConfigDigest)
	return b
}

// created is when the image was built, as far as it says so.
func (b imageBlobs) created() time.Time {
	var config struct{ Created time.Time }
	_ = json.Unmarshal(b.config, &config) // what is no time there is none
	return config.Created
}

// imageNames wants at least minimum and at most maximum names, -1 for any number.
func imageNames(minimum, maximum int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 1 && minimum == 2:
			return fmt.Errorf("%s takes a name and a new one (see %s --help)", cmd.Name(), cmd.CommandPath())
		case len(args) < minimum:
			return fmt.Errorf("%s: no image named (see %s --help)", cmd.Name(), cmd.CommandPath())
		case maximum >= 0 && len(args) > maximum:
			return fmt.Errorf("%s takes at most %d arguments (see %s --help)", cmd.Name(), maximum, cmd.CommandPath())
		case slices.Contains(args, ""):
			return fmt.Errorf("%s: an image's name is never empty", cmd.Name())
		}
		return nil
	}
}

// forEachStored does something with every image of the store that is named, also when it failed for one before.
func forEachStored(names []string, do func(*image.Store, *image.Image) error) error {
	return forEachName(names, func(store *image.Store, name string) error {
		img, err := findImage(store, name)
		if err != nil {
			return err
		}
		return do(store, img)
	})
}

// detailedImage is an image of the store or of machined's.
type detailedImage interface {
	format(now time.Time) string
	properties() []property
}

// forEachImage is forEachStored for images of the store or else of machined's.
func forEachImage(ctx context.Context, names []string, do func(detailedImage) error) error {
	fromPool := func(c *machined.Client, name string) error {
		details, err := newPoolImageDetails(ctx, c, name)
		if err != nil {
			return err
		}
		return do(details)
	}
	if !options.own() {
		return forEachInPool(ctx, names, fromPool)
	}
	return forEachName(names, func(store *image.Store, name string) error {
		img, err := findImage(store, name)
		if err == nil {
			return do(newImageDetails(store, img))
		}
		return inPool(ctx, name, err, func(c *machined.Client) error { return fromPool(c, name) })
	})
}

func forEachName(names []string, do func(store *image.Store, name string) error) error {
	store, err := image.Open(storeRoot)
	if err != nil {
		return err
	}
	var failed failures
	for _, name := range names {
		if err := do(store, name); err != nil {
			failed = append(failed, err)
		}
	}
	return failed.orNil()
}

// findImage gives a stored image by its name, by the end of its name, or by the first digits of its ID or digest, as podman does.
func findImage(store *image.Store, name string) (*image.Image, error) {
	ref, err := store.Name(name)
	if err == nil {
		img, err := store.Image(ref)
		if !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	images, unreadable := store.Images()
	var found []*image.Image
	for _, img := range images {
		if matches(img, name) {
			found = append(found, img)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("image %q: may be %s or %s; write the name in full", name, found[0].Reference, found[1].Reference)
	case unreadable != nil:
		return nil, unreadable
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("image %s: %w; machinectl-lite list-images shows what is there", ref, image.ErrNotFound)
}

// storedName is the name in full of what findImage finds, and of an image whose record can't be read.
func storedName(store *image.Store, name string) (image.Reference, error) {
	if ref, err := store.Name(name); err == nil {
		if _, err := os.Lstat(store.RecordPath(ref)); err == nil {
			return ref, nil
		}
	}
	img, err := findImage(store, name)
	if err != nil {
		return image.Reference{}, err
	}
	return img.Reference, nil
}

// minID is how many digits of a digest may stand for it.
const minID = 4

func matches(img *image.Image, name string) bool {
	full := img.Reference.String()
	if strings.HasSuffix(full, "/"+name) || strings.HasSuffix(full, "/"+name+":latest") {
		return true
	}
	hex := strings.TrimPrefix(name, "sha256:")
	return len(hex) >= minID && (strings.HasPrefix(img.ConfigDigest.Hex(), hex) || strings.HasPrefix(img.ManifestDigest.Hex(), hex))
}

// completeImages offers the names of the stored images for the first maximum arguments, -1 for all.
func completeImages(maximum int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if maximum >= 0 && len(args) >= maximum {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if options.host.name != "" { // ssh may ask for a password
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		if options.own() {
			store, err := image.Open(storeRoot)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			images, _ := store.Images()
			for _, img := range images {
				names = append(names, img.Reference.String())
			}
		}
		pool, directive := completePool(cmd, args, "")
		return slices.Concat(slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) }), pool), directive
	}
}

// completePool offers the names of machined's images.
func completePool(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if options.host.name == "" {
		pool, _ := poolImages(cmd.Context())
		for _, img := range pool {
			if !slices.Contains(args, img.Name) {
				names = append(names, img.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// trustWords says why an image was accepted.
func trustWords(trust image.Trust, exact bool) string {
	words := string(trust.Kind)
	if trust.Signer == "" {
		return words
	}
	signer := trust.Signer
	if !exact && trust.Kind != image.TrustKeyless {
		signer = signer[max(0, len(signer)-16):] // what OpenPGP calls the key ID
	}
	return words + " " + signer
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// timestamp writes a time as systemd does, in local time; "" for none.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("Mon 2006-01-02 15:04:05 MST")
}

// bytesWords gives a size as systemd does: powers of 1024, cut after one digit behind the point, unless that is 0.
func bytesWords(n int64) string {
	const units = "BKMGTPE"
	i, unit := 0, int64(1)
	for ; n/unit >= 1024 && i < len(units)-1; i++ {
		unit *= 1024
	}
	whole, tenth := n/unit, uint64(n%unit)*10/uint64(unit)
	if tenth == 0 {
		return fmt.Sprintf("%d%c", whole, units[i])
	}
	return fmt.Sprintf("%d.%d%c", whole, tenth, units[i])
}
