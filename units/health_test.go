package units

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMergeHealth(t *testing.T) {
	image := Config{Healthcheck: json.RawMessage(`{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Timeout":0,"Retries":7,"StartPeriod":1000000000}`)}
	probe := []string{"/bin/sh", "-c", "curl x"}
	for _, c := range []struct {
		name    string
		config  Config
		options HealthOptions
		want    *Health // nil: refused
	}{
		{"none", Config{}, HealthOptions{}, &Health{}},
		{"the image's", image, HealthOptions{}, &Health{probe, 5 * time.Second, 30 * time.Second, time.Second, 7, "", false}},
		{"turned off", image, HealthOptions{Disable: true}, &Health{}},
		{"none", image, HealthOptions{Command: pointer("none")}, &Health{}},
		{"other spans", image, HealthOptions{Timeout: pointer(time.Second), Retries: pointer(1), OnFailure: "kill"}, &Health{probe, 5 * time.Second, time.Second, time.Second, 1, "kill", false}},
		{"another command", image, HealthOptions{Command: pointer("true")}, &Health{[]string{"/bin/sh", "-c", "true"}, 30 * time.Second, 30 * time.Second, 0, 3, "", false}},
		{"words", Config{}, HealthOptions{Command: pointer(`["a","b"]`)}, &Health{[]string{"a", "b"}, 30 * time.Second, 30 * time.Second, 0, 3, "", false}},
		{"words with a kind", Config{Shell: []string{"zsh"}}, HealthOptions{Command: pointer(`["CMD-SHELL","b"]`)}, &Health{[]string{"zsh", "b"}, 30 * time.Second, 30 * time.Second, 0, 3, "", false}},
		{"an image without", Config{Healthcheck: json.RawMessage(`{"Test":["NONE"]}`)}, HealthOptions{}, &Health{}},
		{"an image that inherits", Config{Healthcheck: json.RawMessage(`{"Interval":5}`)}, HealthOptions{}, &Health{}},
		{"nothing to run", Config{}, HealthOptions{Retries: pointer(1)}, nil},
		{"healthy when ready", image, HealthOptions{Ready: true}, &Health{probe, 5 * time.Second, 30 * time.Second, time.Second, 7, "", true}},
		{"never healthy", Config{}, HealthOptions{Ready: true}, nil},
		{"nothing to act on", Config{}, HealthOptions{OnFailure: "kill"}, nil},
		{"not JSON", Config{Healthcheck: json.RawMessage(`[]`)}, HealthOptions{}, nil},
		{"another kind", Config{Healthcheck: json.RawMessage(`{"Test":["HTTP","x"]}`)}, HealthOptions{}, nil},
		{"no command", Config{}, HealthOptions{Command: pointer(`["CMD"]`)}, nil},
		{"NUL", Config{Healthcheck: json.RawMessage(`{"Test":["CMD","a\u0000"]}`)}, HealthOptions{}, nil},
		{"no retries", image, HealthOptions{Retries: pointer(0)}, nil},
		{"no time", image, HealthOptions{Interval: pointer(time.Duration(0))}, nil},
	} {
		got, err := MergeHealth(c.config, c.options)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		} else if c.want != nil {
			if diff := cmp.Diff(*c.want, got); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
	}
}

func TestJoinable(t *testing.T) {
	for name, c := range map[string]struct {
		filters []Filter
		refuse  string
	}{
		"no filter":            {nil, ""},
		"both allowed":         {[]Filter{{true, []string{"read", "setns", "unshare"}}}, ""},
		"one refused":          {[]Filter{{true, []string{"read", "unshare"}}, {false, []string{"setns:EPERM"}}}, "setns"},
		"allowed, then not":    {[]Filter{{true, []string{"setns", "unshare"}}, {false, []string{"unshare:EPERM"}}}, "unshare"},
		"refused, then not":    {[]Filter{{true, []string{"read"}}, {false, []string{"setns"}}, {true, []string{"setns", "unshare"}}}, ""},
		"neither named":        {[]Filter{{true, []string{"read"}}}, "setns unshare"},
		"a list that refuses":  {[]Filter{{false, []string{"mount"}}}, ""},
		"a group that refuses": {[]Filter{{false, []string{"@process"}}}, "setns unshare"},
		"a group that allows":  {[]Filter{{true, []string{"@process"}}}, "setns unshare"},
	} {
		u := Unit{}
		if c.filters != nil {
			u.set("SystemCallFilter", c.filters)
		}
		if got := strings.Join(joinable(&u), " "); got != c.refuse {
			t.Errorf("%s: %q, want %q", name, got, c.refuse)
		}
	}
}

func TestHealthStatus(t *testing.T) {
	got := ParseHealthStatus("LEADER=1.2\nSTATE=unhealthy\nSTREAK=3\nTIME=1700000000\nRESULT=failed\nOUTPUT=\"a\\nSTATE=healthy\\x1b\"\n")
	if diff := cmp.Diff(HealthStatus{"unhealthy", 3, time.Unix(1700000000, 0), "failed", "a\nSTATE=healthy\x1b"}, got); diff != "" {
		t.Error(diff)
	}
}
