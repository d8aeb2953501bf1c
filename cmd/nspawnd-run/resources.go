package main

import (
	"fmt"

	"nspawnd/cgroup"
	"nspawnd/units"

	"github.com/spf13/pflag"
)

// resourceFlags limit what the machine may use.
type resourceFlags struct{ memory, cpus, pids string }

func (g *resourceFlags) register(f *pflag.FlagSet) {
	f.StringVarP(&g.memory, "memory", "m", "", "limit its memory to `SIZE` (512m, 2g), and its swap to as much again")
	f.StringVar(&g.cpus, "cpus", "", "limit its CPU time to that of `N` CPUs (1.5)")
	f.StringVar(&g.pids, "pids-limit", "", "limit its processes and threads to `N` (-1: no limit; default 2048)")
}

func (g *resourceFlags) apply(m *units.Machine, _ *units.Options) error {
	for _, limit := range []struct {
		flag, value string
		parse       func(string) (uint64, error)
		to          **uint64
	}{
		{"--memory", g.memory, cgroup.ParseMemory, &m.Resources.Memory},
		{"--cpus", g.cpus, cgroup.ParseCPUs, &m.Resources.CPU},
		{"--pids-limit", g.pids, cgroup.ParsePIDs, &m.Resources.PIDs},
	} {
		if limit.value == "" {
			continue
		}
		v, err := limit.parse(limit.value)
		if err != nil {
			return fmt.Errorf("%s: %w", limit.flag, err)
		}
		*limit.to = &v
	}
	return nil
}
