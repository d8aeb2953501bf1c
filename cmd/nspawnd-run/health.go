package main

import (
	"fmt"
	"time"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// healthFlags say how it is found out whether a machine works.
type healthFlags struct {
	flags                          *pflag.FlagSet
	command, onFailure             string
	interval, timeout, startPeriod string
	retries                        int
	disable                        bool
}

func (g *healthFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.StringVar(&g.command, "health-cmd", "", "run `COMMAND` in it to see whether it works (for its shell, or a JSON array; none: nothing)")
	f.StringVar(&g.interval, "health-interval", "30s", "`TIME` between two runs of that; disable: don't")
	f.StringVar(&g.timeout, "health-timeout", "30s", "`TIME` after which it has failed")
	f.StringVar(&g.startPeriod, "health-start-period", "0s", "`TIME` from the start on in which failures don't count")
	f.IntVar(&g.retries, "health-retries", 3, "failures in a row that make it unhealthy")
	f.StringVar(&g.onFailure, "health-on-failure", "none", "what happens when it becomes unhealthy: `none|kill|restart|stop`")
	f.BoolVar(&g.disable, "no-healthcheck", false, "don't run the image's health check")
}

func (g *healthFlags) apply(m *units.Machine, o *units.Options) error {
	h := &o.Health
	h.Disable = g.disable || g.interval == "disable"
	if g.flags.Changed("health-cmd") {
		h.Command = &g.command
	}
	if g.flags.Changed("health-retries") {
		h.Retries = &g.retries
	}
	for _, span := range []struct {
		flag, value string
		to          **time.Duration
	}{{"health-interval", g.interval, &h.Interval}, {"health-timeout", g.timeout, &h.Timeout}, {"health-start-period", g.startPeriod, &h.StartPeriod}} {
		if !g.flags.Changed(span.flag) || span.value == "disable" {
			continue
		}
		d, err := time.ParseDuration(span.value)
		if err != nil {
			return fmt.Errorf("--%s: %q is not a time like 30s or 1m30s", span.flag, span.value)
		}
		*span.to = &d
	}
	if err := oneOf("--health-on-failure", g.onFailure, "none", "kill", "restart", "stop"); err != nil {
		return err
	}
	if g.onFailure != "none" {
		h.OnFailure = g.onFailure
	}
	m.HealthAsked = h.Command != nil
	return nil
}
