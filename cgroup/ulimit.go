package cgroup

import (
	"fmt"
	"strconv"
	"strings"
)

// Ulimits are the names of podman's resource limits, by their number (RLIMIT_… of getrlimit(2)). The directives have the same names in capitals.
var Ulimits = []string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"}

// ulimit reads NAME=SOFT[:HARD], in the kernel's units; -1 is no limit.
func ulimit(s string, _ Typed) ([]Setting, error) {
	name, limits, found := strings.Cut(s, "=")
	known := false
	for _, u := range Ulimits {
		known = known || u == name
	}
	soft, hard, both := strings.Cut(limits, ":")
	if !both {
		hard = soft
	}
	low, err := parseUlimit(soft)
	high, wrong := parseUlimit(hard)
	switch {
	case !found || !known || err != nil || wrong != nil:
		return nil, fmt.Errorf("%q is not NAME=SOFT[:HARD], where NAME is one of %s", s, strings.Join(Ulimits, ", "))
	case low > high:
		return nil, fmt.Errorf("%q: the soft limit is above the hard one", s)
	}
	unit := map[string]string{"cpu": "s", "rttime": "us"}[name]
	format := func(n uint64) string {
		if n == Infinity {
			return "infinity"
		}
		return formatCount(n) + unit
	}
	return []Setting{{"Limit" + strings.ToUpper(name), format(low) + ":" + format(high)}}, nil
}

func parseUlimit(s string) (uint64, error) {
	if s == "-1" {
		return Infinity, nil
	}
	return strconv.ParseUint(s, 10, 64)
}
