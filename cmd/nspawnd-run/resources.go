package main

import (
	"fmt"
	"strconv"

	"nspawnd/cgroup"
	"nspawnd/units"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// resourceFlags limit what the machine may use: those of cgroup.Flags.
type resourceFlags struct{ flags *pflag.FlagSet }

func (g *resourceFlags) register(f *pflag.FlagSet) {
	g.flags = f
	for _, flag := range cgroup.Flags {
		switch {
		case flag.Switch:
			f.BoolP(flag.Name, flag.Short, false, flag.Help)
		case flag.Repeated:
			f.StringArrayP(flag.Name, flag.Short, nil, flag.Help)
		default:
			f.StringP(flag.Name, flag.Short, "", flag.Help)
		}
		f.Lookup(flag.Name).Hidden = flag.Refused
	}
}

func (g *resourceFlags) apply(m *units.Machine, _ *units.Options) (err error) {
	typed := cgroup.Typed{}
	g.flags.VisitAll(func(f *pflag.Flag) {
		switch values, repeated := f.Value.(pflag.SliceValue); {
		case !f.Changed:
		case repeated:
			typed[f.Name] = values.GetSlice()
		case f.Value.Type() != "bool" || f.Value.String() == "true":
			typed[f.Name] = []string{f.Value.String()}
		}
	})
	if typed["ulimit"], err = withHostUlimits(typed["ulimit"]); err != nil {
		return fmt.Errorf("--ulimit: %w", err)
	}
	m.Resources, err = cgroup.Settings(typed)
	return err
}

// withHostUlimits puts our own limits in the place of "host". Go has raised the soft limit of files to the hard one, for podman too.
func withHostUlimits(typed []string) ([]string, error) {
	var out []string
	for _, value := range typed {
		if value != "host" {
			out = append(out, value)
			continue
		}
		for number, name := range cgroup.Ulimits {
			var l unix.Rlimit
			if err := unix.Getrlimit(number, &l); err != nil {
				return nil, fmt.Errorf("reading the limit on %s: %w", name, err)
			}
			out = append(out, name+"="+formatUlimit(l.Cur)+":"+formatUlimit(l.Max))
		}
	}
	return out, nil
}

func formatUlimit(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "-1"
	}
	return strconv.FormatUint(n, 10)
}
