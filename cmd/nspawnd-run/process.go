package main

import (
	"fmt"
	"os"
	"strings"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// processFlags say what runs, as whom and with which environment.
type processFlags struct {
	flags                     *pflag.FlagSet
	env                       []string
	user, workdir, entrypoint string
}

func (g *processFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.StringArrayVarP(&g.env, "env", "e", nil, "set `NAME=VALUE` in the environment, or pass NAME on from this one")
	f.StringVarP(&g.user, "user", "u", "", "run as `USER[:GROUP]`, by name in the image or by number")
	f.StringVarP(&g.workdir, "workdir", "w", "", "start in `DIR`")
	f.StringVar(&g.entrypoint, "entrypoint", "", "run `COMMAND` (or a JSON array) instead of the image's entrypoint")
}

func (g *processFlags) apply(_ *units.Machine, o *units.Options) error {
	o.User, o.WorkingDir = g.user, g.workdir
	if g.flags.Changed("entrypoint") {
		o.Entrypoint = &g.entrypoint
	}
	for _, e := range g.env {
		name, _, assigned := strings.Cut(e, "=")
		if name == "" {
			return fmt.Errorf("--env: %q is not NAME=VALUE", e)
		}
		if !assigned { // from the caller's environment; one that is not set there is left out
			value, set := os.LookupEnv(e)
			if !set {
				continue
			}
			e += "=" + value
		}
		o.Env = append(o.Env, e)
	}
	return nil
}
