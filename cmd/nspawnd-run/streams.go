package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"nspawnd/cmd/internal/tty"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// streamFlags say where standard input, output and error lead to.
type streamFlags struct {
	flags            *pflag.FlagSet
	interactive, tty bool
	attach           []string
	detachKeys       string
	logDriver        string
	logOpts          []string

	leave []byte // --detach-keys
	relay string // --log-opt relay=
}

func (g *streamFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.BoolVarP(&g.interactive, "interactive", "i", false, "keep standard input open; in the foreground it is passed on anyway")
	f.BoolVarP(&g.tty, "tty", "t", false, "give it a terminal of its own (default: if input and output are a terminal here; -t=false passes that one on)")
	f.StringArrayVarP(&g.attach, "attach", "a", nil, "pass on only `stdin|stdout|stderr`; output that is not named goes to the journal")
	f.StringVar(&g.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "`KEYS` that leave it running and return, in a terminal (machinectl-lite attach comes back); \"\": none")
	f.StringVar(&g.logDriver, "log-driver", "journald", "where output goes that nobody is there to read: `journald|none|passthrough`")
	f.StringArrayVar(&g.logOpts, "log-opt", nil, "`tag=TAG` in place of the name in the journal; relay=always|never|auto: whether it can open /dev/stdout (auto: if the image seems to)")
}

func (g *streamFlags) apply(m *units.Machine, _ *units.Options) error {
	s := &m.Streams
	if m.Detached {
		*s = units.DetachedStreams
	}
	if len(g.attach) > 0 {
		if m.Detached {
			return errors.New("--attach can't be used with --detach")
		}
		*s = units.DetachedStreams
		for _, name := range g.attach {
			switch strings.ToLower(name) {
			case "stdin":
				s.Input = ""
			case "stdout":
				s.Output = ""
			case "stderr":
				s.Error = ""
			default:
				return fmt.Errorf("--attach: %q is not stdin, stdout or stderr", name)
			}
		}
	}
	if g.interactive && s.Input != "" {
		s.Input = ""
	}
	if err := g.terminal(m); err != nil {
		return err
	}
	if err := g.driver(m); err != nil {
		return err
	}
	var err error
	if g.leave, err = tty.ParseKeys(g.detachKeys); err != nil {
		return fmt.Errorf("--detach-keys: %w", err)
	}
	return g.options(m)
}

// terminal decides whether the machine has a terminal of its own.
//
// The caller's own is not for a stranger's program: it could be left in any mode, and in the program's session it would give that power over
// what the caller types. So where both ends are a terminal, the machine gets its own.
func (g *streamFlags) terminal(m *units.Machine) error {
	s := &m.Streams
	own := m.Flavor == units.ServiceFlavor // the others have the host's terminals, or nspawn's
	if g.tty && !own {
		return fmt.Errorf("--tty: a machine has terminals of its own only with --flavor=%s", units.ServiceFlavor)
	}
	s.Terminal = g.tty
	if !g.flags.Changed("tty") {
		s.Terminal = own && !m.Detached && s.Input == "" && s.Output == "" && term.IsTerminal(0) && term.IsTerminal(1)
		return nil
	}
	if g.tty && len(g.attach) > 0 && (s.Input != "" || s.Output != "") {
		return errors.New("--tty needs standard input and output; --attach names not both")
	}
	if g.tty {
		s.Input, s.Output, s.Error = "", "", ""
	}
	return nil
}

