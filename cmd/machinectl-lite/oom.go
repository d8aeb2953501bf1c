package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"nspawnd/units"
)

// messageOutOfMemory is the manager's, when the kernel has killed a process of a unit for the memory that it has taken (journalctl --catalog). Nothing on
// the bus tells of that, since the unit goes on if its main process does.
const messageOutOfMemory = "MESSAGE_ID=fe6faa94e7774663a0da52717891d8ef"

// syncLimit bounds the search for why a machine was killed.
const syncLimit = 3 * time.Second

// outOfMemory is what the journal has of that.
type outOfMemory struct {
	Unit string `json:"UNIT"`
	Time string `json:"__REALTIME_TIMESTAMP"` // microseconds
}

// managerJournal shows what the manager has said from a time on, one JSON object for each message.
func managerJournal(ctx context.Context, since time.Time, args ...string) *exec.Cmd {
	from := fmt.Sprintf("--since=@%d.%06d", since.Unix(), since.Nanosecond()/1000)
	fields := "--output-fields=UNIT,MESSAGE_ID,INVOCATION_ID,COMMAND,EXIT_CODE,EXIT_STATUS,UNIT_RESULT"
	return exec.CommandContext(ctx, "journalctl", append(args, "--quiet", "--output=json", fields, from, "_PID=1")...)
}

// followMemory tells of machines that run out of memory.
func (e *eventPrinter) followMemory(ctx context.Context) error {
	journal := managerJournal(ctx, e.since, "--follow", "--no-tail", messageOutOfMemory)
	out, err := journal.StdoutPipe()
	if err == nil {
		err = journal.Start()
	}
	if err != nil {
		return err
	}
	for entries := json.NewDecoder(out); ; {
		var entry outOfMemory
		if entries.Decode(&entry) != nil {
			return fmt.Errorf("journalctl has ended: %v", journal.Wait())
		}
		e.mutex.Lock()
		e.memory(entry)
		e.mutex.Unlock()
	}
}

// outOfMemoryOf gives what the journal has of it for our machine of that name.
func outOfMemoryOf(ctx context.Context, name string, since time.Time) (found []outOfMemory) {
	out, _ := managerJournal(ctx, since, "UNIT="+units.ServiceName(name), messageOutOfMemory).Output()
	for entries := json.NewDecoder(bytes.NewReader(out)); ; {
		var entry outOfMemory
		if entries.Decode(&entry) != nil {
			return found
		}
		found = append(found, entry)
	}
}

// killed tells, before a machine's end is told, if it has run out of memory: who follows the journal learns it up to a quarter of a second later.
func (e *eventPrinter) killed(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), syncLimit)
	defer cancel()
	_ = exec.CommandContext(ctx, "journalctl", "--sync").Run() // or it is told late
	for _, entry := range outOfMemoryOf(ctx, name, e.since) {
		e.memory(entry)
	}
}

// memory tells of it once. The mutex is held.
func (e *eventPrinter) memory(entry outOfMemory) {
	usec, err := strconv.ParseInt(entry.Time, 10, 64)
	name, at := units.MachineOf(entry.Unit), time.UnixMicro(usec)
	if err != nil || name == "" || !at.After(e.told[name]) {
		return
	}
	e.told[name] = at
	e.print(event{Time: at, Type: "machine", Event: "oom", Name: name, Image: e.imageNow(name)})
}
