package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/image"
)

func listImagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list-images",
		Short: "List the images in the store",
		Long: `List the images in the store, with the digest of their manifest, the bytes that their layers take on disk (layers that
images share count for each), why they were accepted, and when they were pulled.`,
		Example: `  machinectl-lite list-images
  machinectl-lite list-images --json=pretty`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			images, err := store.Images()
			return errors.Join(imageTable(images, options.jsonLayout() != "").show("images"), err)
		},
	}
}

// imageTable is for people, or exact.
func imageTable(images []*image.Image, exact bool) table {
	t := table{header: []string{"NAME", "DIGEST", "SIZE", "TRUST", "PULLED"}}
	for _, img := range images {
		row := []string{img.Reference.String(), string(img.ManifestDigest), strconv.FormatInt(img.Size, 10), trustWords(img.Trust, exact), img.Pulled.UTC().Format(time.RFC3339)}
		if !exact {
			row[1] = img.ManifestDigest.Short()
			row[2] = bytesWords(img.Size)
			row[4] = img.Pulled.Local().Format("Mon 2006-01-02 15:04:05 MST") // as systemd writes it
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// trustWords says why an image was accepted.
func trustWords(trust image.Trust, exact bool) string {
	words := string(trust.Kind)
	if trust.Signer == "" {
		return words
	}
	signer := trust.Signer
	if !exact {
		signer = signer[max(0, len(signer)-16):] // what OpenPGP calls the key ID
	}
	return words + " " + signer
}

// bytesWords gives a size as systemd does: powers of 1024, one digit behind the point.
func bytesWords(n int64) string {
	const units = "BKMGTPE"
	i := 0
	value := float64(n)
	for ; value >= 1024 && i < len(units)-1; i++ {
		value /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%c", value, units[i])
}
