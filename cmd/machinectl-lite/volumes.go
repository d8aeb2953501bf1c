package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/units"
)

func listVolumesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list-volumes",
		Short: "List volumes",
		Long: `List the named volumes of the store, with the machines that have them. A volume is a directory that outlives machines: nspawnd-run
--volume=NAME:PATH makes it when there is none.`,
		Example: `  machinectl-lite list-volumes
  machinectl-lite list-volumes --json=short | jq -r '.[].name'`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			volumes, err := storedVolumes()
			if err != nil {
				return err
			}
			t := table{header: []string{"NAME", "CREATED", "MACHINES"}, values: []string{"CREATED"}}
			for _, v := range volumes {
				t.rows = append(t.rows, []string{v.Name, cellsFor(options.jsonLayout() != "").when(v.Created), strings.Join(v.Users, " ")})
			}
			return t.show("volumes")
		},
	}
}

func volumeStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "volume-status NAME...",
		Short: "Show where volumes are and how big",
		Long: `Show of each volume its directory on the host, the bytes on disk of all that is in it, which takes the time to look at each file, and
the machines that have it.`,
		Example:           `  machinectl-lite volume-status data`,
		Args:              volumeNames,
		ValidArgsFunction: completeVolumes,
		RunE: func(_ *cobra.Command, names []string) error {
			volumes, err := storedVolumes()
			if err != nil {
				return err
			}
			var failed failures
			t := table{header: []string{"NAME", "SIZE", "CREATED", "MACHINES", "PATH"}, values: []string{"SIZE", "CREATED"}}
			c := cellsFor(options.jsonLayout() != "")
			for _, name := range names {
				i := slices.IndexFunc(volumes, func(v image.Volume) bool { return v.Name == name })
				if i < 0 {
					failed = append(failed, noVolume(fmt.Errorf("volume %s: %w", name, image.ErrNotFound)))
					continue
				}
				v := volumes[i]
				t.rows = append(t.rows, []string{v.Name, c.size(image.DiskUsage(v.Path)), c.when(v.Created), strings.Join(v.Users, " "), v.Path})
			}
			if len(t.rows) > 0 {
				if err := t.show("volumes"); err != nil {
					return err
				}
			}
			return failed.orNil()
		},
	}
}

func createVolumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "create-volume NAME...",
		Short:             "Make empty volumes",
		Long:              `Make volumes, which are empty. The first machine that has one with nspawnd-run --volume=NAME:PATH copies into it what its image has at PATH.`,
		Example:           `  machinectl-lite create-volume data`,
		Args:              volumeNames,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, names []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			var failed failures
			for _, name := range names {
				if err := store.CreateVolume(cmd.Context(), name); err != nil {
					failed = append(failed, err)
				}
			}
			return failed.orNil()
		},
	}
}

func removeVolumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove-volume NAME...",
		Short: "Remove volumes and what is in them",
		Long: `Remove volumes with all that is in them, each unless a machine has it. Says what was removed and how many bytes that freed. Each NAME is
tried, also when it failed for one before. Nothing else removes a volume, clean neither.`,
		Example:           `  machinectl-lite remove-volume data`,
		Args:              volumeNames,
		ValidArgsFunction: completeVolumes,
		RunE: func(cmd *cobra.Command, names []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			if _, err := sweepMachines(cmd.Context(), store); err != nil {
				return err
			}
			removed, errs := store.RemoveVolumes(cmd.Context(), names)
			if err := showRemoved(removed); err != nil {
				return err
			}
			var failed failures
			for _, err := range errs {
				failed = append(failed, noVolume(err))
			}
			return failed.orNil()
		},
	}
}

func noVolume(err error) error {
	if errors.Is(err, image.ErrNotFound) {
		err = fmt.Errorf("%w; machinectl-lite list-volumes shows what is there", err)
	}
	return err
}

func storedVolumes() ([]image.Volume, error) {
	store, err := image.Open(storeRoot)
	if err != nil {
		return nil, err
	}
	return store.Volumes()
}

// volumeNames wants at least one name that a volume may have.
func volumeNames(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: no volume named (see %s --help)", cmd.Name(), cmd.CommandPath())
	}
	for _, name := range args {
		if !units.ValidVolumeName(name) {
			return fmt.Errorf("%q is not a volume's name (letters, digits, and \"_\", \".\", \"-\" after the first; at most 128)", name)
		}
	}
	return nil
}

// completeVolumes offers the volumes that are there.
func completeVolumes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	volumes, _ := storedVolumes()
	var names []string
	for _, v := range volumes {
		if !slices.Contains(args, v.Name) {
			names = append(names, v.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
