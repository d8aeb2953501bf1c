package machined

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"nspawnd/internal/varlink"
)

// registrySocket is where io.systemd.Machine is, below [Client.Runtime].
const registrySocket = "systemd/machine/io.systemd.Machine"

// ErrNoInstance says that nobody controls a machine but the kernel: it has no [Client.Instance].
var ErrNoInstance = errors.New("nothing controls the machine")

// Instance has what runs a machine do something with it, by a method of io.systemd.MachineInstance: PowerOff, Reboot, Pause, Resume, Terminate or Describe. That is for virtual machines of
// systemd-vmspawn(1), 261 and newer, whose first process is the emulator: signals and control groups are about that, not about the system inside. For all others, and what machined does
// not know, it is ErrNoInstance. Describe puts its status into reply, which is nil for the others.
func (c *Client) Instance(ctx context.Context, name, method string, reply any) error {
	if c.Runtime == "" {
		return ErrNoInstance
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var machine struct {
		ControlAddress string `json:"controlAddress"`
	}
	err := varlink.Call(ctx, filepath.Join(c.Runtime, registrySocket), "io.systemd.Machine.List", map[string]any{"name": name}, &machine)
	var refused *varlink.Error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.As(err, &refused): // what is wrong with the name the bus tells
		return ErrNoInstance
	case err != nil:
		return fmt.Errorf("asking who controls machine %s: %w", name, err)
	case machine.ControlAddress == "":
		return ErrNoInstance
	}
	if err := varlink.Call(ctx, strings.TrimPrefix(machine.ControlAddress, "unix:"), "io.systemd.MachineInstance."+method, struct{}{}, reply); err != nil {
		return fmt.Errorf("%s: asking what runs it: %w", name, err)
	}
	return nil
}
