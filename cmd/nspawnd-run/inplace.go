package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/dbus"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// runInPlace becomes systemd-nspawn, so that whoever started this process supervises the machine: a unit of the user's own, or another
// init system. It needs no bus. The root is mounted in a mount namespace that goes with the process; its directory in the store is removed by
// the next start or by "machinectl-lite clean".
func runInPlace(ctx context.Context, o *options, m units.Machine, over units.Options) error {
	l := &o.lifecycle
	if len(m.Resources) > 0 || len(o.unit.properties) > 0 || m.Restart.Policy != units.RestartNo || m.Keep || l.replace || l.cidFile != "" || l.pidFile != "" {
		return errors.New("--in-place: limits, --property, --restart, --keep, --replace, --cidfile and --pidfile are the supervisor's, whose process this becomes")
	}
	m.Manager = minimumSystemd
	o.manager = func() (*dbus.Conn, int, error) { return nil, m.Manager, nil }
	img, store, err := describe(ctx, o, &m)
	if err != nil {
		return err
	}
	if err := configure(o, &m, img, over); err != nil {
		return err
	}
	wrap := func(err error) error { return fmt.Errorf("%s: %w", m.Name, err) }
	runtime.LockOSThread() // the namespace is this thread's, which execve(2) makes the process's only one
	if !o.unit.dryRun {
		if err := store.SweepMachines(machinedir.Owned, machinedir.Discard); err != nil {
			return wrap(err)
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return wrap(fmt.Errorf("making a mount namespace: %w", err))
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return wrap(fmt.Errorf("making a mount namespace: %w", err))
		}
	}
	root, err := openRoot(o, store, img, &m)
	if err != nil {
		return wrap(err)
	}
	defer root.release()
	if err := root.fill(ctx, o, store, img, &m); err != nil {
		return wrap(err)
	}
	set, err := m.Translate()
	if err != nil {
		return wrap(err)
	}
	if o.unit.dryRun {
		fmt.Print(set.Text())
		return nil
	}
	if err := machinedir.SetOwner(root.dir); err != nil {
		return wrap(err)
	}
	argv, env := set.NspawnCommand()
	return wrap(fmt.Errorf("%s: %w", argv[0], syscall.Exec(argv[0], argv, append(os.Environ(), env...))))
}
