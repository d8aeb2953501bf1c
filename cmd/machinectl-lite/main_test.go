package main

import (
	"slices"
	"strings"
	"testing"
)

func TestVerbFirst(t *testing.T) {
	root := newRootCommand()
	for typed, want := range map[string]string{
		"list -a":                        "list -a",
		"--read-only clone a b":          "clone --read-only a b",
		"-s KILL kill web":               "kill -s KILL web",
		"-sKILL kill web":                "kill -sKILL web",
		"--signal=KILL -a kill web":      "kill --signal=KILL -a web",
		"-al --value -p Name show stop":  "show -al --value -p Name stop",
		"-M list list":                   "list -M list",
		"--force --verify no pull-tar x": "pull-tar --force --verify no x",
		"-qP --format gzip export-raw x": "export-raw -qP --format gzip x", // -P takes no value here
		"-P Name show-image x":           "show-image -P Name x",
		"-qMx -mN pull-raw list":         "pull-raw -qMx -mN list",
		"--help list":                    "list --help",
		"--nosuch list":                  "--nosuch list",
		"- list":                         "- list",
		"-- list":                        "-- list",
		"nosuch list":                    "nosuch list",
		"exec web list -a":               "exec web list -a",
		"--help":                         "--help",
		"":                               "",
		"-n":                             "-n",
	} {
		if got := verbFirst(root, strings.Fields(typed)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %s", typed, got, want)
		}
	}
}
