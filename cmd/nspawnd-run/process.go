package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nspawnd/cmd/internal/variables"
	"nspawnd/image"
	"nspawnd/units"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
)

// processFlags say what runs, as whom and with which environment.
type processFlags struct {
	flags                                    *pflag.FlagSet
	env, envFiles, envMerge, unsetEnv        []string
	envHost, httpProxy, unsetEnvAll          bool
	user, workdir, entrypoint, umask         string
	groups, sysctls                          []string
	hostname, zone, personality              string
	noHostname, passwd, init, sigProxy       bool
	stopSignal, stopTimeout, timeout, notify string

	zoneData []byte // what --tz names
}

func (g *processFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.StringArrayVarP(&g.env, "env", "e", nil, "set `NAME=VALUE` in the environment, or pass NAME or NAME* on from this one")
	f.StringArrayVar(&g.envFiles, "env-file", nil, "the same for each line of `FILE`")
	f.BoolVar(&g.envHost, "env-host", false, "pass the whole environment on; the image's own goes before")
	f.BoolVar(&g.httpProxy, "http-proxy", false, "pass $http_proxy, $https_proxy, $ftp_proxy and $no_proxy on, in small and in capital letters; the image's own goes before")
	f.StringArrayVar(&g.envMerge, "env-merge", nil, "set `NAME=VALUE` in which $OTHER is what the image sets")
	f.StringArrayVar(&g.unsetEnv, "unsetenv", nil, "leave out `NAME` of the image's environment")
	f.BoolVar(&g.unsetEnvAll, "unsetenv-all", false, "leave out all of the image's environment")
	f.StringVarP(&g.user, "user", "u", "", "run as `USER[:GROUP]`, by name in the image or by number")
	f.StringArrayVar(&g.groups, "group-add", nil, "be in `GROUP` too, by name in the image or by number")
	f.BoolVar(&g.passwd, "passwd", true, "make entries in /etc/passwd and /etc/group for numbers that have none there")
	f.StringVarP(&g.workdir, "workdir", "w", "", "start in `DIR`")
	f.StringVar(&g.entrypoint, "entrypoint", "", "run `COMMAND` (or a JSON array) instead of the image's entrypoint")
	f.BoolVar(&g.init, "init", false, "have process 1 pass signals on and collect what processes leave, for programs that don't")
	f.StringVar(&g.umask, "umask", "", "file mode creation `MASK` (default 0022)")
	f.StringVar(&g.personality, "personality", "", "execution domain: `LINUX|LINUX32`")
	f.StringVarP(&g.hostname, "hostname", "h", "", "`NAME` of the host that it sees (default: the machine's)")
	f.BoolVar(&g.noHostname, "no-hostname", false, "leave the image's /etc/hostname as it is")
	f.StringVar(&g.zone, "tz", "", "time zone: `AREA/CITY`, or local for this host's")
	f.StringArrayVar(&g.sysctls, "sysctl", nil, "set a kernel parameter of its own namespaces, `NAME=VALUE`")
	f.StringVar(&g.stopSignal, "stop-signal", "", "`SIGNAL` that asks it to end (default: the image's, or SIGTERM)")
	f.StringVar(&g.stopTimeout, "stop-timeout", "", "`SECONDS` until it is killed after that (-1: never; default: the image's, or 10)")
	f.StringVar(&g.timeout, "timeout", "", "stop it after `SECONDS`")
	f.StringVar(&g.notify, "sdnotify", "conmon", "it is ready `conmon|container|healthy|ignore`: as soon as it runs; when it says so to $NOTIFY_SOCKET; when its health check passes; ours is not told")
	f.BoolVar(&g.sigProxy, "sig-proxy", true, "pass signals on to it")
}

