package main

import (
	"fmt"
	"slices"
	"strings"

	"nspawnd/dbus"
	"nspawnd/units"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// options are the command line's, as they were typed.
type options struct {
	image   string
	args    []string
	version bool
	manager func() (bus *dbus.Conn, version int, err error) // see connect

	showRoot, forgetRoot string // calls by units of a machine with this directory: see units.Machine.Hides

	unit      unitFlags
	source    imageFlags
	lifecycle lifecycleFlags
	health    healthFlags
	secrets   secretFlags
	process   processFlags
	mounts    mountFlags
	network   networkFlags
	names     nameFlags
	resources resourceFlags
	placement placementFlags
	security  securityFlags
	users     userFlags
	streams   streamFlags
	refused   refusedFlags
}

// flagGroup is flags that belong together.
type flagGroup interface {
	register(f *pflag.FlagSet)
	// apply checks what was typed as far as that needs neither the image nor the manager, and adds what it means to the machine and to
	// what is laid over the image's configuration.
	apply(m *units.Machine, o *units.Options) error
}

// section is a group with its title in the help.
type section struct {
	title string
	group flagGroup
}

// sections gives the groups in the order of the help.
func (o *options) sections() []section {
	return []section{
		{"Machine", &o.unit},
		{"Life", &o.lifecycle},
		{"Health", &o.health},
		{"Secrets", &o.secrets},
		{"Image", &o.source},
		{"Process", &o.process},
		{"Input and output", &o.streams},
		{"Files", &o.mounts},
		{"Network", &o.network},
		{"Names of hosts", &o.names},
		{"Resources", &o.resources},
		{"Unit", &o.placement},
		{"Security", &o.security},
		{"Users", &o.users},
		{"", &o.refused},
	}
}

// addFlags defines the flags of all sections, and shows them by section in the help.
func addFlags(c *cobra.Command, o *options) {
	c.Flags().SetInterspersed(false) // what follows IMAGE is the payload's
	c.Flags().SetNormalizeFunc(oneName)
	c.Flags().SortFlags = false
	c.Flags().Bool("help", false, "show this") // cobra's own has the -h of --hostname
	c.Flags().BoolVar(&o.version, "version", false, "show which one it is")
	c.Flags().StringVar(&o.showRoot, "show-root", "", "")
	c.Flags().StringVar(&o.forgetRoot, "forget-root", "", "")
	_ = c.Flags().MarkHidden("show-root")
	_ = c.Flags().MarkHidden("forget-root")
	var help strings.Builder
	for _, s := range o.sections() {
		f := pflag.NewFlagSet(s.title, pflag.ContinueOnError)
		f.SortFlags = false
		s.group.register(f)
		c.Flags().AddFlagSet(f)
		if f.HasAvailableFlags() {
			fmt.Fprintf(&help, "\n%s:\n%s", s.title, f.FlagUsages())
		}
	}
	c.SetUsageFunc(func(c *cobra.Command) error {
		fmt.Fprintf(c.OutOrStdout(), "Usage:\n  %s\n\nExamples:\n%s\n%s", c.UseLine(), c.Example, help.String())
		return nil
	})
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w (nspawnd-run --help lists the options)", err)
	})
}

// oneName gives a flag's own name for those that systemd-run(1) and docker-run(1) have for it.
func oneName(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if own := map[string]string{"setenv": "env", "cgroup-parent": "slice", "net": "network", "dns-opt": "dns-option"}[name]; own != "" {
		name = own
	}
	return pflag.NormalizedName(name)
}

// machine gives what the command line asks for.
func (o *options) machine() (units.Machine, units.Options, error) {
	m, over := units.Machine{}, units.Options{Args: o.args}
	for _, s := range o.sections() {
		if err := s.group.apply(&m, &over); err != nil {
			return m, over, err
		}
	}
	return m, over, nil
}

// oneOf refuses a value that a flag does not have.
func oneOf(flag, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is not one of %s", flag, value, strings.Join(values, ", "))
}
