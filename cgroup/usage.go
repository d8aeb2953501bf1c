package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what the processes of a control group have used and use (cgroup v2: Documentation/admin-guide/cgroup-v2.rst). Limits are Infinity where
// there is none, and so is a figure whose controller is not on.
type Usage struct {
	CPU               time.Duration // of all processors together, since it was made
	Memory, MemoryMax uint64        // bytes
	Tasks, TasksMax   uint64        // processes and threads
	Read, Written     uint64        // bytes from and to block devices, since it was made
}

// ReadUsage reads the usage of a control group, a directory below /sys/fs/cgroup. An error means that it is gone.
func ReadUsage(dir string) (Usage, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("reading what a control group uses: %w", err)
	}
	u := Usage{
		Memory: readNumber(dir, "memory.current"), MemoryMax: readNumber(dir, "memory.max"),
		Tasks: readNumber(dir, "pids.current"), TasksMax: readNumber(dir, "pids.max"),
		Read: Infinity, Written: Infinity,
	}
	for line := range strings.Lines(string(stat)) {
		if usec, found := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); found {
			n, _ := strconv.ParseInt(usec, 10, 64)
			u.CPU = time.Duration(n) * time.Microsecond
		}
	}
	if io, err := os.ReadFile(filepath.Join(dir, "io.stat")); err == nil {
		u.Read, u.Written = ioTotals(string(io))
	}
	return u, nil
}

// ioTotals adds up the lines of io.stat, one for each device: "8:0 rbytes=1 wbytes=2 rios=…".
func ioTotals(stat string) (read, written uint64) {
	for _, field := range strings.Fields(stat) {
		name, value, _ := strings.Cut(field, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		switch {
		case err != nil:
		case name == "rbytes":
			read += n
		case name == "wbytes":
			written += n
		}
	}
	return read, written
}

func readNumber(dir, file string) uint64 {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return Infinity
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil { // "max"
		return Infinity
	}
	return n
}
