package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"
)

// ending is how a machine of ours ended.
type ending struct {
	dbus.End
	result      string // the manager's word for it, where nobody has the status any more: "success" for 0, and for what a machine ends with that was asked to
	outOfMemory bool
}

// ended tells how a machine ended, as the manager still has it or else, of a kept one, the journal. kept is the machine's, and its image; zero when it is not kept.
func (h *host) ended(ctx context.Context, name string, kept image.Kept, img *image.Image) (ending, bool) {
	end, known := h.systemd.MachineEnd(ctx, name)
	e, since := ending{End: end}, end.Started
	if !known {
		if img == nil {
			return e, false
		}
		if e, known = endInJournal(ctx, name, kept.Since); !known {
			return e, false
		}
		e.Description, since = name+": "+img.Reference.String(), e.Started
		if since.IsZero() {
			since = kept.Since
		}
	}
	e.outOfMemory = !h.elsewhere && len(outOfMemoryOf(ctx, name, since)) > 0
	return e, true
}

// keptHere says whether a machine of this host is kept, and what can be read of that.
func keptHere(name string) (kept image.Kept, img *image.Image, is bool) {
	if store, err := image.Open(storeRoot); err == nil && options.own() {
		kept, img, _ = store.KeptMachine(name)
		is = image.IsKept(store.KeptDir(name))
	}
	return kept, img, is
}

// The manager's messages about a service (journalctl --catalog).
const (
	messageStarted   = "39f53479d3a045ac8e11786248231fbf"
	messageExited    = "98e322203f7a4ed290d09fe03c09fe15" // said of what failed only
	messageSucceeded = "7ad2d189f7e94e70a38c781354912448"
	messageFailed    = "d9b373ed55a64feb8242e02dbe79a49c"
)

// maxEndMessages is more than the manager says of one run.
const maxEndMessages = 16

// endInJournal reads how the last run of a machine ended. A run whose end is not there was cut off, as by a loss of power, or goes on.
func endInJournal(ctx context.Context, name string, since time.Time) (e ending, found bool) {
	e.Name = units.ServiceName(name)
	out, _ := managerJournal(ctx, since, "--reverse", fmt.Sprintf("--lines=%d", maxEndMessages), "UNIT="+e.Name,
		"MESSAGE_ID="+messageStarted, "MESSAGE_ID="+messageExited, "MESSAGE_ID="+messageSucceeded, "MESSAGE_ID="+messageFailed).Output()
	run := ""
	for entries := json.NewDecoder(bytes.NewReader(out)); ; { // the last one first
		var entry struct {
			Message    string `json:"MESSAGE_ID"`
			Time       string `json:"__REALTIME_TIMESTAMP"`
			Invocation string `json:"INVOCATION_ID"`
			Command    string `json:"COMMAND"`
			Code       string `json:"EXIT_CODE"`
			Status     string `json:"EXIT_STATUS"`
			Result     string `json:"UNIT_RESULT"`
		}
		if entries.Decode(&entry) != nil || found && entry.Invocation != run {
			return e, found
		}
		usec, _ := strconv.ParseInt(entry.Time, 10, 64)
		switch at := time.UnixMicro(usec); {
		case entry.Message == messageStarted:
			e.Started = at
			return e, found
		case !found && entry.Message != messageExited:
			e.At, e.result, run, found = at, entry.Result, entry.Invocation, true
			if entry.Message == messageSucceeded {
				e.result = "success"
			}
		case found && entry.Message == messageExited && entry.Command == "ExecStart":
			if status, err := strconv.Atoi(entry.Status); err == nil {
				e.At, e.Exited, e.Status, e.result = at, entry.Code == "exited", status, ""
			}
		}
	}
}

// status is the exit status and the signal, as a shell has them.
func (e ending) status() (status int, signal string) {
	if e.Exited {
		return e.Status, ""
	}
	return 128 + e.Status, unix.SignalName(syscall.Signal(e.Status))
}

// format lays out how a machine ended as its status.
func (e ending) format(name string, now time.Time) string {
	b := newDetails(name, now)
	b.line("Since", timestamp(e.Started))
	b.when("Ended", e.At)
	words := e.result
	if words == "" {
		status, signal := e.status()
		words = strconv.Itoa(status)
		if signal != "" {
			words += " (" + signal + ")"
		}
	}
	if e.outOfMemory {
		words += ", out of memory"
	}
	b.line("Status", words)
	b.line("Image", unitImage(e.Description, name))
	b.line("Unit", e.Name)
	return b.String()
}
