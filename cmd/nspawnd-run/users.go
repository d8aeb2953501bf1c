package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/image"
	"nspawnd/units"

	"github.com/spf13/pflag"
)

// userFlags give a machine users that are not the host's.
type userFlags struct {
	userns                 string
	uidMap, gidMap         []string
	subUIDName, subGIDName string

	auto uint32 // how many ids, for --userns=auto
}

const (
	autoIDs    = 1 << 16
	maxAutoIDs = 1 << 24
)

func (g *userFlags) register(f *pflag.FlagSet) {
	f.StringVar(&g.userns, "userns", "host", "users that it has: the host's, or ids that no other machine has, `host|auto[:size=N]` (default of N: 65536)")
	f.StringArrayVar(&g.uidMap, "uidmap", nil, "`INSIDE:OUTSIDE:COUNT`: users of its own, which are these ids of the host's; without --gidmap groups too")
	f.StringArrayVar(&g.gidMap, "gidmap", nil, "`INSIDE:OUTSIDE:COUNT`: groups of its own; without --uidmap users too")
	f.StringVar(&g.subUIDName, "subuidname", "", "users of its own, which are the ids that /etc/subuid gives to `ACCOUNT`; without --subgidname groups too")
	f.StringVar(&g.subGIDName, "subgidname", "", "groups of its own, which are the ids that /etc/subgid gives to `ACCOUNT`; without --subuidname users too")
}

func (g *userFlags) apply(m *units.Machine, _ *units.Options) error {
	maps, names := len(g.uidMap)+len(g.gidMap) > 0, g.subUIDName != "" || g.subGIDName != ""
	mode, options, _ := strings.Cut(g.userns, ":")
	if mode == "auto" && (maps || names) || maps && names {
		return errors.New("--userns=auto, --uidmap or --gidmap, and --subuidname or --subgidname: only one of them can say which ids the machine has")
	}
	var err error
	switch mode {
	case "", "host":
		if options != "" {
			return fmt.Errorf("--userns: %q: the host's users have no options", g.userns)
		}
	case "auto":
		if g.auto, err = parseAuto(options); err != nil {
			return fmt.Errorf("--userns=auto: %w", err)
		}
		m.Users = &units.Users{} // until there is a range that is free
		return nil
	case "keep-id", "nomap":
		return fmt.Errorf("--userns=%s: is about the user who starts a machine, and that is root; --uidmap maps any", mode)
	case "container", "ns":
		return fmt.Errorf("--userns=%s: a machine has a user namespace to itself; --uidmap gives two the same ids", mode)
	default:
		return fmt.Errorf("--userns: %q is not one of host, auto, auto:size=N", g.userns)
	}
	switch {
	case maps:
		m.Users = &units.Users{}
		if m.Users.UIDs, err = parseRanges(g.uidMap); err != nil {
			return fmt.Errorf("--uidmap: %w", err)
		}
		if m.Users.GIDs, err = parseRanges(g.gidMap); err != nil {
			return fmt.Errorf("--gidmap: %w", err)
		}
	case names:
		m.Users = &units.Users{}
		if m.Users.UIDs, err = readSubIDs("/etc/subuid", g.subUIDName); err != nil {
			return fmt.Errorf("--subuidname: %w", err)
		}
		if m.Users.GIDs, err = readSubIDs("/etc/subgid", g.subGIDName); err != nil {
			return fmt.Errorf("--subgidname: %w", err)
		}
	default:
		return nil
	}
	if m.Users.UIDs == nil { // as podman
		m.Users.UIDs = m.Users.GIDs
	}
	if m.Users.GIDs == nil {
		m.Users.GIDs = m.Users.UIDs
	}
	if err := m.Users.Check(); err != nil {
		return fmt.Errorf("--uidmap, --gidmap: %w", err)
	}
	return nil
}

func parseAuto(options string) (uint32, error) {
	size := uint64(autoIDs)
	if options == "" {
		return autoIDs, nil
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		if name != "size" {
			return 0, fmt.Errorf("%q is not size=N; --uidmap and --gidmap map single ids", option)
		}
		var err error
		if size, err = strconv.ParseUint(value, 10, 32); err != nil || size == 0 || size > maxAutoIDs {
			return 0, fmt.Errorf("size=%s is not a number from 1 to %d", value, maxAutoIDs)
		}
	}
	return uint32(size), nil
}

func parseRanges(list []string) (ranges []units.IDRange, err error) {
	for _, value := range list {
		for s := range strings.SplitSeq(value, ",") {
			r, err := units.ParseIDRange(s)
			if err != nil {
				return nil, err
			}
			ranges = append(ranges, r)
		}
	}
	return ranges, nil
}

func readSubIDs(path, account string) ([]units.IDRange, error) {
	if account == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	ranges, err := units.ParseSubIDs(string(text), account)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ranges, nil
}

// open takes the ids and, unless systemd-nspawn makes it, makes the user namespace. A dry run only says which ids could be taken.
func (g *userFlags) open(m *units.Machine, dir string, dryRun bool) (*image.Users, error) {
	ids := machinedir.IDs{Count: g.auto}
	if g.auto == 0 {
		ids = machinedir.IDs{First: m.Users.UIDs[0].Outside, Count: m.Users.UIDs[0].Count}
	}
	ids, file, err := machinedir.TakeIDs(dir, ids, g.auto != 0, dryRun)
	if err != nil {
		return nil, err
	}
	if g.auto != 0 {
		m.Users.UIDs = []units.IDRange{{Inside: 0, Outside: ids.First, Count: ids.Count}}
		m.Users.GIDs = m.Users.UIDs
	}
	m.Users.File = file
	if dryRun {
		return nil, nil
	}
	users, err := image.NewUsers(kernelRanges(m.Users.UIDs), kernelRanges(m.Users.GIDs))
	if err != nil || m.Flavor == units.NspawnFlavor {
		return users, err
	}
	// The manager takes the namespace by a path, at each start.
	if err := image.Bind(users.Namespace, file); err != nil {
		users.Namespace.Close()
		return nil, err
	}
	return users, nil
}

func kernelRanges(ranges []units.IDRange) (out []syscall.SysProcIDMap) {
	for _, r := range ranges {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Outside), Size: int(r.Count)})
	}
	return out
}
