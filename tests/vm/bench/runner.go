package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runnerName is what this program is called in the lab, where it runs a plan from its standard input and writes results to its standard output.
const runnerName = "nspawnd-bench-runner"

// plan is what the runner is to do.
type plan struct {
	Commands      []command
	WarmUps, Runs int
	Timelines     bool // instead of wall times; each command names its units
}

type command struct {
	Name  string
	Argv  []string // numberMark stands for a number that no other run has
	Shown string   // how to show it, where Argv is too long
	Units []string // that it starts, for a timeline: first the main one; with numberMark
	// Before is what has to run before each run, outside the measurement.
	Before []string
}

const numberMark = "@N@"

type results struct {
	Milliseconds map[string][]float64 // by the command's name
	PeakMiB      map[string]float64   // memory of the largest of its processes, in its largest run
	Timelines    map[string][]timeline
	Failures     map[string][]string // what was left out: at most one run, and a tenth
}

const (
	// limit is for one run. The slowest peer of a start takes half a second on an idle machine, that of a pull ten.
	limit = time.Minute
	// settle is how long nothing of a run may be there any more before the next one.
	settle = 100 * time.Millisecond
)

func runPlan(input io.Reader, output io.Writer) error {
	var p plan
	if err := json.NewDecoder(input).Decode(&p); err != nil {
		return err
	}
	debug.SetGCPercent(-1) // nothing of ours between two clock readings
	r, err := p.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(output).Encode(r)
}

func (p plan) run() (results, error) {
	r := results{map[string][]float64{}, map[string]float64{}, map[string][]timeline{}, map[string][]string{}}
	measured := func(c command, number int) error {
		took, peakMiB, err := c.run(number)
		if err == nil && number >= p.WarmUps {
			r.Milliseconds[c.Name] = append(r.Milliseconds[c.Name], float64(took)/float64(time.Millisecond))
			r.PeakMiB[c.Name] = max(r.PeakMiB[c.Name], peakMiB)
		}
		return err
	}
	if p.Timelines {
		f, err := newFollower()
		if err != nil {
			return r, err
		}
		defer f.bus.Close()
		measured = func(c command, number int) error {
			t, complete, err := f.run(c, number)
			if complete && number >= p.WarmUps {
				r.Timelines[c.Name] = append(r.Timelines[c.Name], t)
			}
			return err
		}
	}
	for round := range p.WarmUps + p.Runs {
		// Each round in another order: a command that always ran after podman would pay for what podman leaves behind.
		for _, i := range rand.Perm(len(p.Commands)) {
			c := p.Commands[i]
			if len(c.Before) > 0 {
				if out, err := exec.Command(c.Before[0], c.Before[1:]...).CombinedOutput(); err != nil {
					return r, fmt.Errorf("before %s: %w: %s", c.Name, err, bytes.TrimSpace(out))
				}
			}
			if err := measured(c, round); err != nil {
				r.Failures[c.Name] = append(r.Failures[c.Name], err.Error())
			}
			if failed := r.Failures[c.Name]; 10*len(failed) > p.Runs+10 {
				return r, fmt.Errorf("%s fails too often: %s", c.Name, failed[0])
			}
			if err := quiet(); err != nil {
				return r, fmt.Errorf("after %s: %w", c.Name, err)
			}
		}
	}
	return r, nil
}

// run runs it once and gives how long that took, from before the fork until its status was there, and how much memory. A run that doesn't
// succeed is no measurement.
func (c command) run(number int) (took time.Duration, peakMiB float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	argv := numbered(c.Argv, number)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Files: a pipe would make exec copy, and wait until nobody has its other end.
	complaints, err := os.CreateTemp("", runnerName)
	if err != nil {
		return 0, 0, err
	}
	defer complaints.Close()
	defer os.Remove(complaints.Name())
	cmd.Stderr = complaints
	started := time.Now()
	err = cmd.Run()
	took = time.Since(started)
	if err != nil {
		said, _ := os.ReadFile(complaints.Name())
		return 0, 0, fmt.Errorf("%s, after %s: %w: %s", c.Name, took.Round(time.Millisecond), err, bytes.TrimSpace(said))
	}
	return took, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024, nil
}

// quiet waits until the control groups of all that was run are gone, and stay away: a command has its answer before its unit, its companion or podman's
// conmon have cleaned up one after the other, and the next command must not be slowed down by that. There is no event to wait for that would not itself be
// load on the manager.
func quiet() error {
	var left []string
	since := time.Now()
	for end := since.Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left = nil
		for _, pattern := range []string{"machine.slice/*.service", "machine.slice/*.scope", "system.slice/run-*.service"} {
			found, err := filepath.Glob("/sys/fs/cgroup/" + pattern)
			if err != nil {
				return err
			}
			left = append(left, slices.DeleteFunc(found, func(group string) bool { return strings.HasPrefix(filepath.Base(group), "nspawnd-"+manyPrefix) })...)
		}
		if len(left) > 0 {
			since = time.Now()
		} else if time.Since(since) >= settle {
			return nil
		}
	}
	return fmt.Errorf("still there: %s", strings.Join(left, " "))
}

func numbered(texts []string, number int) []string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = strings.ReplaceAll(text, numberMark, strconv.Itoa(number))
	}
	return out
}
