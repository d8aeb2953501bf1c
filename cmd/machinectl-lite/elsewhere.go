package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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
	return &host{machined.New(conn.Bus), conn, elsewhere}
}

func (h *host) close() { h.systemd.Close() }

// connect connects to the bus that the options name.
func connect(ctx context.Context) (*host, error) {
	conn, err := dbus.Connect(ctx)
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
	root, err := openRoot(unit)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	uid, err := hostUID(properties.Leader, 0)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.ConnectContainer(ctx, root, uid)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; a whole system with a bus has to run in it", err)
	}
	return conn, err
}

// elsewhere says whether the options name another bus than this host's own.
func (f *flags) elsewhere() bool { return f.machine != "" && f.machine != machined.Host }

// overBus are the verbs that need nothing but a bus. What others need of the store, of processes and of files is this host's.
var overBus = []string{
	"list", "status", "show", "wait", "start", "stop", "restart", "kill", "pause", "resume", "terminate", "shell", "login", "bind", "copy-to", "copy-from", "enable", "disable", "set-limit",
}

// hostPaths gives the arguments that are paths of the machine's host.
var hostPaths = map[string]func(args []string) []string{
	"bind":      func(args []string) []string { return args[1:2] },
	"copy-to":   func(args []string) []string { return args[1:2] },
	"copy-from": func(args []string) []string { return args[len(args)-1:] },
}

// reaches refuses what can't be done over the bus of another host or container.
func (f *flags) reaches(cmd *cobra.Command, args []string) error {
	if cmd.Flags().Changed("machine") && f.machine == "" {
		return errors.New("--machine: a machine's name is never empty")
	}
	if !f.elsewhere() || !cmd.HasParent() {
		return nil
	}
	if !slices.Contains(overBus, cmd.Name()) {
		return fmt.Errorf("%s works on this host alone, not by --machine; where %s has it: machinectl-lite shell %[2]s /usr/bin/env machinectl-lite %[1]s …", cmd.Name(), f.machine)
	}
	if paths := hostPaths[cmd.Name()]; paths != nil {
		for _, path := range paths(args) {
			if !filepath.IsAbs(path) {
				return fmt.Errorf("%s: with --machine, %q would be a path there and has to be absolute", cmd.Name(), path)
			}
		}
	}
	return nil
}
