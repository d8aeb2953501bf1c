package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"nspawnd/cmd/internal/launcher"
	"nspawnd/cmd/internal/printable"
	"nspawnd/cmd/internal/tty"
	"nspawnd/cmd/internal/variables"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"
)

// statusOwnError is podman-exec(1)'s exit status for what is no status of the command.
const statusOwnError = 125

// statusError is an error that the command exits with a status of its own for. Without a text nothing is said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// execFlags say what exec runs and how.
type execFlags struct {
	interactive, tty, detach, privileged bool
	asked                                bool // --tty was given
	user, workdir                        string
	env, envFiles                        []string
	keys                                 string
	leave                                []byte // the keys that do
}

func execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [OPTIONS...] NAME COMMAND [ARGUMENT...]",
		Short: "Run a command in a machine",
		Long: `Run a command beside the first process of a container of any origin, with or without an init inside: in all of its namespaces and its control group, and with its user,
environment, working directory, capabilities, limits and filters of system calls. The command is looked up in the machine's PATH.

Input, output and signals are passed on. Where both input and output are a terminal here, the command gets one of the machine's own. A command whose terminal was left runs on, and what it says goes to
the journal, as the machine's.

What a machine of nspawnd was started with, its unit tells; the secrets that it has as variables are not the command's. Elsewhere, as under systemd-nspawn, all is taken from the first process, which for that is stopped for a
moment (ptrace(2)) if it has a filter of system calls. One that AppArmor or SELinux confines is left alone, unless with --privileged.

Exit status: that of the command, or 128+n when signal n ended it; 125 when it was not run, 126 when it can't be executed, 127 when it was not found.`,
		Example: `  machinectl-lite exec web nginx -s reload
  machinectl-lite exec -it --user root web sh
  pg_dump shop | machinectl-lite exec db psql shop`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := machineNames(cmd, args[:min(len(args), 1)]); err != nil {
				return &statusError{statusOwnError, err}
			}
			if len(args) < 2 || args[1] == "" {
				return &statusError{statusOwnError, fmt.Errorf("exec: no command given (see %s --help)", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeMachines(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.detach && (f.tty || f.interactive) {
				return &statusError{statusOwnError, errors.New("exec: --detach leaves nobody for --interactive or --tty")}
			}
			if f.asked = cmd.Flags().Changed("tty"); !f.asked {
				f.tty = !f.detach && term.IsTerminal(0) && term.IsTerminal(1)
			}
			var err error
			if f.leave, err = tty.ParseKeys(f.keys); err != nil {
				return &statusError{statusOwnError, fmt.Errorf("--detach-keys: %w", err)}
			}
			// Signals are the command's.
			status, err := f.run(context.WithoutCancel(cmd.Context()), args[0], args[1:])
			if err != nil {
				return &statusError{statusOwnError, fmt.Errorf("%s: %w", args[0], err)}
			}
			return exitAs(status)
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &statusError{statusOwnError, fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the machine's name is the command's
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "Keep standard input open; it is passed on anyway, unless with --detach")
	flags.BoolVarP(&f.tty, "tty", "t", false, "Give it a terminal of the machine's (default: if input and output are a terminal here; -t=false passes that one on)")
	flags.BoolVarP(&f.detach, "detach", "d", false, "Print its unit and do not wait for it; what it says goes to the journal, as the machine's")
	flags.StringVarP(&f.user, "user", "u", "", "Run it as `USER[:GROUP]`, by name in the machine or by number")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "Start it in `directory`")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "Set `NAME=VALUE` in its environment, or pass NAME or NAME* on from this one")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "The same for each line of `file`")
	flags.StringVar(&f.keys, "detach-keys", "ctrl-p,ctrl-q", "`Keys` that leave it running and return, in a terminal of the machine's; \"\": none")
	flags.BoolVar(&f.privileged, "privileged", false, "Give it all capabilities, no filter of system calls, and new privileges; the machine's namespaces, control group and devices stay")
	return cmd
}

// exitAs gives the error that has the command exit with a status.
func exitAs(status int) error {
	if status == 0 {
		return nil
	}
	return &statusError{status: status}
}

