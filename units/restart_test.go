package units

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRestart(t *testing.T) {
	for s, want := range map[string]*Restart{
		"no": {}, "never": {}, "always": {Policy: RestartAlways}, "unless-stopped": {Policy: RestartAlways},
		"on-failure": {Policy: RestartOnFailure}, "on-failure:3": {RestartOnFailure, 3}, "on-failure:0": {Policy: RestartOnFailure},
		"": nil, "on-failure:": nil, "on-failure:-1": nil, "on-failure:x": nil, "always:3": nil, "on-success": nil, "on-failure:99999999999": nil,
	} {
		got, err := ParseRestart(s)
		if (err == nil) != (want != nil) || want != nil && got != *want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}

func TestLabels(t *testing.T) {
	labels, err := ParseLabelFile("# comment\n\n a=1\nb\n b = x=y \n")
	if diff := cmp.Diff([]string{"a=1", "b=", "b= x=y"}, labels); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, bad := range []string{"", "=x", " =x", "a\x00"} {
		if got, err := ParseLabel(bad); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
	u := Unit{}
	u.set("LogExtraFields", []string{"NSPAWND_IMAGE=x"})
	if err := (Labels{labels, []string{"note=1"}}).set(&u); err != nil {
		t.Fatal(err)
	}
	got := LabelsOf(u.Properties()[0].Value.([][]byte))
	if diff := cmp.Diff(Labels{[]string{"a=1", "b= x=y"}, []string{"note=1"}}, got); diff != "" {
		t.Error(diff)
	}
	if err := (Labels{Labels: []string{"a=" + strings.Repeat("x", maxLabels)}}).set(&u); err == nil {
		t.Error("more labels than a log line should have")
	}
}
