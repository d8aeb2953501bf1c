package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// files are the files of a cgroup (v2) that a directive of systemd.resource-control(5) writes, with how the value becomes the directive's.
var files = map[string]func(string) ([]Setting, error){
	"cpu.weight":             same("CPUWeight"),
	"cpu.idle":               cpuIdle,
	"cpu.max":                cpuMax,
	"cpuset.cpus":            same("AllowedCPUs"),
	"cpuset.mems":            same("AllowedMemoryNodes"),
	"cpuset.cpus.partition":  same("CPUSetPartition"),
	"memory.min":             amount("MemoryMin"),
	"memory.low":             amount("MemoryLow"),
	"memory.high":            amount("MemoryHigh"),
	"memory.max":             amount("MemoryMax"),
	"memory.swap.max":        amount("MemorySwapMax"),
	"memory.zswap.max":       amount("MemoryZSwapMax"),
	"memory.zswap.writeback": same("MemoryZSwapWriteback"),
	"memory.oom.group":       oomGroup,
	"pids.max":               amount("TasksMax"),
	"io.weight":              defaultWeight(func(n uint64) uint64 { return n }),
	"io.bfq.weight":          defaultWeight(ioWeight),
	"io.max":                 ioMax,
}

// conf reads --cgroup-conf FILE=VALUE.
func conf(s string, _ Typed) ([]Setting, error) {
	file, value, found := strings.Cut(s, "=")
	if !found || value == "" {
		return nil, fmt.Errorf("%q is not FILE=VALUE", s)
	}
	settings, known := files[file]
	if !known {
		return nil, fmt.Errorf("no directive of systemd sets %q, and what is written past it is lost; those that one sets: %s", file,
			strings.Join(slices.Sorted(maps.Keys(files)), ", "))
	}
	return settings(value)
}

func same(directive string) func(string) ([]Setting, error) {
	return func(s string) ([]Setting, error) { return []Setting{{directive, s}}, nil }
}

// amount reads a number or "max".
func amount(directive string) func(string) ([]Setting, error) {
	return func(s string) ([]Setting, error) {
		if s == "max" {
			return []Setting{{directive, "infinity"}}, nil
		}
		n, err := parseCount(s)
		return []Setting{{directive, formatCount(n)}}, err
	}
}

func cpuIdle(s string) ([]Setting, error) {
	switch s {
	case "0":
		return nil, nil
	case "1":
		return []Setting{{"CPUWeight", "idle"}}, nil
	}
	return nil, fmt.Errorf("%q is neither 0 nor 1", s)
}

// cpuMax reads "QUOTA [PERIOD]" in µs.
func cpuMax(s string) ([]Setting, error) {
	quota, period, given := strings.Cut(s, " ")
	if !given {
		period = strconv.Itoa(defaultPeriod)
	}
	settings, err := cpuPeriod(period, nil)
	if err != nil || quota == "max" {
		return settings, err
	}
	limit, err := cpuQuota(quota, Typed{"cpu-period": {period}})
	return append(settings, limit...), err
}

func oomGroup(s string) ([]Setting, error) {
	policy, known := map[string]string{"0": "continue", "1": "kill"}[s]
	if !known {
		return nil, fmt.Errorf("%q is neither 0 nor 1", s)
	}
	return []Setting{{"OOMPolicy", policy}}, nil
}

// defaultWeight reads "[default] N" or "MAJOR:MINOR N".
func defaultWeight(weight func(uint64) uint64) func(string) ([]Setting, error) {
	return func(s string) ([]Setting, error) {
		device, value, both := strings.Cut(s, " ")
		if !both {
			device, value = "default", s
		}
		n, err := parseCount(value)
		if err != nil {
			return nil, err
		}
		if device == "default" {
			return []Setting{{"IOWeight", formatCount(weight(n))}}, nil
		}
		return []Setting{{"IODeviceWeight", "/dev/block/" + device + " " + formatCount(weight(n))}}, nil
	}
}

// ioMax reads "MAJOR:MINOR KEY=N …".
func ioMax(s string) ([]Setting, error) {
	device, limits, _ := strings.Cut(s, " ")
	var out []Setting
	for limit := range strings.FieldsSeq(limits) {
		key, value, _ := strings.Cut(limit, "=")
		directive, known := map[string]string{"rbps": "IOReadBandwidthMax", "wbps": "IOWriteBandwidthMax", "riops": "IOReadIOPSMax", "wiops": "IOWriteIOPSMax"}[key]
		if !known {
			return nil, fmt.Errorf("%q is not one of rbps, wbps, riops, wiops", key)
		}
		settings, err := amount(directive)(value)
		if err != nil {
			return nil, err
		}
		out = append(out, Setting{directive, "/dev/block/" + device + " " + settings[0].Value})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q is not MAJOR:MINOR KEY=N", s)
	}
	return out, nil
}
