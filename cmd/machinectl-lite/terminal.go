package main

import (
	"cmp"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"nspawnd/cmd/internal/printable"
)

// terminal is what the output goes to and how it may look there, by the rules of systemd's tools: $SYSTEMD_COLORS, $NO_COLOR,
// $TERM, $SYSTEMD_UTF8, $LC_ALL, $LC_CTYPE, $LANG and $COLUMNS.
type terminal struct {
	tty     bool
	color   bool
	utf8    bool
	columns int
}

const (
	underline = "\x1b[4m"
	grey      = "\x1b[0;38:5:245m"
	green     = "\x1b[0;32m"
	blue      = "\x1b[0;1;34m"
	red       = "\x1b[0;1;31m"
	yellow    = "\x1b[0;1;38:5:185m"
	bright    = "\x1b[0;1;39m"
	normal    = "\x1b[0m"
)

func newTerminal(getenv func(string) (string, bool), file *os.File) terminal {
	t := terminal{tty: term.IsTerminal(int(file.Fd())), columns: 80}
	env := func(name string) string { value, _ := getenv(name); return value }

	_, noColor := getenv("NO_COLOR")
	t.color = t.tty && !noColor && cmp.Or(env("TERM"), "dumb") != "dumb"
	switch value := env("SYSTEMD_COLORS"); value {
	case "16", "256":
		t.color = true
	default:
		t.color = parseBool(value, t.color)
	}

	locale := cmp.Or(env("LC_ALL"), env("LC_CTYPE"), env("LANG"))
	locale = strings.ReplaceAll(strings.ToUpper(locale), "-", "")
	t.utf8 = parseBool(env("SYSTEMD_UTF8"), locale == "" || strings.HasSuffix(locale, ".UTF8"))

	if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
		t.columns = width
	}
	if width, err := strconv.ParseUint(env("COLUMNS"), 10, 16); err == nil && width > 0 {
		t.columns = int(width)
	}
	return t
}

// parseBool reads a boolean as systemd spells it.
func parseBool(value string, otherwise bool) bool {
	switch strings.ToLower(value) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	case "0", "no", "n", "false", "f", "off":
		return false
	}
	return otherwise
}

// paint gives s in a colour, on a terminal that has colours.
func (t terminal) paint(color, s string) string {
	if !t.color || color == "" {
		return s
	}
	return color + s + normal
}

func (t terminal) ellipsis() string {
	if t.utf8 {
		return "…"
	}
	return "..."
}

// ellipsize cuts s to a number of columns.
func (t terminal) ellipsize(s string, columns int) string {
	return widths.Truncate(s, columns, t.ellipsis())
}

// widths counts columns as systemd does: what Unicode calls ambiguous is narrow in every locale.
var widths = &runewidth.Condition{}

// printableLines escapes a text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = printable.Line(line)
	}
	return strings.Join(lines, "\n")
}

// output is where a verb's result goes: standard output, on a terminal through a pager.
type output struct {
	io.Writer
	terminal
	wide  bool // nothing is cut to the terminal's width: there is none, or a pager scrolls
	close func() error
}

// openOutput starts the pager when there is one to start. The caller closes the output and reports that error: it tells of
// results that nobody got.
func openOutput(noPager bool) *output {
	t := newTerminal(os.LookupEnv, os.Stdout)
	out := &output{Writer: os.Stdout, terminal: t, wide: !t.tty, close: func() error { return nil }}
	if noPager || !t.tty || cmp.Or(os.Getenv("TERM"), "dumb") == "dumb" {
		return out
	}
	argv := pagerCommand(os.LookupEnv)
	if argv == nil {
		return out
	}
	pager := exec.Command(argv[0], argv[1:]...)
	pager.Stdout, pager.Stderr = os.Stdout, os.Stderr
	pager.Env = append(os.Environ(), pagerEnvironment(os.LookupEnv, t.utf8)...)
	stdin, err := pager.StdinPipe()
	if err != nil || pager.Start() != nil {
		return out // as without a pager
	}
	out.Writer, out.wide = ignoreClosed{stdin}, true
	out.close = func() error {
		stdin.Close()
		pager.Wait() // how the user left the pager is no result of ours
		return nil
	}
	return out
}

// ignoreClosed is the pager's pipe: who quits a pager early has seen enough.
type ignoreClosed struct{ io.Writer }

func (w ignoreClosed) Write(p []byte) (int, error) {
	w.Writer.Write(p)
	return len(p), nil
}

// pagerCommand gives the pager's argv. As in systemd's tools the environment can turn the pager off, but can choose another
// program than less only together with $SYSTEMD_PAGERSECURE: under sudo a pager is a way to a root shell.
func pagerCommand(getenv func(string) (string, bool)) []string {
	value, ok := getenv("SYSTEMD_PAGER")
	if !ok {
		value, ok = getenv("PAGER")
	}
	argv := strings.Fields(value)
	if ok && (len(argv) == 0 || len(argv) == 1 && argv[0] == "cat") {
		return nil
	}
	if _, trusted := getenv("SYSTEMD_PAGERSECURE"); !trusted || len(argv) == 0 {
		return []string{"less"}
	}
	return argv
}

func pagerEnvironment(getenv func(string) (string, bool), utf8 bool) []string {
	options, ok := getenv("SYSTEMD_LESS")
	if !ok {
		options = "FRSXMK"
	}
	env := []string{"LESS=" + options}
	if charset, ok := getenv("SYSTEMD_LESSCHARSET"); ok {
		env = append(env, "LESSCHARSET="+charset)
	} else if utf8 {
		env = append(env, "LESSCHARSET=utf-8")
	}
	if secure, _ := getenv("SYSTEMD_PAGERSECURE"); parseBool(secure, true) {
		env = append(env, "LESSSECURE=1")
	}
	return env
}
