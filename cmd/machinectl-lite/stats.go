package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"nspawnd/cgroup"
)

func statsCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "stats [NAME...]",
		Short: "Show what machines use",
		Long: `Show what machines use: processor time (100 % is one processor), memory with its limit, processes and threads, what they have read from and written to
disks, and received and sent over a network of their own. On a terminal the table is shown again and again, until ctrl-C.`,
		Example: `  machinectl-lite stats
  machinectl-lite stats --no-stream --json=short web`,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			live := !once && options.jsonLayout() == "" && term.IsTerminal(int(os.Stdout.Fd()))
			options.noPager = options.noPager || live
			before, err := host.samples(cmd.Context(), names)
			if len(before) == 0 && err != nil {
				return err
			}
			for pause := min(interval, 500*time.Millisecond); ; pause = interval {
				select {
				case <-time.After(pause):
				case <-cmd.Context().Done():
					return nil
				}
				now, err := host.samples(cmd.Context(), names)
				if len(now) == 0 && err != nil { // the last of those that were named has ended
					return err
				}
				if live {
					fmt.Print("\x1b[H\x1b[2J")
				}
				if showErr := usageTable(before, now).show("machines"); showErr != nil || !live {
					return cmp.Or(showErr, err)
				}
				before = now
			}
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "Show it once")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "`Time` between two tables")
	return cmd
}

// sample is what a machine has used at a time.
type sample struct {
	name string
	at   time.Time
	cgroup.Usage
	received, sent uint64 // bytes; cgroup.Infinity in the host's network
}

// samples asks for the usage of the named machines, or of all. A machine that has gone meanwhile is left out; that is an error if it was named.
func (h *host) samples(ctx context.Context, names []string) ([]sample, error) {
	named := len(names) > 0
	if !named {
		machines, err := h.list(ctx, options.all)
		if err != nil {
			return nil, fmt.Errorf("could not get machines: %w", err)
		}
		for _, m := range machines {
			names = append(names, m.Name)
		}
	}
	samples, errs := make([]sample, len(names)), make(failures, len(names))
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i, name := range names {
		group.Go(func() error {
			samples[i], errs[i] = h.sample(ctx, name)
			return nil
		})
	}
	group.Wait()
	samples = slices.DeleteFunc(samples, func(s sample) bool { return s.name == "" })
	if !named {
		return samples, nil
	}
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("could not get what machine uses: %w", err)
		}
	}
	return samples, slices.DeleteFunc(errs, func(err error) bool { return err == nil }).orNil()
}

func (h *host) sample(ctx context.Context, name string) (sample, error) {
	unit, err := h.unitOf(ctx, name)
	if err != nil {
		return sample{}, err
	}
	leader, group := unit.MainPID, unit.ControlGroup
	if properties, err := h.machined.Get(ctx, name); err == nil {
		leader, group = properties.Leader, path.Join(group, properties.Subgroup)
	}
	if group == "" { // the root's is the host's
		return sample{}, fmt.Errorf("%s has no process at the moment", name)
	}
	s := sample{name: name, at: time.Now()}
	if s.Usage, err = cgroup.ReadUsage(filepath.Join("/sys/fs/cgroup", group)); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		err = fmt.Errorf("%s has ended", name)
	}
	if err != nil {
		return sample{}, err
	}
	s.received, s.sent = networkTotals(leader)
	return s, nil
}

// networkTotals adds up what the interfaces of a process's network have received and sent, but for the loopback; cgroup.Infinity if the network is the host's.
func networkTotals(pid uint32) (received, sent uint64) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	own, err := os.Readlink(dir + "ns/net")
	host, _ := os.Readlink("/proc/1/ns/net")
	if err != nil || own == host {
		return cgroup.Infinity, cgroup.Infinity
	}
	file, err := os.Open(dir + "net/dev")
	if err != nil {
		return cgroup.Infinity, cgroup.Infinity
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, counters, found := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(counters)
		if !found || strings.TrimSpace(name) == "lo" || len(fields) < 9 { // the header has no colon
			continue
		}
		r, _ := strconv.ParseUint(fields[0], 10, 64)
		s, _ := strconv.ParseUint(fields[8], 10, 64)
		received, sent = received+r, sent+s
	}
	return received, sent
}

// usageTable shows the later of two samples of machines. How much of a processor one takes is what it took between them.
func usageTable(before, now []sample) table {
	t := table{header: []string{"MACHINE", "CPU", "MEMORY", "LIMIT", "TASKS", "READ", "WRITTEN", "RECEIVED", "SENT"}, values: []string{"CPU", "MEMORY", "LIMIT", "TASKS", "READ", "WRITTEN", "RECEIVED", "SENT"}}
	words := cellsFor(options.jsonLayout() != "").size
	earlier := map[string]sample{}
	for _, s := range before {
		earlier[s.name] = s
	}
	size := func(n uint64) string {
		if n == cgroup.Infinity {
			return ""
		}
		return words(int64(n))
	}
	for _, s := range now {
		cpu, tasks := "", ""
		if e, known := earlier[s.name]; known && s.CPU >= e.CPU && s.at.After(e.at) {
			cpu = fmt.Sprintf("%.1f%%", 100*float64(s.CPU-e.CPU)/float64(s.at.Sub(e.at)))
		}
		if s.Tasks != cgroup.Infinity {
			tasks = strconv.FormatUint(s.Tasks, 10)
		}
		t.rows = append(t.rows, []string{s.name, cpu, size(s.Memory), size(s.MemoryMax), tasks, size(s.Read), size(s.Written), size(s.received), size(s.sent)})
	}
	return t
}
