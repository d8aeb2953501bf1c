package machined

import "context"

// Bind mounts a file or directory of the host in a machine. mkdir makes the target if it is not there.
func (c *Client) Bind(ctx context.Context, name, source, target string, readOnly, mkdir bool) error {
	return c.call(ctx, "BindMountMachine", []any{name, source, target, readOnly, mkdir})
}

// CopyTo copies a file or directory of the host into a machine, as links what is one. replace replaces what is there already.
func (c *Client) CopyTo(ctx context.Context, name, source, target string, replace bool) error {
	return c.copy(ctx, "CopyToMachine", name, source, target, replace)
}

// CopyFrom copies a file or directory of a machine to the host.
func (c *Client) CopyFrom(ctx context.Context, name, source, target string, replace bool) error {
	return c.copy(ctx, "CopyFromMachine", name, source, target, replace)
}

// copy takes as long as it takes: only its context ends the wait, and nothing the copying.
func (c *Client) copy(ctx context.Context, method, name, source, target string, replace bool) error {
	args := []any{name, source, target}
	if replace { // a method of its own, that before 258 the bus lets only root call
		method += "WithFlags"
		args = append(args, uint64(1))
	}
	return reason(c.conn.Object(busName, managerPath).CallWithContext(ctx, managerInterface+"."+method, 0, args...).Err)
}
