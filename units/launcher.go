package units

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// launcherPath is where the machine sees the launcher.
const launcherPath = "/run/nspawnd-launcher"

// NeedsLauncher says whether the units run the launcher.
func (m Machine) NeedsLauncher() bool {
	m = m.flavored()
	return m.mainIsStrange() || m.launched() || len(m.Health.Test) > 0
}

// launched says whether the launcher starts the payload, because a directive can't express it: User= and SupplementaryGroups= resolve on the host,
// so they refuse ids that the host doesn't know and add the groups that the host gives an id it knows; Environment= refuses names that
// shells would, and the bus strings that are not UTF-8; systemd before 258 has no word for a hostname, and none has one for
// sysctls, a reaper of zombies and a terminal that is not the host's. In a user namespace the manager starts a service as root of the host, who is
// nobody there, or as the namespace's root without what is that one's alone.
func (m Machine) launched() bool {
	_, odd := m.environment()
	return m.foreignIDs() || len(odd) > 0 || m.quoted() || m.launcherNames() || len(m.Payload.Sysctls) > 0 || m.Payload.Init ||
		len(m.Secrets) > 0 || m.Streams.Terminal
}

// ambient gives the launcher's option for the capabilities that the payload has without being root: as with podman, those that were asked for.
func (m Machine) ambient() []string {
	if m.Account.UID == 0 || m.Security.AddCapabilities == 0 {
		return nil
	}
	return []string{fmt.Sprintf("--ambient=%x", m.Security.AddCapabilities)}
}

// foreignIDs says whether the payload's ids are others than those of a service without User=; group 0 is known on every host. A user namespace's are.
func (m Machine) foreignIDs() bool {
	a := m.Account
	return m.hasUsers() || a.UID != 0 || a.GID != 0 || len(a.Groups) > 0 && !m.onlyRootsGroup()
}

// hasUsers says whether the manager starts the payload in a user namespace.
func (m Machine) hasUsers() bool { return m.Users != nil && m.Flavor != NspawnFlavor }

func (m Machine) onlyRootsGroup() bool {
	return slices.Equal(m.Account.Groups, []uint32{0}) && m.Flavor != NspawnFlavor
}

// quoted says whether the launcher gets the payload's strings in quotes, because the bus takes only UTF-8.
func (m Machine) quoted() bool {
	return slices.ContainsFunc(slices.Concat(m.Payload.Argv, m.Payload.Env, []string{m.Path}), func(s string) bool { return !utf8.ValidString(s) })
}

// launcherNames says whether the launcher makes the UTS namespace and gives it its name. It needs to make system calls for that which restrictions of
// the user's own may refuse: then the machine has a namespace with the host's name.
func (m Machine) launcherNames() bool {
	restricted := slices.ContainsFunc(m.Extra, func(d Directive) bool {
		return d.Name == "SystemCallFilter" || d.Name == "RestrictNamespaces"
	})
	return m.Manager < hostnameSince && !restricted && m.Security.Seccomp == nil && !m.Security.HostUTS && m.Flavor != NspawnFlavor
}

