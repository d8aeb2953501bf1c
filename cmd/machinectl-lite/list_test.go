package main

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nspawnd/cmd/internal/printable"
	"nspawnd/machined"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestMergeMachines(t *testing.T) {
	registered := []machined.Summary{{Name: "web", Class: "container", Service: "nspawnd"}, {Name: ".host", Class: "host"}, {Name: "a", Class: "vm"}}
	for _, test := range []struct {
		hidden bool
		want   string
	}{
		{false, "a(vm ) db(container nspawnd) web(container nspawnd)"},
		{true, ".host(host ) a(vm ) db(container nspawnd) web(container nspawnd)"},
	} {
		var got []string
		for _, m := range mergeMachines(registered, []string{"web", "db"}, test.hidden) {
			got = append(got, m.Name+"("+m.Class+" "+m.Service+")")
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("hidden %v: got %s, want %s", test.hidden, got, test.want)
		}
	}
}

func TestMachineTable(t *testing.T) {
	addresses := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1")}
	machines := []machine{
		{Summary: machined.Summary{Name: "a", Class: "container", Service: "systemd-nspawn"}, os: "debian", version: "13", addresses: addresses},
		{Summary: machined.Summary{Name: "db", Class: "container", Service: "nspawnd"}},
		{Summary: machined.Summary{Name: "hostile", Class: "container", Service: "x"}, os: "\x1b[31mred\n\u202e\x9b", version: "1\t2"},
	}
	plain := terminal{utf8: true, columns: 80}
	for name, test := range map[string]struct {
		out       output
		addresses int
		full      bool
		header    bool
	}{
		"list":          {output{terminal: plain, wide: true}, 1, false, true},
		"list-nolegend": {output{terminal: plain, wide: true}, 1, false, false},
		"list-ascii":    {output{terminal: terminal{columns: 80}, wide: true}, 1, false, true},
		"list-noaddr":   {output{terminal: plain, wide: true}, 0, false, true},
		"list-all":      {output{terminal: plain, wide: true}, allAddresses, false, true},
		"list-full":     {output{terminal: terminal{utf8: true, columns: 20}}, 1, true, true},
		"list-narrow":   {output{terminal: terminal{utf8: true, columns: 40}}, 1, false, true},
		"list-colour":   {output{terminal: terminal{utf8: true, color: true, columns: 120}}, 1, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			test.out.Writer = &b
			if err := machineTable(machines, test.addresses, test.full).print(&test.out, test.header, test.full); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
		})
	}
	for name, layout := range map[string]string{"list-json": "short", "list-json-pretty": "pretty", "list-json-seq": "seq", "list-json-sse": "sse"} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := machineTable(machines, 1, false).printJSON(&output{Writer: &b}, layout); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
		})
	}
}

func TestFit(t *testing.T) {
	for _, test := range []struct {
		wanted  []int
		columns int
		want    []int
	}{
		{[]int{5, 5}, 80, []int{5, 5}},
		{[]int{5, 100}, 20, []int{5, 14}},
		{[]int{100, 100, 3}, 20, []int{7, 8, 3}},
		{[]int{10, 10}, 1, []int{1, 1}},
	} {
		if diff := cmp.Diff(test.want, fit(test.wanted, test.columns)); diff != "" {
			t.Errorf("%v in %d: %s", test.wanted, test.columns, diff)
		}
	}
}

func TestJSONText(t *testing.T) {
	for _, s := range []string{"", "plain", `"\`, "\x1b\x00\n", "\u009b\u202e\u2028", "\U000e0001", "Größe 日本 😀"} {
		got := jsonText(s)
		var back string
		if err := json.Unmarshal([]byte(`"`+got+`"`), &back); err != nil || back != s {
			t.Errorf("%q became %s, which reads as %q (%v)", s, got, back, err)
		}
		if printable.Line(got) != got {
			t.Errorf("%q became %q, which is not printable", s, got)
		}
	}
}
