// Package network owns what a machine sees of the network: for now, the files in /etc by which its programs find names.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Names is what of a machine's /etc/hosts and /etc/resolv.conf was asked for. The zero value is the default.
type Names struct {
	Hosts []string // lines of hosts(5), which come first
	Base  *string  // the hosts(5) file to start from; nil: the host's, where the machine shares its network

	Servers, Search, Options []string // of resolv.conf(5); nil: the host's
}

// ParseHost reads NAME[;NAME…]:ADDRESS as podman-run(1) --add-host does, and gives the line of hosts(5).
func ParseHost(s string) (string, error) {
	list, address, found := strings.Cut(s, ":")
	if !found {
		return "", fmt.Errorf("%q is not NAME[;NAME...]:ADDRESS", s)
	}
	if address == "host-gateway" {
		return "", errors.New("host-gateway: there is no gateway; with the host's network, localhost is the host")
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", fmt.Errorf("%q: %q is not an address", s, address)
	}
	hosts := strings.Split(list, ";")
	for _, name := range hosts {
		if !isWord(name) {
			return "", fmt.Errorf("%q: %q is not a host's name", s, name)
		}
	}
	return ip.String() + "\t" + strings.Join(hosts, " "), nil
}

// ParseServer checks an address of --dns.
func ParseServer(s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%q is not an address", s)
	}
	return nil
}

// ParseWord checks a value of --dns-search or --dns-option.
func ParseWord(s string) error {
	if !isWord(s) {
		return fmt.Errorf("%q is not a word", s)
	}
	return nil
}

// isWord says whether s can be one word of a line of hosts(5) and resolv.conf(5).
func isWord(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("#;", r) }) < 0
}

// Files gives the content of /etc/hosts and /etc/resolv.conf of a machine, from the host's where the machine shares the
// host's network, as podman-run(1) does. A machine without a network resolves only itself.
func Files(machine string, shared bool, hostHosts, hostResolv string, n Names) (hosts, resolv string) {
	for _, line := range n.Hosts {
		hosts += line + "\n"
	}
	switch {
	case n.Base != nil:
		hostHosts = *n.Base
	case !shared:
		return hosts + "127.0.0.1\tlocalhost " + machine + "\n::1\tlocalhost\n", ""
	}
	if hostHosts != "" && !strings.HasSuffix(hostHosts, "\n") {
		hostHosts += "\n"
	}
	hosts += hostHosts
	if n.Base != nil && !names(hosts, "localhost") {
		hosts += "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
	}
	if !names(hosts, machine) {
		hosts += "127.0.0.1\t" + machine + "\n"
	}
	if !shared {
		return hosts, ""
	}
	return hosts, n.resolv(hostResolv)
}

// names says whether a hosts(5) file has an address for a name.
func names(hosts, name string) bool {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 1 && slices.Contains(f[1:], name) {
			return true
		}
	}
	return false
}

// resolv lays what was asked for over the host's resolv.conf(5), which stays as it is when nothing was.
func (n Names) resolv(host string) string {
	if n.Servers == nil && n.Search == nil && n.Options == nil {
		return host
	}
	var servers, search, options []string
	for line := range strings.Lines(host) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain": // the last one counts
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	if n.Servers != nil {
		servers = n.Servers
	}
	if n.Search != nil {
		search = slices.DeleteFunc(slices.Clone(n.Search), func(domain string) bool { return domain == "." })
	}
	if n.Options != nil {
		options = n.Options
	}
	out := ""
	if len(search) > 0 {
		out += "search " + strings.Join(search, " ") + "\n"
	}
	for _, server := range servers {
		out += "nameserver " + server + "\n"
	}
	if len(options) > 0 {
		out += "options " + strings.Join(options, " ") + "\n"
	}
	return out
}
