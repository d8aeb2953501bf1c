// Package buserror gives errors of a service on the bus the meanings by which callers decide.
package buserror

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// Error reads like the bus's message and is, to errors.Is, what that means to callers.
type Error struct {
	Reply   dbus.Error
	Meaning error // nil: none of its own
}

func (e Error) Error() string        { return e.Reply.Error() }
func (e Error) Is(target error) bool { return target == e.Meaning }

// Explain gives err the meaning that the bus's name for it has; service is who did not answer in time.
func Explain(err error, meanings map[string]error, service string) error {
	var reply dbus.Error
	switch {
	case errors.As(err, &reply):
		return Error{reply, meanings[reply.Name]}
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer: %w", service, err)
	}
	return err
}
