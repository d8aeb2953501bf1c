package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"nspawnd/image"
	"nspawnd/machined"
)

// Images of systemd-nspawn and the like are machined's. Verbs for images take them where the store has none of that name.

// poolImages gives machined's images, the hidden ones only with --all. Where there is no machined, there are none.
func poolImages(ctx context.Context) ([]machined.Image, error) {
	host, err := connect(ctx)
	if err != nil {
		return nil, nil
	}
	defer host.close()
	all, err := host.machined.Images(ctx)
	if errors.Is(err, machined.ErrUnavailable) {
		return nil, nil
	}
	var images []machined.Image
	for _, img := range all {
		if options.all || !strings.HasPrefix(img.Name, ".") {
			images = append(images, img)
		}
	}
	return images, err
}

// inPool does something with machined's image of that name. If there is none, the error is notStored.
func inPool(ctx context.Context, name string, notStored error, do func(*machined.Client) error) error {
	if strings.ContainsAny(name, "/:@") { // no name of machined's
		return notStored
	}
	host, err := connect(ctx)
	if err != nil {
		return notStored
	}
	defer host.close()
	if host.machined.FindImage(ctx, name) != nil {
		return notStored
	}
	if err := do(host.machined); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	return nil
}

// removeFromPool removes machined's image of that name.
func removeFromPool(ctx context.Context, name string, notStored error) (removed image.Removed, err error) {
	err = inPool(ctx, name, notStored, func(c *machined.Client) error {
		img, err := c.Image(ctx, name)
		if err != nil {
			return err
		}
		removed = removedFromPool(name, img.UsageExclusive)
		return c.RemoveImage(ctx, name)
	})
	return removed, err
}

func removedFromPool(name string, usage uint64) image.Removed {
	if usage == machined.NoLimit {
		usage = 0
	}
	return image.Removed{Kind: "image", Name: name, Size: int64(usage)}
}

// cleanPool removes machined's hidden images.
func cleanPool(ctx context.Context) (removed []image.Removed, err error) {
	host, err := connect(ctx)
	if err != nil { // no machined
		return nil, nil
	}
	defer host.close()
	hidden, err := host.machined.RemoveHiddenImages(ctx)
	if errors.Is(err, machined.ErrUnavailable) {
		return nil, nil
	}
	for _, img := range hidden {
		removed = append(removed, removedFromPool(img.Name, img.UsageExclusive))
	}
	return removed, err
}

// poolImageDetails is what is shown of an image of machined's.
type poolImageDetails struct {
	machined.Image
	os string
}

func newPoolImageDetails(ctx context.Context, c *machined.Client, name string) (d poolImageDetails, err error) {
	if d.Image, err = c.Image(ctx, name); err != nil {
		return d, err
	}
	release, _ := c.ImageOSRelease(ctx, name) // it need not be a system
	d.os = release["PRETTY_NAME"]
	return d, nil
}

// format lays the details out as machinectl does.
func (d poolImageDetails) format(now time.Time) string {
	b := newDetails(d.Name, now)
	bytes := func(label string, all, exclusive uint64) {
		if all == machined.NoLimit {
			return
		}
		words := bytesWords(int64(all))
		if exclusive != all && exclusive != machined.NoLimit {
			words += " (exclusive: " + bytesWords(int64(exclusive)) + ")"
		}
		b.line(label, words)
	}
	b.line("Type", d.Type)
	b.line("Path", d.Path)
	b.line("OS", d.os)
	b.line("RO", writability(d.ReadOnly))
	b.when("Created", d.Created)
	b.when("Modified", d.Modified)
	bytes("Usage", d.Usage, d.UsageExclusive)
	bytes("Limit", d.Limit, d.LimitExclusive)
	return b.String()
}

func (d poolImageDetails) properties() []property {
	limit := func(n uint64) string {
		if n == machined.NoLimit {
			return "infinity"
		}
		return strconv.FormatUint(n, 10)
	}
	return []property{
		{"Name", d.Name},
		{"Path", d.Path},
		{"Type", d.Type},
		{"ReadOnly", yesNo(d.ReadOnly)},
		{"CreationTimestamp", timestamp(d.Created)},
		{"ModificationTimestamp", timestamp(d.Modified)},
		{"Usage", strconv.FormatUint(d.Usage, 10)},
		{"Limit", limit(d.Limit)},
		{"UsageExclusive", strconv.FormatUint(d.UsageExclusive, 10)},
		{"LimitExclusive", limit(d.LimitExclusive)},
	}
}
