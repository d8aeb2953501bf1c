package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The two ways in which a command can be unusable; a shell's exit status tells them apart.
var (
	ErrCommandNotFound      = errors.New("command not found")      // 127
	ErrCommandNotExecutable = errors.New("command not executable") // 126
)

// DefaultPath is the PATH of a payload whose image sets none; it is podman's.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// LookPath returns the absolute path, inside the root, of the command argv0: looked up in pathEnv ([DefaultPath] if
// empty) if it has no slash, else relative to workdir. Like execvp(3) it goes on searching when it finds something that
// can't be executed, and says so only if there is nothing better.
func (r *Root) LookPath(argv0, pathEnv, workdir string) (string, error) {
	workdir = path.Join("/", workdir)
	if strings.Contains(argv0, "/") {
		return r.executable(absolute(argv0, workdir))
	}
	if argv0 == "" {
		return "", fmt.Errorf("%q: %w", argv0, ErrCommandNotFound)
	}
	if pathEnv == "" {
		pathEnv = DefaultPath
	}
	result := fmt.Errorf("%q: %w in %s", argv0, ErrCommandNotFound, pathEnv)
	for dir := range strings.SplitSeq(pathEnv, ":") {
		if dir == "" {
			dir = "."
		}
		found, err := r.executable(absolute(dir+"/"+argv0, workdir))
		if err == nil {
			return found, nil
		}
		if errors.Is(err, ErrCommandNotExecutable) && !errors.Is(result, ErrCommandNotExecutable) {
			result = err
		}
	}
	return "", result
}

// absolute does not clean the name: "link/.." is not the directory that link is in.
func absolute(name, workdir string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return strings.TrimSuffix(workdir, "/") + "/" + strings.TrimPrefix(name, "./")
}

func (r *Root) executable(name string) (string, error) {
	info, err := r.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return "", fmt.Errorf("%q: %w", name, ErrCommandNotFound)
	case err != nil:
		return "", fmt.Errorf("%q: %w (%w)", name, ErrCommandNotExecutable, errors.Unwrap(err))
	case info.IsDir():
		return "", fmt.Errorf("%q: %w (it is a directory)", name, ErrCommandNotExecutable)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return "", fmt.Errorf("%q: %w (mode %s)", name, ErrCommandNotExecutable, info.Mode())
	}
	return name, nil
}
