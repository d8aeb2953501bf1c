package units

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Mount is what the machine sees at a path in place of what its image has there.
type Mount struct {
	Type    string // bind, volume, image, tmpfs, ramfs or devpts
	Source  string // of a bind the path, as typed; of a volume the name, "": one of the machine's own; of an image the reference
	Target  string // absolute and clean
	Subpath string // what of the volume is mounted

	ReadOnly        bool
	Exec, SUID, Dev *bool    // nil: as the source's mount has it, for binds; otherwise exec, nosuid and nodev
	NoRecursive     bool     // without the mounts below the source
	Propagation     string   // of later mounts below it, of the host: private, slave; "" is private
	Chown           bool     // give all of it to the payload's user
	Overlay         bool     // changes are not for the source: they go when the machine goes
	MapIDs          bool     // a bind's files have the machine's ids where the source's are the same on the host, as a volume's have
	NoCopy          bool     // an empty volume, or a tmpfs, doesn't get what the image has at Target
	Options         []string // of the new file system: size=, mode=, …

	// Prepared says that the client mounts it in the machine's root before the start, and no directive does.
	Prepared bool
}

// ParseVolume reads [HOST:|NAME:]PATH[:OPTION,…] as podman-run(1) --volume does. A HOST that is relative starts with "."; the caller makes
// it absolute.
func ParseVolume(s string) (Mount, error) {
	parts := strings.Split(s, ":")
	m := Mount{Type: "volume"}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
		if m.Source == "" {
			return m, fmt.Errorf("%q has no source; a volume of the machine's own is PATH alone", s)
		}
	default:
		return m, fmt.Errorf("%q is not [HOST:|NAME:]PATH[:OPTIONS]; a path with a colon: --mount type=bind,src=HOST,dst=PATH", s)
	}
	if strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, ".") {
		m.Type = "bind"
	}
	var options []string
	if len(parts) == 3 {
		options = strings.Split(parts[2], ",")
	}
	return m, m.finish(s, options)
}

// ParseTmpfs reads PATH[:OPTION,…] as podman-run(1) --tmpfs does.
func ParseTmpfs(s string) (Mount, error) {
	m := Mount{Type: "tmpfs"}
	target, rest, found := strings.Cut(s, ":")
	m.Target = target
	var options []string
	if found {
		options = strings.Split(rest, ",")
	}
	return m, m.finish(s, options)
}

// ParseMount reads type=TYPE,dst=PATH[,KEY=VALUE…] as podman-run(1) --mount does: comma-separated values, which may be quoted.
func ParseMount(s string) (Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Mount{}, fmt.Errorf("%q is not a list of KEY=VALUE: %w", s, err)
	}
	m := Mount{Type: "volume"}
	var options []string
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "type":
			m.Type = value
		case "src", "source":
			m.Source = value
		case "dst", "destination", "target":
			m.Target = value
		case "consistency": // for Docker's desktops
		default:
			options = append(options, field)
		}
	}
	if !slices.Contains([]string{"bind", "volume", "image", "tmpfs", "ramfs", "devpts"}, m.Type) {
		return m, fmt.Errorf("%q: type %q is not one of bind, volume, image, tmpfs, ramfs, devpts", s, m.Type)
	}
	m.ReadOnly = m.Type == "image"
	switch needed := m.Type == "bind" || m.Type == "image"; {
	case needed && m.Source == "":
		return m, fmt.Errorf("%q has no source (src=)", s)
	case !needed && m.Type != "volume" && m.Source != "":
		return m, fmt.Errorf("%q: a %s has no source", s, m.Type)
	}
	return m, m.finish(s, options)
}

// ValidVolumeName says whether a volume may have the name: by podman's rule, with a bound.
func ValidVolumeName(name string) bool {
	return name != "" && len(name) <= 128 && strings.Trim(name, asciiLetters+digits+"_.-") == "" && !strings.Contains("_.-", name[:1])
}

