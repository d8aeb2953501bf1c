package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/dbus"
	"nspawnd/machined"
	"nspawnd/units"
)

func topCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "top NAME",
		Short: "Show the processes of a machine",
		Long: `Show the processes of a machine, with their numbers on the host and in the machine, the user's number in the machine, the state as ps(1) has it, the
processor time and the command line.`,
		Example: `  machinectl-lite top web
  machinectl-lite top --json=short web | jq -r '.[].pid'`,
		Args:              oneMachine,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				t, err := host.top(cmd.Context(), name)
				if err != nil {
					return fmt.Errorf("could not get processes of machine: %w", err)
				}
				return t.show("processes")
			})
		},
	}
}

func (h *host) top(ctx context.Context, name string) (table, error) {
	t := table{header: []string{"PID", "INNER", "USER", "STATE", "TIME", "COMMAND"}, values: []string{"PID", "INNER", "USER"}}
	if name == machined.Host {
		return t, errors.New(".host is this host; top(1) shows its processes")
	}
	unit, err := h.unitOf(ctx, name)
	if err != nil {
		return t, err
	}
	processes, err := h.systemd.Processes(ctx, unit.Name)
	if err != nil {
		return t, err
	}
	group := unit.ControlGroup
	if properties, err := h.machined.Get(ctx, name); err == nil {
		group = path.Join(group, properties.Subgroup)
	}
	slices.SortFunc(processes, func(a, b dbus.Process) int { return cmp.Compare(a.PID, b.PID) })
	for _, p := range processes {
		if p.ControlGroup != group && !strings.HasPrefix(p.ControlGroup, group+"/") {
			continue // another machine's, or the supervisor
		}
		if row := processRow(p.PID); row != nil {
			t.rows = append(t.rows, row)
		}
	}
	return t, nil
}

// maxCommand bounds what is read of a command line.
const maxCommand = 4 << 10

// processRow reads what the kernel says of a process (proc_pid_status(5), proc_pid_stat(5)), nil if it is gone.
func processRow(pid uint32) []string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil
	}
	fields := map[string][]string{}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Fields(value)
	}
	field := func(key string, i int) string {
		if i < 0 {
			i += len(fields[key])
		}
		if i < 0 || i >= len(fields[key]) {
			return ""
		}
		return fields[key][i]
	}
	ids, _ := os.ReadFile(dir + "uid_map")
	stat, _ := os.ReadFile(dir + "stat")
	return []string{strconv.Itoa(int(pid)), field("NSpid", -1), innerID(field("Uid", 1), string(ids)), field("State", 0), cpuTime(string(stat)), commandLine(dir)}
}

// innerID gives what a user's number is in a user namespace with this map.
func innerID(id, idMap string) string {
	outer, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return id
	}
	inside, mapped := units.Inside(units.ParseIDMap(idMap), uint32(outer))
	if !mapped {
		return id
	}
	return strconv.FormatUint(uint64(inside), 10)
}

// cpuTime reads the processor time, in minutes and seconds, out of /proc/PID/stat, which counts in hundredths.
func cpuTime(stat string) string {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const user, system = 14 - 3, 15 - 3 // the field after the name is the third
	if len(fields) <= system {
		return ""
	}
	a, _ := strconv.ParseInt(fields[user], 10, 64)
	b, _ := strconv.ParseInt(fields[system], 10, 64)
	spent := time.Duration(a+b) * 10 * time.Millisecond
	return fmt.Sprintf("%d:%05.2f", int(spent.Minutes()), (spent % time.Minute).Seconds())
}

// commandLine gives the words of a process's command; of one without, as the kernel's and zombies, the name in brackets.
func commandLine(dir string) string {
	file, err := os.Open(dir + "cmdline")
	if err != nil {
		return ""
	}
	defer file.Close()
	text, _ := io.ReadAll(io.LimitReader(file, maxCommand))
	if words := strings.TrimRight(string(text), "\x00"); words != "" {
		return strings.ReplaceAll(strings.ReplaceAll(words, "\x00", " "), "\n", `\n`)
	}
	name, _ := os.ReadFile(dir + "comm")
	return "[" + strings.TrimSuffix(string(name), "\n") + "]"
}
