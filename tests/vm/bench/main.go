// Command bench compares nspawnd with what people would use otherwise, in labs of its own: it measures medians of interleaved runs, prints them as a
// table with notes on how to read it, and writes them to a file. It needs root and the commands that make build makes.
//
// Usage: bench [-only start|scale|pull|clean|list] [-suite trixie|forky|all] [-n 30] [-properties] [-o build/bench.json]
//
// The way of a bench: its prepare function sets a fresh lab up and says which command lines compete; a copy of this program runs them inside the lab
// (runner.go), so that entering the lab is no part of a measurement; the contest's report adds what the numbers alone don't say.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"nspawnd/tests/vm"
)

// bench is one question, asked in a fresh lab of each suite.
type bench struct {
	name    string
	prepare func(*lab) (contest, error)
}

// contest is our command line and the peers' that do the same.
type contest struct {
	ours   command
	peers  []peer
	notes  []string              // on how fair it is
	memory bool                  // that the peak memory is of interest
	runs   int                   // 0: as many as the user asks for
	report func(io.Writer) error // nil: nothing to add

	baseline float64 // milliseconds that ours took under better conditions, which is a row of its own; 0: none
}

type peer struct {
	command
	target float64 // the ratio that ours is meant to stay below; 0: none
}

var benches = []bench{
	{"warm-start", warmStart},
	{"scale", scale},
	{"cold-pull", coldPull},
	{"clean", clean},
	{"list", list},
}

// options are the command line's.
type options struct {
	runs       int
	properties bool
}

// row is one comparison, as it is in the file.
type row struct {
	Bench  string  `json:"bench"`
	Suite  string  `json:"suite"`
	Ours   float64 `json:"ours_ms"`
	Peer   string  `json:"peer"`
	PeerMS float64 `json:"peer_ms"`
	Ratio  float64 `json:"ratio"` // ours to the peer's
	N      int     `json:"n"`
	target float64
}

func main() {
	if filepath.Base(os.Args[0]) == runnerName {
		if err := runPlan(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	only := flag.String("only", "", "only benches whose names contain `TEXT`")
	suite := flag.String("suite", "all", "`trixie|forky|all`")
	out := flag.String("o", filepath.Join(vm.BuildDir(), "bench.json"), "`FILE` to write the results to")
	flag.IntVar(&o.runs, "n", 30, "measured runs of each command")
	flag.BoolVar(&o.properties, "properties", false, "also measure what the unit's directives cost, one by one")
	flag.Parse()
	if err := run(*only, *suite, *out, o); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(only, suite, out string, o options) error {
	if flag.NArg() > 0 || o.runs < 1 {
		return errors.New("bench takes options only, and at least one run; see bench -help")
	}
	suites := vm.AllSuites
	if suite != "all" {
		suites = []vm.Suite{vm.Suite(suite)}
	}
	for _, s := range suites {
		if !slices.Contains(vm.AllSuites, s) {
			return fmt.Errorf("%s is not a suite; see bench -help", s)
		}
	}
	rows := []row{}
	var remarks strings.Builder
	for _, b := range benches {
		if !strings.Contains(b.name, only) {
			continue
		}
		for _, s := range suites {
			measured, err := measure(b, s, o, &remarks)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", b.name, s, err)
			}
			rows = append(rows, measured...)
		}
	}
	if len(rows) == 0 {
		return fmt.Errorf("no bench's name contains %q", only)
	}
	printTable(os.Stdout, rows)
	fmt.Print(remarks.String())
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, append(data, '\n'), 0o644)
}

// measure asks one question in a new lab.
func measure(b bench, suite vm.Suite, o options, remarks io.Writer) (rows []row, err error) {
	m, err := vm.Start(suite, vm.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Stop()) }()
	// What a test would be failed by is a panic without one.
	defer func() {
		switch failure := recover().(type) {
		case nil:
		case error:
			err = failure
		default:
			panic(failure)
		}
	}()
	l := &lab{m, o}
	if err := l.installRunner(); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "bench: %s on %s\n", b.name, suite)
	c, err := b.prepare(l)
	if err != nil {
		return nil, err
	}
	commands := []command{c.ours}
	for _, p := range c.peers {
		commands = append(commands, p.command)
	}
	runs := o.runs
	if c.runs > 0 {
		runs = min(runs, c.runs)
	}
	r, err := l.measure(commands, runs)
	if err != nil {
		return nil, err
	}
	times := r.Milliseconds
	ours := median(times[c.ours.Name])
	for _, p := range c.peers {
		theirs := median(times[p.Name])
		n := min(len(times[c.ours.Name]), len(times[p.Name]))
		rows = append(rows, row{b.name, string(suite), round(ours), p.Name, round(theirs), round(ours / theirs), n, p.target})
	}
	if c.baseline > 0 {
		rows = append(rows, row{b.name, string(suite), round(ours), "itself, alone", round(c.baseline), round(ours / c.baseline), runs, 1.5})
	}
	fmt.Fprintf(remarks, "\n%s on %s\n", b.name, suite)
	fmt.Fprintf(remarks, "  %-18s %-21s %s\n", "", "middle half of runs", "command")
	for _, command := range commands {
		t := times[command.Name]
		peak := ""
		if c.memory {
			peak = fmt.Sprintf("%4.0f MiB ", r.PeakMiB[command.Name])
		}
		fmt.Fprintf(remarks, "  %-18s %6.1f to %6.1f ms   %s%s\n", command.Name, quantile(t, 0.25), quantile(t, 0.75), peak,
			cmp.Or(command.Shown, strings.Join(command.Argv, " ")))
	}
	for _, command := range commands {
		if failed := r.Failures[command.Name]; len(failed) > 0 {
			fmt.Fprintf(remarks, "  FAILED and left out: %d of %d runs: %s\n", len(failed), runs+warmUps, failed[0])
		}
	}
	for _, note := range c.notes {
		fmt.Fprintf(remarks, "  note: %s\n", note)
	}
	if c.report == nil {
		return rows, nil
	}
	return rows, c.report(remarks)
}

func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BENCH\tSUITE\tOURS\tPEER\tPEER'S\tRATIO\tTARGET\tN")
	for _, r := range rows {
		target := "-"
		if r.target > 0 {
			target = fmt.Sprintf("≤ %.2f", r.target)
			if r.Ratio > r.target {
				target += " missed"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f ms\t%s\t%.1f ms\t%.2f\t%s\t%d\n", r.Bench, r.Suite, r.Ours, r.Peer, r.PeerMS, r.Ratio, target, r.N)
	}
	t.Flush()
}
