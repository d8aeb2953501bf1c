package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"nspawnd/cgroup"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"

	"golang.org/x/sys/unix"
)

// options are the command line's, as they were typed.
type options struct {
	image, name, user, workdir, entrypoint string
	network, memory, cpus, pidsLimit       string
	pull, root                             string
	args, env, volumes                     []string
	insecure, properties                   []string
	entrypointSet, detach, readOnly        bool
	dryRun                                 bool
}

// run starts the image and, unless it is detached, waits for it. The status is what the command exits with.
func run(ctx context.Context, o options) (status int, err error) {
	m, err := parse(o)
	if err != nil {
		return 0, err
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("starting a machine needs root; try: sudo nspawnd-run …")
	}
	bus, err := dbus.Connect(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w; nspawnd needs systemd as PID 1", err)
	}
	defer bus.Close()
	if m.Manager, err = bus.Version(ctx); err != nil {
		return 0, err
	}
	if m.Manager < minimumSystemd {
		return 0, fmt.Errorf("systemd %d is too old: nspawnd needs %d or newer", m.Manager, minimumSystemd)
	}
	img, store, err := findImage(ctx, o)
	if err != nil {
		return 0, err
	}
	if m.Name == "" {
		m.Name = newName(img.Reference)
	}
	wrap := func(err error) error { return fmt.Errorf("%s: %w", m.Name, err) }
	for _, p := range o.properties {
		d, err := units.ParseDirective(p, m.Manager)
		if err != nil {
			return 0, fmt.Errorf("--property: %w", err)
		}
		m.Extra = append(m.Extra, d)
	}
	if err := checkNameFree(m.Name); err != nil && !o.dryRun {
		return 0, err
	}

	m.Image, m.Digest = img.Reference.String(), string(img.ManifestDigest)
	m.Payload, err = units.Merge(units.Config(img.Config), units.Options{
		Entrypoint: o.entrypointOption(), Args: o.args, Env: o.environment(), User: o.user, WorkingDir: o.workdir}, m.Name)
	if err != nil {
		return 0, wrap(err)
	}

	// From here on there is something to clean up or to hand over, so a signal must not end us.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	root, err := prepareRoot(store, img, &m, o.dryRun)
	if err != nil {
		return 0, wrap(err)
	}
	defer root.release()
	set := m.Translate()
	if o.dryRun {
		fmt.Print(set.Text())
		return 0, nil
	}

	fds := dbus.Descriptors{}
	if m.Root == "" {
		fds["RootDirectoryFileDescriptor"] = root.mount
	}
	if !m.Detached {
		fds["StandardInputFileDescriptor"] = os.Stdin
		fds["StandardOutputFileDescriptor"] = os.Stdout
		fds["StandardErrorFileDescriptor"] = os.Stderr
	}
	service, err := bus.Start(ctx, set, fds, !m.Detached)
	if err != nil {
		if errors.Is(err, dbus.ErrNameTaken) {
			return 0, nameTaken(m.Name, err)
		}
		return 0, startFailure(wrap(err), set.Main.Name)
	}
	root.keep() // from here on the companion unit owns it

	registered := make(chan error, 1)
	go func() { registered <- register(ctx, bus, service, m.Name) }()
	if m.Detached {
		if err := <-registered; err != nil {
			_ = bus.Stop(ctx, service.Name) // what went wrong before says more
			return 0, wrap(err)
		}
		fmt.Println(m.Name)
		return 0, nil
	}
	go func() {
		for s := range signals {
			// It fails only when the process is gone, and then Wait returns.
			_ = service.Signal(ctx, s.(syscall.Signal))
		}
	}()
	go func() {
		if err := <-registered; err != nil {
			fmt.Fprintf(os.Stderr, "nspawnd-run: %s: %v; it runs on, and machinectl does not know it\n", m.Name, err)
		}
	}()
	status, err = service.Wait(ctx)
	if err != nil {
		return 0, wrap(fmt.Errorf("%w; machinectl-lite status %s shows how it goes on", err, m.Name))
	}
	return status, nil
}

// minimumSystemd is the floor: PrivatePIDs= and the …Ex properties are 257's.
const minimumSystemd = 257

