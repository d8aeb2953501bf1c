package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestReadUsage(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadUsage(dir); err == nil {
		t.Error("a control group that is gone has a usage")
	}
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\n",
		"memory.current": "4096\n", "memory.max": "max\n", "pids.current": "3\n",
		"io.stat": "8:0 rbytes=10 wbytes=1 rios=7\n259:0 rbytes=5 wbytes=2\n8:16 \n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadUsage(dir)
	want := Usage{CPU: 1500 * time.Microsecond, Memory: 4096, MemoryMax: Infinity, Tasks: 3, TasksMax: Infinity, Read: 15, Written: 3}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
