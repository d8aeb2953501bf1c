package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/machined"
)

func tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tag NAME NEWNAME",
		Short: "Give an image another name",
		Long: `Give an image another name beside the one it has. A NEWNAME that another image has changes over, unless that image is marked
read-only. The proof that the image was accepted by stays that of the name it was pulled by.`,
		Example:           `  machinectl-lite tag registry.example/team/web:1.4 registry.example/team/web:stable`,
		Args:              imageNames(2, 2),
		ValidArgsFunction: completeImages(2),
		RunE: editStore(func(ctx context.Context, w *image.Writer, names []image.Reference) error {
			return w.Tag(ctx, names[0], names[1])
		}, nil),
	}
}

func cloneCommand() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "clone NAME NEWNAME",
		Short: "Clone an image",
		Long: `Make a copy of an image under a name that no image has. It takes no space: an image never changes. The proof that the image was
accepted by stays that of the name it was pulled by. An image of systemd-nspawn is copied, as machinectl does.` + aboutThere,
		Example:           `  machinectl-lite clone --read-only registry.example/team/web:latest localhost/web:known-good`,
		Args:              imageNames(2, 2),
		ValidArgsFunction: completeImages(1),
		RunE: editStore(func(ctx context.Context, w *image.Writer, names []image.Reference) error {
			return w.Clone(ctx, names[0], names[1], readOnly)
		}, func(ctx context.Context, c *machined.Client, names []string) error {
			return c.CloneImage(ctx, names[0], names[1], readOnly)
		}),
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "Mark the clone read-only")
	return cmd
}

func renameCommand() *cobra.Command {
	renameImage := editStore(func(ctx context.Context, w *image.Writer, names []image.Reference) error {
		return w.Rename(ctx, names[0], names[1])
	}, func(ctx context.Context, c *machined.Client, names []string) error {
		return c.RenameImage(ctx, names[0], names[1])
	})
	return &cobra.Command{
		Use:   "rename NAME NEWNAME",
		Short: "Rename an image, or a machine that is kept",
		Long: `Give an image a name that no image has, instead of its own. The proof that the image was accepted by stays that of the name it was
pulled by. Machines that run on it go on.

A name that a machine of nspawnd-run --keep has is that machine's, which has to be stopped for it. Its next start has the new name, also for its unit and its host name unless that was given; its log so far
stays under the old one.` + aboutThere,
		Example: `  machinectl-lite rename registry.example/team/web:latest localhost/web:old
  machinectl-lite rename web web-before`,
		Args: imageNames(2, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, directive := completeImages(1)(cmd, args, word)
			if len(args) == 0 && options.own() {
				kept, _ := completeKept(cmd, args, word)
				names = append(names, kept...)
			}
			return names, directive
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := image.Open(storeRoot)
			if !options.own() || err != nil || !image.IsKept(store.KeptDir(args[0])) {
				return renameImage(cmd, args)
			}
			return forEachMachine(cmd.Context(), args[:1], func(host *host, name string) error {
				return host.rename(cmd.Context(), store, name, args[1])
			})
		},
	}
}

func readOnlyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "read-only NAME [BOOL]",
		Short: "Mark or unmark image read-only",
		Long: `Mark an image read-only, or with "no" take the mark away. An image that is marked is not replaced by a pull, a tag or a clone, and
not removed by remove or clean. It can be renamed. An image of systemd-nspawn is marked as machinectl does: its files can't be changed.` + aboutThere,
		Example: `  machinectl-lite read-only registry.example/team/web:1.4
  machinectl-lite read-only registry.example/team/web:1.4 no`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				if _, err := boolean(args[1]); err != nil {
					return err
				}
			}
			return imageNames(1, 2)(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"yes", "no"}, cobra.ShellCompDirectiveNoFileComp
			}
			return completeImages(1)(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			readOnly := true
			if len(args) == 2 {
				readOnly, _ = boolean(args[1])
			}
			return editStore(func(ctx context.Context, w *image.Writer, names []image.Reference) error {
				return w.SetReadOnly(ctx, names[0], readOnly)
			}, func(ctx context.Context, c *machined.Client, names []string) error {
				return c.MarkImageReadOnly(ctx, names[0], readOnly)
			})(cmd, args[:1])
		},
	}
}

// boolean reads a boolean as systemd spells it.
func boolean(s string) (bool, error) {
	value := parseBool(s, false)
	if value != parseBool(s, true) {
		return false, fmt.Errorf("%q is neither yes nor no", s)
	}
	return value, nil
}

// editStore makes a command of a function that changes the store's images with these names, and one, nil for none, that changes machined's.
func editStore(edit func(context.Context, *image.Writer, []image.Reference) error,
	editPool func(context.Context, *machined.Client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if !options.own() {
			return forEachInPool(cmd.Context(), args[:1], func(c *machined.Client, _ string) error { return editPool(cmd.Context(), c, args) })
		}
		store, err := image.Open(storeRoot)
		if err != nil {
			return err
		}
		img, err := findImage(store, args[0])
		if err != nil && editPool != nil {
			return inPool(cmd.Context(), args[0], err, func(c *machined.Client) error { return editPool(cmd.Context(), c, args) })
		}
		if err != nil {
			return err
		}
		names := []image.Reference{img.Reference}
		for _, arg := range args[1:] {
			name, err := image.ParseReference(arg)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		w, err := store.Writer()
		if err != nil {
			return err
		}
		defer w.Close()
		return edit(cmd.Context(), w, names)
	}
}