// launch has the launcher start the payload where that is needed. It comes last: what the launcher needs and the payload must not have
// is added to the unit's capabilities and system calls, and the launcher takes it away again.
func (m Machine) launch(u *Unit) error {
	if m.Security.HostUTS && m.Payload.Hostname != m.Name {
		return errors.New("--hostname: the machine has the host's own, by --uts=host")
	}
	if !m.launched() {
		return nil
	}
	if err := m.checkSysctls(); err != nil {
		return err
	}
	var args []string
	var needed uint64
	if m.hasUsers() {
		args = append(args, "--become-root")
	}
	if m.Streams.Terminal {
		args = append(args, "--terminal="+TerminalPath)
	}
	if m.launcherNames() {
		needed |= capability("SYS_ADMIN")
		args = append(args, "--hostname="+m.Payload.Hostname)
		if refuses(u, "sethostname") {
			u.set("SystemCallFilter", []Filter{{true, []string{"sethostname"}}}) // until the launcher has called it
			args = append(args, "--refuse-naming")
		}
	}
	for _, s := range m.Payload.Sysctls {
		needed |= capability("SYS_ADMIN") // to mount a procfs
		if networkSysctl(s) {
			needed |= capability("NET_ADMIN")
		}
		args = append(args, "--sysctl="+s)
	}
	args = append(args, m.secretArguments()...)
	needed |= m.secretCapabilities()
	if m.foreignIDs() {
		needed |= capability("SETUID") | capability("SETGID")
	}
	if given, limited := u.Get("CapabilityBoundingSet").(uint64); limited && needed&^given != 0 {
		u.set("CapabilityBoundingSet", given|needed|capability("SETPCAP"))
		args = append(args, fmt.Sprintf("--bounding=%x", given))
	}
	if m.hasUsers() { // what a program gets of them that is no user of the namespace
		u.set("AmbientCapabilities", cmp.Or(u.Get("CapabilityBoundingSet"), any(allCapabilities)))
	}
	if m.foreignIDs() {
		args = append(append(args, m.ambient()...), "--ids="+m.ids())
	}
	program := append([]string{m.Path}, m.Payload.Argv...)
	_, odd := m.environment()
	quote := func(s string) string { return s }
	if m.quoted() {
		quote = strconv.QuoteToASCII
		args = append(args, "--quoted")
	}
	for _, e := range odd {
		args = append(args, "--env="+quote(e))
	}
	for i := range program {
		program[i] = quote(program[i])
	}
	if m.Payload.Init {
		args = append(args, "--init")
	}
	argv := slices.Concat([]string{launcherPath}, args, []string{"--"}, program)
	u.set("ExecStart", Command{launcherPath, argv, []string{noExpansion}})
	u.set("BindReadOnlyPaths", []Bind{{Source: m.Launcher, Target: launcherPath}})
	return nil
}

// refuses says whether the unit's filter names a system call among those that fail.
func refuses(u *Unit, call string) bool {
	filters, _ := u.Get("SystemCallFilter").([]Filter)
	return slices.ContainsFunc(filters, func(f Filter) bool {
		return !f.Allow && slices.ContainsFunc(f.Names, func(name string) bool { name, _, _ = strings.Cut(name, ":"); return name == call })
	})
}

// capability gives the bit of a capability that there is.
func capability(name string) uint64 {
	return 1 << slices.Index(capabilities, name)
}

// sysctls that a machine may have: those of its own IPC namespace (ipc_namespaces(7)), podman's list, and those of its own network
// namespace.
var ipcSysctls = []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
	"kernel.shm_rmid_forced", "fs.mqueue."}

// ParseSysctl checks NAME=VALUE of podman-run(1) --sysctl. A name is written with dots or, as sysctl(8) allows too, with slashes.
func ParseSysctl(s string) error {
	name, _, assigned := strings.Cut(s, "=")
	if !assigned || !sysctlName(name) {
		return fmt.Errorf("%q is not NAME=VALUE", s)
	}
	name = strings.ReplaceAll(name, "/", ".")
	known := slices.ContainsFunc(append([]string{"net."}, ipcSysctls...), func(k string) bool {
		return name == k || strings.HasSuffix(k, ".") && strings.HasPrefix(name, k)
	})
	if !known {
		return fmt.Errorf("%s belongs to the host: a machine may have net.*, fs.mqueue.*, kernel.msg*, kernel.sem and kernel.shm*", name)
	}
	return nil
}

func sysctlName(name string) bool {
	return name != "" && !strings.HasPrefix(name, "/") && !strings.Contains(strings.ReplaceAll(name, "/", "."), "..") &&
		strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}

func (m Machine) checkSysctls() error {
	for _, s := range m.Payload.Sysctls {
		if !networkSysctl(s) && m.Security.HostIPC {
			return fmt.Errorf("--sysctl: %s would be the host's, whose IPC namespace the machine has", s)
		}
		if networkSysctl(s) && m.Network == HostNetwork {
			return fmt.Errorf("--sysctl: %s would be the host's, whose network the machine has", s)
		}
	}
	return nil
}

func networkSysctl(s string) bool {
	return strings.HasPrefix(s, "net.") || strings.HasPrefix(s, "net/")
}