func (g *streamFlags) driver(m *units.Machine) error {
	s := &m.Streams
	switch g.logDriver {
	case "journald":
		return nil
	case "passthrough":
		if s.Terminal && m.Detached {
			return errors.New("--log-driver=passthrough: with --tty, the output goes to the terminal")
		}
		if m.Detached && (term.IsTerminal(1) || term.IsTerminal(2)) {
			return errors.New("--log-driver=passthrough: a machine that runs detached must not keep this terminal; redirect the output, or leave --detach away")
		}
	case "none":
		if s.Terminal && m.Detached {
			return errors.New("--log-driver=none: what a detached terminal says has to go somewhere, and goes to the journal")
		}
	case "k8s-file", "json-file":
		return fmt.Errorf("--log-driver=%s: systemd writes no such files; --property StandardOutput=append:PATH writes the plain output to one, and journalctl --output=json reads the journal", g.logDriver)
	default:
		return fmt.Errorf("--log-driver: %q is not one of journald, none, passthrough", g.logDriver)
	}
	instead := map[string]string{"none": "null", "passthrough": ""}[g.logDriver]
	for _, stream := range []*string{&s.Output, &s.Error} {
		if *stream == "journal" {
			*stream = instead
		}
	}
	return nil
}

func (g *streamFlags) options(m *units.Machine) error {
	g.relay = "auto"
	for _, option := range g.logOpts {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "tag":
			if value == "" || strings.Contains(value, "{{") {
				return fmt.Errorf("--log-opt tag=: %q is no tag; templates are not expanded", value)
			}
			m.Streams.Tag = value
		case "relay":
			g.relay = value
			if err := oneOf("--log-opt relay=", value, "auto", "always", "never"); err != nil {
				return err
			}
		case "max-size", "max-file":
			return fmt.Errorf("--log-opt %s=: the journal's size is limited for all that log to it (journald.conf(5), SystemMaxUse=), or by --property LogNamespace=", name)
		case "path":
			return errors.New("--log-opt path=: the journal is not a file; --property StandardOutput=append:PATH writes the output to one")
		default:
			return fmt.Errorf("--log-opt: %q is neither tag=TAG nor relay=MODE", option)
		}
	}
	return nil
}

// prepare decides what can only be known with the image.
func (g *streamFlags) prepare(m *units.Machine, img *image.Image) {
	if m.Streams.Terminal {
		name := os.Getenv("TERM")
		if name == "" {
			name = "xterm" // podman's
		}
		m.Payload.SetDefault("TERM", name)
	}
	names := func(s string) bool { return image.NamesOutput([]byte(s)) }
	// Of a layer that was unpacked before somebody looked nothing is known.
	m.Streams.Relay = g.relay == "always" || g.relay == "auto" &&
		(img.Reopens != image.ReopensNo || slices.ContainsFunc(m.Payload.Argv, names) || slices.ContainsFunc(m.Payload.Env, names))
}

// streams are what the client holds of the payload's standard streams.
type streams struct {
	terminal *tty.Terminal // nil: none
	given    []*os.File    // what is the manager's once the machine is started
	copying  sync.WaitGroup
}

// connect makes the payload's streams, and adds those that are descriptors to fds.
func (g *streamFlags) connect(set units.Set, m *units.Machine, root *rootTree, fds dbus.Descriptors) (s *streams, err error) {
	s = &streams{}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	var relay *os.File
	if len(set.Relay.Streams) > 0 {
		from, to, err := s.pipe(m.HostAccount())
		if err != nil {
			return s, err
		}
		s.given = append(s.given, from, to)
		fds.Set(set.Relay.Unit, set.Relay.Input, from)
		relay = to
	}
	if m.Streams.Terminal {
		if s.terminal, err = tty.Open(root.terminals, m.HostAccount().UID); err != nil {
			return s, err
		}
		s.terminal.Keys = &tty.Keys{Sequence: g.leave}
		s.given = append(s.given, s.terminal.Machine)
		if set.Relay.Unit != "" {
			fds.Set(set.Relay.Unit, set.Relay.Input, s.terminal.Controller)
		}
	}
	for i, file := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		name := []string{"StandardInput", "StandardOutput", "StandardError"}[i]
		switch {
		case slices.Contains(set.Relay.Streams, name):
			file = relay
		case !slices.Contains(set.Passed, name):
			continue
		case m.Streams.Terminal && (g.tty || term.IsTerminal(i)): // 2> errors
			file = s.terminal.Machine
		case i == 0 && m.Detached:
			file, err = s.openEnded()
		case i > 0 && m.Streams.Relay && !m.Detached && !reopens(file, m.HostAccount()):
			file, err = s.copyTo(file, m.HostAccount())
		}
		if err != nil {
			return s, err
		}
		fds.Set(set.Main.Name, name+"FileDescriptor", file)
	}
	return s, nil
}

