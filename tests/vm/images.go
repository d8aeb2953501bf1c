package vm

import (
	"embed"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

//go:embed images
var imageSources embed.FS

// ImageNames are the test images, tags in the layout that Images gives: tiny is one static program from scratch; the others are
// Debian packages over one base layer.
var ImageNames = []string{"tiny", "nginx", "redis", "python", "postgres", "node"}

func imagesName() (string, error) {
	var inputs []string
	err := fs.WalkDir(imageSources, "images", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := imageSources.ReadFile(path)
		inputs = append(inputs, path, string(data))
		return err
	})
	if err != nil {
		return "", err
	}
	key, err := recipeKey(nil, inputs...)
	return "images-" + key, err
}

// Images is an OCI layout with the test images, built first if the cache has none.
func Images(log io.Writer) (string, error) {
	name, err := imagesName()
	if err != nil {
		return "", err
	}
	dir, err := cached(name, log, func(b build) error {
		// Modes: an embedded file has none. What a shell or a kernel has to run says so by its first line.
		sources := filepath.Join(b.scratch, "sources")
		if err := os.CopyFS(sources, imageSources); err != nil {
			return err
		}
		if err := makeScriptsExecutable(sources); err != nil {
			return err
		}
		tiny := filepath.Join(b.scratch, "tiny")
		compile := exec.Command("go", "build", "-trimpath", "-ldflags=-s", "-o", tiny, "./images/tiny")
		_, file, _, _ := runtime.Caller(0)
		compile.Dir = filepath.Dir(file)
		compile.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if err := b.run(compile); err != nil {
			return err
		}
		work := filepath.Join(b.scratch, "work")
		for _, dir := range []string{work, b.result} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		here := filepath.Join(sources, "images")
		return b.run(exec.Command(filepath.Join(here, "build.sh"), here, tiny, work, filepath.Join(b.result, "oci"), mirror()))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "oci"), nil
}

func makeScriptsExecutable(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o755)
		if !entry.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(data) < 2 || string(data[:2]) != "#!" {
				mode = 0o644
			}
		}
		return os.Chmod(path, mode)
	})
}

// labCache is where the host's cache is in every lab, read-only.
const labCache = "/run/lab/cache"

// Images is the path in the lab of the layout with the test images, for oci:PATH:NAME.
func (m *Machine) Images() string {
	m.helper()()
	layout, err := Images(os.Stderr)
	if err != nil {
		m.fatalf("%w", err)
	}
	return m.inCache(layout)
}

// inCache is the path in the lab of what is in the host's cache.
func (m *Machine) inCache(path string) string {
	m.helper()()
	relative, err := filepath.Rel(CacheDir(), path)
	if err != nil {
		m.fatalf("not in the cache: %w", err)
	}
	return filepath.Join(labCache, relative)
}
