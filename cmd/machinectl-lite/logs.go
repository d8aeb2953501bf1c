package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/units"
)

// hasLog says whether the journal has a line of a unit, for all that this user may read.
func hasLog(ctx context.Context, unit string) bool {
	out, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--lines=1", "--output=cat", "--unit="+unit).Output()
	return err != nil || len(out) > 0
}

func logsCommand() *cobra.Command {
	var follow, reverse bool
	var since, until, grep string
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show the log of a machine",
		Long: `Show what the journal has of a machine, also of one that is gone: what its processes and systemd say about it. It is journalctl that shows it, with
--unit=, and whose options these are.`,
		Example: `  machinectl-lite logs web
  machinectl-lite logs --follow --lines=20 web
  machinectl-lite logs --since=-1h --grep=error web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := machineNames(cmd, args); err != nil || len(args) == 1 {
				return err
			}
			return fmt.Errorf("logs: one machine at a time")
		},
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			unit := units.ServiceName(names[0])
			if host, err := connect(cmd.Context()); err == nil { // the log is there without the bus
				u, err := host.unitOf(cmd.Context(), names[0])
				host.close()
				if err == nil {
					unit = u.Name
				} else if unknown(err) && !follow && !hasLog(cmd.Context(), unit) {
					return fmt.Errorf("%s: no machine of that name runs, and the journal has nothing of one", names[0])
				}
			}
			argv := []string{"journalctl", "--quiet", "--unit=" + unit, "--output=" + string(options.output)}
			if cmd.Flags().Changed("lines") {
				argv = append(argv, "--lines="+strconv.Itoa(int(options.lines)))
			}
			for flag, value := range map[string]string{"--since": since, "--until": until, "--grep": grep} {
				if value != "" {
					argv = append(argv, flag+"="+value)
				}
			}
			for flag, given := range map[string]bool{"--follow": follow, "--reverse": reverse, "--all": options.all, "--no-pager": options.noPager, "--full": options.full} {
				if given {
					argv = append(argv, flag)
				}
			}
			journalctl, err := exec.LookPath("journalctl")
			if err != nil {
				return fmt.Errorf("showing the log of %s: %w", names[0], err)
			}
			return fmt.Errorf("%s: %w", journalctl, unix.Exec(journalctl, argv, os.Environ()))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "Go on with what comes")
	cmd.Flags().BoolVarP(&reverse, "reverse", "r", false, "Show the newest lines first")
	cmd.Flags().StringVarP(&since, "since", "S", "", "Show lines from this `time` on (systemd.time(7))")
	cmd.Flags().StringVarP(&until, "until", "U", "", "Show lines up to this `time`")
	cmd.Flags().StringVarP(&grep, "grep", "g", "", "Show lines that the regular `expression` matches")
	return cmd
}
