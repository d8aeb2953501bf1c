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
		row := directives[d.Name]
		name := row.property
		if name == "" {
			name = d.Name
		}
		properties = append(properties, row.kind.wire(name, d.Value)...)
	}
	return properties
}

// ParseDirective reads NAME=VALUE as it would stand in a unit file, for a manager of the given version.
func ParseDirective(assignment string, manager int) (Directive, error) {
	name, value, found := cut(assignment)
	if !found {
		return Directive{}, fmt.Errorf("%q is not of the form NAME=VALUE", assignment)
	}
	row, known := directives[name]
	if !known || row.kind.parse == nil {
		return Directive{}, fmt.Errorf("%s= can't be set with --property", name)
	}
	if manager < row.since {
		return Directive{}, fmt.Errorf("%s= needs systemd %d; this one is %d", name, row.since, manager)
	}
	v, err := row.kind.parse(value)
	if err != nil {
		return Directive{}, fmt.Errorf("%s=: %w", name, err)
	}
	return Directive{name, v}, nil
}
