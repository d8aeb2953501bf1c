package dbus

import (
	"context"
	"fmt"

	systemd "github.com/coreos/go-systemd/v22/dbus"
)

// Change is a link that Enable or Disable has made or removed.
type Change struct {
	Removed           bool
	Link, Destination string // Destination: of one that was made
}

// Enable has units started at boot as their files say, and the manager read that.
func (c *Conn) Enable(ctx context.Context, names ...string) (changes []Change, err error) {
	_, made, err := c.systemd.EnableUnitFilesContext(ctx, names, false, false)
	if err != nil {
		return nil, err
	}
	for _, m := range made {
		changes = append(changes, Change{m.Type == "unlink", m.Filename, m.Destination})
	}
	return changes, c.systemd.ReloadContext(ctx)
}

// Disable takes back what Enable did.
func (c *Conn) Disable(ctx context.Context, names ...string) (changes []Change, err error) {
	var removed []systemd.DisableUnitFileChange
	if removed, err = c.systemd.DisableUnitFilesContext(ctx, names, false); err != nil {
		return nil, err
	}
	for _, r := range removed {
		changes = append(changes, Change{r.Type == "unlink", r.Filename, r.Destination})
	}
	return changes, c.systemd.ReloadContext(ctx)
}

// StartUnit starts a unit that is not a machine of ours, and waits until it runs.
func (c *Conn) StartUnit(ctx context.Context, unit string) error {
	result, err := c.awaitJob(ctx, c.systemd.StartUnitContext, unit)
	switch {
	case err != nil:
		return fmt.Errorf("starting %s: %w", unit, err)
	case result != "done":
		return fmt.Errorf("starting %s: %s; journalctl -u %s tells more", unit, result, unit)
	}
	return nil
}
