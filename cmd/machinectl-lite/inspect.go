package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/cmd/internal/machinedir"
	"nspawnd/image"
	"nspawnd/machined"
	"nspawnd/units"
)

func inspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show machines as JSON, with all that is known of them",
		Long: `Show machines, that run or are kept, as a JSON list: image and digest, who signed it and by which rule it was accepted, unit, state, leader,
addresses, mounts, limits, health, labels; of one that has stopped and is kept, how it ended. What is not known, or is not for this user to
know, is left out. See show for what machined says alone.`,
		Example: `  machinectl-lite inspect web
  machinectl-lite inspect --format '{{.State}} {{json .Limits}}' web
  machinectl-lite inspect web | jq -r '.[].Image.Trust.signer'`,
		Args:              machineNames,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			layout, err := template.New("--format").Funcs(template.FuncMap{"json": jsonOf}).Parse(format)
			if err != nil {
				return fmt.Errorf("--format: %w", err)
			}
			inspected := []machineInspection{}
			err = forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				m, err := host.inspect(cmd.Context(), name)
				if err == nil {
					inspected = append(inspected, m)
				}
				return err
			})
			if format == "" {
				text, jsonErr := json.MarshalIndent(inspected, "", "    ")
				_, writeErr := fmt.Println(safeJSON(text))
				return errors.Join(err, jsonErr, writeErr)
			}
			for _, m := range inspected {
				var b bytes.Buffer
				if executeErr := layout.Execute(&b, m); executeErr != nil {
					return fmt.Errorf("--format: %w", executeErr)
				}
				b.WriteByte('\n')
				if writeErr := writeStranger([]byte(strings.ToValidUTF8(b.String(), "\uFFFD"))); writeErr != nil {
					return writeErr
				}
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Show what a Go `template` makes of a machine; json is a function in it")
	return cmd
}

// machineInspection is all that is known of a machine.
type machineInspection struct {
	Name       string
	ID         string `json:",omitempty"` // the machine ID
	State      string // the unit's, or machined's; "paused"; "stopped" if it is kept
	Kept       bool
	Class      string            `json:",omitempty"`
	Service    string            `json:",omitempty"`
	Started    *time.Time        `json:",omitempty"`
	End        *inspectedEnd     `json:",omitempty"` // of one that is kept
	Leader     uint32            `json:",omitempty"`
	Unit       string            `json:",omitempty"`
	Restarts   uint32            // since it was started
	Image      *inspectedImage   `json:",omitempty"`
	OS         string            `json:",omitempty"`
	Root       string            `json:",omitempty"`
	Directory  string            `json:",omitempty"` // what it has written
	Interfaces []string          `json:",omitempty"`
	Addresses  []string          `json:",omitempty"`
	Mounts     []inspectedMount  `json:",omitempty"`
	Limits     map[string]uint64 `json:",omitempty"` // by their directives: bytes, microseconds a second, processes and threads, weights
	Health     *inspectedHealth  `json:",omitempty"`
	Labels     map[string]string
	Notes      map[string]string `json:"Annotations"`
}

type inspectedImage struct {
	Name     string
	ID       image.Digest `json:"Id,omitempty"`
	Digest   image.Digest `json:",omitempty"`
	Platform string       `json:",omitempty"`
	Trust    *image.Trust `json:",omitempty"`
}

type inspectedEnd struct {
	Time        time.Time
	Result      string `json:",omitempty"` // "success", or what went wrong, where the status is not known
	ExitStatus  *int   `json:",omitempty"`
	Signal      string `json:",omitempty"`
	OutOfMemory bool
}

func endInspection(e ending) *inspectedEnd {
	end := inspectedEnd{Time: e.At, Result: e.result, OutOfMemory: e.outOfMemory}
	if e.result == "" {
		status, signal := e.status()
		end.ExitStatus, end.Signal = &status, signal
	}
	return &end
}

type inspectedMount struct{ Destination, Type, Source, Options string }

type inspectedHealth struct {
	State         string
	FailingStreak int
	Time          time.Time
	Result        string
	Output        string
}

