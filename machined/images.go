package machined

import (
	"context"
	"math"
	"time"

	"github.com/godbus/dbus/v5"
)

// NoLimit takes a limit away. In an Image it stands for no limit, and for a usage that is not known.
const NoLimit = ^uint64(0)

// Image is an image of machined's, mostly in /var/lib/machines (org.freedesktop.machine1(5), "Image objects").
type Image struct {
	Name, Path        string
	Type              string // "directory", "subvolume", "raw", "block", …
	ReadOnly          bool
	Created, Modified time.Time // zero: not known
	Usage, Limit      uint64    // bytes
	// Without what is shared with other images; known on btrfs alone.
	UsageExclusive, LimitExclusive uint64
}

// Images lists the images in machined's order, among them hidden ones, whose names begin with ".", and the host as ".host". They have no path and no limits.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var reply []struct {
		Name, Type               string
		ReadOnly                 bool
		Created, Modified, Usage uint64
		Object                   dbus.ObjectPath
	}
	if err := c.call(ctx, "ListImages", nil, &reply); err != nil {
		return nil, err
	}
	images := make([]Image, len(reply))
	for i, r := range reply {
		images[i] = Image{Name: r.Name, Type: r.Type, ReadOnly: r.ReadOnly, Created: fromUsec(r.Created), Modified: fromUsec(r.Modified), Usage: r.Usage,
			Limit: NoLimit, UsageExclusive: NoLimit, LimitExclusive: NoLimit}
	}
	return images, nil
}

// fromUsec reads a time of the bus: microseconds since 1970, 0 or the largest number for none.
func fromUsec(usec uint64) time.Time {
	if usec == 0 || usec > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(usec))
}

// Image gives all that machined knows of an image. The error is [ErrNoSuchImage] if it knows none of that name.
func (c *Client) Image(ctx context.Context, name string) (Image, error) {
	var object dbus.ObjectPath
	if err := c.call(ctx, "GetImage", []any{name}, &object); err != nil {
		return Image{}, err
	}
	var values map[string]dbus.Variant
	if err := c.callObject(ctx, object, "org.freedesktop.DBus.Properties.GetAll", []any{busName + ".Image"}, &values); err != nil {
		return Image{}, err
	}
	img := Image{Name: name}
	var created, modified uint64
	for property, to := range map[string]any{"Name": &img.Name, "Path": &img.Path, "Type": &img.Type, "ReadOnly": &img.ReadOnly, "CreationTimestamp": &created, "ModificationTimestamp": &modified,
		"Usage": &img.Usage, "Limit": &img.Limit, "UsageExclusive": &img.UsageExclusive, "LimitExclusive": &img.LimitExclusive} {
		if value, told := values[property]; told {
			if err := value.Store(to); err != nil {
				return Image{}, err
			}
		}
	}
	img.Created, img.Modified = fromUsec(created), fromUsec(modified)
	return img, nil
}

// ImageOSRelease gives what an image's os-release says.
func (c *Client) ImageOSRelease(ctx context.Context, name string) (fields map[string]string, err error) {
	err = c.call(ctx, "GetImageOSRelease", []any{name}, &fields)
	return fields, err
}

// FindImage fails when machined has no image of that name.
func (c *Client) FindImage(ctx context.Context, name string) error {
	return c.call(ctx, "GetImage", []any{name}, new(dbus.ObjectPath))
}

// RemoveImage removes an image, also one that is read-only.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.call(ctx, "RemoveImage", []any{name})
}

// RenameImage gives an image a name that no image has.
func (c *Client) RenameImage(ctx context.Context, name, newName string) error {
	return c.call(ctx, "RenameImage", []any{name, newName})
}

// CloneImage copies an image.
func (c *Client) CloneImage(ctx context.Context, name, newName string, readOnly bool) error {
	return c.call(ctx, "CloneImage", []any{name, newName, readOnly})
}

// MarkImageReadOnly marks an image read-only, or writable.
func (c *Client) MarkImageReadOnly(ctx context.Context, name string, readOnly bool) error {
	return c.call(ctx, "MarkImageReadOnly", []any{name, readOnly})
}

// RemovedImage is one that is gone.
type RemovedImage struct {
	Name           string
	UsageExclusive uint64 // bytes; NoLimit: not known
}

// RemoveHiddenImages removes the images whose names begin with ".": what downloads have left.
func (c *Client) RemoveHiddenImages(ctx context.Context) (removed []RemovedImage, err error) {
	err = c.call(ctx, "CleanPool", []any{"hidden"}, &removed)
	return removed, err
}

// SetImageLimit limits the size of an image in bytes.
func (c *Client) SetImageLimit(ctx context.Context, name string, limit uint64) error {
	return c.call(ctx, "SetImageLimit", []any{name, limit})
}

// SetPoolLimit limits the size of all images together in bytes.
func (c *Client) SetPoolLimit(ctx context.Context, limit uint64) error {
	return c.call(ctx, "SetPoolLimit", []any{limit})
}