const (
	digits       = "0123456789"
	asciiLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// finish reads the options and checks the whole.
func (m *Mount) finish(s string, options []string) error {
	seen := map[string]string{}
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		row, known := mountOptions[key]
		if !known || !slices.Contains(strings.Fields(row.types), m.Type) {
			return fmt.Errorf("%q: %q is not an option of a %s; there are %s", s, key, m.Type, optionsOf(m.Type))
		}
		if before, twice := seen[row.group]; twice {
			return fmt.Errorf("%q: only one of %s and %s can be given", s, before, o)
		}
		seen[row.group] = o
		on := true
		if row.set != nil && hasValue {
			var err error
			if on, err = parseBool(value); err != nil {
				return fmt.Errorf("%q: %s: %w", s, key, err)
			}
		}
		if row.set != nil {
			row.set(m, on)
		} else if err := row.value(m, key, value); err != nil {
			return fmt.Errorf("%q: %s: %w", s, key, err)
		}
	}
	if !path.IsAbs(m.Target) || strings.ContainsRune(m.Target, 0) {
		return fmt.Errorf("%q: the path inside, %q, is not absolute", s, m.Target)
	}
	if m.Target = path.Clean(m.Target); slices.Contains([]string{"/", "/dev", "/proc", "/sys"}, m.Target) {
		return fmt.Errorf("%q: the machine has its own %s", s, m.Target)
	}
	if m.Type == "volume" && m.Source != "" && !ValidVolumeName(m.Source) {
		return fmt.Errorf("%q: %q is not a volume's name (letters, digits, and \"_\", \".\", \"-\" after the first); a path starts with \".\" or /", s, m.Source)
	}
	return nil
}

// mountOption is an option of --volume and --tmpfs, and a key of --mount. Of a group only one can be given.
type mountOption struct {
	group, types string
	set          func(m *Mount, on bool) // a switch, which may have a value like true; nil: one with a value
	value        func(m *Mount, key, value string) error
}

const (
	allMounts     = "bind volume image tmpfs ramfs devpts"
	copies        = "bind volume"
	fileSystems   = "tmpfs ramfs"
	mayBeExecuted = "bind volume tmpfs ramfs"
)

var mountOptions = map[string]mountOption{
	"ro":        {"ro", allMounts, func(m *Mount, on bool) { m.ReadOnly = on }, nil},
	"readonly":  {"ro", allMounts, func(m *Mount, on bool) { m.ReadOnly = on }, nil},
	"rw":        {"ro", allMounts, func(m *Mount, on bool) { m.ReadOnly = !on }, nil},
	"readwrite": {"ro", "image", func(m *Mount, on bool) { m.ReadOnly = !on }, nil},
	"exec":      {"exec", mayBeExecuted, func(m *Mount, on bool) { m.Exec = &on }, nil},
	"noexec":    {"exec", mayBeExecuted, func(m *Mount, on bool) { on = !on; m.Exec = &on }, nil},
	"suid":      {"suid", mayBeExecuted, func(m *Mount, on bool) { m.SUID = &on }, nil},
	"nosuid":    {"suid", mayBeExecuted, func(m *Mount, on bool) { on = !on; m.SUID = &on }, nil},
	"dev":       {"dev", mayBeExecuted, func(m *Mount, on bool) { m.Dev = &on }, nil},
	"nodev":     {"dev", mayBeExecuted, func(m *Mount, on bool) { on = !on; m.Dev = &on }, nil},

	"bind":              {"bind", copies, func(m *Mount, on bool) { m.NoRecursive = on }, nil},
	"rbind":             {"bind", copies, func(m *Mount, on bool) { m.NoRecursive = !on }, nil},
	"bind-nonrecursive": {"bind", "bind", func(m *Mount, on bool) { m.NoRecursive = on }, nil},
	"bind-propagation":  {"propagation", "bind", nil, func(m *Mount, _, value string) error { return setPropagation(m, value, "") }},
	"private":           {"propagation", copies, nil, setPropagation},
	"rprivate":          {"propagation", copies, nil, setPropagation},
	"slave":             {"propagation", copies, nil, setPropagation},
	"rslave":            {"propagation", copies, nil, setPropagation},
	"shared":            {"propagation", copies, nil, setPropagation},
	"rshared":           {"propagation", copies, nil, setPropagation},
	"unbindable":        {"propagation", copies, nil, setPropagation},
	"runbindable":       {"propagation", copies, nil, setPropagation},

	// Nothing confines a machine by SELinux labels, so there is nothing to label for it.
	"z":       {"label", copies, func(*Mount, bool) {}, nil},
	"Z":       {"label", copies, func(*Mount, bool) {}, nil},
	"relabel": {"label", copies, nil, func(*Mount, string, string) error { return nil }},
	"U":       {"chown", mayBeExecuted, func(m *Mount, on bool) { m.Chown = on }, nil},
	"chown":   {"chown", mayBeExecuted, func(m *Mount, on bool) { m.Chown = on }, nil},
	"O":       {"overlay", copies, func(m *Mount, on bool) { m.Overlay = on }, nil},
	"idmap": {"idmap", copies, nil, func(m *Mount, _, value string) error {
		m.MapIDs = true
		if value != "" {
			return errors.New("the ids are those of the machine's user namespace (--userns, --uidmap)")
		}
		return nil
	}},

	// podman takes copy and nocopy for a bind too, where they do nothing.
	"copy":          {"copy", copies, func(m *Mount, on bool) { m.NoCopy = !on }, nil},
	"nocopy":        {"copy", copies, func(m *Mount, on bool) { m.NoCopy = on }, nil},
	"volume-nocopy": {"copy", "volume", func(m *Mount, on bool) { m.NoCopy = on }, nil},
	"tmpcopyup":     {"copy", fileSystems, func(m *Mount, on bool) { m.NoCopy = !on }, nil},
	"notmpcopyup":   {"copy", fileSystems, func(m *Mount, on bool) { m.NoCopy = on }, nil},

	"subpath":        {"subpath", "volume", nil, subpath},
	"volume-subpath": {"subpath", "volume", nil, subpath},
	"size":           {"size", "tmpfs", nil, fsSize},
	"tmpfs-size":     {"size", "tmpfs", nil, fsSize},
	"mode":           {"mode", "tmpfs ramfs devpts", nil, fsMode},
	"tmpfs-mode":     {"mode", fileSystems, nil, fsMode},
	"nr_inodes":      {"nr_inodes", "tmpfs", nil, fsNumber},
	"uid":            {"uid", "tmpfs devpts", nil, fsNumber},
	"gid":            {"gid", "tmpfs devpts", nil, fsNumber},
	"max":            {"max", "devpts", nil, fsNumber},
	"ptmxmode":       {"ptmxmode", "devpts", nil, fsMode},
}

