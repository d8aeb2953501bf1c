package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseMemory reads an amount of memory as podman and docker do: a number, which may have a fraction, and one of the
// binary suffixes b, k, m, g, t, p (also with "b" or "ib" after it), in any case. The result is in bytes.
func ParseMemory(s string) (uint64, error) {
	bytes, err := parseBytes(s)
	if err == nil && bytes == 0 {
		err = fmt.Errorf("%q is out of range for an amount of memory", s)
	}
	return bytes, err
}

// parseBytes is ParseMemory with 0.
func parseBytes(s string) (uint64, error) {
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
	if bytes > 0 && bytes < 1 || bytes >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is out of range for an amount of memory", s)
	}
	return uint64(bytes), nil
}

// memory reads --memory; 0 is no limit. Without --memory-swap, as much swap may be used again, as with podman-run(1).
func memory(s string, all Typed) ([]Setting, error) {
	n, err := parseBytes(s)
	if err != nil || n == 0 {
		return nil, err
	}
	limit := formatCount(n)
	return []Setting{{"MemoryMax", limit}, {"MemorySwapMax", limit}}, nil
}

// memorySwap reads --memory-swap, which podman counts with the memory in; 0 is as if it were not given.
func memorySwap(s string, all Typed) ([]Setting, error) {
	limit, err := parseBytes(all.last("memory"))
	if s == "0" {
		return nil, nil
	}
	if err != nil || limit == 0 {
		return nil, errors.New("it counts the memory too, so it needs --memory")
	}
	if s == "-1" {
		return []Setting{{"MemorySwapMax", "infinity"}}, nil
	}
	total, err := parseBytes(s)
	if err == nil && total < limit {
		err = fmt.Errorf("%q is less than --memory, which it includes", s)
	}
	return []Setting{{"MemorySwapMax", formatCount(total - limit)}}, err
}

// memoryReservation reads --memory-reservation; 0 is as if it were not given.
func memoryReservation(s string, all Typed) ([]Setting, error) {
	n, err := parseBytes(s)
	if err != nil || n == 0 {
		return nil, err
	}
	if limit, err := parseBytes(all.last("memory")); err == nil && limit != 0 && limit < n {
		return nil, fmt.Errorf("%q is more than --memory", s)
	}
	return []Setting{{"MemoryLow", formatCount(n)}}, nil
}

func oomScore(s string, _ Typed) ([]Setting, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < -1000 || n > 1000 {
		return nil, fmt.Errorf("%q is not a number from -1000 to 1000", s)
	}
	return []Setting{{"OOMScoreAdjust", strconv.Itoa(n)}}, nil
}