// pipe makes a pipe that the payload can open again by its name: the name leads to a file that has an owner and a mode.
func (s *streams) pipe(account units.Account) (from, to *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	from, to = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	if err := unix.Fchown(fds[1], int(account.UID), int(account.GID)); err != nil {
		from.Close()
		to.Close()
		return nil, nil, fmt.Errorf("giving a pipe to user %d: %w", account.UID, err)
	}
	return from, to, nil
}

// openEnded gives a standard input on which nothing comes and that has no end: who reads it is its writer too.
func (s *streams) openEnded() (*os.File, error) {
	from, to, err := s.pipe(units.Account{})
	if err != nil {
		return nil, err
	}
	s.given = append(s.given, from, to)
	both, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", from.Fd()), os.O_RDWR, 0)
	if err == nil {
		s.given = append(s.given, both)
	}
	return both, err
}

// reopens says whether a payload can open the file by the name /dev/stdout.
func reopens(file *os.File, account units.Account) bool {
	var stat unix.Stat_t
	if unix.Fstat(int(file.Fd()), &stat) != nil {
		return true
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return false
	case unix.S_IFIFO:
		return account.UID == 0 || account.UID == stat.Uid || stat.Mode&0o002 != 0
	}
	return true
}

// copyTo gives a pipe whose content goes to file, by us.
func (s *streams) copyTo(file *os.File, account units.Account) (*os.File, error) {
	from, to, err := s.pipe(account)
	if err != nil {
		return nil, err
	}
	s.given = append(s.given, to)
	s.copying.Go(func() {
		_, _ = io.Copy(file, from) // who can't write is told by SIGPIPE, and so is the payload
		from.Close()
	})
	return to, nil
}

// started lets go of what is the machine's.
func (s *streams) started() {
	for _, file := range s.given {
		file.Close()
	}
	s.given = nil
}

// finish waits until what the payload has said is out. The manager has the other ends for a moment after the payload's end.
func (s *streams) finish() { tty.Await(&s.copying, 5*time.Second) }

// release gives the caller's terminal back and closes everything.
func (s *streams) release() {
	s.started()
	if s.terminal != nil {
		s.terminal.Release()
	}
}

// errLeft says that the user leaves the machine to itself, by --detach-keys.
var errLeft = errors.New("left")

// attach connects the machine's terminal, if it has one, and calls left when the user leaves it.
func (s *streams) attach(left func()) error {
	if s.terminal == nil {
		return nil
	}
	return s.terminal.Attach(&s.copying, left)
}

// signal passes a signal on; what a change of the window's size does, the machine's terminal sees to.
func (s *streams) signal(ctx context.Context, service *dbus.Service, sig syscall.Signal) error {
	if s.terminal != nil && sig == syscall.SIGWINCH {
		return nil
	}
	return service.Signal(ctx, sig)
}

// leave gives the terminal of a machine that runs on to a unit, which writes what it says to the journal.
func leave(ctx context.Context, bus *dbus.Conn, m *units.Machine, set units.Set, s *streams) error {
	relay := units.Set{Main: m.RelayUnit(set.Main)}
	fds := dbus.Descriptors{}
	fds.Set(relay.Main.Name, units.TerminalRelayInput, s.terminal.Controller)
	if _, err := bus.Start(ctx, relay, fds, false); err != nil {
		return fmt.Errorf("%s: leaving its terminal: %w", m.Name, err)
	}
	return nil
}