func (h *host) inspect(ctx context.Context, name string) (machineInspection, error) {
	m := machineInspection{Name: name}
	store, err := image.Open(storeRoot)
	if err != nil {
		return m, err
	}
	m.Kept = image.IsKept(store.KeptDir(name))
	s, err := h.status(ctx, name)
	if unknown(err) && m.Kept {
		kept, img, err := store.KeptMachine(name)
		if err != nil {
			return m, err
		}
		m.State, m.Image, m.Directory = "stopped", imageInspection(img), store.KeptDir(name)
		if end, ended := h.ended(ctx, name, kept, img); ended {
			m.setTime(end.Started)
			m.End = endInspection(end)
		}
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("could not inspect machine: %w", err)
	}
	m.State, m.Class, m.Service, m.Leader, m.Unit, m.OS, m.Root, m.Interfaces = s.State, s.Class, s.Service, s.Leader, s.Unit, s.os, s.RootDirectory, s.interfaces
	if s.ID != [16]byte{} {
		m.ID = hex.EncodeToString(s.ID[:])
	}
	m.setTime(s.Since)
	for _, address := range s.addresses {
		m.Addresses = append(m.Addresses, address.String())
	}
	m.Labels, m.Notes = labelMap(s.labels.Labels), labelMap(s.labels.Annotations)
	if s.health.State != "" {
		m.Health = &inspectedHealth{s.health.State, s.health.Streak, s.health.Time, s.health.Result, s.health.Output}
	}
	if s.Class == machined.OwnClass { // a virtual machine's first process sees the host's
		m.Mounts = mountsOf(s.Leader)
	}
	if s.Unit == "" {
		return m, nil
	}
	if properties, err := h.systemd.Properties(ctx, s.Unit); err == nil {
		m.setUnit(properties)
	}
	if h.suspended(ctx, name, s.Class) {
		m.State = "paused"
	}
	if units.MachineOf(s.Unit) != name {
		return m, nil
	}
	m.setTime(s.logSince)
	if dir, img, err := store.RunningMachine(name, machinedir.Owned); err == nil {
		m.Directory, m.Image = dir, imageInspection(img)
	} else if s.image != "" {
		m.Image = &inspectedImage{Name: s.image}
	}
	return m, nil
}

func (m *machineInspection) setTime(t time.Time) {
	if !t.IsZero() {
		m.Started = &t
	}
}

// limitDirectives are shown where they limit.
var limitDirectives = strings.Fields("MemoryMin MemoryLow MemoryHigh MemoryMax MemorySwapMax CPUQuotaPerSecUSec CPUWeight IOWeight TasksMax")

func (m *machineInspection) setUnit(properties map[string]any) {
	freezer, _ := properties["FreezerState"].(string)
	if state, _ := properties["ActiveState"].(string); state != "" {
		m.State = unitState(state, strings.HasPrefix(freezer, "frozen"))
	}
	m.Restarts, _ = properties["NRestarts"].(uint32)
	for _, directive := range limitDirectives {
		minimum := strings.HasSuffix(directive, "Min") || strings.HasSuffix(directive, "Low")
		if n, known := properties[directive].(uint64); known && n != math.MaxUint64 && !(minimum && n == 0) {
			if m.Limits == nil {
				m.Limits = map[string]uint64{}
			}
			m.Limits[directive] = n
		}
	}
}

func imageInspection(img *image.Image) *inspectedImage {
	return &inspectedImage{img.Reference.String(), img.ConfigDigest, img.ManifestDigest, path.Join(img.Platform.OS, img.Platform.Architecture, img.Platform.Variant), &img.Trust}
}

func labelMap(labels []string) map[string]string {
	out := map[string]string{}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		out[key] = value
	}
	return out
}

// maxMountInfo bounds what is read of a machine's mounts, which one with privileges may make as many of as it likes.
const maxMountInfo = 1 << 20

// mountsOf gives the mounts that a process sees (proc_pid_mountinfo(5)).
func mountsOf(pid uint32) (mounts []inspectedMount) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil || pid == 0 {
		return nil
	}
	defer file.Close()
	text, _ := io.ReadAll(io.LimitReader(file, maxMountInfo))
	return parseMounts(string(text))
}

// parseMounts reads lines of mountinfo; what is no whole one is left out.
func parseMounts(text string) (mounts []inspectedMount) {
	for line := range strings.Lines(text) {
		before, after, found := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if !found || !strings.HasSuffix(line, "\n") || len(place) < 6 || len(kind) < 2 {
			continue
		}
		source := unescapeOctal(kind[1])
		if root := unescapeOctal(place[3]); root != "/" {
			source += "[" + root + "]" // as findmnt(8) has it
		}
		mounts = append(mounts, inspectedMount{unescapeOctal(place[4]), kind[0], source, place[5]})
	}
	return mounts
}

// unescapeOctal reads what the kernel writes for blanks and backslashes.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
