// Package tty connects the caller's terminal with one that a machine has.
package tty

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Terminal is a machine's terminal: a pair of its own devpts instance, whose one end the client connects with its own terminal.
type Terminal struct {
	Controller *os.File
	Machine    *os.File      // the end that the machine gets; nil: it has it already
	Keys       Scanner       // for the keys that end the connection; nil: none do
	Hangup     func() bool   // whether to go on when nobody has the machine's end open; nil: no
	Plain      bool          // leave out what systemd tells terminals about the context of a command (OSC 3008), which is nothing for files
	last       atomic.Uint32 // byte that was shown
	before     *term.State   // of the caller's terminal; nil: it was not changed
}

// Scanner looks for keys in what is typed, which may come in any pieces: Scan gives what is to be passed on, up to the keys that end the connection.
type Scanner interface {
	Scan(typed []byte) (pass []byte, found bool)
}

// Open opens the next terminal of a devpts instance for a user.
func Open(instance *os.File, uid uint32) (*Terminal, error) {
	failed := func(err error) error { return fmt.Errorf("opening a terminal for the machine: %w", err) }
	fd, err := unix.Openat(int(instance.Fd()), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failed(err)
	}
	t := &Terminal{Controller: os.NewFile(uintptr(fd), "ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Controller.Close()
		return nil, failed(err)
	}
	// By its name it could not be opened: the instance may have no path here. ioctl_tty(2)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Controller.Close()
		return nil, failed(errno)
	}
	t.Machine = os.NewFile(peer, "terminal")
	if err := unix.Fchown(int(peer), int(uid), -1); err != nil {
		t.Machine.Close()
		t.Controller.Close()
		return nil, failed(err)
	}
	if !t.resize() {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	return t, nil
}

// resize gives the machine's terminal the size of ours, if that is one.
func (t *Terminal) resize() bool {
	for fd := range 2 {
		if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
			return unix.IoctlSetWinsize(int(t.Controller.Fd()), unix.TIOCSWINSZ, size) == nil
		}
	}
	return false
}

// Redraw has what is on the machine's terminal show itself again: it is told of a new size, and Attach tells it of the real one.
func (t *Terminal) Redraw() {
	if size, err := unix.IoctlGetWinsize(int(t.Controller.Fd()), unix.TIOCGWINSZ); err == nil {
		size.Row++
		_ = unix.IoctlSetWinsize(int(t.Controller.Fd()), unix.TIOCSWINSZ, size)
	}
}

