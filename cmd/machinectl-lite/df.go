package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/image"
)

func dfCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Show what the store takes on disk",
		Long: `Show what images, layers, machines and volumes take on disk, how many of them are in use, and what clean would free; with --all, what clean
--all would. Layers are counted once, whatever images have them. Images are their records, manifests, configurations and signatures; leftovers are
files of commands that write just now or were killed. No clean removes a volume or a machine that was kept.

It looks at each file, which takes its time where machines and volumes have many.`,
		Example: `  machinectl-lite df
  machinectl-lite df --all --json=pretty`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			awaitEnded(cmd.Context(), store)
			spaces, err := store.Space(options.all, machinedir.Owned)
			if spaces == nil {
				return err
			}
			return errors.Join(spaceTable(spaces, options.jsonLayout() != "").show(""), err)
		},
	}
}

// spaceTable has the columns of podman system df; for people, or exact.
func spaceTable(spaces []image.Space, exact bool) table {
	t := table{header: []string{"TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}, values: []string{"TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}}
	words := cellsFor(exact).size
	var size, freeable int64
	for _, s := range spaces {
		t.rows = append(t.rows, []string{s.Kind, strconv.Itoa(s.Count), strconv.Itoa(s.InUse), words(s.Size), words(s.Freeable)})
		size, freeable = size+s.Size, freeable+s.Freeable
	}
	t.footer = fmt.Sprintf("%s in all.\n", words(size))
	if freeable > 0 {
		clean := "machinectl-lite clean"
		if options.all {
			clean += " --all"
		}
		t.footer = fmt.Sprintf("%s in all; to free %s: %s\n", words(size), words(freeable), clean)
	}
	return t
}
