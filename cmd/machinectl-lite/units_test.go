package main

import (
	"testing"

	"nspawnd/units"
)

func TestUnitMachine(t *testing.T) {
	for unit, want := range map[string]string{
		"nspawnd-web.service":            "web",
		`nspawnd-my\x2dapp.service`:      "my-app",
		`nspawnd-a\x2droot.service`:      "a-root",
		"nspawnd-root.service":           "root",
		"nspawnd-web-root.service":       "",
		`nspawnd-my\x2dapp-root.service`: "",
		"nspawnd-web.socket":             "",
		"nginx.service":                  "",
		"nspawnd-.service":               "",
	} {
		got := unitMachine(unit)
		if got != want {
			t.Errorf("%s: got %q, want %q", unit, got, want)
		}
		if got != "" && units.ServiceName(got) != unit {
			t.Errorf("%s: its machine's unit is %s", unit, units.ServiceName(got))
		}
	}
}
