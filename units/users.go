package units

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// UserNamespaceSince is the first version of systemd that starts a service in a user namespace that is there (UserNamespacePath=).
const UserNamespaceSince = 259

// IDRange maps Count ids of a machine, from Inside on, to those of the host from Outside on.
type IDRange struct{ Inside, Outside, Count uint32 }

// Users is a machine's user namespace (user_namespaces(7)).
type Users struct {
	UIDs, GIDs []IDRange
	File       string // the namespace's on the host; for systemd-nspawn, which makes its own, only a mark that the range is taken
}

const allIDs = 1<<32 - 1 // -1 is none

// ParseIDRange reads INSIDE:OUTSIDE[:COUNT] of podman-run(1) --uidmap and --gidmap.
func ParseIDRange(s string) (r IDRange, err error) {
	fields := strings.Split(s, ":")
	if len(fields) == 2 {
		fields = append(fields, "1")
	}
	if len(fields) != 3 {
		return r, fmt.Errorf("%q is not INSIDE:OUTSIDE:COUNT", s)
	}
	for i, value := range []*uint32{&r.Inside, &r.Outside, &r.Count} {
		n, err := strconv.ParseUint(fields[i], 10, 32)
		if err != nil {
			return r, fmt.Errorf("%q: %q is not a number of an id", s, fields[i])
		}
		*value = uint32(n)
	}
	return r, r.check()
}

func (r IDRange) check() error {
	if r.Count == 0 || uint64(r.Inside)+uint64(r.Count) > allIDs || uint64(r.Outside)+uint64(r.Count) > allIDs {
		return fmt.Errorf("%d:%d:%d is not a range of ids", r.Inside, r.Outside, r.Count)
	}
	return nil
}

// maxIDRanges is the kernel's (user_namespaces(7)).
const maxIDRanges = 340

// ParseSubIDs gives the ranges that a file like subuid(5) has for an account, one after the other from id 0 on.
func ParseSubIDs(file, account string) (ranges []IDRange, err error) {
	inside := uint32(0)
	for line := range strings.Lines(file) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 || fields[0] != account {
			continue
		}
		outside, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		r := IDRange{inside, uint32(outside), uint32(count)}
		if err := errors.Join(err1, err2, r.check()); err != nil {
			return nil, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
		ranges = append(ranges, r)
		inside += r.Count
	}
	if len(ranges) == 0 {
		err = fmt.Errorf("no ids are given to %q", account)
	}
	return ranges, err
}

// Check refuses what the kernel would, and a namespace without root.
func (u Users) Check() error {
	for _, ranges := range [][]IDRange{u.UIDs, u.GIDs} {
		if len(ranges) > maxIDRanges {
			return fmt.Errorf("%d ranges of ids are more than the kernel's %d", len(ranges), maxIDRanges)
		}
		for i, a := range ranges {
			for _, b := range ranges[:i] {
				if Overlap(a.Inside, a.Count, b.Inside, b.Count) || Overlap(a.Outside, a.Count, b.Outside, b.Count) {
					return fmt.Errorf("the ranges %d:%d:%d and %d:%d:%d overlap", b.Inside, b.Outside, b.Count, a.Inside, a.Outside, a.Count)
				}
			}
		}
		if _, mapped := Outside(ranges, 0); !mapped {
			return errors.New("id 0, the machine's root, is not mapped")
		}
	}
	return nil
}

// Overlap says whether two ranges of ids, by their first ones and how many they are, have one in common.
func Overlap(a, aCount, b, bCount uint32) bool {
	return uint64(a) < uint64(b)+uint64(bCount) && uint64(b) < uint64(a)+uint64(aCount)
}

// Outside gives the host's id for one of the machine's.
func Outside(ranges []IDRange, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.Inside && id-r.Inside < r.Count {
			return r.Outside + id - r.Inside, true
		}
	}
	return 0, false
}

// Inside gives the machine's id for one of the host's.
func Inside(ranges []IDRange, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.Outside && id-r.Outside < r.Count {
			return r.Inside + id - r.Outside, true
		}
	}
	return 0, false
}

