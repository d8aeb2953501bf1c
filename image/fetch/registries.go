package fetch

import (
	"encoding/json"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"nspawnd/image"
)

// registriesDir makes a registries.d (containers-registries.d(5)) with everything that the host's has, and with what a rule
// of ours needs for ref: that signatures are looked for as cosign stores them, and where GPG signatures are. Properties are
// looked up one by one from the name in full to the host, so only what is set here is overridden, and nobody has to
// edit that directory to trust a key.
func registriesDir(sys *types.SystemContext, ref image.Reference, rules *ruleSet) (string, error) {
	sources := []string{sys.RegistriesDirPath}
	if sys.RegistriesDirPath == "" {
		paths, err := configfile.GetSearchPaths(&configfile.File{
			Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true,
			RootForImplicitAbsolutePaths: sys.RootForImplicitAbsolutePaths,
		})
		if err != nil {
			return "", err
		}
		sources = paths.DropInDirectories
	}
	dir, err := os.MkdirTemp("", "nspawnd-registries-")
	if err != nil {
		return "", err
	}
	if err := fillRegistriesDir(dir, sources, ref, rules); err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

// fillRegistriesDir takes sources in the order of their precedence.
func fillRegistriesDir(dir string, sources []string, ref image.Reference, rules *ruleSet) error {
	for _, source := range sources {
		files, err := filepath.Glob(filepath.Join(source, "*.yaml"))
		if err != nil {
			return err
		}
		for _, file := range files {
			link := filepath.Join(dir, filepath.Base(file))
			if err := os.Symlink(file, link); err != nil && !os.IsExist(err) {
				return err
			}
		}
	}
	properties := map[string]any{}
	if rules.attachments {
		properties["use-sigstore-attachments"] = true
	}
	if rules.lookaside != "" {
		properties["lookaside"] = rules.lookaside
	}
	// JSON is YAML.
	data, err := json.Marshal(map[string]any{"docker": map[string]any{ref.Scopes()[0]: properties}})
	if err != nil {
		return err
	}
	// Exclusively: it must not be written through one of the links.
	f, err := os.OpenFile(filepath.Join(dir, "nspawnd-trust.yaml"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
