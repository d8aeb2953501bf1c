package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is who a machine's payload runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Home     string   // "" if /etc/passwd does not know the user, "/" if it knows none
	Name     string   // "" if /etc/passwd knows none
	Shell    string   // "" if /etc/passwd has none
	Group    string   // name of GID; "" if /etc/group knows none
}

const (
	maxAccounts = 4 << 20 // bytes of /etc/passwd or /etc/group
	maxGroups   = 1 << 16 // NGROUPS_MAX
	// The last number is no id, it means "no change" to chown(2).
	maxID = 1<<32 - 2
)

// User resolves an image's or a user's choice with the image's own /etc/passwd and /etc/group: "", USER or USER:GROUP, each by
// name or number (image-spec config.md). A number needs no entry. Without GROUP, a user with an entry gets its groups
// from there and from /etc/group; with GROUP, that one alone. What consists of digits is a number, never a name. more are further
// groups, by name or number. As podman and docker do, the first group of a user that was named is a supplementary one as well.
func (r *Root) User(spec string, more ...string) (User, error) {
	passwd, err := r.accounts("/etc/passwd")
	if err != nil {
		return User{}, err
	}
	groups, err := r.accounts("/etc/group")
	if err != nil {
		return User{}, err
	}
	user, err := findUser(spec, passwd, groups, more...)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", spec, err)
	}
	return user, nil
}

// AddUser writes entries for a user and its group into the image's /etc/passwd and /etc/group where they have none, so that programs
// which ask who they run as get an answer. The entries are podman's (podman-run(1), --passwd).
func (r *Root) AddUser(user User, home string) error {
	if strings.ContainsAny(home, ":\n") {
		home = "/"
	}
	if user.Name == "" {
		if err := r.addEntry("/etc/passwd", fmt.Sprintf("%d:*:%d:%d:container user:%s:/bin/sh\n", user.UID, user.UID, user.GID, home)); err != nil {
			return err
		}
	}
	if user.Group != "" {
		return nil
	}
	return r.addEntry("/etc/group", fmt.Sprintf("%d:x:%d:%d\n", user.GID, user.GID, user.UID))
}

func (r *Root) addEntry(name, entry string) error {
	before, err := r.accounts(name)
	if err != nil {
		return err
	}
	if len(before) > 0 && before[len(before)-1] != '\n' {
		before = append(before, '\n')
	}
	return r.WriteFile(name, append(before, entry...), 0o644)
}

// accounts reads a database of accounts; an image need not have one.
func (r *Root) accounts(name string) ([]byte, error) {
	data, err := r.ReadFile(name, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return data, err
}

// findUser is User with the two files' content.
func findUser(spec string, passwd, groups []byte, more ...string) (User, error) {
	user, err := findAccount(spec, passwd, groups)
	if err != nil {
		return User{}, err
	}
	if spec != "" {
		user.Groups = append([]uint32{user.GID}, user.Groups...)
	}
	for _, group := range more {
		gid, err := findGroup(group, groups)
		if err != nil {
			return User{}, err
		}
		user.Groups = append(user.Groups, gid)
	}
	if len(user.Groups) > maxGroups {
		return User{}, fmt.Errorf("more than %d groups", maxGroups)
	}
	for entry := range accountEntries(groups, 4) {
		if gid, ok := parseID(entry[2]); ok && gid == user.GID {
			user.Group = entry[0]
			break
		}
	}
	slices.Sort(user.Groups)
	user.Groups = slices.Compact(user.Groups)
	return user, nil
}

func findAccount(spec string, passwd, groups []byte) (User, error) {
	userSpec, groupSpec, hasGroup := strings.Cut(spec, ":")
	if userSpec == "" {
		userSpec = "0"
	}
	user := User{}
	number, isNumber := parseID(userSpec)
	for entry := range accountEntries(passwd, 7) { // name:password:UID:GID:gecos:home:shell
		uid, uidOK := parseID(entry[2])
		gid, gidOK := parseID(entry[3])
		if !uidOK || !gidOK || isNumber && uid != number || !isNumber && entry[0] != userSpec {
			continue
		}
		user = User{UID: uid, GID: gid, Home: entry[5], Name: entry[0], Shell: entry[6]}
		if user.Home == "" {
			user.Home = "/"
		}
		break
	}
	if user.Name == "" {
		if !isNumber {
			return User{}, errors.New("no such user in the image's /etc/passwd")
		}
		user.UID = number
	}
	if hasGroup && groupSpec != "" {
		gid, err := findGroup(groupSpec, groups)
		if err != nil {
			return User{}, err
		}
		user.GID = gid
		return user, nil
	}
	if user.Name == "" {
		return user, nil
	}
	for entry := range accountEntries(groups, 4) { // name:password:GID:members
		gid, ok := parseID(entry[2])
		if ok && slices.Contains(strings.Split(entry[3], ","), user.Name) {
			user.Groups = append(user.Groups, gid)
		}
	}
	return user, nil
}

func findGroup(spec string, groups []byte) (uint32, error) {
	if number, isNumber := parseID(spec); isNumber {
		return number, nil
	}
	for entry := range accountEntries(groups, 4) {
		if gid, ok := parseID(entry[2]); ok && entry[0] == spec {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("no such group in the image's /etc/group: %q", spec)
}

// accountEntries gives the lines that have a name, with as many fields as asked for; those that a line lacks are empty.
func accountEntries(data []byte, fields int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(data) {
			entry := strings.Split(strings.TrimSpace(string(line)), ":")
			if entry[0] == "" || strings.HasPrefix(entry[0], "#") {
				continue
			}
			for len(entry) < fields {
				entry = append(entry, "")
			}
			if !yield(entry) {
				return
			}
		}
	}
}

// parseID reads a user's or group's number.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
