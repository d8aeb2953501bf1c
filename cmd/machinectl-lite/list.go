package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"nspawnd/machined"
)

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List running machines",
		Long: `List the machines that run: containers, virtual machines and services of any origin that are registered with
systemd-machined, and machines of nspawnd that are not. Those whose names begin with a dot, as the host's own ".host", are
shown with --all only. With --output=wide, also the state of each and, of nspawnd's, the image.`,
		Example: `  machinectl-lite list
  machinectl-lite list -o wide
  machinectl-lite list --all --max-addresses=all
  machinectl-lite list --json=short | jq -r '.[].machine'`,
		Args: noArguments,
		RunE: runList,
	}
}

func runList(cmd *cobra.Command, _ []string) error {
	host, err := connect(cmd.Context())
	if err != nil {
		return err
	}
	defer host.close()
	machines, err := host.list(cmd.Context(), options.all)
	if err != nil {
		return fmt.Errorf("could not get machines: %w", err)
	}
	host.describe(cmd.Context(), machines, options.maxAddresses > 0)
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	t := machineTable(machines, int(options.maxAddresses), options.full)
	if options.output == wide {
		host.widen(cmd.Context(), machines, &t)
	}
	return t.show("machines")
}

// widen adds what machinectl does not show: the state of each machine and, of nspawnd's, the image.
func (h *host) widen(ctx context.Context, machines []machine, t *table) {
	t.header = append(slices.Clone(t.header), "STATE", "IMAGE")
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i, m := range machines {
		group.Go(func() error {
			state, image := "", ""
			if unit, ours, _ := h.systemd.MachineUnit(ctx, m.Name); ours {
				state, image = unitState(unit.ActiveState, unit.Frozen), unitImage(unit.Description, m.Name)
			} else if properties, err := h.machined.Get(ctx, m.Name); err == nil {
				state = properties.State
				if unit, err := h.systemd.Unit(ctx, properties.Unit); err == nil && unit.Frozen || h.suspended(ctx, m.Name, properties.Class) {
					state = "paused"
				}
			}
			t.rows[i] = append(slices.Clone(t.rows[i]), state, image)
			return nil
		})
	}
	group.Wait()
}

// unitState is the state of a machine in a unit, in machined's words where it has one.
func unitState(active string, frozen bool) string {
	switch {
	case frozen:
		return "paused"
	case active == "active":
		return "running"
	}
	return active
}

// machine is a row of the list.
type machine struct {
	machined.Summary
	registered  bool
	os, version string
	addresses   []netip.Addr
}

// list gives the machines of this host by name.
func (h *host) list(ctx context.Context, hidden bool) ([]machine, error) {
	registered, err := h.machined.List(ctx)
	if err != nil && !errors.Is(err, machined.ErrUnavailable) {
		return nil, err
	}
	units, again, err := h.systemd.Machines(ctx)
	if err != nil {
		return nil, err
	}
	return mergeMachines(registered, append(units, again...), hidden), nil
}

// inFlight bounds the calls that wait for a reply at one time: enough to keep machined busy, less than any bus allows.
const inFlight = 64

// describe fills in what machined tells only of one machine at a time. A machine may be gone by now, use the host's network
// or hold no operating system: its cells stay empty, as machinectl's do.
func (h *host) describe(ctx context.Context, machines []machine, addresses bool) {
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i := range machines {
		m := &machines[i]
		if !m.registered {
			continue
		}
		group.Go(func() error {
			release, _ := h.machined.OSRelease(ctx, m.Name)
			m.os, m.version = release["ID"], release["VERSION_ID"]
			return nil
		})
		if addresses {
			group.Go(func() error {
				m.addresses, _ = h.machined.Addresses(ctx, m.Name)
				return nil
			})
		}
	}
	group.Wait()
}

// mergeMachines joins the registered machines and those that only their units tell of, and sorts them by name.
func mergeMachines(registered []machined.Summary, units []string, hidden bool) []machine {
	var machines []machine
	for _, m := range registered {
		if hidden || !strings.HasPrefix(m.Name, ".") {
			machines = append(machines, machine{Summary: m, registered: true})
		}
	}
	for _, name := range units {
		if !slices.ContainsFunc(registered, func(m machined.Summary) bool { return m.Name == name }) {
			machines = append(machines, machine{Summary: machined.Summary{Name: name, Class: machined.OwnClass, Service: machined.OwnService}})
		}
	}
	slices.SortFunc(machines, func(a, b machine) int { return strings.Compare(a.Name, b.Name) })
	return machines
}

// machineTable lays the list out. A cell shows at most maxAddresses addresses, all of them with full; with none there is no
// such column.
func machineTable(machines []machine, maxAddresses int, full bool) table {
	t := table{header: []string{"MACHINE", "CLASS", "SERVICE", "OS", "VERSION", "ADDRESSES"}}
	if maxAddresses == 0 {
		t.header = t.header[:5]
	}
	if !full {
		t.lines = maxAddresses
	}
	for _, m := range machines {
		var addresses []string
		for _, a := range m.addresses {
			addresses = append(addresses, a.String())
		}
		row := []string{m.Name, m.Class, m.Service, m.os, m.version, strings.Join(addresses, "\n")}
		t.rows = append(t.rows, row[:len(t.header)])
	}
	return t
}
