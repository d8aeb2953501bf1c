package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"nspawnd/machined"
)

// completeMachineThenFiles offers machines for the first argument and files for the others.
func completeMachineThenFiles(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return completeMachines(cmd, args, word)
}

// machineAndPaths wants a machine's name and one path or two, none of them empty.
func machineAndPaths(cmd *cobra.Command, args []string) error {
	if err := machineNames(cmd, args); err != nil {
		return err
	}
	if len(args) < 2 || len(args) > 3 {
		return fmt.Errorf("%s wants a machine, a source and at most one target (see %s --help)", cmd.Name(), cmd.CommandPath())
	}
	return nil
}

func bindCommand() *cobra.Command {
	var mkdir, readOnly bool
	cmd := &cobra.Command{
		Use:   "bind NAME PATH [PATH]",
		Short: "Mount a file or directory of this host in a machine that runs",
		Long: `Mount a file or directory of this host in a machine that runs, as by machinectl: at the same path unless another is given, which has to be there unless --mkdir makes it. The mount goes with the machine.
Where a machine has users of its own, machined refuses it.`,
		Example: `  machinectl-lite bind web /srv/data
  machinectl-lite bind --read-only --mkdir web /srv/data /data`,
		Args:              machineAndPaths,
		ValidArgsFunction: completeMachineThenFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			target := args[1]
			if len(args) > 2 {
				target = args[2]
			}
			return forEachMachine(cmd.Context(), args[:1], func(host *host, name string) error {
				if err := host.machined.Bind(cmd.Context(), name, args[1], target, readOnly, mkdir); err != nil {
					return fmt.Errorf("could not bind mount: %s: %w", name, err)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&mkdir, "mkdir", false, "Make the target, with the directories above it, if it is not there")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "Nothing can be written through the mount")
	return cmd
}

func copyToCommand() *cobra.Command {
	return copyCommand("copy-to", "Copy a file or directory of this host into a machine that runs",
		`Copy a file or a directory with all that is in it into a machine that runs, as by machinectl: to the same path unless another is given. Links are copied as links.`,
		"  machinectl-lite copy-to web index.html /srv/www/index.html\n  machinectl-lite copy-to --force web /etc/hosts", (*machined.Client).CopyTo,
		func(source, target string) (string, string, error) {
			source, err := filepath.Abs(source)
			if target == "" {
				target = source
			}
			return source, target, err
		})
}

func copyFromCommand() *cobra.Command {
	return copyCommand("copy-from", "Copy a file or directory of a machine that runs to this host",
		`Copy a file or a directory with all that is in it from a machine that runs to this host, as by machinectl: to the same path unless another is given. Owners and modes are the machine's, set-user-ID
among them, and links are copied as links: of a machine that is not trusted, copy into a directory that only root can enter.`,
		"  machinectl-lite copy-from web /var/log/nginx logs\n  machinectl-lite copy-from --force web /etc/hosts /tmp/hosts", (*machined.Client).CopyFrom,
		func(source, target string) (string, string, error) {
			if target == "" {
				target = source
			}
			target, err := filepath.Abs(target)
			return source, target, err
		})
}

// copyCommand copies by machined. paths makes the host's path absolute, and fills in the target.
func copyCommand(verb, short, long, example string, do func(c *machined.Client, ctx context.Context, name, source, target string, replace bool) error,
	paths func(source, target string) (string, string, error)) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: verb + " NAME PATH [PATH]", Short: short, Long: long, Example: example,
		Args:              machineAndPaths,
		ValidArgsFunction: completeMachineThenFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			target := ""
			if len(args) > 2 {
				target = args[2]
			}
			source, target, err := paths(args[1], target)
			if err != nil {
				return err
			}
			return forEachMachine(cmd.Context(), args[:1], func(host *host, name string) error {
				if err := do(host.machined, cmd.Context(), name, source, target, force); err != nil {
					return fmt.Errorf("could not copy: %s: %w", name, err)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "Replace files that are there already")
	return cmd
}
