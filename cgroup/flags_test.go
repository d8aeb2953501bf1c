package cgroup

import (
	"fmt"
	"strings"
	"testing"
)

// What is typed for the flags, and the directives that it becomes; "" is refused.
var settingsCases = map[string][][2]string{
	"memory": {{"512m", "MemoryMax=536870912 MemorySwapMax=536870912"}, {"1.5g", "MemoryMax=1610612736 MemorySwapMax=1610612736"}, {"1GiB", "MemoryMax=1073741824 MemorySwapMax=1073741824"},
		{"4096", "MemoryMax=4096 MemorySwapMax=4096"}, {"0", "-"}, {"", ""}, {"m", ""}, {"-1m", ""}, {"1e9", ""}, {"0x10", ""}, {"NaN", ""}, {"1mm", ""}, {"9999999p", ""}, {"0.1", ""}},
	"memory-reservation": {{"64m", "MemoryLow=67108864"}, {"0", "-"}, {"64m --memory 32m", ""}, {"32m --memory 64m", "MemoryMax=67108864 MemorySwapMax=67108864 MemoryLow=33554432"}, {"x", ""}},
	"memory-swap": {{"1g --memory 512m", "MemoryMax=536870912 MemorySwapMax=536870912 MemorySwapMax=536870912"}, {"512m --memory 512m", "MemoryMax=536870912 MemorySwapMax=536870912 MemorySwapMax=0"},
		{"-1 --memory 1m", "MemoryMax=1048576 MemorySwapMax=1048576 MemorySwapMax=infinity"}, {"1g", ""}, {"-1", ""}, {"1m --memory 2m", ""}, {"0", "-"}},
	"memory-swappiness":   {{"60", ""}},
	"oom-kill-disable":    {{"true", ""}},
	"oom-score-adj":       {{"-1000", "OOMScoreAdjust=-1000"}, {"1000", "OOMScoreAdjust=1000"}, {"1001", ""}, {"x", ""}},
	"cpus":                {{"1.5", "CPUQuota=150%"}, {"0.333", "CPUQuota=34%"}, {"2", "CPUQuota=200%"}, {"0", ""}, {"-1", ""}, {"1,5", ""}, {"1000000", ""}, {"1 --cpu-quota 50000", ""}},
	"cpu-quota":           {{"50000", "CPUQuota=50%"}, {"33300", "CPUQuota=34%"}, {"-1", "-"}, {"0", "-"}, {"50000 --cpu-period 50000", "CPUQuota=100% CPUQuotaPeriodSec=50000us"}, {"999", ""}, {"x", ""}},
	"cpu-period":          {{"50000", "CPUQuotaPeriodSec=50000us"}, {"0", "-"}, {"999", ""}, {"1000001", ""}},
	"cpu-shares":          {{"1024", "CPUWeight=100"}, {"512", "CPUWeight=59"}, {"256", "CPUWeight=35"}, {"100", "CPUWeight=17"}, {"2048", "CPUWeight=174"}, {"4096", "CPUWeight=303"}, {"2", "CPUWeight=1"}, {"1", "CPUWeight=1"}, {"262144", "CPUWeight=10000"}, {"999999", "CPUWeight=10000"}, {"0", "-"}, {"-1", ""}},
	"cpuset-cpus":         {{"0-3,7", "AllowedCPUs=0-3,7"}, {"0", "AllowedCPUs=0"}, {"", ""}, {"3-1", ""}, {"a", ""}},
	"cpuset-mems":         {{"0,1", "AllowedMemoryNodes=0,1"}, {"-", ""}},
	"cpu-rt-period":       {{"1", ""}},
	"cpu-rt-runtime":      {{"1", ""}},
	"pids-limit":          {{"100", "TasksMax=100"}, {"-1", "TasksMax=infinity"}, {"0", "TasksMax=infinity"}, {"-2", ""}, {"many", ""}},
	"blkio-weight":        {{"10", "IOWeight=10"}, {"100", "IOWeight=100"}, {"500", "IOWeight=4500"}, {"1000", "IOWeight=10000"}, {"0", "-"}, {"9", ""}, {"1001", ""}},
	"blkio-weight-device": {{"/dev/sda:500", "IODeviceWeight=/dev/sda 4500"}, {"/dev/sda", ""}, {"sda:100", ""}, {"/dev/a b:100", ""}},
	"device-read-bps":     {{"/dev/sda:1mb", "IOReadBandwidthMax=/dev/sda 1048576"}, {"/dev/sda:0", ""}, {"/dev/sda:x", ""}},
	"device-write-bps":    {{"/dev/disk/by-id/a:b:1024", "IOWriteBandwidthMax=/dev/disk/by-id/a:b 1024"}},
	"device-read-iops":    {{"/dev/sda:100", "IOReadIOPSMax=/dev/sda 100"}, {"/dev/sda:1k", ""}},
	"device-write-iops":   {{"/dev/sda:100", "IOWriteIOPSMax=/dev/sda 100"}},
	"ulimit": {{"nofile=1024:4096", "LimitNOFILE=1024:4096"}, {"core=-1", "LimitCORE=infinity:infinity"}, {"cpu=10", "LimitCPU=10s:10s"}, {"rttime=5:-1", "LimitRTTIME=5us:infinity"}, {"nice=25", "LimitNICE=25:25"},
		{"nofile=2:1", ""}, {"nofile", ""}, {"nope=1", ""}, {"nofile=-2", ""}, {"nofile=", ""}, {"core=1k", ""}},
	"cgroup-conf": {{"memory.high=1073741824", "MemoryHigh=1073741824"}, {"memory.max=max", "MemoryMax=infinity"}, {"pids.max=max", "TasksMax=infinity"}, {"cpu.max=50000 100000", "CPUQuotaPeriodSec=100000us CPUQuota=50%"},
		{"cpu.max=max", "CPUQuotaPeriodSec=100000us"}, {"cpu.max=50000", "CPUQuotaPeriodSec=100000us CPUQuota=50%"}, {"cpu.weight=42", "CPUWeight=42"}, {"cpu.idle=1", "CPUWeight=idle"}, {"cpu.idle=0", "-"}, {"cpu.idle=2", ""},
		{"cpuset.cpus=0-1", "AllowedCPUs=0-1"}, {"memory.oom.group=1", "OOMPolicy=kill"}, {"io.weight=default 50", "IOWeight=50"}, {"io.weight=8:0 50", "IODeviceWeight=/dev/block/8:0 50"}, {"io.bfq.weight=500", "IOWeight=4500"},
		{"io.max=8:0 rbps=1024 wiops=max", "IOReadBandwidthMax=/dev/block/8:0 1024 IOWriteIOPSMax=/dev/block/8:0 infinity"}, {"io.max=8:0", ""}, {"io.max=8:0 x=1", ""},
		{"hugetlb.2MB.max=1", ""}, {"memory.high=", ""}, {"memory.high", ""}, {"memory.high=1G", ""}, {"../x=1", ""}},
}

