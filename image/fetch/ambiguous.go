package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// namedByUsers are the objects of manifests and configurations whose names are not the format's, so that case counts in them.
var namedByUsers = []string{"annotations", "labels", "volumes", "exposedports"}

const maxDepth = 100 // of JSON; the formats have six

// checkUnambiguous refuses JSON in which an object has one name twice. Parsers differ in which of the two they take, and Go's takes "Layers" for
// "layers", too: who approved of what was signed may have seen something else. What is no JSON is left to those who parse it.
func checkUnambiguous(data []byte) error {
	if !json.Valid(data) {
		return nil
	}
	type object struct {
		names map[string]bool // nil for an array
		exact bool            // case counts
	}
	var open []object // around data[i]
	name := ""        // the last one
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '[', '{':
			var inner object
			if data[i] == '{' {
				inner.names, inner.exact = map[string]bool{}, slices.Contains(namedByUsers, strings.ToLower(name))
			}
			name = ""
			if open = append(open, inner); len(open) > maxDepth {
				return fmt.Errorf("more than %d objects in each other", maxDepth)
			}
		case ']', '}':
			open = open[:len(open)-1]
		case '"':
			start := i
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
			if !bytes.HasPrefix(bytes.TrimLeft(data[i+1:], " \t\r\n"), []byte(":")) {
				continue // a value
			}
			if err := json.Unmarshal(data[start:i+1], &name); err != nil {
				return err
			}
			key, in := name, open[len(open)-1]
			if !in.exact {
				key = strings.ToLower(strings.ToUpper(name)) // as Go's parser folds
			}
			if in.names[key] {
				return fmt.Errorf("ambiguous: has %q twice", name)
			}
			in.names[key] = true
		}
	}
	return nil
}
