package vm

import (
	"errors"
	"os"
	"testing"
)

// Lab boots a lab for a test and removes it when the test is done.
func Lab(t testing.TB, suite Suite) *Machine {
	t.Helper()
	return lab(t, suite, Options{})
}

func lab(t testing.TB, suite Suite, o Options) *Machine {
	t.Helper()
	m, err := Start(suite, o)
	if errors.Is(err, errNotRoot) {
		t.Skip(err)
	} else if err != nil {
		t.Fatalf("%s: %v", suite, err)
	}
	m.t = t
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	})
	if state, failed := m.State(); state != "running" {
		for _, unit := range failed {
			t.Log(m.Run("systemctl", "status", "--no-pager", "--full", unit).Stdout)
		}
		t.Fatalf("%s: booted to %s, failed units: %v", suite, state, failed)
	}
	return m
}

// Suites runs a test for each suite, in a fresh lab, or for the one that $SUITE names.
func Suites(t *testing.T, f func(t *testing.T, m *Machine)) {
	for _, suite := range AllSuites {
		if only := os.Getenv("SUITE"); only != "" && only != string(suite) {
			continue
		}
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			f(t, Lab(t, suite))
		})
	}
}