func TestSettings(t *testing.T) {
	for _, flag := range Flags {
		cases := settingsCases[flag.Name]
		if len(cases) == 0 || flag.Help == "" || !flag.Refused && flag.Directives == "" {
			t.Errorf("--%s: no test, help or directive", flag.Name)
		}
		for _, c := range cases {
			value, other, both := strings.Cut(c[0], " --")
			typed := Typed{flag.Name: {value}}
			if both {
				name, value, _ := strings.Cut(other, " ")
				typed[name] = []string{value}
			}
			settings, err := Settings(typed)
			var got []string
			for _, s := range settings {
				got = append(got, s.Directive+"="+s.Value)
			}
			want := strings.TrimPrefix(c[1], "-")
			if (err != nil) != (c[1] == "") || err == nil && strings.Join(got, " ") != want {
				t.Errorf("--%s %s: %q, %v; want %q", flag.Name, c[0], got, err, c[1])
			}
			if err != nil && !strings.HasPrefix(err.Error(), "--") {
				t.Errorf("--%s %s: %v", flag.Name, c[0], err)
			}
		}
	}
}

func TestSettingsInOrder(t *testing.T) {
	got, err := Settings(Typed{"pids-limit": {"5"}, "memory": {"1m"}, "ulimit": {"core=1", "core=2"}})
	want := "[{MemoryMax 1048576} {MemorySwapMax 1048576} {TasksMax 5} {LimitCORE 1:1} {LimitCORE 2:2}]"
	if err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
}
