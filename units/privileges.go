package units

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities in the kernel's numbering (linux/capability.h).
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// ParseCapabilities reads a list of capability names, with or without CAP_, and gives the kernel's bit mask. A leading
// "~" stands for all but these.
func ParseCapabilities(s string) (uint64, error) {
	s, invert := strings.CutPrefix(s, "~")
	var mask uint64
	for _, name := range strings.Fields(s) {
		bit := slices.Index(capabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		if bit < 0 {
			return 0, fmt.Errorf("%q is not a capability", name)
		}
		mask |= 1 << bit
	}
	if invert {
		mask ^= 1<<len(capabilities) - 1
	}
	return mask, nil
}

// parseCapabilityMask reads capabilities as systemd-run does, with which "~" also stands for those that nobody knows yet.
func parseCapabilityMask(s string) (uint64, error) {
	names, invert := strings.CutPrefix(s, "~")
	mask, err := ParseCapabilities(names)
	if invert {
		mask = ^mask
	}
	return mask, err
}

func formatCapabilities(mask uint64) string {
	if mask>>len(capabilities) != 0 { // all but some
		return "~" + formatCapabilities(^mask)
	}
	var out []string
	for bit, name := range capabilities {
		if mask&(1<<bit) != 0 {
			out = append(out, "CAP_"+name)
		}
	}
	return strings.Join(out, " ")
}

// bitNames are names of which each stands for one bit.
type bitNames []struct {
	name string
	bit  uint64
}

// parse reads a list of names.
func (names bitNames) parse(s string) (uint64, error) {
	words, err := splitWords(s)
	var mask uint64
	for _, w := range words {
		i := slices.IndexFunc(names, func(n struct {
			name string
			bit  uint64
		}) bool {
			return n.name == w
		})
		if i < 0 {
			known := make([]string, len(names))
			for j := range names {
				known[j] = names[j].name
			}
			return 0, fmt.Errorf("%q is not one of %s", w, strings.Join(known, ", "))
		}
		mask |= names[i].bit
	}
	return mask, err
}

func (names bitNames) format(mask uint64) string {
	var out []string
	for _, n := range names {
		if mask&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return strings.Join(out, " ")
}

// secureBitNames are those of capabilities(7), "The securebits flags".
var secureBitNames = bitNames{{"noroot", 1}, {"noroot-locked", 2}, {"no-setuid-fixup", 4}, {"no-setuid-fixup-locked", 8}, {"keep-caps", 16},
	{"keep-caps-locked", 32}}

func parseSecureBits(s string) (int32, error) {
	mask, err := secureBitNames.parse(s)
	return int32(mask), err
}

func formatSecureBits(mask int32) string { return secureBitNames.format(uint64(mask)) }

// namespaceNames are the kinds of namespaces (namespaces(7)) in the order in which versions of systemd got to know them.
var namespaceNames = bitNames{{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"net", unix.CLONE_NEWNET}, {"mnt", unix.CLONE_NEWNS},
	{"pid", unix.CLONE_NEWPID}, {"user", unix.CLONE_NEWUSER}, {"uts", unix.CLONE_NEWUTS}, {"time", unix.CLONE_NEWTIME}}

// timeNamespaceSince is the first version of systemd that knows time namespaces.
const timeNamespaceSince = 258

// parseNamespaces reads a list of kinds, or "~" and those that are not meant; all is what there is.
func parseNamespaces(s string, all uint64) (uint64, error) {
	s, invert := strings.CutPrefix(s, "~")
	mask, err := namespaceNames.parse(s)
	if err == nil && mask&^all != 0 {
		err = fmt.Errorf("%q has namespaces that this systemd does not know here: %s", s, namespaceNames.format(mask&^all))
	}
	if invert {
		mask = all &^ mask
	}
	return mask, err
}

func allNamespaces(manager int) uint64 {
	var all uint64
	for _, n := range namespaceNames {
		if n.name != "time" || manager >= timeNamespaceSince {
			all |= n.bit
		}
	}
	return all
}

// parseRetainedNamespaces reads RestrictNamespaces=. On the bus it is the other way round: the kinds that are allowed.
func parseRetainedNamespaces(s string, manager int) (any, error) {
	all := allNamespaces(manager)
	if yes, err := parseBool(s); err == nil {
		if yes {
			return uint64(0), nil
		}
		return all, nil
	}
	return parseNamespaces(s, all)
}

func formatRetainedNamespaces(mask uint64) string {
	switch mask {
	case 0:
		return "yes"
	case allNamespaces(timeNamespaceSince):
		return "no"
	}
	return namespaceNames.format(mask)
}

// parseDelegatedNamespaces reads DelegateNamespaces=, which knows no user namespaces.
func parseDelegatedNamespaces(s string, manager int) (any, error) {
	all := allNamespaces(manager) &^ unix.CLONE_NEWUSER
	if yes, err := parseBool(s); err == nil {
		if yes {
			return all, nil
		}
		return uint64(0), nil
	}
	return parseNamespaces(s, all)
}

func formatNamespaces(mask uint64) string {
	if mask == 0 {
		return "no"
	}
	return namespaceNames.format(mask)
}

// Filter is a list that allows or denies (bas): SystemCallFilter=, RestrictAddressFamilies=. The first of several decides what
// happens to all that none names; a denied system call may carry its error, "setns:EPERM".
type Filter struct {
	Allow bool
	Names []string
}

func parseFilter(s string) ([]Filter, error) {
	s, deny := strings.CutPrefix(s, "~")
	names, err := splitWords(s)
	return []Filter{{!deny, names}}, err
}

func formatFilter(f Filter) string {
	names := joinWords(f.Names)
	if !f.Allow {
		names = "~" + names
	}
	return names
}