func (g *processFlags) apply(m *units.Machine, o *units.Options) (err error) {
	o.User, o.WorkingDir, o.Hostname, o.UMask, o.Personality = g.user, g.workdir, g.hostname, g.umask, g.personality
	o.Groups, o.Init, o.Sysctls, o.StopSignal = g.groups, g.init, g.sysctls, g.stopSignal
	o.MergeEnv, o.UnsetEnv, o.UnsetAllEnv = g.envMerge, g.unsetEnv, g.unsetEnvAll
	if g.flags.Changed("entrypoint") {
		o.Entrypoint = &g.entrypoint
	}
	if err := g.environment(o); err != nil {
		return err
	}
	if g.hostname != "" && !units.ValidName(g.hostname) {
		return fmt.Errorf("--hostname: %q is not a hostname", g.hostname)
	}
	if g.zone != "" {
		if g.zoneData, err = readZone(g.zone); err != nil {
			return fmt.Errorf("--tz: %w", err)
		}
	}
	for _, group := range g.groups {
		if group == "keep-groups" {
			return errors.New("--group-add: keep-groups is of rootless containers; give the groups by number")
		}
	}
	if g.stopTimeout != "" {
		seconds, err := strconv.ParseInt(g.stopTimeout, 10, 32)
		if err != nil {
			return fmt.Errorf("--stop-timeout: %q is not a number of seconds", g.stopTimeout)
		}
		n := int(seconds)
		o.StopTimeout = &n
	}
	if g.timeout != "" {
		seconds, err := strconv.ParseUint(g.timeout, 10, 32)
		if err != nil {
			return fmt.Errorf("--timeout: %q is not a number of seconds", g.timeout)
		}
		o.RunTimeout = uint(seconds)
	}
	o.Notify = g.notify == "container"
	if g.notify == "healthy" {
		o.Health.Ready, m.HealthAsked = true, true
	}
	return oneOf("--sdnotify", g.notify, "conmon", "container", "healthy", "ignore")
}

func (g *processFlags) environment(o *units.Options) error {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if g.envHost || g.httpProxy && slices.Contains([]string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"}, strings.ToLower(name)) {
			o.HostEnv = append(o.HostEnv, e)
		}
	}
	var err error
	o.Env, err = variables.Read(g.envFiles, g.env)
	return err
}

// signals collects what arrives from here on. Nothing that can be caught ends the client while there is something to hand over.
func (g *processFlags) signals() chan os.Signal {
	c := make(chan os.Signal, 64)
	signal.Notify(c)
	return c
}

// forward passes signals on as podman-run(1) --sig-proxy does, or lets them end the client.
func (g *processFlags) forward(signals chan os.Signal, send func(syscall.Signal) error) {
	if !g.sigProxy {
		signal.Reset()
	}
	for s := range signals {
		switch {
		case s == syscall.SIGCHLD, s == syscall.SIGURG, s == syscall.SIGPIPE: // about the client itself
		case g.sigProxy:
			// It fails only when the process is gone, and then the wait for it ends.
			_ = send(s.(syscall.Signal))
		default: // it came before
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}
	}
}

// started tells the service that the client is the main process of, if it is one of Type=notify, that the machine has started.
func (g *processFlags) started() {
	if g.notify != "ignore" {
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // who listens has a timeout
	}
}

// addUser adds the account of the process to the machine's root. Nobody asks who runs a program of an image that names no user and has no
// accounts.
func (g *processFlags) addUser(root *image.Root, m *units.Machine, user image.User) error {
	if !g.passwd || m.Payload.User == "" {
		return nil
	}
	return root.AddUser(user, m.Payload.WorkingDir)
}

// writeFiles adds to the machine's root what its process looks up there: its hostname, its time zone.
func (g *processFlags) writeFiles(root *image.Root, m *units.Machine) error {
	if !g.noHostname {
		if err := root.WriteFile("/etc/hostname", []byte(m.Payload.Hostname+"\n"), 0o644); err != nil {
			return err
		}
	}
	if g.zoneData == nil {
		return nil
	}
	return root.ReplaceFile("/etc/localtime", g.zoneData, 0o644)
}

// readZone gives the host's file of a time zone (tzfile(5)).
func readZone(name string) ([]byte, error) {
	if name == "local" {
		return os.ReadFile("/etc/localtime")
	}
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%q is not a time zone like Europe/Berlin", name)
	}
	data, err := os.ReadFile(filepath.Join("/usr/share/zoneinfo", name))
	if err == nil {
		_, err = time.LoadLocationFromTZData(name, data)
	}
	return data, err
}
