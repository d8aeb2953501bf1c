package vm

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Suite is a Debian suite that labs and VMs are made from.
type Suite string

const (
	Trixie Suite = "trixie" // systemd 257, the floor
	Forky  Suite = "forky"  // the newest systemd that Debian's testing suite has
)

// AllSuites is every suite, oldest first.
var AllSuites = []Suite{Trixie, Forky}

//go:embed recipe
var recipe embed.FS

// CacheDir is where roots, kernels and images are kept: $NSPAWND_LAB_CACHE or /var/cache/nspawnd-lab.
func CacheDir() string {
	if dir := os.Getenv("NSPAWND_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/nspawnd-lab"
}

// mirror is Debian's archive, or whatever $NSPAWND_LAB_MIRROR names. Not part of a cache key: the content is the same.
func mirror() string {
	if url := os.Getenv("NSPAWND_LAB_MIRROR"); url != "" {
		return url
	}
	return "http://deb.debian.org/debian"
}

// recipeKey names what is built from the named recipe files with these further inputs.
func recipeKey(files []string, inputs ...string) (string, error) {
	h := sha256.New()
	for _, input := range inputs {
		fmt.Fprintf(h, "%d %s\n", len(input), input)
	}
	for _, file := range files {
		data, err := recipe.ReadFile("recipe/" + file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", file, len(data), data)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// packages are the package names in a list: one a line, # starts a comment.
func packages(list []byte) []string {
	var names []string
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(line, "#")
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Root is the directory of a suite's root, built first if the cache has none for this recipe. It is shared by all labs and must
// not be written to. Progress goes to log.
func Root(suite Suite, log io.Writer) (string, error) {
	name, err := rootName(suite)
	if err != nil {
		return "", err
	}
	list, err := recipe.ReadFile("recipe/packages.txt")
	if err != nil {
		return "", err
	}
	return cached(name, log, func(b build) error {
		hook, err := recipeFile(b.scratch, "customize.sh")
		if err != nil {
			return err
		}
		return b.debootstrap(suite, b.result, packages(list), "--variant=apt", "--customize-hook="+hook+` "$1"`)
	})
}

func rootName(suite Suite) (string, error) {
	key, err := recipeKey([]string{"packages.txt", "customize.sh"}, "root", string(suite))
	return fmt.Sprintf("root-%s-%s", suite, key), err
}

// Build builds what labs and VMs of the suites are made from, the test images and an emulator, side by side: all that the cache doesn't have.
func Build(suites []Suite, log io.Writer) error {
	log = &serialized{to: log}
	var group errgroup.Group
	for _, suite := range suites {
		group.Go(func() error {
			_, err := vmImage(suite, log) // which is made from the root
			return err
		})
	}
	group.Go(func() error {
		_, err := Images(log)
		return err
	})
	group.Go(func() error {
		_, err := emulator(Forky, log)
		return err
	})
	return group.Wait()
}

// serialized is a writer for several goroutines.
type serialized struct {
	lock sync.Mutex
	to   io.Writer
}

func (s *serialized) Write(data []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.to.Write(data)
}

// Prune removes from the cache what an older recipe made and no lab uses.
func Prune(log io.Writer) error {
	current := map[string]bool{}
	for _, suite := range AllSuites {
		for _, name := range []func(Suite) (string, error){rootName, vmName, emulatorName} {
			entry, err := name(suite)
			if err != nil {
				return err
			}
			current[entry] = true
		}
	}
	images, err := imagesName()
	if err != nil {
		return err
	}
	current[images] = true
	entries, err := os.ReadDir(CacheDir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		kind, _, _ := strings.Cut(entry.Name(), "-")
		if current[entry.Name()] || !slices.Contains([]string{"root", "vm", "images", "qemu"}, kind) {
			continue // needed, or not ours
		}
		path := filepath.Join(CacheDir(), entry.Name())
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		// A lab's supervisor holds its root's lock.
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			fmt.Fprintf(log, "lab: removing %s\n", entry.Name())
			err = os.RemoveAll(path)
		}
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// debootstrap makes a Debian root at dir with these packages, without recommends and documentation.
func (b build) debootstrap(suite Suite, dir string, names []string, options ...string) error {
	args := []string{
		"--mode=root", "--components=main", "--format=directory",
		"--include=" + strings.Join(names, ","),
		// A snapshot of testing may be older than its Release file allows.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		`--dpkgopt=force-unsafe-io`,
		`--dpkgopt=path-exclude=/usr/share/doc/*`,
		`--dpkgopt=path-exclude=/usr/share/man/*`,
		`--dpkgopt=path-exclude=/usr/share/info/*`,
		`--dpkgopt=path-exclude=/usr/share/locale/*`,
	}
	args = append(args, options...)
	args = append(args, string(suite), dir, mirror())
	return b.run(exec.Command("mmdebstrap", args...))
}

// build is one thing for the cache in the making.
type build struct {
	result  string   // to be made by the build: a directory
	scratch string   // a directory that goes when the build ends
	lock    *os.File // held by this process and every command of the build
	log     io.Writer
}

// run runs a command of a build. Its output is kept for the error.
func (b build) run(cmd *exec.Cmd) error {
	var output bytes.Buffer
	cmd.Stdout = io.MultiWriter(&output, &progress{log: b.log})
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// What a builder mounts must not outlive it: a killed build's directory is removed recursively.
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGTERM,
	}
	// The next build waits until what a killed one has started has ended, too.
	cmd.ExtraFiles = []*os.File{b.lock}
	started := time.Now()
	fmt.Fprintf(b.log, "lab: %s …\n", filepath.Base(cmd.Path))
	if err := startAndWait(cmd); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(output.String(), 40))
	}
	fmt.Fprintf(b.log, "lab: %s done in %s\n", filepath.Base(cmd.Path), time.Since(started).Round(100*time.Millisecond))
	return nil
}

// progress passes on the lines in which mmdebstrap says what it is at.
type progress struct {
	log  io.Writer
	line []byte
}

func (p *progress) Write(data []byte) (int, error) {
	p.line = append(p.line, data...)
	for {
		line, rest, complete := bytes.Cut(p.line, []byte("\n"))
		if !complete {
			return len(data), nil
		}
		if step, found := bytes.CutPrefix(line, []byte("I: ")); found {
			fmt.Fprintf(p.log, "lab:   %s\n", step)
		}
		p.line = rest
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// recipeFile writes a recipe's file where a program that isn't ours can read it.
func recipeFile(scratch, name string) (string, error) {
	data, err := recipe.ReadFile("recipe/" + name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(scratch, filepath.Base(name))
	return path, os.WriteFile(path, data, 0o755)
}

// cached is the path of a name in the cache. What isn't there is built at a temporary name by one process at a time and renamed when it
// is complete.
func cached(name string, log io.Writer, make func(build) error) (string, error) {
	cache := CacheDir()
	path := filepath.Join(cache, name)
	if _, err := os.Lstat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := lockFile(filepath.Join(cache, "."+name+".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Lstat(path); err == nil {
		return path, nil // another process built it while we waited
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}

	// A fixed name: what a killed build left is found, and removed, by the next one, which has the lock.
	partial := filepath.Join(cache, "."+name+".partial")
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("removing what an earlier build left: %w", err)
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(partial)
	started := time.Now()
	fmt.Fprintf(log, "lab: building %s (once)\n", name)
	b := build{result: filepath.Join(partial, "result"), scratch: partial, lock: lock, log: log}
	if err := make(b); err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	if err := os.Rename(b.result, path); err != nil {
		return "", err
	}
	fmt.Fprintf(log, "lab: built %s in %s\n", name, time.Since(started).Round(100*time.Millisecond))
	return path, nil
}

// lockFile takes an exclusive flock on a file, which it creates, and waits for it. Closing the file unlocks it.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// flock takes an exclusive flock and waits for it.
func flock(file *os.File) error {
	for {
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err == nil {
			return nil
		} else if err != unix.EINTR {
			return fmt.Errorf("locking %s: %w", file.Name(), err)
		}
	}
}
