package fetch

import (
	"fmt"
	"strings"

	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"nspawnd/image"
)

// Candidates are what a name may stand for.
type Candidates struct {
	References []image.Reference // in the order in which they are to be tried
	Ask        bool              // the user has to choose, or may
	Enforce    bool              // nobody else may
}

// ResolveName says what a name without a host stands for, as podman does (containers-registries.conf(5)): an alias of short-name-aliases.conf or
// registries.conf, or what it is on each of the unqualified-search-registries. Where podman fails, since neither is configured, it
// is Docker Hub's, as for docker. A name in full stands for itself.
func ResolveName(sys *types.SystemContext, text string) (Candidates, error) {
	ref, err := image.ParseReference(text)
	one := Candidates{References: []image.Reference{ref}}
	short := image.ShortName(text)
	if err != nil || short == "" {
		return one, err
	}
	alias, _, err := sysregistriesv2.ResolveShortNameAlias(sys, short)
	if err != nil {
		return one, fmt.Errorf("image name %q: %w", text, err)
	}
	suffix := strings.TrimPrefix(text, short)
	if alias != nil {
		one.References[0], err = image.ParseReference(alias.Name() + suffix)
		return one, err
	}
	registries, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
	if err != nil {
		return one, fmt.Errorf("image name %q: %w", text, err)
	}
	if len(registries) == 0 {
		return one, nil
	}
	mode, err := sysregistriesv2.GetShortNameMode(sys)
	if err != nil {
		return one, err
	}
	several := len(registries) > 1
	found := Candidates{Ask: several && mode != types.ShortNameModeDisabled, Enforce: several && mode == types.ShortNameModeEnforcing}
	for _, registry := range registries {
		ref, err := image.ParseReference(registry + "/" + text)
		if err != nil {
			return one, err
		}
		found.References = append(found.References, ref)
	}
	return found, nil
}
