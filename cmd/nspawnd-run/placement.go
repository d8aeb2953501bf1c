package main

import (
	"fmt"
	"strings"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// placementFlags say how the machine's unit stands among the host's others.
type placementFlags struct {
	slice, description          string
	registered, cgroupNamespace string
}

func (g *placementFlags) register(f *pflag.FlagSet) {
	f.StringVar(&g.slice, "slice", "machine.slice", "put it below the slice `NAME`, whose limits hold for all in it (also --cgroup-parent)")
	f.StringVar(&g.description, "description", "", "describe the unit by `TEXT` (default: its name and image)")
	f.StringVar(&g.registered, "register", "yes", "tell machined of it: `yes|no`; machinectl-lite shows it either way")
	f.StringVar(&g.cgroupNamespace, "cgroupns", "private", "cgroups that it sees: its own or the host's, `private|host`")
}

func (g *placementFlags) apply(m *units.Machine, _ *units.Options) error {
	m.Description = g.description
	m.Slice = strings.TrimSuffix(g.slice, ".slice") + ".slice"
	if !units.ValidSlice(m.Slice) {
		return fmt.Errorf("--slice: %q is not the name of a slice (like batch or batch-nightly.slice; a dash stands for \"below\")", g.slice)
	}
	if err := oneOf("--cgroupns", g.cgroupNamespace, "private", "host"); err != nil {
		return err
	}
	m.Security.HostCgroups = g.cgroupNamespace == "host"
	m.Unregistered = g.registered == "no"
	return oneOf("--register", g.registered, "yes", "no")
}
