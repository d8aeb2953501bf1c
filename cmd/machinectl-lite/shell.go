package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"nspawnd/cmd/internal/printable"
	"nspawnd/cmd/internal/tty"
	"nspawnd/machined"
)

func shellCommand() *cobra.Command {
	var user string
	var env []string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "shell [OPTIONS...] [[USER@]NAME [PATH [ARGUMENT...]]]",
		Short: "Run a shell or a command in a machine, or on this host",
		Long: `Run a shell, or a program by its absolute path, on a terminal of a machine in which systemd runs, as by machinectl: as root unless a user is named, and by the machine's own systemd. How the program ended
is not passed on: machined does not tell. The name .host, or none, is this host. Pressing ^] three times within a second ends the connection.

In a container without systemd, the shell or the command is run as by exec -t: as the machine's user unless one is named, looked up in its PATH, with its exit status passed on.`,
		Example: `  machinectl-lite shell web
  machinectl-lite shell admin@debian
  machinectl-lite shell -E LANG=C debian /usr/bin/systemctl status`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeMachines(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := machined.Host, []string(nil)
			if len(args) > 0 {
				name, command = args[0], args[1:]
				if before, after, named := strings.Cut(name, "@"); named {
					if name = after; before == "" {
						return fmt.Errorf("shell: %q has no user before the @", args[0])
					}
					user = before
				}
				name = cmp.Or(name, machined.Host)
			}
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			if host.withoutSystemd(cmd.Context(), name) {
				f := execFlags{tty: true, asked: true, user: user, env: env}
				status, err := f.run(context.WithoutCancel(cmd.Context()), name, command)
				if err != nil {
					return fmt.Errorf("could not open a shell: %s: %w", name, err)
				}
				return exitAs(status)
			}
			assignments, err := shellEnvironment(env)
			if err != nil {
				return err
			}
			path := ""
			if len(command) > 0 {
				path = command[0]
			}
			terminal, err := host.machined.OpenShell(cmd.Context(), name, user, path, command, assignments)
			if err != nil {
				return fmt.Errorf("could not open a shell: %w", err)
			}
			return connectTerminal(cmd.Context(), name, quiet, &tty.Terminal{Controller: terminal, Keys: &tty.Escape{}, Plain: !term.IsTerminal(1)})
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the machine's name is the command's
	cmd.Flags().StringVar(&user, "uid", "", "Run it as this `user`, unless one is named before the machine")
	cmd.Flags().StringArrayVarP(&env, "setenv", "E", nil, "Set `NAME=VALUE` in its environment, or pass NAME on from this one")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Do not say that the connection is there and ended")
	return cmd
}

func loginCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "login [NAME]",
		Short: "Get a login prompt in a machine, or on this host",
		Long: `Get a login prompt on a terminal of a machine in which systemd runs. The name .host, or none, is this host. Pressing ^] three times within a second ends the
connection.`,
		Example: `  machinectl-lite login debian`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("login: one machine at a time (see %s --help)", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := machined.Host
			if len(args) > 0 {
				name = cmp.Or(args[0], name)
			}
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			if host.withoutSystemd(cmd.Context(), name) {
				return fmt.Errorf("could not log in: no systemd runs in %s; for a shell: machinectl-lite shell %s", name, name)
			}
			gone, err := host.machined.Gone(cmd.Context(), name)
			if err != nil {
				return fmt.Errorf("could not log in: %w", err)
			}
			controller, err := host.machined.OpenLogin(cmd.Context(), name)
			if err != nil {
				return fmt.Errorf("could not log in: %w", err)
			}
			terminal := &tty.Terminal{Controller: controller, Keys: &tty.Escape{}}
			terminal.Hangup = func() bool { // between two logins nobody has it open
				select {
				case <-gone:
					return false
				default:
					return true
				}
			}
			return connectTerminal(cmd.Context(), name, quiet, terminal)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Do not say that the connection is there and ended")
	return cmd
}

// withoutSystemd says whether a container has no systemd and bus inside, of which machined would ask for a terminal, and a command can be run in it.
func (h *host) withoutSystemd(ctx context.Context, name string) bool {
	if h.elsewhere || name == machined.Host {
		return false
	}
	unit, ours, err := h.joinable(ctx, name)
	if err != nil {
		return ours || unit.Frozen && os.Geteuid() == 0 // exec says how to have it go on
	}
	leader, err := openLeader(unit)
	if err != nil {
		return true
	}
	defer leader.close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for _, path := range []string{"/run/systemd/system", "/run/dbus/system_bus_socket"} { // sd_booted(3)
		fd, err := unix.Openat2(int(leader.root.Fd()), path, &how)
		if err != nil {
			return true
		}
		unix.Close(fd)
	}
	return false
}

// shellEnvironment gives the variables that a shell gets: those of the terminal, as from machinectl, and those asked for.
func shellEnvironment(asked []string) (env []string, err error) {
	for _, name := range []string{"TERM", "COLORTERM", "NO_COLOR"} {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	for _, assignment := range asked {
		name, value, assigned := strings.Cut(assignment, "=")
		if name == "" {
			return nil, fmt.Errorf("--setenv: %q is not NAME=VALUE", assignment)
		}
		if !assigned {
			if value, assigned = os.LookupEnv(name); !assigned {
				continue
			}
		}
		env = append(env, name+"="+value)
	}
	return env, nil
}

// connectTerminal connects a machine's terminal with ours, until it is closed there, or the user or a signal ends that.
func connectTerminal(ctx context.Context, name string, quiet bool, t *tty.Terminal) error {
	what := "machine " + printable.Line(name)
	if name == machined.Host {
		what = "the local host"
	}
	say := func(format string) {
		if !quiet {
			fmt.Fprintf(os.Stderr, format+"\n", what)
		}
	}
	say("Connected to %s. Press ^] three times within 1s to exit session.")
	left := make(chan struct{})
	var output sync.WaitGroup
	if err := t.Attach(&output, func() { close(left) }); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		output.Wait()
		close(ended)
	}()
	var err error
	select {
	case <-ended:
	case <-left:
	case <-ctx.Done():
		err = errors.New("interrupted")
	}
	t.Release()
	if t.MidLine() {
		fmt.Println()
	}
	say("Connection to %s terminated.")
	return err
}
