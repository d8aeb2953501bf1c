package units

import (
	"strings"
)

// ValidName says whether a machine may have the name: a hostname of at most 64 characters (hostname(7)), as machined wants it.
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
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-')
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

// ValidSlice says whether a slice of that name can be: each dash stands for a level (systemd.slice(5)).
func ValidSlice(name string) bool {
	base, isSlice := strings.CutSuffix(name, ".slice")
	plain := strings.IndexFunc(base, func(r rune) bool { return notInName(r) && !strings.ContainsRune(`_.:\`, r) }) < 0
	return isSlice && base != "" && len(name) < 256 && plain && strings.Trim(base, "-") == base && !strings.Contains(base, "--")
}
