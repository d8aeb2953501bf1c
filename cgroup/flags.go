// Package cgroup turns the resource limits that people type (podman's and docker's spelling) into directives of a
// unit. It starts nothing and owns no cgroup: the unit's manager does.
//
// The data's way: what was typed for each flag (Typed) becomes directives in systemd's own words (Setting), which package units reads as it
// reads --property. One table has a row for each flag.
package cgroup

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Infinity is systemd's "no limit" in every directive of this package (systemd.resource-control(5)).
const Infinity = math.MaxUint64

// Setting is a directive and its value, as in a unit file.
type Setting struct{ Directive, Value string }

// Typed is what was typed for the flags, by name and in order. A flag that was not given is not there.
type Typed map[string][]string

// last gives a flag's value, "" if it was not given.
func (t Typed) last(flag string) string {
	if values := t[flag]; len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

// Flag is a flag of podman-run(1) or docker-run(1).
type Flag struct {
	Name, Short string
	Help        string // with the value's name in backquotes; for a flag that is refused, why
	Repeated    bool
	Switch      bool   // it has no value
	Refused     bool   // accepted, to be refused with the reason: no directive says it
	Directives  string // what it becomes, of systemd.resource-control(5) or systemd.exec(5)
	settings    func(value string, all Typed) ([]Setting, error)
}

// Flags has every flag, in the order of the help.
var Flags = []Flag{
	{Name: "memory", Short: "m", Help: "limit its memory to `SIZE` (512m, 2g), and its swap to as much again", Directives: "MemoryMax MemorySwapMax", settings: memory},
	{Name: "memory-reservation", Help: "protect `SIZE` of its memory while others want more", Directives: "MemoryLow", settings: memoryReservation},
	{Name: "memory-swap", Help: "limit memory and swap together to `SIZE` (-1: no limit on swap); needs --memory", Directives: "MemorySwapMax", settings: memorySwap},
	{Name: "memory-swappiness", Refused: true, Help: "cgroup v2 has no swappiness; limit swap with --memory-swap"},
	{Name: "oom-kill-disable", Switch: true, Refused: true, Help: "cgroup v2 can't turn the OOM killer off; --oom-score-adj=-1000 spares the machine when the host has no memory left"},
	{Name: "oom-score-adj", Help: "how readily the OOM killer takes it, `N` from -1000 to 1000", Directives: "OOMScoreAdjust", settings: oomScore},
	{Name: "cpus", Help: "limit its CPU time to that of `N` CPUs (1.5)", Directives: "CPUQuota", settings: cpus},
	{Name: "cpu-quota", Help: "limit its CPU time to `MICROSECONDS` in each period", Directives: "CPUQuota", settings: cpuQuota},
	{Name: "cpu-period", Help: "the period, `MICROSECONDS` from 1000 to 1000000 (default 100000)", Directives: "CPUQuotaPeriodSec", settings: cpuPeriod},
	{Name: "cpu-shares", Short: "c", Help: "its part of CPU time beside others', `N` from 2 to 262144 (others have 1024)", Directives: "CPUWeight", settings: cpuShares},
	{Name: "cpuset-cpus", Help: "run on these `CPUS` alone (0-3,7)", Directives: "AllowedCPUs", settings: numbers("AllowedCPUs")},
	{Name: "cpuset-mems", Help: "use memory of these `NODES` alone (0,1)", Directives: "AllowedMemoryNodes", settings: numbers("AllowedMemoryNodes")},
	{Name: "cpu-rt-period", Refused: true, Help: "systemd has no directive for real-time CPU time in a cgroup"},
	{Name: "cpu-rt-runtime", Refused: true, Help: "systemd has no directive for real-time CPU time in a cgroup"},
	{Name: "pids-limit", Help: "limit its processes and threads to `N` (-1: no limit; default 2048)", Directives: "TasksMax", settings: pids},
	{Name: "blkio-weight", Help: "its part of disk time beside others', `N` from 10 to 1000", Directives: "IOWeight", settings: blkioWeight},
	{Name: "blkio-weight-device", Repeated: true, Help: "the same for one `DEVICE:N`", Directives: "IODeviceWeight", settings: blkioDeviceWeight},
	{Name: "device-read-bps", Repeated: true, Help: "limit reads from a device, `DEVICE:SIZE` a second (/dev/sda:1mb)", Directives: "IOReadBandwidthMax", settings: deviceRate("IOReadBandwidthMax", parseBytes)},
	{Name: "device-write-bps", Repeated: true, Help: "limit writes to a device, `DEVICE:SIZE` a second", Directives: "IOWriteBandwidthMax", settings: deviceRate("IOWriteBandwidthMax", parseBytes)},
	{Name: "device-read-iops", Repeated: true, Help: "limit reads from a device, `DEVICE:N` a second", Directives: "IOReadIOPSMax", settings: deviceRate("IOReadIOPSMax", parseCount)},
	{Name: "device-write-iops", Repeated: true, Help: "limit writes to a device, `DEVICE:N` a second", Directives: "IOWriteIOPSMax", settings: deviceRate("IOWriteIOPSMax", parseCount)},
	{Name: "ulimit", Repeated: true, Help: "set a resource limit, `NAME=SOFT[:HARD]` (nofile=1024:4096; -1: none), or host: all as they are here", Directives: "Limit…", settings: ulimit},
	{Name: "cgroup-conf", Repeated: true, Help: "set a file of its cgroup, `FILE=VALUE` (memory.high=1073741824), where a directive does that", Directives: "MemoryHigh …", settings: conf},
}

// Settings gives the directives for what was typed, in the order of the table. Where two set the same one, the later holds.
func Settings(typed Typed) ([]Setting, error) {
	var all []Setting
	for _, f := range Flags {
		for _, value := range typed[f.Name] {
			if f.Refused {
				return nil, fmt.Errorf("--%s: %s", f.Name, f.Help)
			}
			s, err := f.settings(value, typed)
			if err != nil {
				return nil, fmt.Errorf("--%s: %w", f.Name, err)
			}
			all = append(all, s...)
		}
	}
	return all, nil
}

func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func formatCount(n uint64) string {
	if n == Infinity {
		return "infinity"
	}
	return strconv.FormatUint(n, 10)
}

// within reads a whole number of a range; 0 stands for a flag that was not given.
func within(s string, low, high uint64) (uint64, error) {
	n, err := parseCount(s)
	if err == nil && n != 0 && (n < low || n > high) {
		err = fmt.Errorf("%d is not within %d and %d", n, low, high)
	}
	return n, err
}

// parseDecimal refuses what strconv.ParseFloat accepts and people don't mean: signs, exponents, hexadecimals, NaN, Inf.
func parseDecimal(s string) (float64, error) {
	if strings.Trim(s, "0123456789.") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(s, 64)
}

// pids reads --pids-limit; -1 and 0 stand for no limit, as in podman.
func pids(s string, _ Typed) ([]Setting, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil || n < -1:
		return nil, fmt.Errorf("%q is not a number of processes (-1: no limit)", s)
	case n <= 0:
		return []Setting{{"TasksMax", "infinity"}}, nil
	}
	return []Setting{{"TasksMax", strconv.FormatInt(n, 10)}}, nil
}
