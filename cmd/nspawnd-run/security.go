package main

import (
	"fmt"
	"io"
	"os"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// securityFlags change the machine's isolation.
type securityFlags struct {
	privileged         bool
	add, drop, options []string
	ipc, pid, uts      string
}

func (g *securityFlags) register(f *pflag.FlagSet) {
	f.StringArrayVar(&g.add, "cap-add", nil, "let it have `CAPABILITY` (NET_ADMIN, …, ALL)")
	f.StringArrayVar(&g.drop, "cap-drop", nil, "let it not have `CAPABILITY` (or ALL)")
	f.BoolVar(&g.privileged, "privileged", false, "all capabilities and devices, and nothing of the kernel hidden or read-only: it can do on the host what root can")
	f.StringArrayVar(&g.options, "security-opt", nil, "`OPTION`: no-new-privileges[=false], seccomp=FILE|unconfined, mask=PATH[:…], unmask=PATH[:…]|ALL, apparmor=PROFILE, label=disable|type:T|level:L")
	f.StringVar(&g.ipc, "ipc", "private", "System V IPC and shared memory: `private|host`")
	f.StringVar(&g.pid, "pid", "private", "processes that it sees: `private|host`")
	f.StringVar(&g.uts, "uts", "private", "host name: its own or the host's, `private|host`")
}

func (g *securityFlags) apply(m *units.Machine, _ *units.Options) (err error) {
	s := &m.Security
	s.Privileged = g.privileged
	if s.AddCapabilities, err = units.ParseCapabilityList(g.add); err != nil {
		return fmt.Errorf("--cap-add: %w", err)
	}
	if s.DropCapabilities, err = units.ParseCapabilityList(g.drop); err != nil {
		return fmt.Errorf("--cap-drop: %w", err)
	}
	for _, option := range g.options {
		if err := s.ParseSecurityOption(option); err != nil {
			return fmt.Errorf("--security-opt: %w", err)
		}
	}
	if s.SeccompFile != "" {
		if s.Seccomp, err = readSeccompProfile(s.SeccompFile); err != nil {
			return fmt.Errorf("--security-opt: seccomp profile %s: %w", s.SeccompFile, err)
		}
	}
	for _, namespace := range []struct {
		flag, value string
		host        *bool
	}{{"--ipc", g.ipc, &s.HostIPC}, {"--pid", g.pid, &s.HostPID}, {"--uts", g.uts, &s.HostUTS}} {
		if err := oneOf(namespace.flag, namespace.value, "private", "host"); err != nil {
			return err
		}
		*namespace.host = namespace.value == "host"
	}
	return nil
}

const maxSeccompProfile = 4 << 20 // bytes

func readSeccompProfile(path string) (*units.SeccompProfile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile))
	if err != nil {
		return nil, err
	}
	return units.ParseSeccompProfile(data)
}
