package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"nspawnd/tests/vm"
)

// lab is a booted lab with the runner in it.
type lab struct {
	*vm.Machine
	options
}

const runnerPath = "/usr/local/lib/" + runnerName

func (l *lab) installRunner() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	l.Copy(self, runnerPath)
	return nil
}

// script runs a shell script in the lab that has to succeed within a time.
func (l *lab) script(limit time.Duration, script string) (string, error) {
	r := l.Run("timeout", "--kill-after=5", strconv.Itoa(int(limit.Seconds())), "bash", "-euc", script)
	if r.Status != 0 {
		return "", fmt.Errorf("%s\nstatus %d\n%s%s", script, r.Status, r.Stdout, r.Stderr)
	}
	return r.Stdout, nil
}

// warmUps is how often each command runs before what is measured: what it reads comes from the page cache then.
const warmUps = 3

// measure gives the wall times in milliseconds of commands that run by turns.
func (l *lab) measure(commands []command, runs int) (results, error) {
	return l.runner(plan{Commands: commands, WarmUps: warmUps, Runs: runs})
}

// timelines gives what happened when during runs of commands that start a unit each, by turns.
func (l *lab) timelines(commands []command, runs int) (map[string][]timeline, error) {
	r, err := l.runner(plan{Commands: commands, WarmUps: warmUps, Runs: runs, Timelines: true})
	return r.Timelines, err
}

func (l *lab) runner(p plan) (results, error) {
	input, err := json.Marshal(p)
	if err != nil {
		return results{}, err
	}
	// The runner itself ends a single command that hangs; this is for the rest.
	all := time.Minute + time.Duration(p.Runs+p.WarmUps)*time.Duration(len(p.Commands))*limit
	cmd := l.Command("timeout", "--kill-after=5", strconv.Itoa(int(all.Seconds())), runnerPath)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return results{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var r results
	return r, json.Unmarshal(stdout.Bytes(), &r)
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile gives the value below which a share of the values lies, between two values in proportion.
func quantile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return math.NaN()
	}
	below, between := math.Modf(share * float64(len(sorted)-1))
	low := sorted[int(below)]
	high := sorted[min(int(below)+1, len(sorted)-1)]
	return low + between*(high-low)
}

// round leaves two decimals: more would claim to be a measurement.
func round(x float64) float64 { return math.Round(x*100) / 100 }
