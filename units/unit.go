// Package units translates an image's config and the options of a run into the units that make the machine. It is
// pure: values in, values out; it touches no file, bus, network or clock.
//
// The data's way: an image config and Options give a Payload (Merge); the caller resolves in the image's tree what
// only the tree knows (the executable, the user), and Machine.Translate gives a Set of units. The same Set is encoded twice: as
// D-Bus properties for a transient start (Unit.Properties) and as unit files for people (Set.Text).
package units

import (
	"fmt"
	"slices"
	"strings"
)

// Unit is one systemd unit: directives in order, in systemd's own spelling (systemd.directives(7)).
type Unit struct {
	Name       string
	Directives []Directive
}

// Directive is one setting of a unit. The Go type of Value is that of the directive's kind (see the table).
type Directive struct {
	Name  string
	Value any
}

// Set is all the units of one machine. Main runs the payload; Aux are started and stopped with it.
type Set struct {
	Main Unit
	Aux  []Unit
	// Passed are the streams of Main that the client passes, by their directives.
	Passed []string
	// Relay is what the client has to connect, where one of Aux relays what the payload says to the journal.
	Relay Relay
	// Notes say which fields of the image's config no directive expresses, and why.
	Notes []string
}

// Property is a directive as the bus takes it: a property name of org.freedesktop.systemd1 and a value with its
// D-Bus type (see org.freedesktop.systemd1(5)).
type Property struct {
	Name  string
	Value any
}

// set adds a directive, or replaces or extends one of the same name: as in a unit file, lists grow and single
// values are overwritten.
func (u *Unit) set(name string, value any) {
	i := slices.IndexFunc(u.Directives, func(d Directive) bool { return d.Name == name })
	if i < 0 {
		u.Directives = append(u.Directives, Directive{name, value})
		return
	}
	if merge := directives[name].kind.merge; merge != nil {
		value = merge(u.Directives[i].Value, value)
	}
	u.Directives[i].Value = value
}

// Lay adds a directive of the user's, as a line of a unit file would: a list grows, or is emptied by an empty value; a single value takes
// the place of what there was.
func (u *Unit) Lay(d Directive) {
	if d.Name == "TimeoutSec" {
		u.set("TimeoutStartSec", d.Value)
		u.set("TimeoutStopSec", d.Value)
		return
	}
	i := slices.IndexFunc(u.Directives, func(before Directive) bool { return before.Name == d.Name })
	if lines := directives[d.Name].kind.text(d.Value); i >= 0 && len(lines) == 1 && lines[0] == "" {
		u.Directives[i].Value = d.Value
		return
	}
	u.set(d.Name, d.Value)
}

// Get gives a directive's value; nil: not set.
func (u Unit) Get(name string) any {
	for _, d := range u.Directives {
		if d.Name == name {
			return d.Value
		}
	}
	return nil
}

// Properties encodes the unit for StartTransientUnit.
func (u Unit) Properties() []Property {
	var properties []Property
	for _, d := range u.Directives {
		properties = append(properties, directives[d.Name].kind.wire(d.Name, d.Value)...)
	}
	return properties
}

// ParseDirective reads NAME=VALUE as systemd-run(1) --property does, for a manager of the given version.
func ParseDirective(assignment string, manager int) (Directive, error) {
	name, value, found := strings.Cut(assignment, "=")
	if !found {
		return Directive{}, fmt.Errorf("%q is not of the form NAME=VALUE", assignment)
	}
	row, known := directives[name]
	switch reason := refused()[name]; {
	case reason != "":
		return Directive{}, fmt.Errorf("%s= can't be set with --property: %s", name, reason)
	case !known || row.section == "Timer":
		return Directive{}, fmt.Errorf("%s= can't be set with --property", name)
	case strings.ContainsRune(value, 0):
		return Directive{}, fmt.Errorf("%s= has a NUL byte", name)
	}
	if since := max(row.since, valuesSince[assignment]); manager < since {
		if since != row.since {
			name = assignment
		} else {
			name += "="
		}
		return Directive{}, fmt.Errorf("%s needs systemd %d; this one is %d", name, since, manager)
	}
	v, err := row.kind.parse(value, manager)
	if err != nil {
		return Directive{}, fmt.Errorf("%s=: %w", name, err)
	}
	return Directive{name, v}, nil
}
