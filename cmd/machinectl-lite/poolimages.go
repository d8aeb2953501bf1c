package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
	"nspawnd/machined"
)

// Images of systemd-nspawn and the like are machined's. Verbs for images take them where the store has none of that name. With --machine, --host and --user they
// are the only ones, and the verbs print what machinectl prints.

const aboutThere = `

With --machine, --host or --user, the images of systemd-machined there are meant, and none of nspawnd's.`

// poolImages gives machined's images, the hidden ones only with --all. Where there is no machined, there are none.
func poolImages(ctx context.Context) ([]machined.Image, error) {
	host, err := connect(ctx)
	if err != nil {
		return nil, nil
	}
	defer host.close()
	images, err := shownImages(ctx, host.machined)
	if errors.Is(err, machined.ErrUnavailable) {
		return nil, nil
	}
	return images, err
}

// shownImages gives machined's images, the hidden ones only with --all.
func shownImages(ctx context.Context, c *machined.Client) ([]machined.Image, error) {
	images, err := c.Images(ctx)
	return slices.DeleteFunc(images, func(img machined.Image) bool { return !options.all && strings.HasPrefix(img.Name, ".") }), err
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

// forEachInPool does something with every image of machined's that is named, whatever the store has, also when it failed for one before.
func forEachInPool(ctx context.Context, names []string, do func(*machined.Client, string) error) error {
	return forEachMachine(ctx, names, func(host *host, name string) error {
		if err := do(host.machined, name); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		return nil
	})
}

// listPool lists machined's images alone.
func listPool(ctx context.Context) error {
	host, err := connect(ctx)
	if err != nil {
		return err
	}
	defer host.close()
	images, err := shownImages(ctx, host.machined)
	if err != nil {
		return fmt.Errorf("could not get images: %w", err)
	}
	return poolTable(images, options.jsonLayout() != "").show("images")
}

// poolTable has machinectl's columns, for people or, with sizes in bytes and times in microseconds since 1970, for programs.
func poolTable(images []machined.Image, exact bool) table {
	t := table{header: []string{"NAME", "TYPE", "RO", "USAGE", "CREATED", "MODIFIED"}, size: 4, values: []string{"RO", "USAGE", "CREATED", "MODIFIED"}}
	slices.SortFunc(images, func(a, b machined.Image) int { return strings.Compare(a.Name, b.Name) })
	for _, img := range images {
		t.rows = append(t.rows, poolRow(img, cellsFor(exact)))
	}
	return t
}

func poolRow(img machined.Image, c cells) []string {
	usage := ""
	if img.Usage != machined.NoLimit {
		usage = c.size(int64(img.Usage))
	}
	return []string{img.Name, img.Type, c.flag(img.ReadOnly), usage, c.when(img.Created), c.when(img.Modified)}
}

// cells write values for people, or for programs: sizes in bytes, times in microseconds since 1970, as machinectl does.
type cells struct {
	flag func(bool) string
	size func(int64) string
	when func(time.Time) string
}

func cellsFor(exact bool) cells {
	if !exact {
		return cells{yesNo, bytesWords, timestamp}
	}
	return cells{strconv.FormatBool, func(n int64) string { return strconv.FormatInt(n, 10) }, func(t time.Time) string {
		if t.IsZero() {
			return "0"
		}
		return strconv.FormatInt(t.UnixMicro(), 10)
	}}
}

// poolStatus shows where machined's images are and what they take.
func poolStatus(ctx context.Context, out io.Writer) error {
	values, err := managerProperties(ctx)
	if err != nil {
		return err
	}
	path, _ := values["PoolPath"].(string)
	_, err = fmt.Fprintf(out, "\t%8s: %s\n", "Path", printable.Line(path))
	for _, label := range []string{"Usage", "Limit"} {
		if n, known := values["Pool"+label].(uint64); known && n != machined.NoLimit && err == nil {
			_, err = fmt.Fprintf(out, "\t%8s: %s\n", label, bytesWords(int64(n)))
		}
	}
	return err
}

// cleanThere removes hidden images and says so as machinectl does.
func cleanThere(ctx context.Context) error {
	if options.all {
		return errors.New("clean: --all spares the images of systemd-nspawn, and there are no others with --machine, --host and --user; to remove every image there: machinectl … clean --all")
	}
	host, err := connect(ctx)
	if err != nil {
		return err
	}
	defer host.close()
	hidden, err := host.machined.RemoveHiddenImages(ctx)
	if err != nil {
		return fmt.Errorf("could not clean pool: %w", err)
	}
	total, known := uint64(0), true
	for _, img := range hidden {
		fmt.Fprintf(os.Stderr, "Removed image '%s'", printable.Line(img.Name))
		if img.UsageExclusive == machined.NoLimit {
			known = false
		} else {
			total += img.UsageExclusive
			fmt.Fprintf(os.Stderr, ". Freed exclusive disk space: %s", bytesWords(int64(img.UsageExclusive)))
		}
		fmt.Fprintln(os.Stderr)
	}
	fmt.Fprintf(os.Stderr, "Removed %d images in total.", len(hidden))
	if known {
		fmt.Fprintf(os.Stderr, " Total freed exclusive disk space: %s.", bytesWords(int64(total)))
	}
	fmt.Fprintln(os.Stderr)
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
