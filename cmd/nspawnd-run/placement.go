package main

import (
	"fmt"
	"strings"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// placementFlags say how the machine's unit stands among the host's others.
type placementFlags struct {
	flags                    *pflag.FlagSet
	slice, description       string
	registered               string
	cgroups, cgroupNamespace string
}

// refusedPlacement are flags that people know from systemd-run and podman, with the reason why a machine has none.
var refusedPlacement = map[string]string{
	"scope": "a scope is a cgroup around a process that its caller starts: systemd gives it no isolation, no restart and no exit status; the machine is a service",
	"unit":  "a machine's unit is nspawnd-NAME.service, which is how machinectl-lite finds it; --name chooses NAME",
}

func (g *placementFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.StringVar(&g.slice, "slice", "machine.slice", "put it below the slice `NAME`, whose limits hold for all in it (also --cgroup-parent)")
	f.StringVar(&g.description, "description", "", "describe the unit by `TEXT` (default: its name and image)")
	f.StringVar(&g.registered, "register", "yes", "tell machined of it: `yes|no`; machinectl-lite shows it either way")
	f.StringVar(&g.cgroupNamespace, "cgroupns", "private", "cgroups that it sees: its own or the host's, `private|host`")
	f.StringVar(&g.cgroups, "cgroups", "enabled", "its cgroup: `enabled`")
	f.Lookup("cgroups").Hidden = true
	for name := range refusedPlacement {
		f.String(name, "", "")
		f.Lookup(name).Hidden = true
		f.Lookup(name).NoOptDefVal = map[string]string{"scope": "true"}[name]
	}
}

func (g *placementFlags) apply(m *units.Machine, _ *units.Options) error {
	for name, why := range refusedPlacement {
		if g.flags.Changed(name) {
			return fmt.Errorf("--%s: %s", name, why)
		}
	}
	if g.cgroups != "enabled" {
		return fmt.Errorf("--cgroups: %q: the machine is a service, and systemd gives each service a cgroup of its own (enabled)", g.cgroups)
	}
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
