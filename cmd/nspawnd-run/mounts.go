package main

import (
	"fmt"
	"os"
	"path/filepath"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// mountFlags say which files the machine sees.
type mountFlags struct {
	volumes  []string
	readOnly bool
}

func (g *mountFlags) register(f *pflag.FlagSet) {
	f.StringArrayVarP(&g.volumes, "volume", "v", nil, "bind mount `HOST:PATH[:ro|rw|rbind|bind]` into it")
	f.BoolVar(&g.readOnly, "read-only", false, "mount the root file system read-only (/run, /tmp and /var/tmp stay writable)")
}

func (g *mountFlags) apply(m *units.Machine, _ *units.Options) error {
	m.ReadOnly = g.readOnly
	for _, v := range g.volumes {
		volume, err := units.ParseVolume(v)
		if err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
		if !filepath.IsAbs(volume.Source) { // "./data": relative to the caller, as podman reads it
			if volume.Source, err = filepath.Abs(volume.Source); err != nil {
				return err
			}
		}
		if _, err := os.Stat(volume.Source); err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
		m.Volumes = append(m.Volumes, volume)
	}
	return nil
}
