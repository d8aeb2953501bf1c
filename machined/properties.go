package machined

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"nspawnd/internal/buserror"

	"github.com/godbus/dbus/v5"
)

// Summary is what machined lists about a machine.
type Summary struct {
	Name    string
	Class   string // "container", "vm" or "host"
	Service string // the program that registered it; may be empty
}

// List gives every machine that is registered, among them the host itself as ".host", in machined's order.
func (c *Client) List(ctx context.Context) ([]Summary, error) {
	var reply []struct {
		Name, Class, Service string
		Path                 dbus.ObjectPath
	}
	if err := c.call(ctx, "ListMachines", nil, &reply); err != nil {
		return nil, err
	}
	machines := make([]Summary, len(reply))
	for i, m := range reply {
		machines[i] = Summary{m.Name, m.Class, m.Service}
	}
	return machines, nil
}

// Properties are the properties of a machine's object. What the running machined does not have is zero: those from
// Subgroup on came with 258.
type Properties struct {
	Name              string
	ID                [16]byte
	Since             time.Time // when it was registered
	Service           string
	Unit              string
	Leader            uint32
	Class             string
	RootDirectory     string
	NetworkInterfaces []int32 // indices on the host
	VSockCID          uint32
	SSHAddress        string
	SSHPrivateKeyPath string
	State             string // "opening", "running" or "closing"
	Subgroup          string // the control group below the unit's, when the machine is not the whole unit
	LeaderPIDFDID     uint64 // inode number of a pidfd of the leader
	Supervisor        uint32 // the process that registered it
	SupervisorPIDFDID uint64
	UID               uint32 // the owner of the machine
}

// Get gives the properties of the machine called name.
func (c *Client) Get(ctx context.Context, name string) (Properties, error) {
	values, err := c.getAll(ctx, name)
	if err != nil {
		return Properties{}, err
	}
	return parseProperties(values)
}

// GetAll gives all properties of the machine called name that the running machined has, as it has them.
func (c *Client) GetAll(ctx context.Context, name string) (map[string]any, error) {
	values, err := c.getAll(ctx, name)
	return plain(values), err
}

// ManagerProperties gives all properties of machined itself.
func (c *Client) ManagerProperties(ctx context.Context) (map[string]any, error) {
	var values map[string]dbus.Variant
	err := c.callObject(ctx, managerPath, getAll, []any{managerInterface}, &values)
	return plain(values), err
}

const getAll = "org.freedesktop.DBus.Properties.GetAll"

func (c *Client) getAll(ctx context.Context, name string) (map[string]dbus.Variant, error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, "GetMachine", []any{name}, &path); err != nil {
		return nil, err
	}
	var values map[string]dbus.Variant
	err := c.callObject(ctx, path, getAll, []any{machineInterface}, &values)
	if errors.Is(err, ErrNoSuchMachine) { // gone between the two calls: machined names only the object's path
		err = buserror.Error{Reply: dbus.Error{Name: noSuchMachine, Body: []any{"No machine '" + name + "' known"}}, Meaning: ErrNoSuchMachine}
	}
	return values, err
}

func plain(values map[string]dbus.Variant) map[string]any {
	out := make(map[string]any, len(values))
	for name, v := range values {
		out[name] = v.Value()
	}
	return out
}

// parseProperties reads the properties that it knows and ignores the others.
func parseProperties(values map[string]dbus.Variant) (Properties, error) {
	var p Properties
	var id []byte
	var since uint64
	for name, field := range map[string]any{
		"Name":              &p.Name,
		"Id":                &id,
		"Timestamp":         &since,
		"Service":           &p.Service,
		"Unit":              &p.Unit,
		"Leader":            &p.Leader,
		"Class":             &p.Class,
		"RootDirectory":     &p.RootDirectory,
		"NetworkInterfaces": &p.NetworkInterfaces,
		"VSockCID":          &p.VSockCID,
		"SSHAddress":        &p.SSHAddress,
		"SSHPrivateKeyPath": &p.SSHPrivateKeyPath,
		"State":             &p.State,
		"Subgroup":          &p.Subgroup,
		"LeaderPIDFDId":     &p.LeaderPIDFDID,
		"Supervisor":        &p.Supervisor,
		"SupervisorPIDFDId": &p.SupervisorPIDFDID,
		"UID":               &p.UID,
	} {
		value, ok := values[name]
		if !ok {
			continue
		}
		if err := value.Store(field); err != nil {
			return Properties{}, fmt.Errorf("property %s of a machine: %w", name, err)
		}
	}
	copy(p.ID[:], id)
	if since != 0 {
		p.Since = time.UnixMicro(int64(since))
	}
	return p, nil
}

// OSRelease gives the os-release(5) fields of the machine called name. machined reads them inside the machine, so they are
// whatever the machine says.
func (c *Client) OSRelease(ctx context.Context, name string) (map[string]string, error) {
	var fields map[string]string
	err := c.call(ctx, "GetMachineOSRelease", []any{name}, &fields)
	return fields, err
}

// Addresses gives the addresses of the machine's network interfaces; it is an error when it uses the host's.
func (c *Client) Addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	var reply []struct {
		Family int32
		Bytes  []byte
	}
	if err := c.call(ctx, "GetMachineAddresses", []any{name}, &reply); err != nil {
		return nil, err
	}
	addresses := make([]netip.Addr, 0, len(reply))
	for _, a := range reply {
		if address, ok := netip.AddrFromSlice(a.Bytes); ok {
			addresses = append(addresses, address)
		}
	}
	return addresses, nil
}

// UIDShift gives the host's number of the machine's user 0; an error when the machine maps its users in more than one range.
func (c *Client) UIDShift(ctx context.Context, name string) (uint32, error) {
	var shift uint32
	err := c.call(ctx, "GetMachineUIDShift", []any{name}, &shift)
	return shift, err
}
