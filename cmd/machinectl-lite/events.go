package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/printable"
	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"
)

func eventsCommand() *cobra.Command {
	var filters []string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to machines and images, as it happens",
		Long: `Show, until ctrl-C, machines that start and die, with the exit status (128+n when signal n ended it), of which processes are killed for the memory that they take (oom), and whose health
changes (health); and names of images that come (add), go (remove) and mean another image (replace). Of machines that are not nspawnd's, which
systemd-machined tells of, how they ended is not known.

When the system bus is restarted, that is said on standard error, and machines that began or ended meanwhile are shown with the time at which that was
found out.

--filter=KEY=VALUE shows only what has this value; the keys are type (machine or image), event, name and image. Of several with one key one has to
hold, of several keys each. With --json each event is one object, on a line of its own with --json=short.`,
		Example: `  machinectl-lite events
  machinectl-lite events --filter event=die --filter name=web --json=short | jq .status`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseFilters(filters)
			if err != nil {
				return err
			}
			store, err := image.Open(storeRoot)
			if err != nil {
				return err
			}
			e := &eventPrinter{wanted: wanted, images: map[string]string{}, health: map[string]string{}, others: map[string]bool{}, since: time.Now(), told: map[string]time.Time{}, imageOf: func(string) string { return "" }}
			ctx, stop := context.WithCancelCause(cmd.Context())
			e.fail = stop
			memory := make(chan struct{})
			defer func() { stop(nil); <-memory }()
			go func() {
				defer close(memory)
				if err := e.followMemory(ctx); ctx.Err() == nil {
					fmt.Fprintf(os.Stderr, "%s: %v; what runs out of memory is not shown at once\n", program, err)
				}
			}()
			go func() {
				if err := store.Watch(ctx, e.image); err != nil && ctx.Err() == nil {
					fmt.Fprintf(os.Stderr, "%s: %v; images are not shown\n", program, err)
				}
			}()
			err = followMachines(ctx, e)
			if cmd.Context().Err() != nil { // ctrl-C
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "Show only what has `KEY=VALUE`")
	var values []string
	for _, key := range filterKeys {
		values = append(values, key+"=")
		for _, value := range filterValues[key] {
			values = append(values, key+"="+value)
		}
	}
	completeFlag(cmd, "filter", values...)
	return cmd
}

