package tty

import (
	"bytes"
	"strings"
	"testing"
)

func TestWithoutContext(t *testing.T) {
	long := "\x1b]3008;" + strings.Repeat("x", maxContext)
	for in, want := range map[string]string{
		"a\x1b]3008;start=x;user=root\x1b\\b\x1b]3008;end=x\x1b\\\n": "ab\n", "\x1b[31mred\x1b[0m": "\x1b[31mred\x1b[0m",
		"a\x1b": "a\x1b", "a\x1b]3008;no end": "a\x1b]3008;no end", long: long, "\x1b]0;title\x07x": "\x1b]0;title\x07x", "": "",
	} {
		for _, size := range []int{1, 3, len(in) + 1} {
			var out bytes.Buffer
			w := withoutContext{to: &out}
			for rest := in; rest != ""; {
				n := min(size, len(rest))
				if _, err := w.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			w.flush()
			if out.String() != want {
				t.Errorf("%.40q in pieces of %d: %.40q", in, size, out.String())
			}
		}
	}
}
