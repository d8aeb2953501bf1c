package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
	"nspawnd/machined"
)

func removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME...",
		Short: "Remove images",
		Long: `Remove images from the store, and then all that no other image, no machine and no pull in progress needs any more. Says what was
removed and how many bytes that freed.

An image that a machine uses is not removed, except for one of several names of it. Neither is one that is marked read-only. Each NAME is
tried, also when it failed for one before. An image of systemd-nspawn is removed as machinectl does, also if it is read-only.` + aboutThere,
		Example: `  machinectl-lite remove registry.example/team/web:1
  machinectl-lite remove --json=pretty registry.example/team/web:1 registry.example/team/web:2`,
		Args:              imageNames(1, -1),
		ValidArgsFunction: completeImages(-1),
		RunE: func(cmd *cobra.Command, names []string) error {
			if !options.own() {
				return forEachInPool(cmd.Context(), names, func(c *machined.Client, name string) error { return c.RemoveImage(cmd.Context(), name) })
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			var failed failures
			var refs []image.Reference
			var removed []image.Removed
			ours := false // not all of them are machined's, for which the store is not written to
			for _, name := range names {
				ref, notStored := storedName(store, name)
				if notStored != nil {
					fromPool, err := removeFromPool(cmd.Context(), name, notStored)
					if err != nil {
						failed = append(failed, err)
						ours = ours || err == notStored // maybe by a remove that was killed
					} else {
						removed = append(removed, fromPool)
					}
					continue
				}
				ours = true
				if !slices.Contains(refs, ref) {
					refs = append(refs, ref)
				}
			}
			if ours {
				machines, err := sweepMachines(cmd.Context(), store)
				removed = append(removed, machines...)
				switch {
				case err != nil && removed == nil:
					return err
				case err != nil:
					failed = append(failed, err)
				default:
					rest, errs := store.Remove(cmd.Context(), refs)
					removed, failed = append(removed, rest...), append(failed, errs...)
				}
			}
			if err := showRemoved(removed); err != nil || failed == nil {
				return err
			}
			return failed
		},
	}
}

func cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove what no image and no machine needs",
		Long: `Remove from the store what no image, no machine and no pull in progress needs: layers and blobs of images that were replaced or
half pulled, directories of machines that are gone, files of commands that were killed. With --all, also every image that no machine
uses, unless it is marked read-only. Says what was removed and how many bytes that freed. Hidden images of systemd-machined, which downloads have left, go too; with
--all its others stay, unlike with machinectl: they are not to be had again.

It can run at any time, beside pulls and starts.` + aboutThere,
		Example: `  machinectl-lite clean
  machinectl-lite clean --all
  machinectl-lite clean --json=short`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !options.own() {
				return cleanThere(cmd.Context())
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			removed, err := sweepMachines(cmd.Context(), store)
			if err != nil && removed == nil {
				return err
			}
			if err == nil {
				var rest []image.Removed
				rest, err = store.Clean(cmd.Context(), options.all)
				removed = append(removed, rest...)
			}
			hidden, poolErr := cleanPool(cmd.Context())
			return errors.Join(showRemoved(append(removed, hidden...)), err, poolErr)
		},
	}
}

// sweepMachines removes what is left of machines whose unit is gone. Those that have just ended it gives the time to be gone: they would
// still keep their images.
func sweepMachines(ctx context.Context, store *image.Store) (removed []image.Removed, err error) {
	awaitEnded(ctx, store)
	err = store.SweepMachines(machinedir.Owned, func(dir string) {
		if !image.IsKept(dir) {
			removed = append(removed, image.Removed{Kind: "machine", Name: filepath.Base(dir), Size: image.DiskUsage(dir)})
		}
		machinedir.Discard(dir)
	})
	return removed, err
}

// endTimeout is how long a machine that ends is waited for; a payload has 10 s by default.
const endTimeout = 15 * time.Second

// awaitEnded waits until the companion units of machines that end, or have just ended, have cleaned up. Without a bus there are none.
func awaitEnded(ctx context.Context, store *image.Store) {
	dirs, _ := filepath.Glob(filepath.Join(store.Machines(), "*"))
	if len(dirs) == 0 {
		return
	}
	host, err := connect(ctx)
	if err != nil {
		return
	}
	defer host.close()
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	for _, dir := range dirs {
		if machinedir.Owned(dir) {
			host.systemd.AwaitEnd(ctx, machinedir.Name(dir)) // one that does not end keeps its image
		}
	}
}

// showRemoved says what is gone: as JSON each thing, for people the images and a sum.
func showRemoved(removed []image.Removed) error {
	if options.jsonLayout() != "" {
		t := table{header: []string{"TYPE", "NAME", "SIZE"}, values: []string{"SIZE"}}
		for _, r := range removed {
			t.rows = append(t.rows, []string{r.Kind, r.Name, strconv.FormatInt(r.Size, 10)})
		}
		return t.show("")
	}
	_, err := fmt.Print(removedWords(removed))
	return err
}

func removedWords(removed []image.Removed) string {
	var words strings.Builder
	var kinds, counts []string
	var bytes int64
	for _, r := range removed {
		if r.Kind == "image" || r.Kind == "volume" {
			fmt.Fprintf(&words, "Removed %s '%s'\n", r.Kind, printable.Line(r.Name))
		}
		if !slices.Contains(kinds, r.Kind) {
			kinds = append(kinds, r.Kind)
		}
		bytes += r.Size
	}
	for _, kind := range kinds {
		n := 0
		for _, r := range removed {
			if r.Kind == kind {
				n++
			}
		}
		if n != 1 {
			kind += "s"
		}
		counts = append(counts, fmt.Sprintf("%d %s", n, kind))
	}
	if counts == nil {
		return ""
	}
	fmt.Fprintf(&words, "Freed %s: %s\n", bytesWords(bytes), strings.Join(counts, ", "))
	return words.String()
}
