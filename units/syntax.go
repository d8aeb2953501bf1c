package units

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// blanks separate words (systemd.syntax(7)).
const blanks = " \t\n\r"

func isBlank(r rune) bool { return strings.ContainsRune(blanks, r) }

// syntax is one of the ways in which systemd splits text into words.
type syntax struct {
	separators  string
	quotes      bool // single and double quotes hold a word together
	cEscapes    bool // a backslash starts one of C's escapes, or stands before a separator; else it makes any character plain
	keepEscapes bool // a backslash is a character like any other
	everyField  bool // two separators have an empty word between them
}

// split gives all words.
func (x syntax) split(s string) ([]string, error) {
	words := []string{}
	if !x.everyField {
		s = strings.TrimLeft(s, x.separators)
	}
	for more := s != ""; more; {
		word, rest, separator, err := x.next(s)
		if err != nil {
			return nil, err
		}
		words = append(words, word)
		s, more = rest, separator != 0
	}
	return words, nil
}

// next gives the first word, what comes after it, and the separator between the two, 0 at the end.
func (x syntax) next(s string) (word, rest string, separator byte, err error) {
	if !x.everyField {
		s = strings.TrimLeft(s, x.separators)
	}
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && !x.keepEscapes:
			i++
			switch {
			case i == len(s):
				return "", "", 0, fmt.Errorf("%.60q: nothing follows the backslash", s)
			case !x.cEscapes, strings.IndexByte(x.separators, s[i]) >= 0:
				b.WriteByte(s[i])
			default:
				char, n, err := unescapeOne(s[i:])
				if err != nil || char == "\x00" {
					return "", "", 0, fmt.Errorf("%.60q: %q is not an escape", s, `\`+s[i:i+1])
				}
				b.WriteString(char)
				i += n - 1
			}
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && x.quotes && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && strings.IndexByte(x.separators, c) >= 0:
			rest = s[i+1:]
			if !x.everyField {
				if rest = strings.TrimLeft(rest, x.separators); rest == "" {
					c = 0
				}
			}
			return b.String(), rest, c, nil
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", 0, fmt.Errorf("%.60q: a quote is not closed", s)
	}
	return b.String(), "", 0, nil
}

// splitWords reads a list of words; splitCWords knows C's escapes in them.
func splitWords(s string) ([]string, error) { return syntax{separators: blanks, quotes: true}.split(s) }
func splitCWords(s string) ([]string, error) {
	return syntax{separators: blanks, quotes: true, cEscapes: true}.split(s)
}

// unescapeOne reads an escape of C after its backslash: the text that it stands for and its length.
func unescapeOne(s string) (text string, length int, err error) {
	if s == "" {
		return "", 0, strconv.ErrSyntax
	}
	if i := strings.IndexByte(`abfnrtv\"'s`, s[0]); i >= 0 {
		return "\a\b\f\n\r\t\v\\\"' "[i : i+1], 1, nil
	}
	digits, base, start := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[0]], 16, 1
	if digits == 0 {
		digits, base, start = 3, 8, 0
	}
	if len(s) < start+digits {
		return "", 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(s[start:start+digits], base, 32)
	switch {
	case err != nil:
		return "", 0, err
	case digits <= 3 && n < 256:
		return string([]byte{byte(n)}), start + digits, nil
	case digits <= 3 || !utf8.ValidRune(rune(n)):
		return "", 0, strconv.ErrRange
	}
	return string(rune(n)), start + digits, nil
}

// unescape reads a text with escapes of C.
func unescape(s string, nul bool) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		text, n, err := unescapeOne(after)
		if err != nil || text == "\x00" && !nul {
			return "", fmt.Errorf("%.20q is not an escape", `\`+after)
		}
		b.WriteString(text)
		s = after[n:]
	}
}

// cEscape writes a text so that unescape reads it back, on one line and without blanks at its ends.
func cEscape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b.WriteString(`\\`)
		case c < ' ' || c >= 0x7f || c == ' ' && (i == 0 || i == len(s)-1):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// partOf writes a part of a value whose parts are separated by colons and read with C's escapes.
func partOf(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%':
			b.WriteString("%%")
		case c <= ' ' || c >= 0x7f || strings.IndexByte(`\:"'`, c) >= 0:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
