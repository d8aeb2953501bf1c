// Package buserror gives errors of a service on the bus the meanings by which callers decide.
package buserror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Error reads like the bus's message and is, to errors.Is, what that means to callers.
type Error struct {
	Reply   dbus.Error
	Meaning error // nil: none of its own
}

func (e Error) Error() string        { return e.Reply.Error() }
func (e Error) Is(target error) bool { return target == e.Meaning }

// Explain gives err the meaning that the bus's name for it has: one of the service's own; fs.ErrPermission for who may not; or unavailable when the service is
// not there. service is who did not answer in time.
func Explain(err error, service string, unavailable error, own map[string]error) error {
	var reply dbus.Error
	switch {
	case errors.As(err, &reply):
		meaning := own[reply.Name]
		switch {
		case meaning != nil:
		case slices.Contains(denied, reply.Name):
			meaning = fs.ErrPermission
		case slices.Contains(absent, reply.Name), reply.Name == fileExists && strings.HasPrefix(reply.Error(), "Unit "):
			meaning = unavailable
		}
		return Error{reply, meaning}
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer: %w", service, err)
	}
	return err
}

const errorPrefix = "org.freedesktop.DBus.Error."

var (
	denied = []string{errorPrefix + "AccessDenied", errorPrefix + "InteractiveAuthorizationRequired"}
	// Not installed, masked, or not startable: the bus may know the name of a service that systemd does not.
	absent = []string{errorPrefix + "ServiceUnknown", errorPrefix + "NameHasNoOwner", "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitMasked"}
)

// fileExists is what systemd says of a unit that is masked and asked for by its alias. Services say it of what is theirs.
const fileExists = errorPrefix + "FileExists"

// Denied says whether a call failed because who makes it may not.
func Denied(err error) bool {
	var reply dbus.Error
	return errors.As(err, &reply) && slices.Contains(denied, reply.Name)
}
