package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nspawnd/cmd/internal/tty"
	"nspawnd/units"
)

func attachCommand() *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Come back to the terminal of a machine of nspawnd",
		Long: `Connect this terminal with that of a machine that was started with --detach and --tty, or that was left with the keys for that. What it said in the meantime is in the journal.
Signals are passed on.

Exit status: that of the machine's first process, or 128+n when signal n ended it; 0 when it was left again; 125 when there is no terminal to come back to.`,
		Example: `  nspawnd-run -dt --name shell registry.example/team/debian bash
  machinectl-lite attach shell`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &statusError{statusOwnError, fmt.Errorf("attach: one machine is to be named (see %s --help)", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			sequence, err := tty.ParseKeys(keys)
			if err != nil {
				return &statusError{statusOwnError, fmt.Errorf("--detach-keys: %w", err)}
			}
			status, err := attach(context.WithoutCancel(cmd.Context()), args[0], sequence) // signals are the machine's
			if err != nil {
				return &statusError{statusOwnError, fmt.Errorf("%s: %w", args[0], err)}
			}
			return exitAs(status)
		},
	}
	cmd.Flags().StringVar(&keys, "detach-keys", "ctrl-p,ctrl-q", "`Keys` that leave it running and return; \"\": none")
	return cmd
}

// errLeft says that the user leaves the machine to itself.
var errLeft = errors.New("left")

// attach connects a machine's terminal with ours. The relay that has the terminal, and writes to the journal what it shows, is stopped (SIGSTOP) meanwhile;
// a stop of its unit has it go on.
func attach(ctx context.Context, name string, keys []byte) (status int, err error) {
	signal.Reset() // until there is a terminal, signals end this
	host, err := connect(ctx)
	if err != nil {
		return 0, err
	}
	defer host.close()
	machine, _, err := host.joinable(ctx, name)
	if err != nil {
		return 0, err
	}
	relay := units.RelayName(name)
	unit, err := host.systemd.Unit(ctx, relay)
	var controller *os.File
	if err == nil {
		controller, err = takeTerminal(unit.MainPID)
	}
	if err != nil {
		return 0, fmt.Errorf("it has no terminal that was left; machinectl-lite logs -f %s shows what it says, and exec runs a command in it", name)
	}
	defer controller.Close()
	lock, err := os.Open(filepath.Join("/run/systemd/transient", machine.Name))
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return 0, fmt.Errorf("somebody else is at its terminal: %w", err)
	}
	service, err := host.systemd.Follow(ctx, machine.Name)
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if err := host.systemd.Kill(ctx, relay, false, int32(unix.SIGSTOP)); err != nil {
		return 0, err
	}
	defer func() { _ = host.systemd.Kill(ctx, relay, false, int32(unix.SIGCONT)) }() // it fails when the relay has ended with the machine
	if err := awaitStopped(unit.MainPID); err != nil {
		return 0, err
	}
	go passOn(ctx, service, signals, true)
	waiting, stopWaiting := context.WithCancelCause(ctx)
	defer stopWaiting(nil)
	terminal := tty.Terminal{Controller: controller, Keys: &tty.Keys{Sequence: keys}}
	defer terminal.Release()
	terminal.Redraw()
	var output sync.WaitGroup
	if err := terminal.Attach(&output, func() { stopWaiting(errLeft) }); err != nil {
		return 0, err
	}
	status, err = service.Wait(waiting)
	if errors.Is(err, errLeft) {
		return 0, nil
	}
	tty.Await(&output, outputLimit)
	return status, err
}

// awaitStopped waits until a process that was told to stop has: until then it may read what is ours to show.
func awaitStopped(pid uint32) error {
	for deadline := time.Now().Add(stopTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "\nState:\tT") { // it has ended with the machine, which is seen next
			return nil
		}
	}
	return errors.New("what has its terminal does not stop")
}

// stopTime is how long that may take.
const stopTime = 5 * time.Second

// takeTerminal gives the terminal that is the standard input of a process.
func takeTerminal(pid uint32) (*os.File, error) {
	process, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, 0, 0)
	if err != nil {
		return nil, err
	}
	controller := os.NewFile(uintptr(fd), "terminal")
	if _, err := unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil { // the controlling end has a number
		controller.Close()
		return nil, err
	}
	return controller, nil
}