// parse checks all of the command line that can be checked without the image and the manager.
func parse(o options) (units.Machine, error) {
	m := units.Machine{Name: o.name, ReadOnly: o.readOnly, Detached: o.detach}
	if o.name != "" && !units.ValidName(o.name) {
		return m, fmt.Errorf("--name: %q is not a machine name (letters, digits, \"-\", \"_\" and \".\" between them, at most 64)", o.name)
	}
	switch n := units.Network(o.network); n {
	case units.HostNetwork, units.NoNetwork:
		m.Network = n
	default:
		return m, fmt.Errorf("--network: %q is neither host nor none", o.network)
	}
	switch o.pull {
	case "missing", "always", "never":
	default:
		return m, fmt.Errorf("--pull: %q is not one of missing, always, never", o.pull)
	}
	for _, what := range o.insecure {
		if what != "image" {
			return m, fmt.Errorf("--insecure-options: %q is not a protection; the one there is: image", what)
		}
	}
	for _, limit := range []struct {
		flag, value string
		parse       func(string) (uint64, error)
		to          **uint64
	}{
		{"--memory", o.memory, cgroup.ParseMemory, &m.Resources.Memory},
		{"--cpus", o.cpus, cgroup.ParseCPUs, &m.Resources.CPU},
		{"--pids-limit", o.pidsLimit, cgroup.ParsePIDs, &m.Resources.PIDs},
	} {
		if limit.value == "" {
			continue
		}
		v, err := limit.parse(limit.value)
		if err != nil {
			return m, fmt.Errorf("%s: %w", limit.flag, err)
		}
		*limit.to = &v
	}
	for _, v := range o.volumes {
		volume, err := units.ParseVolume(v)
		if err != nil {
			return m, fmt.Errorf("--volume: %w", err)
		}
		if !filepath.IsAbs(volume.Source) { // "./data": relative to the caller, as podman reads it
			if volume.Source, err = filepath.Abs(volume.Source); err != nil {
				return m, err
			}
		}
		if _, err := os.Stat(volume.Source); err != nil {
			return m, fmt.Errorf("--volume: %w", err)
		}
		m.Volumes = append(m.Volumes, volume)
	}
	for _, e := range o.env {
		if name, _, _ := strings.Cut(e, "="); name == "" {
			return m, fmt.Errorf("--env: %q is not NAME=VALUE", e)
		}
	}
	return m, nil
}

func (o options) entrypointOption() *string {
	if o.entrypointSet {
		return &o.entrypoint
	}
	return nil
}

// environment completes names without a value from the caller's environment; one that is not set there is left out.
func (o options) environment() []string {
	var env []string
	for _, e := range o.env {
		if !strings.Contains(e, "=") {
			value, set := os.LookupEnv(e)
			if !set {
				continue
			}
			e += "=" + value
		}
		env = append(env, e)
	}
	return env
}

// findImage gives the image from the store, and fetches it before where --pull asks for that. Fetching is done by
// machinectl-lite: what it links costs every start several milliseconds.
func findImage(ctx context.Context, o options) (*image.Image, *image.Store, error) {
	dir := cmp.Or(o.root, image.DefaultRoot)
	store, err := image.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	ref, err := store.Name(o.image)
	if transport, _, _ := strings.Cut(o.image, ":"); err != nil && slices.Contains([]string{"oci", "oci-archive", "docker-archive", "dir", "aci"}, transport) {
		err = fmt.Errorf("image %q: images in files are stored before they are run; see machinectl-lite import-oci --help", o.image)
	}
	if err != nil {
		return nil, nil, err
	}
	if o.pull != "always" || o.dryRun {
		img, err := store.Image(ref)
		switch {
		case err == nil:
			return img, store, checkTrust(ctx, dir, img, o.insecure)
		case !errors.Is(err, image.ErrNotFound):
			return nil, nil, err
		case o.pull == "never" || o.dryRun:
			return nil, nil, fmt.Errorf("image %s: not in the store; to fetch it: machinectl-lite pull-oci %s", ref, o.image)
		}
	}
	if err := fetch(ctx, dir, o.image, o.insecure); err != nil {
		return nil, nil, err
	}
	if ref, err = store.Name(o.image); err != nil { // what a name without a host stands for is known now
		return nil, nil, err
	}
	img, err := store.Image(ref)
	if errors.Is(err, image.ErrNotFound) { // removed again
		err = image.ErrChanged
	}
	return img, store, err
}

// fetch runs machinectl-lite pull-oci.
func fetch(ctx context.Context, root, name string, insecure []string) error {
	args := []string{"pull-oci", "--quiet", "--root", root}
	for _, what := range insecure {
		args = append(args, "--insecure-options="+what)
	}
	return runTool(ctx, append(args, name)...)
}

// checkTrust wants a stored image to be one that the rules accept. As long as none of their files has changed since that was last decided, it
// is; otherwise machinectl-lite decides again, from what is stored.
func checkTrust(ctx context.Context, root string, img *image.Image, insecure []string) error {
	switch {
	case img.Trust.Inputs.Current(time.Now()):
		return nil
	case slices.Contains(insecure, "image"):
		fmt.Fprintf(os.Stderr, "nspawnd-run: WARNING: whether image %s is trusted is not checked (--insecure-options=image)\n", img.Reference)
		return nil
	}
	return runTool(ctx, "verify-image", "--policy-only", "--root", root, img.Reference.String())
}

// runTool runs machinectl-lite, which has said what is wrong when it fails.
func runTool(ctx context.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "machinectl-lite"), args...)
	c.Args[0] = "nspawnd-run"
	c.Stdin, c.Stderr = os.Stdin, os.Stderr // it may have to ask what a name without a host stands for
	err = c.Run()
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		return errReported
	}
	return err
}

// errReported says that the user has been told already.
var errReported = errors.New("reported")

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
