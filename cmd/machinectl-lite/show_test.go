package main

import "testing"

// What another system's machined tells is a stranger's text, names too.
func TestPropertiesOfStrangers(t *testing.T) {
	f := propertyFlags{}
	if got := f.format([]property{{"\x1b[31mName", "\x1b[0mvalue"}}); got != `\x1b[31mName=\x1b[0mvalue`+"\n" {
		t.Errorf("%q", got)
	}
}
