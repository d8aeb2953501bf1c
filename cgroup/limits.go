// Package cgroup turns the resource limits that people type (podman and docker spelling) into the
// resource-control directives of a unit. It starts nothing and owns no cgroup: the unit's manager does.
package cgroup

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Infinity is systemd's "no limit" in every directive of this package (systemd.resource-control(5)).
const Infinity = math.MaxUint64

// Resources are the limits of one machine; a nil field is not set.
type Resources struct {
	Memory *uint64 // bytes
	CPU    *uint64 // µs of CPU time a second
	PIDs   *uint64 // tasks
}

// Setting is one resource-control directive and its value.
type Setting struct {
	Directive string
	Value     uint64
}

// Settings gives the directives that enforce r.
//
// Swap is limited to as much again as the memory, as podman-run(1) does when --memory comes without --memory-swap.
func (r Resources) Settings() []Setting {
	var s []Setting
	if r.Memory != nil {
		s = append(s, Setting{"MemoryMax", *r.Memory}, Setting{"MemorySwapMax", *r.Memory})
	}
	if r.CPU != nil {
		s = append(s, Setting{"CPUQuota", *r.CPU})
	}
	if r.PIDs != nil {
		s = append(s, Setting{"TasksMax", *r.PIDs})
	}
	return s
}

// ParseMemory reads an amount of memory as podman and docker do: a number, which may have a fraction, and one of the
// binary suffixes b, k, m, g, t, p (also with "b" or "ib" after it), in any case. The result is in bytes.
func ParseMemory(s string) (uint64, error) {
	digits := strings.TrimRight(s, "bBkKmMgGtTpPiI")
	unit := strings.ToLower(s[len(digits):])
	exponent, known := map[string]float64{
		"": 0, "b": 0,
		"k": 1, "kb": 1, "kib": 1, "m": 2, "mb": 2, "mib": 2, "g": 3, "gb": 3, "gib": 3,
		"t": 4, "tb": 4, "tib": 4, "p": 5, "pb": 5, "pib": 5,
	}[unit]
	number, err := parseDecimal(digits)
	if err != nil || !known {
		return 0, fmt.Errorf("%q is not an amount of memory (like 512m or 1.5g)", s)
	}
	bytes := number * math.Pow(1024, exponent)
	if bytes < 1 || bytes >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is out of range for an amount of memory", s)
	}
	return uint64(bytes), nil
}

// ParseCPUs reads a number of CPUs ("1.5") and gives the CPU time in µs that may be used each second.
// systemd keeps quotas in whole percents, so the result is rounded up to 10,000 µs.
func ParseCPUs(s string) (uint64, error) {
	cpus, err := parseDecimal(s)
	if err != nil || cpus <= 0 || cpus > 1<<16 {
		return 0, fmt.Errorf("%q is not a number of CPUs (like 2 or 0.5)", s)
	}
	const percent = 10_000
	return uint64(math.Ceil(cpus*100-1e-9)) * percent, nil
}

// ParsePIDs reads a number of tasks; -1 and 0 stand for no limit, as in podman.
func ParsePIDs(s string) (uint64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil || n < -1:
		return 0, fmt.Errorf("%q is not a number of processes (-1: no limit)", s)
	case n <= 0:
		return Infinity, nil
	}
	return uint64(n), nil
}

// parseDecimal refuses what strconv.ParseFloat accepts and people don't mean: signs, exponents, hexadecimals, NaN, Inf.
func parseDecimal(s string) (float64, error) {
	if strings.Trim(s, "0123456789.") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(s, 64)
}
