package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"nspawnd/dbus"
	"nspawnd/machined"
)

// host is a registry of machines and the service manager beside it, over one connection of their bus.
type host struct {
	machined  *machined.Client
	systemd   *dbus.Conn
	elsewhere bool // not this host's: what is told of processes, files and interfaces is about others than ours
}

func newHost(conn *dbus.Conn, elsewhere bool) *host {
	h := &host{machined.New(conn.Bus), conn, elsewhere}
	switch {
	case options.user:
		h.machined.Runtime = os.Getenv("XDG_RUNTIME_DIR")
	case !elsewhere:
		h.machined.Runtime = "/run"
	}
	if agentRuns {
		h.machined.Timeout = typingTimeout
	}
	return h
}

func (h *host) close() { h.systemd.Close() }

// connect connects to the bus that the options name.
func connect(ctx context.Context) (*host, error) {
	if options.user {
		return connectUser(ctx)
	}
	if options.host.name != "" {
		conn, err := dbus.ConnectThrough(ctx, !options.noAsk, options.host.bridge()...)
		if err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", options.host.String(), err)
		}
		return newHost(conn, true), nil
	}
	conn, err := dbus.Connect(ctx, !options.noAsk)
	if err != nil {
		return nil, err
	}
	here := newHost(conn, false)
	if !options.elsewhere() {
		return here, nil
	}
	defer here.close()
	if conn, err = here.enter(ctx, options.machine); err != nil {
		return nil, fmt.Errorf("container %s: %w", options.machine, err)
	}
	return newHost(conn, true), nil
}

// connectUser connects to the calling user's bus.
func connectUser(ctx context.Context) (*host, error) {
	conn, err := dbus.ConnectUser(ctx)
	if err != nil {
		return nil, err
	}
	const first = 259
	version, err := conn.Version(ctx)
	if err == nil && version < first {
		err = fmt.Errorf("--user: users have machines of their own from systemd %d on, this is %d", first, version)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return newHost(conn, false), nil
}

// enter connects to the system bus of a container.
func (h *host) enter(ctx context.Context, name string) (*dbus.Conn, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("its bus needs root: %w", fs.ErrPermission)
	}
	properties, err := h.machined.Get(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case properties.Class != machined.OwnClass:
		return nil, fmt.Errorf("it is no container but of class %q", properties.Class)
	}
	unit, err := h.unitOf(ctx, name)
	if err != nil {
		return nil, err
	}
	unit.MainPID = properties.Leader
	leader, err := openLeader(unit)
	if err != nil {
		return nil, err
	}
	defer leader.close()
	uid, err := leader.hostUID(0)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.ConnectContainer(ctx, leader.root, uid)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; a whole system with a bus has to run in it", err)
	}
	return conn, err
}

// remote is where --host leads to.
type remote struct{ name, port, container string }

// Set reads [USER@]HOST[:PORT][/CONTAINER]; the host is in brackets where it is an address of IPv6.
func (r *remote) Set(s string) error {
	parts := regexp.MustCompile(`^((?:[^@:/\[\]]+@)?)(?:([^@:/\[\]-][^@:/\[\]]*)|\[([0-9A-Fa-f:.%a-z]+)\])(?::([0-9]+))?(?:/([A-Za-z0-9._-]+))?$`).FindStringSubmatch(s)
	if parts == nil || strings.HasPrefix(s, "-") {
		return errors.New("must be [USER@]HOST[:PORT][/CONTAINER]")
	}
	*r = remote{parts[1] + parts[2] + parts[3], parts[4], parts[5]}
	return nil
}

func (r *remote) String() string {
	name, port, container := r.name, "", ""
	if r.port != "" {
		port = ":" + r.port
	}
	if r.container != "" {
		container = "/" + r.container
	}
	return name + port + container
}

func (r *remote) Type() string { return "host" }

// bridge is the command that connects to the bus there, systemd's own.
func (r *remote) bridge() []string {
	argv := []string{cmp.Or(os.Getenv("SYSTEMD_SSH"), "ssh"), "-xT"}
	if r.port != "" {
		argv = append(argv, "-p", r.port)
	}
	argv = append(argv, "--", r.name, "systemd-stdio-bridge")
	if r.container != "" { // of letters that are none of a shell's
		argv = append(argv, "--machine="+r.container)
	}
	return argv
}

