package units

import (
	"fmt"
	"slices"
	"strings"
)

// environment is a list of NAME=VALUE with each name once.
type environment []string

// set adds an assignment; it takes the place of one with the same name.
func (e *environment) set(assignment string) error {
	name, _, found := strings.Cut(assignment, "=")
	if !found { // an image's bare name; podman would pass the host's variable on
		return nil
	}
	if name == "" || strings.ContainsRune(assignment, 0) {
		return fmt.Errorf("environment %.40q is not NAME=VALUE", assignment)
	}
	if len(assignment) > maxString {
		return fmt.Errorf("environment variable %.40q is longer than the %d bytes that the kernel takes", name, maxString)
	}
	e.unset(name)
	*e = append(*e, assignment)
	return nil
}

func (e *environment) unset(name string) {
	*e = slices.DeleteFunc(*e, func(a string) bool { return strings.HasPrefix(a, name+"=") })
}

func (e environment) get(name string) (value string, set bool) {
	for _, a := range e {
		if value, set = strings.CutPrefix(a, name+"="); set {
			return value, true
		}
	}
	return "", false
}

// mergeEnvironment lays a run's environment over the image's, in podman's order (podman-run(1), "Environment").
func mergeEnvironment(image []string, o Options) (environment, error) {
	e := environment{"PATH=" + DefaultPath, "container=nspawnd"}
	for _, a := range slices.Concat(o.HostEnv, image) {
		if err := e.set(a); err != nil {
			return nil, err
		}
	}
	for _, a := range o.MergeEnv {
		name, value, found := strings.Cut(a, "=")
		if !found {
			return nil, fmt.Errorf("environment %.40q is not NAME=VALUE", a)
		}
		value, err := e.expand(value)
		if err != nil {
			return nil, err
		}
		if err := e.set(name + "=" + value); err != nil {
			return nil, err
		}
	}
	for _, name := range o.UnsetEnv {
		e.unset(name)
	}
	if o.UnsetAllEnv {
		e = nil
	}
	for _, a := range o.Env {
		if err := e.set(a); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// expand replaces $NAME, ${NAME}, ${NAME:-WORD} and ${NAME:+WORD} as a shell does; a backslash keeps the character after it.
func (e environment) expand(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '$' && strings.HasPrefix(s[i+1:], "{"):
			length := strings.IndexByte(s[i:], '}')
			if length < 0 {
				return "", fmt.Errorf("environment %.40q: no \"}\" after \"${\"", s)
			}
			inside := s[i+2 : i+length]
			i += length
			name := inside[:nameLength(inside)]
			value, _ := e.get(name)
			switch word := inside[len(name):]; {
			case name == "" || len(word) == 1 || word != "" && word[:2] != ":-" && word[:2] != ":+":
				return "", fmt.Errorf("environment: ${%.40s} is none of ${NAME}, ${NAME:-WORD}, ${NAME:+WORD}", inside)
			case word != "" && (word[1] == '-') == (value == ""):
				value = word[2:]
			case word != "" && word[1] == '+':
				value = ""
			}
			b.WriteString(value)
		case s[i] == '$' && nameLength(s[i+1:]) > 0:
			name := s[i+1 : i+1+nameLength(s[i+1:])]
			value, _ := e.get(name)
			b.WriteString(value)
			i += len(name)
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), nil
}

// nameLength is how many bytes at the start of s make a variable's name, as shells have them.
func nameLength(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return n
}

// ParseEnv reads what podman's --env and a line of its --env-file take: NAME=VALUE; NAME, which is passed on from caller's environment if it is
// set there; and NAME*, which stands for all in it that begin so.
func ParseEnv(s string, caller []string) ([]string, error) {
	name, _, assigned := strings.Cut(s, "=")
	switch prefix, pattern := strings.CutSuffix(s, "*"); {
	case name == "":
		return nil, fmt.Errorf("%.40q is not NAME=VALUE", s)
	case assigned:
		return []string{s}, nil
	case pattern:
		return slices.DeleteFunc(slices.Clone(caller), func(a string) bool { return !strings.HasPrefix(a, prefix) }), nil
	}
	if value, set := environment(caller).get(name); set {
		return []string{name + "=" + value}, nil
	}
	return nil, nil
}

// ParseEnvFile reads a file as podman's and docker's --env-file takes it: one line of ParseEnv each, with blanks before it and nothing else
// trimmed; no quotes, no escapes, no continuation. Empty lines and those that begin with "#" count for nothing.
func ParseEnvFile(data string, caller []string) ([]string, error) {
	var all []string
	number := 0
	for line := range strings.Lines(data) {
		number++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if line = strings.TrimLeft(line, " \t"); line == "" || line[0] == '#' {
			continue
		}
		assignments, err := ParseEnv(line, caller)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		all = append(all, assignments...)
	}
	return all, nil
}
