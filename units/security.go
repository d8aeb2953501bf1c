package units

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Security is what of the default isolation is changed. The zero value changes nothing.
type Security struct {
	Privileged       bool            // no isolation but the namespaces
	AddCapabilities  uint64          // to the default
	DropCapabilities uint64          // from the default
	Seccomp          *SeccompProfile // instead of podman's
	SeccompFile      string          // that Seccomp was read from
	NoSeccomp        bool
	NewPrivileges    bool // set-user-ID programs work
	Mask             []string
	Unmask           []string // patterns of paths (path.Match); "ALL"
	AppArmor         string
	SELinux          string
	HostIPC          bool
	HostPID          bool
	HostUTS          bool
	HostCgroups      bool // the host's cgroups are seen
}

// capabilities is the bounding set. What is both added and dropped stays, as with podman, unless "all" is the one that is added.
func (s Security) capabilities() uint64 {
	if s.Privileged || s.AddCapabilities == allCapabilities {
		return s.possible() &^ s.DropCapabilities
	}
	return (DefaultCapabilities&^s.DropCapabilities | s.AddCapabilities) & s.possible()
}

// possible are the capabilities that a machine can have: PrivateDevices= takes those away that make devices.
func (s Security) possible() uint64 {
	if s.Privileged {
		return allCapabilities
	}
	return allCapabilities &^ deviceCapabilities
}

var deviceCapabilities, _ = ParseCapabilities("MKNOD SYS_RAWIO")

// check refuses what can't be had.
func (s Security) check() error {
	if lost := s.AddCapabilities &^ s.possible(); lost != 0 && s.AddCapabilities != allCapabilities {
		return fmt.Errorf("%s can't be had with devices of its own (PrivateDevices=); --privileged gives the host's", formatCapabilities(lost))
	}
	return nil
}

var allCapabilities, _ = ParseCapabilities("~")

// ParseCapabilityList reads --cap-add and --cap-drop: names with or without CAP_, in any case, separated by commas; ALL is all.
func ParseCapabilityList(list []string) (mask uint64, err error) {
	for _, s := range list {
		for name := range strings.SplitSeq(s, ",") {
			bits := allCapabilities
			if !strings.EqualFold(name, "ALL") {
				if bits, err = ParseCapabilities(name); err != nil || bits == 0 || strings.ContainsAny(name, "~ ") {
					return 0, fmt.Errorf("%q is not a capability", name)
				}
			}
			mask |= bits
		}
	}
	return mask, nil
}

// ParseSecurityOption reads one --security-opt as podman-run(1) has it and adds it to s. A file of system calls is left to the caller, in
// s.SeccompFile.
func (s *Security) ParseSecurityOption(option string) error {
	name, value, assigned := strings.Cut(option, "=")
	if !assigned { // docker's old spelling
		name, value, assigned = strings.Cut(option, ":")
	}
	switch name {
	case "no-new-privileges":
		on := true
		if assigned {
			var err error
			if on, err = parseBool(value); err != nil {
				return err
			}
		}
		s.NewPrivileges = !on
		return nil
	case "seccomp":
		s.NoSeccomp, s.SeccompFile = value == "unconfined", ""
		if !s.NoSeccomp {
			s.SeccompFile = value
		}
	case "apparmor":
		if s.AppArmor = value; value == "unconfined" {
			s.AppArmor = ""
		}
	case "label":
		return s.parseLabel(value)
	case "systempaths":
		if value != "unconfined" {
			return fmt.Errorf("systempaths=%s: the one value is unconfined", value)
		}
		s.Unmask = []string{"ALL"}
	case "unmask":
		s.Unmask = append(s.Unmask, strings.Split(value, ":")...)
	case "mask":
		for p := range strings.SplitSeq(value, ":") {
			if !path.IsAbs(p) {
				return fmt.Errorf("mask: %q is not an absolute path", p)
			}
			s.Mask = append(s.Mask, path.Clean(p))
		}
	default:
		return fmt.Errorf("%q is none of no-new-privileges, seccomp=, apparmor=, label=, mask=, unmask=, systempaths=unconfined", option)
	}
	if value == "" {
		return fmt.Errorf("%s: no value", name)
	}
	return nil
}

// parseLabel reads label=disable, or label=type:T and label=level:L, of which a context is made as podman's for containers.
func (s *Security) parseLabel(value string) error {
	if value == "disable" {
		s.SELinux = ""
		return nil
	}
	part, v, _ := strings.Cut(value, ":")
	i := slices.Index([]string{"user", "role", "type", "level"}, part)
	if i < 0 || v == "" {
		return fmt.Errorf("label=%s is none of disable, user:…, role:…, type:…, level:…", value)
	}
	if s.SELinux == "" {
		s.SELinux = "system_u:system_r:container_t:s0"
	}
	context := strings.SplitN(s.SELinux, ":", 4)
	context[i] = v
	s.SELinux = strings.Join(context, ":")
	return nil
}

// unmasked leaves out the paths that an option makes visible again. Paths are "-+/…", as masks are written.
func (s Security) unmasked(paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool {
		return slices.ContainsFunc(s.Unmask, func(pattern string) bool {
			matches, _ := path.Match(pattern, strings.TrimPrefix(p, "-+"))
			return matches || pattern == "ALL"
		})
	})
}
