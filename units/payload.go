package units

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"nspawnd/cgroup"
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
	Other        []string
}

// Options are what a run lays over the image's config. The zero value changes nothing.
type Options struct {
	Entrypoint  *string  // replaces the image's Entrypoint and drops its Cmd: a command, a JSON array, or "" for none
	Args        []string // replace Cmd
	HostEnv     []string // NAME=VALUE below the image's
	MergeEnv    []string // NAME=VALUE in which $NAME is what the image sets
	UnsetEnv    []string // names that the image's environment is to lose
	UnsetAllEnv bool     // it is to lose all of them
	Env         []string // NAME=VALUE
	User        string
	Groups      []string // supplementary, by name in the image or by number
	WorkingDir  string
	Hostname    string
	StopSignal  string
	StopTimeout *int // seconds; negative: no end
	RunTimeout  uint // seconds
	UMask       string
	Personality string
	Init        bool
	Notify      bool
	Sysctls     []string // NAME=VALUE
	Health      HealthOptions
}

// Payload is the process of a machine in the image's own terms: names are not resolved yet.
type Payload struct {
	Argv        []string
	Env         environment
	User        string   // any form that the OCI image config allows
	Groups      []string // supplementary, by name or number
	WorkingDir  string   // absolute and clean
	Hostname    string
	StopSignal  int32
	StopTimeout uint64   // µs from the stop signal to SIGKILL
	RunTimeout  uint64   // µs until it is stopped; 0: none
	UMask       *uint32  // nil: the manager's
	Personality string   // systemd's word for it; "": the host's
	Init        bool     // the launcher stays as process 1
	Notify      bool     // it says by itself when it is ready (sd_notify(3))
	Sysctls     []string // NAME=VALUE
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
	p := Payload{User: cmp.Or(o.User, config.User), Groups: o.Groups, Hostname: cmp.Or(o.Hostname, machine),
		StopSignal: signals["TERM"], StopTimeout: defaultStopTimeout, RunTimeout: uint64(o.RunTimeout) * 1_000_000,
		Init: o.Init, Notify: o.Notify, Sysctls: o.Sysctls}

	entrypoint, cmd := config.Entrypoint, config.Cmd
	if o.Entrypoint != nil {
		if entrypoint = parseEntrypoint(*o.Entrypoint); strings.TrimSpace(*o.Entrypoint) != "[]" { // podman keeps Cmd with that
			cmd = nil
		}
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

	var err error
	if p.Env, err = mergeEnvironment(config.Env, o); err != nil {
		return p, err
	}
	p.SetDefault("HOSTNAME", p.Hostname)

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
	if !utf8.ValidString(p.WorkingDir) {
		return p, fmt.Errorf("the working directory, %.40q, is not UTF-8, which systemd's bus wants", p.WorkingDir)
	}
	if err := p.stop(config, o); err != nil {
		return p, err
	}
	if o.UMask != "" {
		mask, err := parseMode(o.UMask)
		if err != nil || mask > 0o777 {
			return p, fmt.Errorf("--umask: %q is not an octal number up to 0777", o.UMask)
		}
		p.UMask = &mask
	}
	if o.Personality != "" {
		if p.Personality = personalities[strings.ToUpper(o.Personality)]; p.Personality == "" {
			return p, fmt.Errorf("--personality: %q is neither LINUX nor LINUX32", o.Personality)
		}
	}
	for _, s := range p.Sysctls {
		if err := ParseSysctl(s); err != nil {
			return p, fmt.Errorf("--sysctl: %w", err)
		}
	}
	for volume := range config.Volumes {
		if volume = path.Join("/", volume); volume != "/" {
			p.Volumes = append(p.Volumes, volume)
		}
	}
	slices.Sort(p.Volumes)
	p.Notes = notes(config)
	return p, nil
}

// stop sets how the payload is stopped. A timeout of 0 would be "none" on the bus.
func (p *Payload) stop(config Config, o Options) (err error) {
	if config.StopSignal != "" {
		if p.StopSignal, err = ParseSignal(config.StopSignal); err != nil && o.StopSignal == "" {
			return fmt.Errorf("the image's StopSignal: %w", err)
		}
	}
	if o.StopSignal != "" {
		if p.StopSignal, err = ParseSignal(o.StopSignal); err != nil {
			return fmt.Errorf("--stop-signal: %w", err)
		}
	}
	if seconds := cmp.Or(o.StopTimeout, config.StopTimeout); seconds != nil {
		p.StopTimeout = max(uint64(*seconds)*1_000_000, 1)
		if *seconds < 0 {
			p.StopTimeout = cgroup.Infinity
		}
	}
	return nil
}

// personalities are those of podman-run(1) --personality in the words of Personality= (systemd.exec(5)).
var personalities = map[string]map[string]string{
	"amd64": {"LINUX": "x86-64", "LINUX32": "x86"},
	"arm64": {"LINUX": "arm64", "LINUX32": "arm"},
}[runtime.GOARCH]

// unmapped says why a field of an image's configuration has no directive. It is for image-spec's and Docker's, old ones too.
var unmapped = map[string]string{
	"ArgsEscaped":     "it is for Windows",
	"AttachStderr":    "who runs the machine attaches to it",
	"AttachStdin":     "who runs the machine attaches to it",
	"AttachStdout":    "who runs the machine attaches to it",
	"CpuShares":       "who runs the machine limits it",
	"Cpuset":          "who runs the machine limits it",
	"Domainname":      "the network names the machine",
	"Hostname":        "the machine's own name is its hostname",
	"Image":           "it tells what the image was made from",
	"MacAddress":      "the network gives addresses",
	"Memory":          "who runs the machine limits it",
	"MemorySwap":      "who runs the machine limits it",
	"NetworkDisabled": "who runs the machine chooses its network",
	"OnBuild":         "it is for builds",
	"OpenStdin":       "who runs the machine attaches to it",
	"PortSpecs":       "it publishes nothing by itself",
	"PublishService":  "it publishes nothing by itself",
	"StdinOnce":       "who runs the machine attaches to it",
	"Tty":             "who runs the machine attaches to it",
	"VolumeDriver":    "who runs the machine mounts volumes",
}

// notes names the fields of the config that no directive expresses, and why.
func notes(config Config) (out []string) {
	if len(config.ExposedPorts) > 0 {
		out = append(out, "ExposedPorts is not mapped: it publishes nothing by itself")
	}
	if len(config.Labels) > 0 {
		out = append(out, "Labels is not mapped: labels stay with the image")
	}
	if len(config.Shell) > 0 {
		out = append(out, "Shell is not mapped: it is for builds")
	}
	for _, name := range config.Other {
		why, known := unmapped[name]
		if !known {
			why = "neither image-spec nor Docker has such a field"
			name = strconv.QuoteToASCII(name[:min(len(name), 40)])
		}
		out = append(out, name+" is not mapped: "+why)
	}
	return out
}

// parseEntrypoint reads what podman-run(1) --entrypoint takes.
func parseEntrypoint(s string) []string {
	var words []string
	switch {
	case s == "":
		return nil
	case json.Unmarshal([]byte(s), &words) == nil:
		return words
	}
	return []string{s}
}

// Getenv gives the value of a variable of the payload.
func (p Payload) Getenv(name string) (value string, set bool) { return p.Env.get(name) }

// SetDefault sets a variable of the payload's environment that nothing has set yet.
func (p *Payload) SetDefault(name, value string) {
	if _, set := p.Getenv(name); !set {
		p.Env = append(p.Env, name+"="+value)
	}
}
