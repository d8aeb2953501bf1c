// Package launcher finds nspawnd-launcher.
package launcher

import (
	"fmt"
	"os"
	"path/filepath"
)

// Name is the name of its file.
const Name = "nspawnd-launcher"

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
	for _, path := range []string{filepath.Join(dir, "../lib/nspawnd", Name), filepath.Join(dir, Name)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed beside %s; install nspawnd again", Name, self)
}
