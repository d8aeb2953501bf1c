package machined

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// NoLimit takes a limit away.
const NoLimit = ^uint64(0)

// FindImage fails when machined has no image of that name.
func (c *Client) FindImage(ctx context.Context, name string) error {
	return c.call(ctx, "GetImage", []any{name}, new(dbus.ObjectPath))
}

// SetImageLimit limits the size of an image in bytes.
func (c *Client) SetImageLimit(ctx context.Context, name string, limit uint64) error {
	return c.call(ctx, "SetImageLimit", []any{name, limit})
}

// SetPoolLimit limits the size of all images together in bytes.
func (c *Client) SetPoolLimit(ctx context.Context, limit uint64) error {
	return c.call(ctx, "SetPoolLimit", []any{limit})
}
