package cgroup

import (
	"fmt"
	"strings"
)

// blkioWeight reads --blkio-weight; 0 is as if it were not given.
func blkioWeight(s string, _ Typed) ([]Setting, error) {
	weight, err := within(s, 10, 1000)
	if err != nil || weight == 0 {
		return nil, err
	}
	return []Setting{{"IOWeight", formatCount(ioWeight(weight))}}, nil
}

// ioWeight gives the weight that systemd turns into this weight of the BFQ scheduler, as crun does: up to 100 the same, above it
// 11 times as steep, so that 1000 is 10000.
func ioWeight(bfq uint64) uint64 {
	if bfq <= 100 {
		return bfq
	}
	return 100 + (bfq-100)*11
}

// cutDevice reads DEVICE:VALUE.
func cutDevice(s string) (device, value string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || !strings.HasPrefix(s, "/dev/") || strings.ContainsAny(s[:i], " \t\n") {
		return "", "", fmt.Errorf("%q is not DEVICE:VALUE (like /dev/sda:VALUE)", s)
	}
	return s[:i], s[i+1:], nil
}

func blkioDeviceWeight(s string, _ Typed) ([]Setting, error) {
	device, value, err := cutDevice(s)
	if err != nil {
		return nil, err
	}
	weight, err := within(value, 10, 1000)
	if err != nil || weight == 0 {
		return nil, err
	}
	return []Setting{{"IODeviceWeight", device + " " + formatCount(ioWeight(weight))}}, nil
}

func deviceRate(directive string, parse func(string) (uint64, error)) func(string, Typed) ([]Setting, error) {
	return func(s string, _ Typed) ([]Setting, error) {
		device, value, err := cutDevice(s)
		if err != nil {
			return nil, err
		}
		rate, err := parse(value)
		if err == nil && rate == 0 {
			err = fmt.Errorf("%q would never let it go on", s)
		}
		return []Setting{{directive, device + " " + formatCount(rate)}}, err
	}
}
