package printable

import "testing"

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                 "",
		"nginx: master":    "nginx: master",
		"Größe 日本":         "Größe 日本",
		"\x1b[2J":          `\x1b[2J`,
		"a\tb\nc\x00":      `a\x09b\x0ac\x00`,
		"\xff\xc3":         `\xff\xc3`,
		"\u009b31m":        `\u009b31m`,
		"\u202egnp.exe":    `\u202egnp.exe`,
		"\u2028\U000e0001": `\u2028\ue0001`,
		"\ufffd":           `\ufffd`,
	} {
		if got := Line(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("\x1b]0;title\a\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := Line(s)
		if again := Line(got); again != got {
			t.Errorf("%q gives %q, which is not printable", s, got)
		}
	})
}