// ParseIDMap reads a process's uid_map or gid_map (user_namespaces(7)).
func ParseIDMap(text string) (ranges []IDRange) {
	for line := range strings.Lines(text) {
		var r IDRange
		if _, err := fmt.Sscan(line, &r.Inside, &r.Outside, &r.Count); err == nil {
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// HostUID gives what a user of the machine is on the host.
func (m Machine) HostUID(uid uint32) uint32 {
	if m.Users != nil {
		uid, _ = Outside(m.Users.UIDs, uid)
	}
	return uid
}

// HostGID gives what a group of the machine is on the host.
func (m Machine) HostGID(gid uint32) uint32 {
	if m.Users != nil {
		gid, _ = Outside(m.Users.GIDs, gid)
	}
	return gid
}

// HostAccount is the payload's user as the host sees it.
func (m Machine) HostAccount() Account {
	a := Account{UID: m.HostUID(m.Account.UID), GID: m.HostGID(m.Account.GID)}
	for _, group := range m.Account.Groups {
		a.Groups = append(a.Groups, m.HostGID(group))
	}
	return a
}

// CheckUsers refuses what a machine with a user namespace can't have, once its account is known.
func (m Machine) CheckUsers() error {
	if m.Users == nil {
		if slices.ContainsFunc(m.Mounts, func(v Mount) bool { return v.MapIDs }) {
			return errors.New("idmap: there are no ids to map without --userns=auto or --uidmap")
		}
		return nil
	}
	_, known := Outside(m.Users.UIDs, m.Account.UID)
	for _, group := range append([]uint32{m.Account.GID}, m.Account.Groups...) {
		_, mapped := Outside(m.Users.GIDs, group)
		known = known && mapped
	}
	switch {
	case m.Flavor == ChrootFlavor:
		return fmt.Errorf("--userns, --uidmap: --flavor=%s has the host's users", m.Flavor)
	case m.Flavor == NspawnFlavor && !m.Users.oneRange():
		return fmt.Errorf("--uidmap: --flavor=%s takes one range from id 0 on, the same for users and groups", m.Flavor)
	case m.Flavor != NspawnFlavor && m.Manager < UserNamespaceSince:
		return fmt.Errorf("--userns, --uidmap: a service's user namespace needs systemd %d, and this is %d; --flavor=%s has one here",
			UserNamespaceSince, m.Manager, NspawnFlavor)
	case !known:
		return fmt.Errorf("the machine's user namespace does not have its user or one of its groups (%s)", m.ids())
	case len(m.Payload.Sysctls) > 0:
		return errors.New("--sysctl: systemd makes the machine's namespaces before its users, so these may not change them")
	}
	return nil
}

// oneRange says whether the namespace is one that systemd-nspawn can make.
func (u Users) oneRange() bool {
	return len(u.UIDs) == 1 && u.UIDs[0].Inside == 0 && slices.Equal(u.UIDs, u.GIDs)
}

// ManagersDir is a directory in which the manager makes files for a machine.
const ManagersDir = "/run/host"

// MountPoints are where the manager mounts something in the machine's root. In one that has the ids of a user namespace it can make none.
func (m Machine) MountPoints() (directories, files []string) {
	if m.Flavor == NspawnFlavor { // which has a /run of its own
		return nil, nil
	}
	directories = []string{"/dev", "/proc", "/sys", "/run/credentials", ManagersDir}
	files = []string{launcherPath}
	if len(m.Secrets) > 0 {
		directories = append(directories, secretsDir, "/run/credentials/"+ServiceName(m.Name))
	}
	for _, v := range m.Mounts {
		if !v.Prepared && m.covered(v) == "" {
			directories = append(directories, v.Target)
		}
	}
	for _, d := range m.Extra {
		switch list := d.Value.(type) {
		case []Tmpfs:
			for _, t := range list {
				directories = append(directories, t.Path)
			}
		case []Bind:
			for _, b := range list {
				directories = append(directories, b.Target)
			}
		}
	}
	return directories, files
}