// ssh is what a user types to have a command run there, "" for this host.
func (r *remote) ssh(options string) string {
	if r.name == "" {
		return ""
	}
	if r.port != "" {
		options += "-p " + r.port + " "
	}
	return "ssh " + options + r.name + " "
}

// own says whether the bus is this host's system bus.
func (f *flags) own() bool { return !f.user && !f.elsewhere() }

// elsewhere says whether the options name another bus than this host's own.
func (f *flags) elsewhere() bool {
	return f.host.name != "" || f.machine != "" && f.machine != machined.Host
}

// need is what a verb needs beside a bus.
type need int

const (
	asks   need = 1 << iota // polkit may ask for a password for it
	passes                  // a file or a terminal passes, which it does not by ssh
)

// overBus are the verbs that need nothing of this host's but its bus, so that another bus does too. What others need of the store, of processes and of files is this
// host's, and root's.
var overBus = map[string]need{
	"list": 0, "status": 0, "show": 0, "wait": 0,
	"start": asks, "stop": asks, "restart": asks, "kill": asks, "pause": asks, "resume": asks, "terminate": asks, "shell": asks | passes, "login": asks | passes,
	"bind": asks, "copy-to": asks, "copy-from": asks, "enable": asks, "disable": asks,
	"list-images": 0, "image-status": 0, "show-image": 0, "clone": asks, "rename": asks, "read-only": asks, "remove": asks, "clean": asks, "set-limit": asks,
	"pull-tar": asks, "pull-raw": asks, "list-transfers": 0, "cancel-transfer": asks,
	"import-tar": asks | passes, "import-raw": asks | passes, "import-fs": asks | passes, "export-tar": asks | passes, "export-raw": asks | passes,
}

// hostPaths gives the arguments that are paths of the machine's host.
var hostPaths = map[string]func(args []string) []string{
	"bind":      func(args []string) []string { return args[1:2] },
	"copy-to":   func(args []string) []string { return args[1:2] },
	"copy-from": func(args []string) []string { return args[len(args)-1:] },
}

// reaches refuses what can't be done over the bus of another host, container or user.
func (f *flags) reaches(cmd *cobra.Command, args []string) error {
	user, container, asUser := strings.Cut(f.machine, "@")
	switch {
	case cmd.Flags().Changed("machine") && f.machine == "":
		return errors.New("--machine: a machine's name is never empty")
	case asUser:
		return fmt.Errorf("--machine: a container's bus is asked as its root, by --machine=%s alone; as another user: machinectl-lite shell %s@%[1]s", container, user)
	case f.host.name != "" && f.machine != "":
		return fmt.Errorf("--host and --machine name one place each; for a container of another host: --host=%s/%s", f.host.name, f.machine)
	case f.user && f.system:
		return errors.New("--user and --system exclude each other")
	case f.user && f.elsewhere():
		return errors.New("--user is for the bus of who calls, not with --host or --machine")
	case f.own() || !cmd.HasParent():
		return nil
	}
	verb, option, container := verbOf(cmd), "--machine", f.machine
	if f.host.name != "" {
		option, container = "--host", f.host.container
	}
	needs, reaches := overBus[verb]
	switch {
	case f.user && !reaches:
		return fmt.Errorf("%s is for what is the system's, not with --user", verb)
	case f.user:
		return nil
	case !reaches:
		inside := ""
		if container != "" {
			inside = "machinectl shell " + container + " /usr/bin/env "
		}
		return fmt.Errorf("%s works on its own host alone, not by %s; where nspawnd is installed there: %s%smachinectl-lite %[1]s …", verb, option, f.host.ssh("-t "), inside)
	case f.host.name != "" && needs&passes != 0:
		there := f.host.ssh("-t ") + "machinectl "
		if strings.Contains(verb, "port-") { // machinectl forgets the container
			there = f.host.ssh("") + "importctl -m "
		}
		if container != "" {
			there += "--machine=" + container + " "
		}
		return fmt.Errorf("%s passes a file or a terminal, which does not go through --host; there: %s%[1]s …", verb, there)
	case hostPaths[verb] != nil:
		for _, path := range hostPaths[verb](args) {
			if !filepath.IsAbs(path) {
				return fmt.Errorf("%s: with %s, %q would be a path there and has to be absolute", verb, option, path)
			}
		}
	}
	return nil
}
