package vm

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
)

// installation is what make install puts where, of what make build builds.
var installation = map[string]string{
	"/usr/local/bin/nspawnd-run":              "nspawnd-run",
	"/usr/local/bin/machinectl-lite":          "machinectl-lite",
	"/usr/local/lib/nspawnd/nspawnd-launcher": "nspawnd-launcher",
}

// BuildDir is where make build put the binaries: $NSPAWND_BUILD or build/ in the module.
func BuildDir() string {
	if dir := os.Getenv("NSPAWND_BUILD"); dir != "" {
		return dir
	}
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "build")
}

// installed are the binaries that exist, by their path in the lab.
func installed() map[string]string {
	files := map[string]string{}
	for path, name := range installation {
		source := filepath.Join(BuildDir(), name)
		if _, err := os.Stat(source); err == nil {
			files[path] = source
		}
	}
	return files
}

// Install installs the binaries that exist now, in a lab that was started when there were others.
func (m *Machine) Install() error {
	for path, source := range installed() {
		built, err := os.Stat(source)
		if err != nil {
			return err
		}
		there, err := os.Stat(filepath.Join("/proc", strconv.Itoa(m.state.Leader), "root", path))
		if err == nil && there.Size() == built.Size() && there.ModTime().After(built.ModTime()) {
			continue
		}
		if err := m.copy(source, path); err != nil {
			return err
		}
	}
	return nil
}
