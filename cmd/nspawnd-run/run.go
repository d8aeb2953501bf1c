package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"
)

// run starts the image and, unless it is detached, waits for it. The status is what the command exits with.
func run(ctx context.Context, o *options) (status int, err error) {
	m, over, err := o.machine()
	if err != nil {
		return 0, err
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("starting a machine needs root; try: sudo nspawnd-run …")
	}
	if o.unit.inPlace {
		return 0, runInPlace(ctx, o, m, over)
	}
	o.manager = connect(ctx)
	img, store, err := describe(ctx, o, &m)
	if err != nil {
		return 0, err
	}
	wrap := func(err error) error { return fmt.Errorf("%s: %w", m.Name, err) }
	root, err := openRoot(o, store, img, &m)
	if err != nil {
		return 0, wrap(err)
	}
	defer root.release()
	bus, version, err := o.manager()
	if err != nil {
		return 0, err
	}
	defer bus.Close()
	m.Manager = version
	// What a client that was killed has left. To look at each machine's directory takes some time where there are many, so the start comes first.
	sweep := sync.OnceFunc(func() {
		if err := store.SweepMachines(machinedir.Owned, machinedir.Discard); err != nil {
			fmt.Fprintf(os.Stderr, "nspawnd-run: removing what is abandoned: %v\n", err)
		}
	})
	if !o.unit.dryRun {
		defer sweep()
	}
	if err := configure(o, &m, img, over); err != nil {
		return 0, err
	}
	o.streams.prepare(&m, img)
	signals := o.process.signals()
	if err := root.fill(ctx, o, store, img, &m); err != nil {
		return 0, wrap(err)
	}
	set, err := m.Translate()
	if err != nil {
		return 0, wrap(err)
	}
	if o.unit.dryRun {
		fmt.Print(set.Text())
		return 0, nil
	}

	fds := dbus.Descriptors{}
	if m.Root == "" {
		fds.Set(set.Main.Name, "RootDirectoryFileDescriptor", root.mount)
	}
	streams, err := o.streams.connect(set, &m, root, fds)
	if err != nil {
		return 0, wrap(err)
	}
	defer streams.release()
	defer o.lifecycle.release()
	if err := o.lifecycle.before(ctx, bus, set, root.dir); err != nil {
		return 0, wrap(err)
	}
	service, err := bus.Start(ctx, set, fds, !m.Detached)
	if err != nil {
		if errors.Is(err, dbus.ErrNameTaken) {
			return 0, nameTaken(m.Name, err)
		}
		return 0, startFailure(wrap(err), set.Main.Name)
	}
	if err := o.lifecycle.started(m.Name, service.MainPID()); err != nil {
		fmt.Fprintf(os.Stderr, "nspawnd-run: %s: %v; it runs on\n", m.Name, err)
	}
	root.keep() // from here on the companion unit owns it
	o.process.started()
	streams.started()
	go sweep()

	registered := make(chan error, 1)
	go func() {
		if m.Unregistered || m.Restart.Policy != units.RestartNo || m.Flavor == units.NspawnFlavor { // not wanted, or somebody else does it
			registered <- nil
			return
		}
		registered <- register(ctx, bus, service, m.Name)
	}()
	if m.Detached {
		if err := <-registered; err != nil {
			_ = bus.Stop(ctx, service.Name) // what went wrong before says more
			return 0, wrap(err)
		}
		_ = os.WriteFile(m.RegisteredFile(), nil, 0o600) // it fails when the machine has ended and its directory is gone
		if m.Hides != "" {
			if err := hide(ctx, service, &m); err != nil {
				fmt.Fprintf(os.Stderr, "nspawnd-run: %s: hiding its mounts: %v; it runs on\n", m.Name, err)
			}
		}
		fmt.Println(m.Name)
		return 0, nil
	}
	go o.process.forward(signals, func(s syscall.Signal) error { return streams.signal(ctx, service, s) })
	waiting, stopWaiting := context.WithCancelCause(ctx)
	defer stopWaiting(nil)
	go func() {
		if err := <-registered; err != nil && waiting.Err() == nil { // else the connection was closed, since it has ended
			fmt.Fprintf(os.Stderr, "nspawnd-run: %s: %v; it runs on, and machinectl does not know it\n", m.Name, err)
		}
	}()
	if err := streams.attach(func() { stopWaiting(errLeft) }); err != nil {
		_ = bus.Stop(ctx, service.Name)
		return 0, wrap(err)
	}
	status, err = service.Wait(waiting)
	switch {
	case errors.Is(err, errLeft):
		return 0, leave(ctx, bus, &m, set, streams)
	case err != nil:
		return 0, wrap(fmt.Errorf("%w; machinectl-lite status %s shows how it goes on", err, m.Name))
	}
	streams.finish()
	return status, nil
}

// connect connects to systemd while the image is mounted, which takes as long. The function that it gives waits for that.
func connect(ctx context.Context) func() (bus *dbus.Conn, version int, err error) {
	var bus *dbus.Conn
	var version int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if bus, err = dbus.Connect(ctx, false); err != nil {
			err = fmt.Errorf("%w; nspawnd needs systemd as PID 1", err)
			return
		}
		go bus.Subscribe()
		version, err = bus.Version(ctx)
		if err == nil && version < minimumSystemd {
			err = fmt.Errorf("systemd %d is too old: nspawnd needs %d or newer", version, minimumSystemd)
		}
	}()
	return func() (*dbus.Conn, int, error) {
		<-done
		return bus, version, err
	}
}

// describe finds the image, and names the machine.
func describe(ctx context.Context, o *options, m *units.Machine) (*image.Image, *image.Store, error) {
	img, store, err := findImage(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if m.Name == "" {
		m.Name = newName(img.Reference)
	}
	if err := checkNameFree(m.Name); err != nil && !o.unit.dryRun {
		return nil, nil, err
	}
	m.Image, m.Digest = img.Reference.String(), string(img.ManifestDigest)
	return img, store, nil
}

// configure fills in what the image and the manager's version say about the machine.
func configure(o *options, m *units.Machine, img *image.Image, over units.Options) (err error) {
	if m.Extra, err = o.unit.directives(m.Manager); err != nil {
		return err
	}
	if m.Payload, err = units.Merge(units.Config(img.Config), over, m.Name); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	if m.Health, err = units.MergeHealth(units.Config(img.Config), over.Health); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

// minimumSystemd is the floor: PrivatePIDs= and the …Ex properties are 257's.
const minimumSystemd = 257

// startFailure adds where to read on, and the exit status that podman-run(1) has for an executable that can't be run.
func startFailure(err error, unit string) error {
	var start *dbus.StartError
	if !errors.As(err, &start) {
		return err
	}
	err = fmt.Errorf("%w; journalctl -u %s tells more", err, unit)
	if start.Status == dbus.StatusExec {
		return &statusError{statusNotExecutable, err}
	}
	return err
}
