package main

import (
	"os"
	"slices"
	"testing"
)

func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { value, ok := variables[name]; return value, ok }
}

func TestTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, test := range []struct {
		env         map[string]string
		color, utf8 bool
		columns     int
	}{
		{nil, false, true, 80},
		{map[string]string{"SYSTEMD_COLORS": "1"}, true, true, 80},
		{map[string]string{"SYSTEMD_COLORS": "256"}, true, true, 80},
		{map[string]string{"LANG": "C"}, false, false, 80},
		{map[string]string{"LANG": "C", "LC_ALL": "de_DE.utf8"}, false, true, 80},
		{map[string]string{"LANG": "C", "SYSTEMD_UTF8": "yes"}, false, true, 80},
		{map[string]string{"COLUMNS": "132"}, false, true, 132},
		{map[string]string{"COLUMNS": "-1"}, false, true, 80},
	} {
		got := newTerminal(environment(test.env), null)
		if want := (terminal{false, test.color, test.utf8, test.columns}); got != want {
			t.Errorf("%v: got %+v, want %+v", test.env, got, want)
		}
	}
}

func TestPagerCommand(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		want []string
	}{
		{nil, []string{"less"}},
		{map[string]string{"PAGER": "cat"}, nil},
		{map[string]string{"SYSTEMD_PAGER": "", "PAGER": "more"}, nil},
		{map[string]string{"PAGER": "vim -"}, []string{"less"}},
		{map[string]string{"PAGER": "vim -", "SYSTEMD_PAGERSECURE": "0"}, []string{"vim", "-"}},
	} {
		if got := pagerCommand(environment(test.env)); !slices.Equal(got, test.want) {
			t.Errorf("%v: got %q, want %q", test.env, got, test.want)
		}
	}
}
