package units

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Prefix is a range of IP addresses (iayu).
type Prefix struct {
	Family  int32
	Address []byte
	Length  uint32
}

// prefixNames are ranges with a name (systemd.resource-control(5), IPAddressAllow=).
var prefixNames = map[string]string{"any": "0.0.0.0/0 ::/0", "localhost": "127.0.0.0/8 ::1/128", "link-local": "169.254.0.0/16 fe80::/64",
	"multicast": "224.0.0.0/4 ff00::/8"}

// parsePrefixes reads addresses, ADDRESS/LENGTH, or one of the names alone.
func parsePrefixes(s string) ([]Prefix, error) {
	if named, known := prefixNames[s]; known {
		s = named
	}
	out := []Prefix{}
	for _, w := range strings.FieldsFunc(s, isBlank) {
		host, length, found := strings.Cut(w, "/")
		address, err := netip.ParseAddr(host)
		if err != nil || address.Zone() != "" {
			return nil, fmt.Errorf("%q is not an IP address or ADDRESS/LENGTH", w)
		}
		p := Prefix{unix.AF_INET6, address.AsSlice(), uint32(address.BitLen())}
		if address.Is4() {
			p.Family = unix.AF_INET
		}
		if found {
			n, err := parseUnsigned(length, 8)
			if err != nil || n > uint64(p.Length) {
				return nil, fmt.Errorf("%q: %q is not a prefix's length", w, length)
			}
			p.Length = uint32(n)
		}
		out = append(out, p)
	}
	return out, nil
}

func formatPrefix(p Prefix) string {
	address, _ := netip.AddrFromSlice(p.Address)
	return address.String() + "/" + strconv.Itoa(int(p.Length))
}

// SocketBind is what may be bound (iiqq): an address family, an IP protocol, how many ports, and the first. 0: any.
type SocketBind struct {
	Family, Protocol int32
	Ports, First     uint16
}

var (
	bindFamilies  = map[string]int32{"ipv4": unix.AF_INET, "ipv6": unix.AF_INET6}
	bindProtocols = map[string]int32{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}
)

// parseSocketBind reads [FAMILY:][PROTOCOL:]PORTS, where the last may be left out, or "any".
func parseSocketBind(s string) (SocketBind, error) {
	b := SocketBind{}
	bad := fmt.Errorf("%q is not [ipv4:|ipv6:][tcp:|udp:]PORT[-PORT], or any", s)
	parts := strings.Split(s, ":")
	if family, known := bindFamilies[parts[0]]; known {
		b.Family, parts = family, parts[1:]
	}
	if len(parts) > 0 {
		if protocol, known := bindProtocols[parts[0]]; known {
			b.Protocol, parts = protocol, parts[1:]
		}
	}
	switch {
	case len(parts) == 0 || len(parts) == 1 && parts[0] == "any":
		return b, nil
	case len(parts) > 1:
		return b, bad
	}
	low, high, isRange := strings.Cut(parts[0], "-")
	first, err := parsePort(low)
	last := first
	if isRange && err == nil {
		last, err = parsePort(high)
	}
	if err != nil || last < first {
		return b, bad
	}
	b.First, b.Ports = first, last-first+1
	return b, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = errors.New("0 is not a port")
	}
	return uint16(n), err
}

func formatSocketBind(b SocketBind) string {
	var parts []string
	for name, family := range bindFamilies {
		if family == b.Family {
			parts = append(parts, name)
		}
	}
	for name, protocol := range bindProtocols {
		if protocol == b.Protocol {
			parts = append(parts, name)
		}
	}
	switch {
	case b.Ports == 0 && len(parts) == 0:
		parts = append(parts, "any")
	case b.Ports == 1:
		parts = append(parts, strconv.Itoa(int(b.First)))
	case b.Ports > 1:
		parts = append(parts, fmt.Sprintf("%d-%d", b.First, b.First+b.Ports-1))
	}
	return strings.Join(parts, ":")
}

// parseProgram reads TYPE:PATH of a BPF program.
func parseProgram(s string) (Pair, error) {
	kind, path, found := strings.Cut(s, ":")
	if !found {
		return Pair{}, fmt.Errorf("%q is not TYPE:PATH", s)
	}
	return Pair{kind, path}, nil
}

// NFTSet is a set of nftables that the service is added to (iiss).
type NFTSet struct {
	Source, Family int32
	Table, Set     string
}

var (
	nftSources  = map[string]int32{"cgroup": 3, "user": 4, "group": 5} // systemd's own numbers
	nftFamilies = map[string]int32{"inet": unix.NFPROTO_INET, "ip": unix.NFPROTO_IPV4, "arp": unix.NFPROTO_ARP, "netdev": unix.NFPROTO_NETDEV,
		"bridge": unix.NFPROTO_BRIDGE, "ip6": unix.NFPROTO_IPV6}
)

// parseNFTSets reads SOURCE:FAMILY:TABLE:SET for each.
func parseNFTSets(s string) ([]NFTSet, error) {
	entries, err := syntax{separators: blanks, quotes: true, keepEscapes: true}.split(s)
	if err != nil {
		return nil, err
	}
	out := []NFTSet{}
	for _, e := range entries {
		parts, err := syntax{separators: ":", cEscapes: true}.split(e)
		if err != nil || len(parts) != 4 {
			return nil, fmt.Errorf("%q is not SOURCE:FAMILY:TABLE:SET", e)
		}
		source, known := nftSources[parts[0]]
		family, also := nftFamilies[parts[1]]
		if !known || !also || !nftIdentifier(parts[2]) || !nftIdentifier(parts[3]) {
			return nil, fmt.Errorf("%q is not {cgroup|user|group}:FAMILY:TABLE:SET", e)
		}
		out = append(out, NFTSet{source, family, parts[2], parts[3]})
	}
	return out, nil
}

// nftIdentifier says whether nft(8) takes the name.
func nftIdentifier(s string) bool {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || strings.IndexByte(`/\_.`, c) >= 0)) {
			return false
		}
	}
	return s != "" && len(s) < 32
}

func formatNFTSet(n NFTSet) string {
	name := func(names map[string]int32, n int32) string {
		for name, number := range names {
			if number == n {
				return name
			}
		}
		return ""
	}
	return strings.Join([]string{name(nftSources, n.Source), name(nftFamilies, n.Family), partOf(n.Table), partOf(n.Set)}, ":")
}