// followMachines tells of machines, over another connection when the bus is restarted.
func followMachines(ctx context.Context, e *eventPrinter) error {
	var running map[string]bool // nil: nothing could be followed yet
	var lost time.Time
	said := false
	for {
		err := followOnce(ctx, e, &running)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case running == nil:
			return err
		case errors.Is(err, dbus.ErrBusGone):
			fmt.Fprintf(os.Stderr, "%s: %v; connecting again\n", program, err)
			lost, said = time.Now(), false
		case !said && time.Since(lost) > returnTime:
			fmt.Fprintf(os.Stderr, "%s: %s; trying again\n", program, printableLines(err.Error()))
			said = true
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// returnTime is how long a bus that is restarted, and what is on it, may take to be back.
const returnTime = 30 * time.Second

// followOnce tells of machines as long as a connection lasts. Running are those of nspawnd that ran when the last one ended.
func followOnce(ctx context.Context, e *eventPrinter, running *map[string]bool) error {
	conn, err := dbus.Connect(ctx, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	host := newHost(conn, false)
	e.ask(ctx, host)
	if *running != nil {
		return conn.Events(ctx, *running, e.machine, func() { go e.compareOthers(ctx, host) })
	}
	names, _, err := conn.Machines(ctx)
	if err != nil {
		return err
	}
	registered, err := host.machined.List(ctx)
	if err != nil && !errors.Is(err, machined.ErrUnavailable) {
		return err
	}
	e.noteOthers(registered)
	*running = map[string]bool{}
	for _, name := range names {
		(*running)[name] = true
	}
	return conn.Events(ctx, *running, e.machine, func() {})
}

// ask has the printer ask this host.
func (e *eventPrinter) ask(ctx context.Context, h *host) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.imageOf = func(name string) string {
		unit, _ := h.systemd.Unit(ctx, units.ServiceName(name))
		return unitImage(unit.Description, name)
	}
	e.isOther = func(name string) bool {
		properties, err := h.machined.Get(ctx, name)
		return err == nil && units.MachineOf(properties.Unit) != name
	}
}

// noteOthers notes which machines are registered already.
func (e *eventPrinter) noteOthers(registered []machined.Summary) {
	for _, m := range registered {
		if e.isOther(m.Name) {
			e.others[m.Name] = true
		}
	}
}

// compareOthers tells of what began and ended while nobody told. machined may take its time to come back.
func (e *eventPrinter) compareOthers(ctx context.Context, h *host) {
	e.mutex.Lock()
	before := maps.Clone(e.others)
	e.mutex.Unlock()
	registered, err := h.machined.List(ctx)
	if err != nil {
		return
	}
	now := map[string]bool{}
	for _, m := range registered {
		now[m.Name] = true
		if !before[m.Name] {
			e.machine(dbus.Event{Time: time.Now(), Kind: "known", Machine: m.Name})
		}
	}
	for name := range before {
		if _, err := h.machined.Get(ctx, name); !now[name] && errors.Is(err, machined.ErrNoSuchMachine) {
			e.machine(dbus.Event{Time: time.Now(), Kind: "gone", Machine: name})
		}
	}
}

var filterKeys = []string{"type", "event", "name", "image"}

// filterValues are the values of keys that have no others.
var filterValues = map[string][]string{
	"type":  {"machine", "image"},
	"event": {"start", "die", "oom", "health", "add", "remove", "replace"},
}

func parseFilters(filters []string) (map[string][]string, error) {
	wanted := map[string][]string{}
	for _, filter := range filters {
		key, value, found := strings.Cut(filter, "=")
		if !found || !slices.Contains(filterKeys, key) {
			return nil, fmt.Errorf("--filter: %q is not KEY=VALUE with one of the keys %s", filter, strings.Join(filterKeys, ", "))
		}
		if values := filterValues[key]; values != nil && !slices.Contains(values, value) {
			return nil, fmt.Errorf("--filter: %s is one of %s, not %q", key, strings.Join(values, ", "), value)
		}
		wanted[key] = append(wanted[key], value)
	}
	return wanted, nil
}

// event is a line of what happens.
type event struct {
	Time   time.Time    `json:"time"`
	Type   string       `json:"type"` // machine or image
	Event  string       `json:"event"`
	Name   string       `json:"name"`
	Image  string       `json:"image,omitempty"`  // of a machine
	Digest image.Digest `json:"digest,omitempty"` // of an image
	Status *int         `json:"status,omitempty"` // of one that died
	Health string       `json:"health,omitempty"`
}

// eventPrinter prints events. Those of images and machines come at the same time.
type eventPrinter struct {
	mutex  sync.Mutex
	wanted map[string][]string
	images map[string]string // of machines that run
	health map[string]string
	others map[string]bool // that are registered and not nspawnd's
	since  time.Time
	told   map[string]time.Time // when a machine last ran out of memory

	imageOf func(machine string) string
	isOther func(machine string) bool
	fail    func(error)
}

func (e *eventPrinter) machine(m dbus.Event) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	out := event{Time: m.Time, Type: "machine", Event: m.Kind, Name: m.Machine}
	switch m.Kind {
	case "known":
		if e.others[m.Machine] || !e.isOther(m.Machine) {
			return // it was told of, or its unit tells
		}
		out.Event = "start"
		e.others[m.Machine] = true
	case "gone":
		if !e.others[m.Machine] {
			return
		}
		out.Event = "die"
		delete(e.others, m.Machine)
	case "health":
		text, err := os.ReadFile(units.HealthFile(m.Machine))
		if err != nil {
			return
		}
		out.Health = units.ParseHealthStatus(string(text)).State
		if out.Health == "" || e.health[m.Machine] == out.Health {
			return
		}
		e.health[m.Machine] = out.Health
	case "die":
		if m.Status >= 0 {
			out.Status = &m.Status
		}
		if m.Status == 128+int(syscall.SIGKILL) {
			e.killed(m.Machine)
		}
	}
	out.Image = e.imageNow(m.Machine)
	e.print(out)
	if out.Event == "die" {
		delete(e.images, m.Machine)
		delete(e.health, m.Machine)
	}
}

// imageNow is the image of a machine that runs or has just died.
func (e *eventPrinter) imageNow(name string) string {
	if e.images[name] == "" {
		e.images[name] = e.imageOf(name)
	}
	return e.images[name]
}

func (e *eventPrinter) image(i image.ImageEvent) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.print(event{Time: time.Now(), Type: "image", Event: i.Kind, Name: i.Reference.String(), Digest: i.Image.ManifestDigest})
}

func (e *eventPrinter) print(ev event) {
	for key, value := range map[string]string{"type": ev.Type, "event": ev.Event, "name": ev.Name, "image": ev.Image} {
		if key == "image" && ev.Type == "image" {
			value = ev.Name
		}
		if values := e.wanted[key]; values != nil && !slices.Contains(values, value) {
			return
		}
	}
	var line string
	switch options.jsonLayout() {
	case "":
		line = ev.words()
	case "pretty":
		text, _ := json.MarshalIndent(ev, "", "\t")
		line = safeJSON(text)
	default:
		text, _ := json.Marshal(ev)
		line = safeJSON(text)
	}
	if _, err := fmt.Println(line); err != nil {
		e.fail(errors.Join(errors.New("events"), err))
	}
}

func (ev event) words() string {
	words := []string{ev.Time.Local().Format("2006-01-02 15:04:05.000000 MST"), ev.Type, ev.Event, ev.Name}
	if ev.Status != nil {
		words = append(words, "status="+strconv.Itoa(*ev.Status))
	}
	for _, w := range []struct{ key, value string }{{"health", ev.Health}, {"image", ev.Image}, {"digest", string(ev.Digest)}} {
		if w.value != "" {
			words = append(words, w.key+"="+w.value)
		}
	}
	return printable.Line(strings.Join(words, " "))
}