// run runs a command in a machine, or a shell if there is none, and waits for it unless it is detached.
func (f *execFlags) run(ctx context.Context, name string, argv []string) (status int, err error) {
	signal.Reset() // until there is a command, signals end this: a machine can have us wait for its files
	host, err := connect(ctx)
	if err != nil {
		return 0, err
	}
	defer host.close()
	e := units.Exec{Argv: argv, WorkingDir: f.workdir, Privileged: f.privileged, Terminal: f.tty, Detached: f.detach,
		Description: printable.Line(name + ": " + strings.Join(argv, " "))}
	if e.Description = strings.ToValidUTF8(e.Description, "?"); len(e.Description) > 200 {
		e.Description = strings.ToValidUTF8(e.Description[:200], "")
	}
	if f.workdir != "" && !path.IsAbs(f.workdir) {
		return 0, fmt.Errorf("--workdir: %q is not an absolute path", f.workdir)
	}
	if e.Launcher, err = launcher.Find(); err != nil {
		return 0, err
	}
	if err := f.environment(&e); err != nil {
		return 0, err
	}
	manager, err := host.systemd.Version(ctx)
	if err != nil {
		return 0, err
	}
	leader, r, err := host.beside(ctx, name, manager)
	if err != nil {
		return 0, err
	}
	defer leader.close()
	account, err := r.PayloadAccount()
	if err != nil {
		return 0, err
	}
	if f.user != "" {
		user, err := image.NewRoot(leader.root).User(f.user)
		if err != nil {
			return 0, fmt.Errorf("--user: %w", err)
		}
		account = units.Account{UID: user.UID, GID: user.GID, Groups: user.Groups}
		e.Account, e.Home, e.User = &account, cmp.Or(user.Home, "/"), user.Name
	}
	if len(argv) == 0 {
		e.Argv = []string{shellOf(leader.root, account)}
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	e.ID = hex.EncodeToString(id)
	unit, err := units.ExecUnit(r, e, manager)
	if err != nil {
		return 0, err
	}
	uid, err := leader.hostUID(account.UID)
	if err != nil {
		return 0, err
	}
	return f.start(ctx, host, name, unit, uid, leader.root)
}

// start starts the service and, unless it is detached, connects it with our streams and waits for it.
func (f *execFlags) start(ctx context.Context, host *host, name string, unit units.Unit, uid uint32, root *os.File) (status int, err error) {
	fds := dbus.Descriptors{}
	var terminal *tty.Terminal
	if f.tty {
		if terminal, err = openTerminal(root, uid); err != nil {
			return 0, err
		}
		defer terminal.Release()
		terminal.Keys = &tty.Keys{Sequence: f.leave}
	}
	for i, file := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if terminal != nil && (f.asked || term.IsTerminal(i)) { // 2> errors
			file = terminal.Machine
		}
		if !f.detach && (i > 0 || terminal == nil) {
			fds.Set(unit.Name, []string{"StandardInput", "StandardOutput", "StandardError"}[i]+"FileDescriptor", file)
		}
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	service, err := host.systemd.Start(ctx, units.Set{Main: unit}, fds, !f.detach)
	if err != nil {
		return 0, fmt.Errorf("%w; journalctl -u %s tells more", err, unit.Name)
	}
	if f.detach {
		fmt.Println(unit.Name)
		return 0, nil
	}
	go passOn(ctx, service, signals, terminal != nil)
	waiting, stopWaiting := context.WithCancelCause(ctx)
	defer stopWaiting(nil)
	var output sync.WaitGroup
	if terminal != nil {
		terminal.Machine.Close()
		if err := terminal.Attach(&output, func() { stopWaiting(errLeft) }); err != nil {
			_ = host.systemd.Stop(ctx, unit.Name)
			return 0, err
		}
	}
	status, err = service.Wait(waiting)
	if errors.Is(err, errLeft) {
		relay, fds := units.Set{Main: units.ExecRelay(name, unit)}, dbus.Descriptors{}
		fds.Set(relay.Main.Name, units.TerminalRelayInput, terminal.Controller)
		if _, err := host.systemd.Start(ctx, relay, fds, false); err != nil {
			return 0, fmt.Errorf("leaving the command's terminal: %w", err)
		}
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	tty.Await(&output, outputLimit)
	return status, nil
}

// outputLimit is how long the output of a program that has ended is waited for.
const outputLimit = time.Second

// passOn passes signals on to a service, on a terminal of its own or not.
func passOn(ctx context.Context, service *dbus.Service, signals <-chan os.Signal, terminal bool) {
	for s := range signals {
		switch {
		case slices.Contains([]os.Signal{syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE}, s): // about us
		case terminal && s == syscall.SIGWINCH: // the terminal's new size does it
		default:
			_ = service.Signal(ctx, s.(syscall.Signal)) // fails only when it has ended
		}
	}
}

// shellOf gives the shell that a machine's /etc/passwd has for a user, or one for those who are not to log in.
func shellOf(root *os.File, account units.Account) string {
	user, err := image.NewRoot(root).User(strconv.Itoa(int(account.UID)))
	if err != nil || slices.Contains([]string{"", ".", "nologin", "false", "sync"}, path.Base(user.Shell)) {
		return "/bin/sh"
	}
	return user.Shell
}

func (f *execFlags) environment(e *units.Exec) error {
	var err error
	if e.Env, err = variables.Read(f.envFiles, f.env); err != nil {
		return err
	}
	isTerm := func(a string) bool { return strings.HasPrefix(a, "TERM=") }
	if name := os.Getenv("TERM"); f.tty && !slices.ContainsFunc(e.Env, isTerm) {
		if name == "" {
			name = "xterm" // podman's
		}
		e.Env = append(e.Env, "TERM="+name)
	}
	return nil
}

// joinable gives the unit of a machine that runs and that a process of this kernel can be run in, and whether the machine is of nspawnd.
func (h *host) joinable(ctx context.Context, name string) (unit dbus.Unit, ours bool, err error) {
	if unit, ours, err = h.systemd.MachineUnit(ctx, name); err != nil {
		return unit, ours, err
	}
	if !ours {
		properties, err := h.machined.Get(ctx, name)
		switch {
		case errors.Is(err, machined.ErrNoSuchMachine):
			return unit, false, errors.New("no machine of that name runs")
		case err != nil:
			return unit, false, err
		case properties.Class != machined.OwnClass:
			return unit, false, fmt.Errorf("it is no container but of class %q: no process of this kernel can be run in it", properties.Class)
		}
		if unit, err = h.unitOf(ctx, name); err != nil {
			return unit, false, err
		}
		unit.MainPID = properties.Leader
	}
	switch {
	case os.Geteuid() != 0:
		err = fmt.Errorf("to run a command in a machine needs root: %w", fs.ErrPermission)
	case unit.Frozen:
		err = fmt.Errorf("it is paused; to have it go on: machinectl-lite resume %s", name)
	}
	return unit, ours, err
}

// beside gives a machine's first process, and what a command beside that gets. Of a machine of nspawnd the manager tells, so that the process need not be looked at.
func (h *host) beside(ctx context.Context, name string, manager int) (l *leader, r units.Running, err error) {
	unit, ours, err := h.joinable(ctx, name)
	if err != nil {
		return nil, r, err
	}
	told := false
	if ours {
		running, err := h.systemd.Running(ctx, unit)
		if err != nil {
			return nil, r, err
		}
		r = units.Running{Machine: name, Argv: running.Argv, Env: running.Env, WorkingDir: running.WorkingDir, Slice: running.Slice, Account: running.Account}
		for _, file := range running.Files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, r, fmt.Errorf("what its payload is confined to: %w", err)
			}
			r.Files = append(r.Files, string(text))
		}
		told = r.Tells(manager)
		if slices.ContainsFunc(r.Argv[:min(len(r.Argv), 8)], func(word string) bool { return path.Base(word) == "systemd-nspawn" }) {
			told = false
			properties, err := h.machined.Get(ctx, name)
			if err != nil {
				return nil, r, err
			}
			unit.MainPID = properties.Leader
		}
	}
	if l, err = openLeader(unit); err != nil || told {
		return l, r, err
	}
	if l, err = l.payload(unit); err != nil {
		return nil, r, err
	}
	if r, err = l.running(name); err != nil {
		l.close()
	}
	return l, r, err
}

// openTerminal opens a terminal of a machine's own devpts instance.
func openTerminal(root *os.File, uid uint32) (*tty.Terminal, error) {
	instance, err := image.NewRoot(root).Directory("/dev/pts")
	if err != nil {
		return nil, err
	}
	defer instance.Close()
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(instance.Fd()), &stat); err != nil || stat.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, errors.New("it has no terminals: its /dev/pts is no devpts; -t=false passes yours on")
	}
	return tty.Open(instance, uid)
}
