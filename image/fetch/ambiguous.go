package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// namedByUsers are the objects of manifests and configurations whose names are not the format's, so that case counts in them.
var namedByUsers = []string{"annotations", "labels", "volumes", "exposedports"}

const maxDepth = 100 // of JSON; the formats have six

// checkUnambiguous refuses JSON in which an object has one name twice. Parsers differ in which of the two they take, and Go's takes "Layers" for
// "layers", too: who approved of what was signed may have seen something else.
func checkUnambiguous(data []byte) error {
	type object struct {
		names map[string]bool // nil for an array
		exact bool            // case counts
		name  string          // that a value follows
		value bool            // one follows
	}
	var open []*object // around the token
	for decoder := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := decoder.Token()
		if err == io.EOF && len(open) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		var in *object
		if len(open) > 0 {
			in = open[len(open)-1]
		}
		switch delimiter, _ := token.(json.Delim); {
		case delimiter == '}' || delimiter == ']':
			open = open[:len(open)-1]
			continue
		case in != nil && in.names != nil && !in.value:
			in.name, in.value = token.(string), true
			name := in.name
			if !in.exact {
				name = strings.ToLower(strings.ToUpper(name)) // as Go's parser folds
			}
			if in.names[name] {
				return fmt.Errorf("ambiguous: has %q twice", in.name)
			}
			in.names[name] = true
		case delimiter != 0:
			inner := &object{}
			if delimiter == '{' {
				inner.names = map[string]bool{}
				inner.exact = in != nil && slices.Contains(namedByUsers, strings.ToLower(in.name))
			}
			if in != nil {
				in.value = false
			}
			if open = append(open, inner); len(open) > maxDepth {
				return fmt.Errorf("more than %d objects in each other", maxDepth)
			}
		case in != nil:
			in.value = false
		}
	}
}