func optionsOf(mountType string) string {
	var names []string
	for name, o := range mountOptions {
		if slices.Contains(strings.Fields(o.types), mountType) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// setPropagation takes the mounts below the source along, with or without "r": what differs otherwise is only what nobody means.
func setPropagation(m *Mount, value, _ string) error {
	switch value = strings.TrimPrefix(value, "r"); value {
	case "private", "slave":
		m.Propagation = value
	case "shared":
		return errors.New("systemd cuts the mounts of a service off from the host; rslave shows the host's later mounts in the machine")
	case "unbindable":
		return errors.New("systemd binds the machine's root, which unbindable mounts don't take part in; private hides later mounts too")
	default:
		return fmt.Errorf("%q is not one of private, rprivate, slave, rslave", value)
	}
	return nil
}

func subpath(m *Mount, _, value string) error {
	m.Subpath = value
	if value == "" {
		return errors.New("is empty")
	}
	return nil
}

func fsSize(m *Mount, _, value string) error {
	percent, isPercent := strings.CutSuffix(value, "%")
	if isPercent && !isNumber(percent) || !isPercent && !isSize(value) {
		return fmt.Errorf("%q is not a size (like 64m or 50%%)", value)
	}
	m.Options = append(m.Options, "size="+value)
	return nil
}

func fsMode(m *Mount, key, value string) error {
	if value == "" || len(value) > 5 || strings.Trim(value, "01234567") != "" {
		return fmt.Errorf("%q is not an octal mode", value)
	}
	m.Options = append(m.Options, strings.TrimPrefix(key, "tmpfs-")+"="+value)
	return nil
}

func fsNumber(m *Mount, key, value string) error {
	if !isNumber(value) {
		return fmt.Errorf("%q is not a number", value)
	}
	m.Options = append(m.Options, key+"="+value)
	return nil
}

func isNumber(s string) bool { return s != "" && len(s) <= 18 && strings.Trim(s, digits) == "" }

// isSize says whether the kernel reads s as a file system's size.
func isSize(s string) bool {
	return isNumber(s) || s != "" && isNumber(s[:len(s)-1]) && strings.ContainsAny(s[len(s)-1:], "kmgtKMGT")
}

// CheckShmSize checks what --shm-size says.
func CheckShmSize(s string) error {
	if !isSize(s) {
		return fmt.Errorf("%q is not a size (like 64m)", s)
	}
	return nil
}

// Mode gives the mode of a new file system's root, if there is one among the options.
func (m Mount) Mode() (mode uint32, given bool) {
	for _, o := range m.Options {
		if octal, found := strings.CutPrefix(o, "mode="); found {
			mode, err := parseMode(octal)
			return mode, err == nil
		}
	}
	return 0, false
}

// PlaceMounts decides which mounts the client prepares in the machine's root: all but those on file systems that the manager mounts over it, and
// each tmpfs that a directive can make anew at each start. copied says whether a tmpfs gets what the image has there.
//
// Binds could be BindPaths=, but then later mounts of the host would show, the attributes of podman's options would be missing, and neither the
// command nor its user could be looked up in them.
func (m Machine) PlaceMounts(copied func(Mount) bool) error {
	for i := range m.Mounts {
		v := &m.Mounts[i]
		if where := m.covered(*v); where != "" {
			if v.Type != "tmpfs" && v.Type != "bind" || v.Exec != nil || v.SUID != nil || v.Dev != nil || v.Propagation != "" || v.Chown && v.Type == "bind" || v.Overlay || v.MapIDs {
				return fmt.Errorf("%s: %s there can only be a path of the host, read-only or not, or a tmpfs", v.Target, where)
			}
			continue
		}
		// What the manager mounts hides what was prepared below of it.
		covers := func(other Mount) bool { return strings.HasPrefix(other.Target, v.Target+"/") }
		v.Prepared = v.Type != "tmpfs" || v.Target == "/run" || copied(*v) || slices.ContainsFunc(m.Mounts, covers)
	}
	return nil
}

// covered says where a mount would be covered, or made read-only, if it were prepared in the root; "": nowhere.
func (m Machine) covered(v Mount) string {
	nspawn := m.Flavor == NspawnFlavor
	switch top := strings.Split(v.Target, "/")[1]; {
	case top == "dev" || top == "proc" || top == "sys":
		return "below /dev, /proc and /sys"
	case nspawn && (top == "run" || top == "tmp"):
		return "below /run and /tmp, which systemd-nspawn makes,"
	case nspawn && m.ReadOnly && !v.ReadOnly:
		return "with systemd-nspawn's --read-only"
	}
	return ""
}

// InEtc says whether the mount may change who the users are.
func (m Mount) InEtc() bool {
	return !m.Chown && (m.Target == "/etc" || strings.HasPrefix(m.Target, "/etc/"))
}

// OwnMounts gives each tmpfs its owner, once that is known: the payload's user if it is for that, or root.
func (m Machine) OwnMounts() {
	for i := range m.Mounts {
		v := &m.Mounts[i]
		if v.Type != "tmpfs" || !v.Chown && m.Users == nil {
			continue
		}
		var owner Account
		if v.Chown {
			owner = m.Account
		}
		for _, o := range v.Options {
			name, value, _ := strings.Cut(o, "=")
			id, err := strconv.ParseUint(value, 10, 32)
			switch {
			case err != nil || v.Chown:
			case name == "uid":
				owner.UID = uint32(id)
			case name == "gid":
				owner.GID = uint32(id)
			}
		}
		v.Options = append(v.Options, fmt.Sprintf("uid=%d", m.HostUID(owner.UID)), fmt.Sprintf("gid=%d", m.HostGID(owner.GID)))
	}
}

// flags are mount(8)'s words for the attributes of a new file system or a volume.
func (m Mount) flags() []string {
	var words []string
	if m.ReadOnly {
		words = append(words, "ro")
	}
	for _, a := range []struct {
		allowed *bool
		word    string
		denied  bool // by default
	}{{m.SUID, "nosuid", true}, {m.Dev, "nodev", true}, {m.Exec, "noexec", false}} {
		if a.allowed == nil && a.denied || a.allowed != nil && !*a.allowed {
			words = append(words, a.word)
		}
	}
	return words
}

// String shows a mount to people.
func (m Mount) String() string {
	s := m.Target + ": " + m.Type
	if m.Source != "" {
		s += " " + m.Source
	}
	if m.ReadOnly {
		s += ", read-only"
	}
	return s
}

// mounts adds the mounts, and gives a note for each that no directive has.
func (m Machine) mounts(u *Unit) (notes []string) {
	// The host's /dev/shm is below /dev even with PrivateIPC=.
	if !slices.ContainsFunc(m.Mounts, func(v Mount) bool { return v.Target == "/dev/shm" }) && !m.Security.HostIPC {
		options := shmOptions + ",size=" + cmp.Or(m.ShmSize, "64M")
		if m.ReadOnly && m.ReadOnlyTmp {
			options += ",ro"
		}
		u.set("TemporaryFileSystem", []Tmpfs{{"/dev/shm", options}})
	}
	for _, v := range m.Mounts {
		bind := Bind{Source: v.Source, Target: v.Target, Flags: Recursive}
		if v.NoRecursive {
			bind.Flags = 0
		}
		switch {
		case v.Prepared:
			notes = append(notes, "mounted in the root before the start: "+v.String())
			if m.ReadOnly && !v.ReadOnly {
				u.set("ReadWritePaths", []string{"-+" + v.Target})
			}
		case v.Type == "tmpfs":
			options := append(v.flags(), v.Options...)
			if !slices.ContainsFunc(v.Options, func(o string) bool { return strings.HasPrefix(o, "size=") }) {
				options = append(options, "size=50%") // the kernel's default, not systemd's
			}
			u.set("TemporaryFileSystem", []Tmpfs{{v.Target, strings.Join(options, ",")}})
		case v.ReadOnly:
			u.set("BindReadOnlyPaths", []Bind{bind})
		default:
			u.set("BindPaths", []Bind{bind})
		}
	}
	return notes
}
