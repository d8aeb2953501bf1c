package units

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Config is how an image wants to be run: the "config" object of image-spec config.md, with Docker's additions. It has the
// fields of image.Config, so that one converts into the other; neither package needs to know the other, and none of them
// the image-spec module, which costs a millisecond of every start.
type Config struct {
	User         string
	ExposedPorts map[string]struct{}
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{}
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	Healthcheck  json.RawMessage
	Shell        []string
	StopTimeout  *int // seconds
}

// Options are what a run lays over the image's config. The zero value changes nothing.
type Options struct {
	Entrypoint *string  // replaces the image's Entrypoint and drops its Cmd: a command, a JSON array, or "" for none
	Args       []string // replace Cmd
	Env        []string // NAME=VALUE
	User       string
	WorkingDir string
}

// Payload is the process of a machine in the image's own terms: names are not resolved yet.
type Payload struct {
	Argv        []string
	Env         []string // NAME=VALUE, each name once
	User        string   // any form that the OCI image config allows
	WorkingDir  string   // absolute and clean
	StopSignal  int32
	StopTimeout uint64   // µs from the stop signal to SIGKILL
	Volumes     []string // clean absolute paths, sorted
	Notes       []string // fields of the config that nothing here expresses
}

// maxString is the longest argument or variable that execve(2) takes.
const maxString = 128<<10 - 1

const defaultStopTimeout = 10_000_000 // podman-run(1) --stop-timeout

// DefaultPath is the PATH of a payload whose image sets none (that of podman).
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Merge lays options over an image's config (image-spec config.md, "config"), as podman-run(1) does. machine becomes
// $HOSTNAME.
func Merge(config Config, o Options, machine string) (Payload, error) {
	p := Payload{User: config.User, StopSignal: signals["TERM"], StopTimeout: defaultStopTimeout}
	if o.User != "" {
		p.User = o.User
	}

	entrypoint, cmd := config.Entrypoint, config.Cmd
	if o.Entrypoint != nil {
		var err error
		if entrypoint, err = parseEntrypoint(*o.Entrypoint); err != nil {
			return p, err
		}
		cmd = nil
	}
	if len(o.Args) > 0 {
		cmd = o.Args
	}
	p.Argv = slices.Concat(entrypoint, cmd)
	if len(p.Argv) == 0 || p.Argv[0] == "" {
		return p, errors.New("the image names no command; give one after the image")
	}
	for _, arg := range p.Argv {
		if strings.ContainsRune(arg, 0) {
			return p, fmt.Errorf("argument %.40q has a NUL byte", arg)
		}
		if len(arg) > maxString {
			return p, fmt.Errorf("argument %.40q is longer than the %d bytes that the kernel takes", arg, maxString)
		}
	}

	env := []string{"PATH=" + DefaultPath, "container=nspawnd", "HOSTNAME=" + machine}
	for _, assignment := range slices.Concat(config.Env, o.Env) {
		name, _, found := strings.Cut(assignment, "=")
		if !found {
			assignment += "=" // as podman reads a bare name in an image
		}
		if name == "" || strings.ContainsRune(assignment, 0) {
			return p, fmt.Errorf("environment %.40q is not NAME=VALUE", assignment)
		}
		if len(assignment) > maxString {
			return p, fmt.Errorf("environment variable %.40q is longer than the %d bytes that the kernel takes", name, maxString)
		}
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, assignment)
	}
	p.Env = env

	p.WorkingDir = path.Join("/", config.WorkingDir)
	if o.WorkingDir != "" {
		if !path.IsAbs(o.WorkingDir) {
			return p, fmt.Errorf("working directory %q is not an absolute path", o.WorkingDir)
		}
		p.WorkingDir = path.Clean(o.WorkingDir)
	}

	for _, api := range []string{"/proc", "/sys", "/dev"} {
		if p.WorkingDir == api || strings.HasPrefix(p.WorkingDir, api+"/") {
			return p, fmt.Errorf("the working directory, %.40q, can't be in %s", p.WorkingDir, api)
		}
	}
	if config.StopSignal != "" {
		var err error
		if p.StopSignal, err = parseSignal(config.StopSignal); err != nil {
			return p, fmt.Errorf("the image's StopSignal: %w", err)
		}
	}
	if config.StopTimeout != nil && *config.StopTimeout >= 0 {
		p.StopTimeout = uint64(*config.StopTimeout) * 1_000_000
	}
	for volume := range config.Volumes {
		if volume = path.Join("/", volume); volume != "/" {
			p.Volumes = append(p.Volumes, volume)
		}
	}
	slices.Sort(p.Volumes)
	if len(config.ExposedPorts) > 0 {
		p.Notes = append(p.Notes, "ExposedPorts is not mapped: it publishes nothing by itself")
	}
	if len(config.Labels) > 0 {
		p.Notes = append(p.Notes, "Labels are not mapped: they stay with the image")
	}
	if config.Healthcheck != nil {
		p.Notes = append(p.Notes, "Healthcheck is not mapped: nothing runs it yet")
	}
	return p, nil
}

func parseEntrypoint(s string) ([]string, error) {
	switch {
	case s == "":
		return nil, nil
	case strings.HasPrefix(s, "["):
		var words []string
		if err := json.Unmarshal([]byte(s), &words); err != nil {
			return nil, fmt.Errorf("entrypoint %q is not a JSON array of strings", s)
		}
		return words, nil
	}
	return []string{s}, nil
}

// Getenv gives the value of a variable of the payload.
func (p Payload) Getenv(name string) (value string, set bool) {
	for _, e := range p.Env {
		if value, set = strings.CutPrefix(e, name+"="); set {
			return value, true
		}
	}
	return "", false
}

// SetDefault sets a variable of the payload's environment that nothing has set yet.
func (p *Payload) SetDefault(name, value string) {
	if _, set := p.Getenv(name); !set {
		p.Env = append(p.Env, name+"="+value)
	}
}
