package units

import (
	"fmt"
	"strconv"
	"strings"
)

// ProcFiles is what the kernel tells of a process (proc_pid(5)): the content of the files of these names, read as the host's root.
type ProcFiles struct{ Status, Stat, Limits, OOMScoreAdj, UIDMap, GIDMap string }

// Running gives what a command gets that is to run beside a machine's first process, of which nobody but itself tells what confines it. What is not told here, such as its
// environment and its filters of system calls, the launcher takes from the process. A group that its user namespace does not have is left out, another id refused.
func (f ProcFiles) Running(machine string, pid uint32) (r Running, err error) {
	r = Running{Machine: machine, Slice: "machine.slice"}
	// The name may have spaces and brackets: what counts follows the last bracket. The first field there is the third.
	stat := strings.Fields(f.Stat[strings.LastIndexByte(f.Stat, ')')+1:])
	if len(stat) < 20 {
		return r, fmt.Errorf("process %d has ended", pid)
	}
	r.Leader = fmt.Sprintf("%d:%s", pid, stat[19])
	status := map[string]string{}
	for line := range strings.Lines(f.Status) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		status[name] = value
	}
	uids, gids := ParseIDMap(f.UIDMap), ParseIDMap(f.GIDMap)
	for _, id := range []struct {
		ranges []IDRange
		field  string
		to     *uint32
	}{{uids, "Uid", &r.Account.UID}, {gids, "Gid", &r.Account.GID}} {
		ids := strings.Fields(status[id.field]) // real, effective, saved and for files
		if len(ids) < 2 {
			return r, fmt.Errorf("the kernel tells no %s of process %d", id.field, pid)
		}
		var mapped bool
		if *id.to, mapped = inside(id.ranges, ids[1]); !mapped {
			return r, fmt.Errorf("process %d has the %s %s, which its user namespace does not have", pid, id.field, ids[1])
		}
	}
	for _, group := range strings.Fields(status["Groups"]) {
		if gid, mapped := inside(gids, group); mapped {
			r.Account.Groups = append(r.Account.Groups, gid)
		}
	}
	r.Ambient = strings.TrimLeft(status["CapAmb"], "0")
	lines := []string{"[Service]", "OOMScoreAdjust=" + f.OOMScoreAdj, "Nice=" + stat[16], "CPUAffinity=" + status["Cpus_allowed_list"]}
	for line := range strings.Lines(f.Limits) {
		for name, directive := range processLimits {
			values, named := strings.CutPrefix(line, name+" ")
			limits := strings.Fields(strings.ReplaceAll(values, "unlimited", "infinity"))
			if !named || len(limits) < 2 {
				continue
			}
			if soft, err := strconv.Atoi(limits[0]); err == nil && soft > selectable && directive == "LimitNOFILE" && status["Name"] == "systemd" {
				limits[0] = strconv.Itoa(selectable)
			}
			lines = append(lines, directive+"="+limits[0]+":"+limits[1])
		}
	}
	r.Files = []string{strings.Join(lines, "\n")}
	return r, nil
}

func inside(ranges []IDRange, id string) (uint32, bool) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, false
	}
	return Inside(ranges, uint32(n))
}

// selectable is the limit of open files that systemd has for what it starts (systemd.exec(5), LimitNOFILE=): it raises its own.
const selectable = 1024

// processLimits are the names in /proc/PID/limits, and the directives.
var processLimits = map[string]string{
	"Max cpu time": "LimitCPU", "Max file size": "LimitFSIZE", "Max data size": "LimitDATA", "Max stack size": "LimitSTACK", "Max core file size": "LimitCORE",
	"Max resident set": "LimitRSS", "Max processes": "LimitNPROC", "Max open files": "LimitNOFILE", "Max locked memory": "LimitMEMLOCK", "Max address space": "LimitAS",
	"Max file locks": "LimitLOCKS", "Max pending signals": "LimitSIGPENDING", "Max msgqueue size": "LimitMSGQUEUE", "Max nice priority": "LimitNICE",
	"Max realtime priority": "LimitRTPRIO", "Max realtime timeout": "LimitRTTIME",
}
