package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"nspawnd/units"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is a machine's terminal: a pair of its own devpts instance, whose one end the client connects with its own terminal.
type terminal struct {
	controller *os.File
	machine    *os.File    // the end that the machine gets
	leave      []byte      // the keys that end the connection and let the machine run on
	before     *term.State // of the caller's terminal; nil: it was not changed
}

// openTerminal opens the first terminal of a devpts instance for the account.
func openTerminal(instance *os.File, account units.Account) (*terminal, error) {
	failed := func(err error) error { return fmt.Errorf("opening a terminal for the machine: %w", err) }
	fd, err := unix.Openat(int(instance.Fd()), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failed(err)
	}
	t := &terminal{controller: os.NewFile(uintptr(fd), "ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.controller.Close()
		return nil, failed(err)
	}
	// By its name it could not be opened: the instance may have no path here. ioctl_tty(2)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.controller.Close()
		return nil, failed(errno)
	}
	t.machine = os.NewFile(peer, "terminal")
	if err := unix.Fchown(int(peer), int(account.UID), -1); err != nil {
		t.machine.Close()
		t.controller.Close()
		return nil, failed(err)
	}
	if !t.resize() {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	return t, nil
}

// resize gives the machine's terminal the size of ours, if that is one.
func (t *terminal) resize() bool {
	for fd := range 2 {
		if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
			return unix.IoctlSetWinsize(int(t.controller.Fd()), unix.TIOCSWINSZ, size) == nil
		}
	}
	return false
}

// attach connects the machine's terminal with standard input and output. left is called when the keys for that come; output is done when
// nobody has the machine's end open any more.
func (t *terminal) attach(output *sync.WaitGroup, left func()) error {
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
	output.Go(func() { _, _ = io.Copy(os.Stdout, t.controller) }) // to EIO
	go t.input(left)
	return nil
}

// input copies standard input to the machine.
func (t *terminal) input(left func()) {
	keys := keyScanner{sequence: t.leave}
	buffer := make([]byte, 32<<10)
	last := byte('\n')
	for {
		n, err := os.Stdin.Read(buffer)
		pass, leave := keys.scan(buffer[:n])
		if len(pass) > 0 {
			last = pass[len(pass)-1]
			if _, err := t.controller.Write(pass); err != nil {
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
			t.controller.Close()
			return
		}
		const end = "\x04" // ctrl-d ends the input at the beginning of a line, and elsewhere hands on the line so far
		if last != '\n' {
			_, _ = t.controller.WriteString(end)
		}
		_, _ = t.controller.WriteString(end)
		return
	}
}

// release gives the caller's terminal its mode back.
func (t *terminal) release() {
	if t.before != nil {
		_ = term.Restore(0, t.before)
		t.before = nil
	}
}

// keyScanner looks for a sequence of keys in what is typed, which may come in any pieces.
type keyScanner struct {
	sequence []byte
	matched  int // bytes of the sequence that were the last ones, and are held back
}

// scan gives what is to be passed on, up to the sequence.
func (k *keyScanner) scan(typed []byte) (pass []byte, found bool) {
	if len(k.sequence) == 0 {
		return typed, false
	}
	pending := append(bytes.Clone(k.sequence[:k.matched]), typed...)
	if at := bytes.Index(pending, k.sequence); at >= 0 {
		return pending[:at], true
	}
	for k.matched = min(len(k.sequence)-1, len(pending)); !bytes.HasSuffix(pending, k.sequence[:k.matched]); {
		k.matched--
	}
	return pending[:len(pending)-k.matched], false
}

// parseKeys reads the keys of podman-run(1) --detach-keys: characters, and ctrl- with a letter or one of @[\]^_, between commas.
func parseKeys(s string) ([]byte, error) {
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
