package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"nspawnd/cmd/internal/printable"
)

// details is what a status verb says of one thing, as machinectl lays it out: a title, and below it lines whose labels end in one column.
type details struct {
	strings.Builder
	now time.Time
}

func newDetails(title string, now time.Time) *details {
	d := &details{now: now}
	d.WriteString(printable.Line(title) + "\n")
	return d
}

// line adds values below each other, of which the first has the label. What is empty is left out.
func (d *details) line(label string, values ...string) {
	for _, value := range values {
		if value == "" {
			continue
		}
		if label != "" {
			label += ":"
		}
		fmt.Fprintf(d, "\t%9s %s\n", label, printable.Line(value))
		label = ""
	}
}

// when adds a time, if there is one, and how long ago it was.
func (d *details) when(label string, t time.Time) {
	if !t.IsZero() {
		d.line(label, timestamp(t)+"; "+age(d.now.Sub(t)))
	}
}

// blocks writes texts with an empty line between them.
type blocks struct {
	out   io.Writer
	begun bool
}

func (b *blocks) write(text string) error {
	if b.begun {
		text = "\n" + text
	}
	b.begun = true
	_, err := io.WriteString(b.out, text)
	return err
}