// Attach connects the machine's terminal with standard input and output. left is called when the keys for that come; output is done when
// nobody has the machine's end open any more.
func (t *Terminal) Attach(output *sync.WaitGroup, left func()) error {
	if term.IsTerminal(0) {
		var err error
		if t.before, err = term.MakeRaw(0); err != nil {
			return fmt.Errorf("putting the terminal into raw mode: %w", err)
		}
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	t.resize() // it may have changed before
	go func() {
		for range resized {
			t.resize()
		}
	}()
	output.Go(func() {
		if !t.Plain {
			_, _ = io.Copy(shown{t}, hanging{t})
			return
		}
		plain := withoutContext{to: shown{t}}
		_, _ = io.Copy(&plain, hanging{t})
		plain.flush()
	})
	go t.input(left)
	return nil
}

// hanging reads what the machine says, to EIO.
type hanging struct{ *Terminal }

func (t hanging) Read(p []byte) (int, error) {
	for {
		n, err := t.Controller.Read(p)
		if n > 0 || !errors.Is(err, syscall.EIO) || t.Hangup == nil || !t.Hangup() {
			return n, err
		}
		time.Sleep(50 * time.Millisecond) // no event says that somebody opens it again: poll(2) reports the hang-up until then
	}
}

// shown writes to standard output.
type shown struct{ *Terminal }

func (t shown) Write(p []byte) (int, error) {
	if len(p) > 0 {
		t.last.Store(uint32(p[len(p)-1]))
	}
	return os.Stdout.Write(p)
}

// MidLine says, when output is done, whether a line was begun and not ended.
func (t *Terminal) MidLine() bool {
	last := t.last.Load()
	return last != 0 && last != '\n'
}

// input copies standard input to the machine.
func (t *Terminal) input(left func()) {
	keys := t.Keys
	if keys == nil {
		keys = &Keys{}
	}
	buffer := make([]byte, 32<<10)
	last := byte('\n')
	for {
		n, err := os.Stdin.Read(buffer)
		pass, leave := keys.Scan(buffer[:n])
		if len(pass) > 0 {
			last = pass[len(pass)-1]
			if _, err := t.Controller.Write(pass); err != nil {
				return
			}
		}
		if leave {
			left()
			return
		}
		if err == nil {
			continue
		}
		if t.before != nil { // our terminal is gone, and so is the machine's: SIGHUP
			t.Controller.Close()
			return
		}
		const end = "\x04" // ctrl-d ends the input at the beginning of a line, and elsewhere hands on the line so far
		if last != '\n' {
			_, _ = t.Controller.WriteString(end)
		}
		// Again, less and less often: what sets its terminal up later flushes what was typed before.
		for pause := 250 * time.Millisecond; ; pause *= 2 {
			if _, err := t.Controller.WriteString(end); err != nil || pause > time.Minute {
				return
			}
			time.Sleep(pause)
		}
	}
}

// Release gives the caller's terminal its mode back.
func (t *Terminal) Release() {
	if t.before != nil {
		_ = term.Restore(0, t.before)
		t.before = nil
	}
}

// Await waits until all output is out, or for a time: programs that are left behind may have the other end open.
func Await(output *sync.WaitGroup, limit time.Duration) {
	done := make(chan struct{})
	go func() {
		output.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// Keys is a Scanner for a sequence of keys.
type Keys struct {
	Sequence []byte
	matched  int // bytes of the sequence that were the last ones, and are held back
}

// Scan is that of a Scanner.
func (k *Keys) Scan(typed []byte) (pass []byte, found bool) {
	if len(k.Sequence) == 0 {
		return typed, false
	}
	pending := append(bytes.Clone(k.Sequence[:k.matched]), typed...)
	if at := bytes.Index(pending, k.Sequence); at >= 0 {
		return pending[:at], true
	}
	for k.matched = min(len(k.Sequence)-1, len(pending)); !bytes.HasSuffix(pending, k.Sequence[:k.matched]); {
		k.matched--
	}
	return pending[:len(pending)-k.matched], false
}

// Escape is the Scanner of machinectl(1): ^] three times within a second. What was typed goes to the machine all the same.
type Escape struct {
	pressed int
	since   time.Time
}

// Scan is that of a Scanner.
func (e *Escape) Scan(typed []byte) (pass []byte, found bool) { return e.scan(typed, time.Now()) }

func (e *Escape) scan(typed []byte, now time.Time) (pass []byte, found bool) {
	const key = ']' & 0x1f
	for i, c := range typed {
		switch {
		case c != key:
			e.pressed = 0
		case e.pressed == 0 || now.Sub(e.since) > time.Second:
			e.pressed, e.since = 1, now
		default:
			e.pressed++
		}
		if e.pressed == 3 {
			return typed[:i], true
		}
	}
	return typed, false
}

// ParseKeys reads the keys of podman-run(1) --detach-keys: characters, and ctrl- with a letter or one of @[\]^_, between commas.
func ParseKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		control, isControl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case len(key) == 1:
			keys = append(keys, key[0])
		case isControl && len(control) == 1 && strings.Contains("@abcdefghijklmnopqrstuvwxyz[\\]^_", control):
			keys = append(keys, control[0]&0x1f)
		default:
			return nil, fmt.Errorf("%q is neither a character nor ctrl- and one", key)
		}
	}
	if len(keys) > 16 {
		return nil, errors.New("more than 16 keys")
	}
	return keys, nil
}
