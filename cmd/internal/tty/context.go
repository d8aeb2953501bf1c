package tty

import (
	"bytes"
	"io"
)

// withoutContext leaves out the sequences by which systemd says where a terminal's command runs: https://uapi-group.org/specifications/specs/osc_context
type withoutContext struct {
	to   io.Writer
	held []byte // that may be of one
}

var contextStart, contextEnd = []byte("\x1b]3008;"), []byte("\x1b\\")

// maxContext is more than a sequence has.
const maxContext = 4 << 10

func (w *withoutContext) Write(p []byte) (int, error) {
	rest := append(w.held, p...)
	var out []byte
	for {
		start := bytes.Index(rest, contextStart)
		if start < 0 {
			break
		}
		end := bytes.Index(rest[start:], contextEnd)
		if end < 0 {
			break
		}
		out = append(out, rest[:start]...)
		rest = rest[start+end+len(contextEnd):]
	}
	keep := len(rest)
	if start := bytes.Index(rest, contextStart); start >= 0 && len(rest)-start < maxContext {
		keep = start
	} else if escape := bytes.LastIndexByte(rest, contextStart[0]); escape >= 0 && bytes.HasPrefix(contextStart, rest[escape:]) {
		keep = escape
	}
	out = append(out, rest[:keep]...)
	w.held = bytes.Clone(rest[keep:])
	if _, err := w.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes what turned out to be none.
func (w *withoutContext) flush() { _, _ = w.to.Write(w.held) }
