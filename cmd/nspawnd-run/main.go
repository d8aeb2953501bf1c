// Command nspawnd-run starts a container image as a systemd service, with no daemon of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/cmd/internal/mountns"
	"nspawnd/cmd/internal/printable"
	"nspawnd/cmd/internal/version"
	"nspawnd/image"

	"github.com/spf13/cobra"
)

// Exit statuses: those of podman-run(1).
const (
	statusOwnError      = 125
	statusNotExecutable = 126
	statusNotFound      = 127
)

func main() {
	status := 0
	command := newCommand(&status)
	if err := command.Execute(); err != nil {
		status = statusOwnError
		var withStatus *statusError
		if errors.As(err, &withStatus) {
			status = withStatus.status
		}
		if !errors.Is(err, errReported) {
			fmt.Fprintln(os.Stderr, "nspawnd-run: "+printable.Line(err.Error()))
		}
	}
	os.Exit(status)
}

// statusError is an error that the command exits with a status of its own for.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func newCommand(status *int) *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:   "nspawnd-run [OPTIONS] IMAGE [ARG...]",
		Short: "Run a container image as a systemd service",
		Long: `Runs a container image as a systemd service: its process is the main process of the unit nspawnd-NAME.service, its
isolation and limits are the unit's own. The image is fetched if the store does not have it, and only accepted if
its signature is trusted. Without --detach, nspawnd-run waits, passes input, output and signals through, and exits as the
image's process does.

Exit status:
  that of the process, or 128+n when signal n ended it
  125  nspawnd-run or systemd could not start it
  126  the command is in the image but can't be run
  127  the command is not in the image`,
		Example: `  nspawnd-run registry.example/team/tool --version
  nspawnd-run --detach --name web registry.example/team/nginx
  tar c . | nspawnd-run -v /srv/backup:/out registry.example/team/pack > result
  nspawnd-run --memory 512m --cpus 1.5 --property IOWeight=50 registry.example/team/job
  nspawnd-run --name web --dry-run registry.example/team/nginx`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && !o.version && o.showRoot == "" && o.forgetRoot == "" {
				return errors.New("no image given (nspawnd-run --help shows how)")
			}
			return nil
		},
		ValidArgsFunction:     completeImage,
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case o.version:
				fmt.Println("nspawnd-run version " + version.String())
				return nil
			case o.showRoot != "":
				return machinedir.ShowRoot(o.showRoot)
			case o.forgetRoot != "":
				return mountns.Forget(machinedir.MountPath(o.forgetRoot))
			}
			o.image, o.args = args[0], args[1:]
			var err error
			*status, err = run(context.Background(), &o)
			for errors.Is(err, image.ErrChanged) { // by a pull at the same time: what it stored is what is meant
				*status, err = run(context.Background(), &o)
			}
			return err
		},
	}
	addFlags(command, &o)
	return command
}

// completeImage offers the stored images.
func completeImage(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	store, err := image.Open(image.DefaultRoot)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	images, _ := store.Images()
	var names []string
	for _, img := range images {
		names = append(names, img.Reference.String())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
