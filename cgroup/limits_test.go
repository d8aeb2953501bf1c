package cgroup

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		parse func(string) (uint64, error)
		in    string
		want  uint64 // 0: refused
	}{
		{ParseMemory, "512m", 512 << 20},
		{ParseMemory, "64M", 64 << 20},
		{ParseMemory, "1.5g", 3 << 29},
		{ParseMemory, "1GiB", 1 << 30},
		{ParseMemory, "10kb", 10 << 10},
		{ParseMemory, "4096", 4096},
		{ParseMemory, "0", 0},
		{ParseMemory, "", 0},
		{ParseMemory, "m", 0},
		{ParseMemory, "-1m", 0},
		{ParseMemory, "1e9", 0},
		{ParseMemory, "0x10", 0},
		{ParseMemory, "NaN", 0},
		{ParseMemory, "1mm", 0},
		{ParseMemory, "9999999p", 0},
		{ParseCPUs, "1.5", 1_500_000},
		{ParseCPUs, "0.333", 340_000},
		{ParseCPUs, "2", 2_000_000},
		{ParseCPUs, "0", 0},
		{ParseCPUs, "-1", 0},
		{ParseCPUs, "1,5", 0},
		{ParseCPUs, "1000000", 0},
		{ParsePIDs, "100", 100},
		{ParsePIDs, "-1", Infinity},
		{ParsePIDs, "0", Infinity},
		{ParsePIDs, "-2", 0},
		{ParsePIDs, "many", 0},
	} {
		got, err := c.parse(c.in)
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%q: got %d, %v; want %d", c.in, got, err, c.want)
		}
	}
}
