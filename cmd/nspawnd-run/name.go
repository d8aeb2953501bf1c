package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// newName makes a machine name from an image's: its last component and six random digits.
func newName(ref image.Reference) string {
	random := make([]byte, 3)
	rand.Read(random)
	base := filepath.Base(ref.Path())
	return units.MachineNameFrom(base) + "." + hex.EncodeToString(random)
}

// checkNameFree refuses a name that machined knows for another unit than ours. Its state file is the cheapest way to ask: no
// call, and machined need not run (sd_machine_get_class(3) reads the same file).
func checkNameFree(name string) error {
	state, err := os.ReadFile("/run/systemd/machines/" + name)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(state)) {
		unit, found := strings.CutPrefix(strings.TrimSpace(line), "SCOPE=")
		unit = strings.ReplaceAll(strings.Trim(unit, `"`), `\\`, `\`) // quoted and escaped as in an environment file
		if found && unit != units.ServiceName(name) {
			return nameTaken(name, fmt.Errorf("%s runs", unit))
		}
	}
	return nil
}

func nameTaken(name string, err error) error {
	return fmt.Errorf("the name %s is taken: %w (machinectl-lite status %s; machinectl-lite terminate %s ends it)", name, err, name, name)
}

// register makes the service a machine for machined. A payload that has ended already needs no registration, and a host without
// machined has none to offer: machinectl-lite shows the machine all the same.
func register(ctx context.Context, bus *dbus.Conn, service *dbus.Service, name string) error {
	leader := service.MainPID()
	if leader == 0 {
		return nil
	}
	machine := machined.Machine{Name: name, Service: machined.OwnService, Class: machined.OwnClass, Leader: leader}
	registry := machined.New(bus.Bus)
	err := registry.Register(ctx, machine)
	// The machine of this name before may have ended so lately that machined does not know yet. When it takes that one's unit for still
	// running, its entry is about ours, which has the same name.
	for try := 0; errors.Is(err, machined.ErrMachineExists) && checkNameFree(name) == nil; try++ {
		if try == 50 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
		err = registry.Register(ctx, machine)
	}
	if errors.Is(err, machined.ErrUnavailable) || err != nil && errors.Is(unix.Kill(int(leader), 0), unix.ESRCH) {
		return nil
	}
	return err
}
