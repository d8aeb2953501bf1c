package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const maxName = 4 << 10

// ShortName gives the part of a name without a host that stands for a repository, "" if s is a name in full: podman takes that for
// an alias or completes it with the host of a registry (containers-registries.conf(5)).
func ShortName(s string) string {
	ref, err := ParseReference(s)
	if err != nil || strings.HasPrefix(s, "docker://") {
		return ""
	}
	name := strings.TrimSuffix(s, ref.suffix())
	if domain, _ := splitDomain(name); strings.HasPrefix(name, domain+"/") || strings.HasPrefix(name, "index."+domain+"/") {
		return ""
	}
	return name
}

// Name reads the name of an image as this host does. What a name without a host stood for when it was pulled, it stands for until it
// is pulled again; one that never was is Docker Hub's.
func (s *Store) Name(text string) (Reference, error) {
	ref, err := ParseReference(text)
	short := ShortName(text)
	if err != nil || short == "" {
		return ref, err
	}
	data, err := readLimited(s.namePath(short), maxName)
	if errors.Is(err, fs.ErrNotExist) {
		return ref, nil
	}
	if err != nil {
		return ref, fmt.Errorf("image name %q: %w", text, err)
	}
	repository, err := ParseReference(strings.TrimSpace(string(data)))
	if err != nil {
		return ref, fmt.Errorf("%s: %w", s.namePath(short), err)
	}
	ref.domain, ref.path = repository.domain, repository.path
	return ref, ref.check()
}

// HasName says whether it is known what a name without a host stands for.
func (s *Store) HasName(text string) bool {
	_, err := os.Lstat(s.namePath(ShortName(text)))
	return err == nil
}

// A component of a path has no ":", so no two names have one file.
func (s *Store) namePath(short string) string {
	return s.path("names", strings.ReplaceAll(short, "/", ":"))
}

// AddName makes a name without a host stand for ref's repository.
func (w *Writer) AddName(text string, ref Reference) error {
	path := w.store.namePath(ShortName(text))
	if len(filepath.Base(path)) > maxRepository {
		return fmt.Errorf("image name %q: too long", text)
	}
	return w.writeFile(path, []byte(ref.Repository()+"\n"))
}
