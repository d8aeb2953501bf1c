package tty

import (
	"testing"
	"time"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		keys  string
		typed []string
		pass  string
		found bool
	}{
		{"ctrl-p,ctrl-q", []string{"ab\x10\x11c"}, "ab", true},
		{"ctrl-p,ctrl-q", []string{"a", "\x10", "\x11"}, "a", true},
		{"ctrl-p,ctrl-q", []string{"\x10", "\x10", "\x11"}, "\x10", true},
		{"ctrl-p,ctrl-q", []string{"\x10", "x"}, "\x10x", false},
		{"ctrl-p,ctrl-q", []string{"\x10"}, "", false},
		{"a,a,b", []string{"a", "a", "a", "b"}, "a", true},
		{"", []string{"\x10\x11"}, "\x10\x11", false},
	} {
		keys, err := ParseKeys(c.keys)
		if err != nil {
			t.Fatal(err)
		}
		scanner, pass, found := Keys{Sequence: keys}, "", false
		for _, typed := range c.typed {
			var some []byte
			some, found = scanner.Scan([]byte(typed))
			pass += string(some)
		}
		if pass != c.pass || found != c.found {
			t.Errorf("%s, %q: passed %q, found %t", c.keys, c.typed, pass, found)
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-1", "ab", ",", "ctrl-ö", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"} {
		if keys, err := ParseKeys(bad); err == nil {
			t.Errorf("%q: %v", bad, keys)
		}
	}
}

func TestEscape(t *testing.T) {
	type typed struct {
		what string
		at   time.Duration
	}
	for _, c := range []struct {
		typed []typed
		pass  string
		found bool
	}{
		{[]typed{{"ab\x1d\x1d\x1dc", 0}}, "ab\x1d\x1d", true},
		{[]typed{{"\x1d", 0}, {"\x1d", 900 * time.Millisecond}, {"\x1dx", time.Second}}, "\x1d\x1d", true},
		{[]typed{{"\x1d", 0}, {"\x1d", 900 * time.Millisecond}, {"\x1d", 1100 * time.Millisecond}}, "\x1d\x1d\x1d", false},
		{[]typed{{"\x1d\x1da\x1d", 0}}, "\x1d\x1da\x1d", false},
		{[]typed{{"\x1d", 0}, {"\x1d", 2 * time.Second}, {"\x1d", 2 * time.Second}, {"\x1d", 2 * time.Second}}, "\x1d\x1d\x1d", true},
	} {
		e, pass, found := Escape{}, "", false
		for _, typed := range c.typed {
			var some []byte
			some, found = e.scan([]byte(typed.what), time.Unix(0, 0).Add(typed.at))
			pass += string(some)
		}
		if pass != c.pass || found != c.found {
			t.Errorf("%+v: passed %q, found %t", c.typed, pass, found)
		}
	}
}
