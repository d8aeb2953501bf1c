// Package launcher finds nspawnd-launcher.
package launcher

import (
	"fmt"
	"os"
	"path/filepath"
)

// Find looks where "make install" puts it, and beside ourselves for a build directory.
func Find() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	dir := filepath.Dir(self)
	for _, path := range []string{filepath.Join(dir, "../lib/nspawnd/nspawnd-launcher"), filepath.Join(dir, "nspawnd-launcher")} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("nspawnd-launcher is not installed beside %s; install nspawnd again", self)
}
