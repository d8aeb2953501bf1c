package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"nspawnd/image"
	"nspawnd/network"
	"nspawnd/units"

	"github.com/spf13/pflag"
)

// nameFlags say how the machine finds names.
type nameFlags struct {
	addHosts                     []string
	hostsFile                    string
	noHosts                      bool
	servers, search, options     []string
	names                        network.Names
	imageHosts, imageNameservers bool // the image's own /etc/hosts is the base; its /etc/resolv.conf stays
}

func (g *nameFlags) register(f *pflag.FlagSet) {
	f.StringArrayVar(&g.addHosts, "add-host", nil, "add `NAME[;NAME...]:ADDRESS` to its /etc/hosts")
	f.StringVar(&g.hostsFile, "hosts-file", "", "make its /etc/hosts from `FILE` of the host, or from \"image\"'s, or \"none\"; default: the host's")
	f.BoolVar(&g.noHosts, "no-hosts", false, "leave /etc/hosts as the image has it")
	f.StringSliceVar(&g.servers, "dns", nil, "ask `ADDRESS` for names, not the host's servers; none: leave /etc/resolv.conf as the image has it")
	f.StringSliceVar(&g.search, "dns-search", nil, "look names up in `DOMAIN` too, not in the host's domains (\".\": in none)")
	f.StringSliceVar(&g.options, "dns-option", nil, "`OPTION` of resolv.conf(5), in place of the host's")
}

func (g *nameFlags) apply(m *units.Machine, _ *units.Options) error {
	for _, s := range g.addHosts {
		line, err := network.ParseHost(s)
		if err != nil {
			return fmt.Errorf("--add-host: %w", err)
		}
		g.names.Hosts = append(g.names.Hosts, line)
	}
	if g.noHosts && (g.hostsFile != "" || len(g.addHosts) > 0) {
		return errors.New("--no-hosts: --add-host and --hosts-file write /etc/hosts")
	}
	switch g.hostsFile {
	case "":
	case "image":
		g.imageHosts = true
	case "none":
		g.names.Base = new(string)
	default:
		base, err := readLimited(g.hostsFile)
		if err != nil {
			return fmt.Errorf("--hosts-file: %w", err)
		}
		g.names.Base = &base
	}
	if len(g.servers)+len(g.search)+len(g.options) == 0 {
		return nil
	}
	if m.Network == units.NoNetwork {
		return errors.New("--dns, --dns-search and --dns-option: there is nobody to ask with --network=none")
	}
	if g.imageNameservers = slices.Contains(g.servers, "none"); g.imageNameservers {
		if len(g.servers)+len(g.search)+len(g.options) > 1 {
			return errors.New("--dns=none: other servers, --dns-search and --dns-option write /etc/resolv.conf")
		}
		return nil
	}
	for _, kind := range []struct {
		flag   string
		values []string
		check  func(string) error
		to     *[]string
	}{{"--dns", g.servers, network.ParseServer, &g.names.Servers}, {"--dns-search", g.search, network.ParseWord, &g.names.Search}, {"--dns-option", g.options, network.ParseWord, &g.names.Options}} {
		for _, value := range kind.values {
			if err := kind.check(value); err != nil {
				return fmt.Errorf("%s: %w", kind.flag, err)
			}
			*kind.to = append(*kind.to, value)
		}
	}
	return nil
}

const maxHostsFile = 4 << 20 // bytes

func readLimited(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err == nil && len(data) > maxHostsFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxHostsFile)
	}
	return string(data), err
}

// write writes the files by which the machine's programs find names.
func (g *nameFlags) write(root *image.Root, m *units.Machine) error {
	n := g.names
	if g.imageHosts {
		data, err := root.ReadFile("/etc/hosts", maxHostsFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--hosts-file=image: %w", err)
		}
		base := string(data)
		n.Base = &base
	}
	hostHosts, _ := os.ReadFile("/etc/hosts")
	hostResolv, _ := os.ReadFile("/etc/resolv.conf")
	hosts, resolv := network.Files(m.Payload.Hostname, m.Network == units.HostNetwork, string(hostHosts), string(hostResolv), n)
	if !g.noHosts {
		if err := root.WriteFile("/etc/hosts", []byte(hosts), 0o644); err != nil {
			return err
		}
	}
	if g.imageNameservers {
		return nil
	}
	return root.WriteFile("/etc/resolv.conf", []byte(resolv), 0o644)
}
