package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"nspawnd/image"
	"nspawnd/units"

	"github.com/spf13/pflag"
)

// unitFlags say what the machine's unit is called and how it is started.
type unitFlags struct {
	name           string
	flavor         string
	detach, dryRun bool
	inPlace        bool
	properties     []string
}

func (g *unitFlags) register(f *pflag.FlagSet) {
	f.StringVar(&g.name, "name", "", "name of the machine (default: made from the image's)")
	f.BoolVarP(&g.detach, "detach", "d", false, "return when it runs, and print its name; output goes to the journal")
	f.StringArrayVarP(&g.properties, "property", "p", nil, "set a unit's directive, `NAME=VALUE` (systemd.exec(5), systemd.resource-control(5), …)")
	f.StringVar(&g.flavor, "flavor", "service", "how it runs, `service|nspawn|chroot`: by the unit's own isolation, under systemd-nspawn, or with a root directory of its own and nothing else")
	f.BoolVar(&g.inPlace, "in-place", false, "become systemd-nspawn instead of starting a unit (with --flavor=nspawn; by default when this is a service's main process)")
	f.BoolVar(&g.dryRun, "dry-run", false, "print the units that would be started, and start nothing")
}

func (g *unitFlags) apply(m *units.Machine, _ *units.Options) error {
	if g.name != "" && !units.ValidName(g.name) {
		return fmt.Errorf("--name: %q is not a machine name (letters and digits, \"-\" and \".\" between them, at most 64)", g.name)
	}
	m.Name, m.Detached, m.Flavor = g.name, g.detach, units.Flavor(g.flavor)
	switch {
	case g.inPlace && m.Flavor != units.NspawnFlavor:
		return errors.New("--in-place: only with --flavor=nspawn is there a supervisor to become")
	case g.inPlace && g.detach:
		return errors.New("--in-place and --detach: what becomes the supervisor can't return")
	}
	if m.Flavor == units.NspawnFlavor && !g.detach && os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) { // systemd.exec(5)
		g.inPlace = true
	}
	return oneOf("--flavor", g.flavor, units.Flavors...)
}

// directives reads --property, for a manager of the given version.
func (g *unitFlags) directives(manager int) ([]units.Directive, error) {
	var directives []units.Directive
	for _, p := range g.properties {
		d, err := units.ParseDirective(p, manager)
		if err != nil {
			return nil, fmt.Errorf("--property: %w", err)
		}
		directives = append(directives, d)
	}
	return directives, nil
}

// imageFlags say where the image comes from.
type imageFlags struct {
	pull, root        string
	authFile, certDir string
	insecure          []string
	quiet             bool

	platform, os, arch, variant string
	wanted                      image.Platform // zero: whatever is stored, or this host's
}

func (g *imageFlags) register(f *pflag.FlagSet) {
	f.StringVar(&g.pull, "pull", "missing", "when to fetch the image: `missing|always|never`")
	f.BoolVarP(&g.quiet, "quiet", "q", false, "do not show how fetching gets on, which a terminal does")
	f.StringVar(&g.authFile, "authfile", "", "credentials for registries are in `FILE` (containers-auth.json(5))")
	f.StringVar(&g.certDir, "cert-dir", "", "certificates for the registry are in `DIR` (containers-certs.d(5))")
	f.StringSliceVar(&g.insecure, "insecure-options", nil, "turn a protection off: `image` accepts an image without a trusted signature")
	f.StringVar(&g.platform, "platform", "", "take the image for `OS/ARCH[/VARIANT]`, and fetch it if the stored one is for another")
	f.StringVar(&g.os, "os", "", "the same with `OS`")
	f.StringVar(&g.arch, "arch", "", "the same with `ARCH`")
	f.StringVar(&g.variant, "variant", "", "the same with `VARIANT` of the architecture")
	f.StringVar(&g.root, "root", image.DefaultRoot, "`DIR` of the store")
}

func (g *imageFlags) apply(*units.Machine, *units.Options) error {
	for _, what := range g.insecure {
		if what != "image" {
			return fmt.Errorf("--insecure-options: %q is not a protection; the one there is: image", what)
		}
	}
	if g.platform+g.os+g.arch+g.variant != "" {
		var err error
		if g.wanted, err = g.parsePlatform(); err != nil {
			return err
		}
	}
	return oneOf("--pull", g.pull, "missing", "always", "never")
}

func (g *imageFlags) parsePlatform() (image.Platform, error) {
	if g.platform == "" {
		return image.Platform{OS: cmp.Or(g.os, "linux"), Architecture: cmp.Or(g.arch, runtime.GOARCH), Variant: g.variant}, nil
	}
	parts := append(strings.Split(g.platform, "/"), "")
	if g.os+g.arch+g.variant != "" {
		return image.Platform{}, errors.New("--platform says what --os, --arch and --variant say: give it or them")
	}
	if len(parts) < 3 || len(parts) > 4 || parts[0] == "" || parts[1] == "" {
		return image.Platform{}, fmt.Errorf("--platform: %q is not OS/ARCH or OS/ARCH/VARIANT", g.platform)
	}
	return image.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}, nil
}

// accepts says whether a stored image is for the platform that is asked for.
func (g *imageFlags) accepts(have image.Platform) bool {
	want := g.wanted
	return want == image.Platform{} ||
		want.OS == have.OS && want.Architecture == have.Architecture && (want.Variant == "" || want.Variant == have.Variant)
}

func platformName(p image.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}
