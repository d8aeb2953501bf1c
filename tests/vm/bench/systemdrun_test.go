package main

import (
	"math"
	"slices"
	"strings"
	"testing"
)

const dryRun = `# a note

# nspawnd-bench.service
[Unit]
Description=bench: image
Requires=nspawnd-bench-root.service
[Service]
Type=exec
ExecStart=:/bin/tiny true
Environment="A=50%% of it"
RootDirectory=/run/nspawnd/bench.1
BindPaths=/run/nspawnd/bench.1/run:/run:norbind

# nspawnd-bench-root.service
[Unit]
StopWhenUnneeded=yes
[Service]
Type=oneshot
`

func TestInvocation(t *testing.T) {
	i, err := parseService(dryRun)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(i.inRoot("/tree").without("Type").line("--unit=x"), "\n")
	want := strings.Join([]string{"systemd-run", "--wait", "--pipe", "--collect", "--quiet", "--expand-environment=no", "--unit=x",
		`--property=Environment="A=50% of it"`, "--property=RootDirectory=/tree", "--property=BindPaths=/tree/run:/run:norbind",
		"--", "/bin/tiny", "true"}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(i.properties) != 4 || i.properties[2].value != "/run/nspawnd/bench.1" {
		t.Errorf("changed by its variants: %v", i.properties)
	}
	if _, err := parseService("# nothing\n"); err == nil {
		t.Error("no service, and no error")
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values      []float64
		share, want float64
	}{
		{[]float64{3}, 0.5, 3},
		{[]float64{4, 2}, 0.5, 3},
		{[]float64{5, 1, 3}, 0.5, 3},
		{[]float64{5, 1, 3, 2, 4}, 0.25, 2},
		{[]float64{5, 1, 3}, 1, 5},
	} {
		given := slices.Clone(c.values)
		if got := quantile(c.values, c.share); got != c.want {
			t.Errorf("quantile(%v, %v) is %v, not %v", c.values, c.share, got, c.want)
		}
		if !slices.Equal(given, c.values) {
			t.Errorf("quantile sorted its argument: %v", c.values)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("no values have a median")
	}
}
