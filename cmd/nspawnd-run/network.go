package main

import (
	"fmt"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// networkFlags say which network the machine sees.
type networkFlags struct{ network string }

func (g *networkFlags) register(f *pflag.FlagSet) {
	f.StringVar(&g.network, "network", "host", "network it sees: `host|none`")
}

func (g *networkFlags) apply(m *units.Machine, _ *units.Options) error {
	m.Network = units.Network(g.network)
	if m.Network != units.HostNetwork && m.Network != units.NoNetwork {
		return fmt.Errorf("--network: %q is neither host nor none", g.network)
	}
	return nil
}
