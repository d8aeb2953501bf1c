// Package network owns what a machine sees of the network: for now, the files in /etc by which its programs find names.
package network

import (
	"slices"
	"strings"
)

// Files gives the content of /etc/hosts and /etc/resolv.conf of a machine, from the host's where the machine shares the
// host's network, as podman-run(1) does. A machine without a network resolves only itself.
func Files(machine string, shared bool, hostHosts, hostResolv string) (hosts, resolv string) {
	if !shared {
		return "127.0.0.1\tlocalhost " + machine + "\n::1\tlocalhost\n", ""
	}
	if hostHosts != "" && !strings.HasSuffix(hostHosts, "\n") {
		hostHosts += "\n"
	}
	if !names(hostHosts, machine) {
		hostHosts += "127.0.0.1\t" + machine + "\n"
	}
	return hostHosts, hostResolv
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
