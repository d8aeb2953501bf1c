package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// defaultPeriod of CPU quotas in µs, as the kernel's and podman's.
const defaultPeriod = 100_000

// cpus reads --cpus. systemd keeps quotas in whole percents, so it is rounded up to one.
func cpus(s string, all Typed) ([]Setting, error) {
	if all["cpu-quota"] != nil || all["cpu-period"] != nil {
		return nil, errors.New("it is a quota and a period itself; give either this or --cpu-quota and --cpu-period")
	}
	n, err := parseDecimal(s)
	if err != nil || n <= 0 || n > 1<<16 {
		return nil, fmt.Errorf("%q is not a number of CPUs (like 2 or 0.5)", s)
	}
	return []Setting{percent(n)}, nil
}

func percent(cpus float64) Setting {
	return Setting{"CPUQuota", strconv.Itoa(int(math.Ceil(cpus*100-1e-9))) + "%"}
}

// cpuQuota reads --cpu-quota; 0 is as if it were not given, and what is negative no limit.
func cpuQuota(s string, all Typed) ([]Setting, error) {
	quota, err := strconv.ParseInt(s, 10, 64)
	period := uint64(defaultPeriod)
	if typed := all.last("cpu-period"); typed != "" && typed != "0" {
		var wrong error
		if period, wrong = parsePeriod(typed); wrong != nil {
			return nil, wrong
		}
	}
	switch {
	case err != nil || quota > 0 && quota < 1000 || quota > 1<<40:
		return nil, fmt.Errorf("%q is not a number of microseconds from 1000 on (-1: no limit)", s)
	case quota <= 0:
		return nil, nil
	}
	return []Setting{percent(float64(quota) / float64(period))}, nil
}

func parsePeriod(s string) (uint64, error) { return within(s, 1000, 1_000_000) }

func cpuPeriod(s string, _ Typed) ([]Setting, error) {
	period, err := parsePeriod(s)
	if err != nil || period == 0 {
		return nil, err
	}
	return []Setting{{"CPUQuotaPeriodSec", formatCount(period) + "us"}}, nil
}

// cpuShares reads --cpu-shares; 0 is as if it were not given.
func cpuShares(s string, _ Typed) ([]Setting, error) {
	shares, err := parseCount(s)
	if err != nil || shares == 0 {
		return nil, err
	}
	return []Setting{{"CPUWeight", formatCount(weightOfShares(shares))}}, nil
}

// weightOfShares gives the weight of cgroups v2 for shares of v1, 2 to 262144, so that the default of 1024 is the default of 100: the
// curve that crun 1.23 and runc 1.3.2 have. Theirs was linear before, and made 39 of it.
func weightOfShares(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262_144:
		return 10_000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// numbers reads a list of numbers and ranges.
func numbers(directive string) func(string, Typed) ([]Setting, error) {
	return func(s string, _ Typed) ([]Setting, error) {
		for part := range strings.SplitSeq(s, ",") {
			low, high, isRange := strings.Cut(part, "-")
			first, err := parseCount(low)
			last := first
			if isRange && err == nil {
				last, err = parseCount(high)
			}
			if err != nil || last < first {
				return nil, fmt.Errorf("%q is not a list of numbers and ranges (like 0-3,7)", s)
			}
		}
		return []Setting{{directive, s}}, nil
	}
}
