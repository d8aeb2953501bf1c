package units

import (
	"fmt"
	"slices"
	"strings"
)

// Text writes the set as unit files (systemd.syntax(7)), each after a comment with its name.
func (s Set) Text() string {
	var b strings.Builder
	for _, note := range s.Notes {
		fmt.Fprintf(&b, "# %s\n", oneLine(note))
	}
	for _, u := range append([]Unit{s.Main}, s.Aux...) {
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "# %s\n%s", u.Name, u.Text())
	}
	return b.String()
}

// Text writes the unit as a unit file.
func (u Unit) Text() string {
	var b strings.Builder
	for _, section := range []string{"Unit", "Service", "Timer"} {
		if !slices.ContainsFunc(u.Directives, func(d Directive) bool { return directives[d.Name].section == section }) {
			continue
		}
		fmt.Fprintf(&b, "[%s]\n", section)
		for _, d := range u.Directives {
			row := directives[d.Name]
			if row.section != section {
				continue
			}
			for _, v := range row.kind.text(d.Value) {
				fmt.Fprintf(&b, "%s=%s\n", d.Name, v)
			}
		}
	}
	return b.String()
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// escapeSpecifiers keeps a plain value as it is: "%" starts a specifier in unit files (systemd.unit(5)), and control
// characters would end the assignment, as a backslash at the end would let it go on; a blank after that is taken away again.
func escapeSpecifiers(s string) string {
	s = strings.ReplaceAll(oneLine(s), "%", "%%")
	if strings.HasSuffix(s, `\`) {
		s += " "
	}
	return s
}

// quoteWord writes one word of a list so that systemd.syntax(7) reads it back unchanged.
func quoteWord(w string) string {
	plain := w != "" && strings.IndexFunc(w, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@,~", r))
	}) < 0
	if plain {
		return w
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(w) {
		switch c := w[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '%':
			b.WriteString("%%")
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func joinWords(w []string) string {
	quoted := make([]string, len(w))
	for i := range w {
		quoted[i] = quoteWord(w[i])
	}
	return strings.Join(quoted, " ")
}
