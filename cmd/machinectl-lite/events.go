package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	return cmd
}

// followMachines tells of machines, over another connection when the bus is restarted.
func followMachines(ctx context.Context, e *eventPrinter) error {
	running := map[string]bool{}
	for first := true; ; first = false {
		conn, err := dbus.Connect(ctx, false)
		if err == nil {
			e.ask(ctx, newHost(conn, false))
			if first {
				e.noteOthers(ctx, conn)
				names, _ := conn.Machines(ctx)
				for _, name := range names {
					running[name] = true
				}
			}
			err = conn.Events(ctx, running, e.machine)
			conn.Close()
			if errors.Is(err, dbus.ErrBusGone) {
				fmt.Fprintf(os.Stderr, "%s: %v; connecting again\n", program, err)
			}
		} else if first {
			return err
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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
func (e *eventPrinter) noteOthers(ctx context.Context, conn *dbus.Conn) {
	registered, _ := machined.New(conn.Bus).List(ctx)
	for _, m := range registered {
		if e.isOther(m.Name) {
			e.others[m.Name] = true
		}
	}
}

var filterKeys = []string{"type", "event", "name", "image"}

func parseFilters(filters []string) (map[string][]string, error) {
	wanted := map[string][]string{}
	for _, filter := range filters {
		key, value, found := strings.Cut(filter, "=")
		if !found || !slices.Contains(filterKeys, key) {
			return nil, fmt.Errorf("--filter: %q is not KEY=VALUE with one of the keys %s", filter, strings.Join(filterKeys, ", "))
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
		if !e.isOther(m.Machine) {
			return // its unit tells
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
