package units

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ValidName says whether a machine may have the name: a hostname of at most 64 characters, "_" allowed (machined's rule,
// systemd-nspawn(1) --machine=).
func ValidName(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "-") != label || strings.IndexFunc(label, notInName) >= 0 {
			return false
		}
	}
	return true
}

func notInName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// MachineNameFrom makes a machine name of at most 48 characters from any text, like an image's name.
func MachineNameFrom(s string) string {
	s = strings.Map(func(r rune) rune {
		if notInName(r) {
			return '-'
		}
		return r
	}, s)
	s = strings.Trim(s[:min(len(s), 48)], "-")
	if s == "" {
		return "machine"
	}
	return s
}

// ParseVolume reads HOST:PATH[:OPTION,…] as podman-run(1) --volume does. A relative HOST starts with "."; the caller
// makes it absolute.
func ParseVolume(s string) (Volume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return Volume{}, fmt.Errorf("%q is not HOST:PATH[:OPTIONS]", s)
	}
	v := Volume{Source: parts[0], Target: path.Clean(parts[1])}
	switch {
	case !strings.HasPrefix(v.Source, "/") && !strings.HasPrefix(v.Source, "."):
		return v, fmt.Errorf("%q: %q is not a path; write an absolute one, or ./%s", s, v.Source, v.Source)
	case !path.IsAbs(v.Target):
		return v, fmt.Errorf("%q: the path inside, %q, is not absolute", s, parts[1])
	case v.Target == "/":
		return v, errors.New("the root of the machine can't be a volume")
	}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			switch option {
			case "ro":
				v.ReadOnly = true
			case "bind":
				v.NoRecursive = true
			case "rw", "rbind":
			default:
				return v, fmt.Errorf("%q: %q is not one of ro, rw, rbind, bind", s, option)
			}
		}
	}
	return v, nil
}
