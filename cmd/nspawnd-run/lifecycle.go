package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nspawnd/dbus"
	"nspawnd/image"
	"nspawnd/units"

	"github.com/spf13/pflag"
)

// lifecycleFlags say when a machine ends and what follows, and what is noted of it.
type lifecycleFlags struct {
	flags                           *pflag.FlagSet
	restart                         string
	replace, remove, keep           bool
	startKept                       string // by machinectl-lite start: its name
	cidFile, pidFile                string
	labels, annotations, labelFiles []string

	cid *os.File // made before the start, so that of two starts with one file only one goes on
}

func (g *lifecycleFlags) register(f *pflag.FlagSet) {
	g.flags = f
	f.StringVar(&g.restart, "restart", "no", "start it again when it has ended: `no|always|unless-stopped|on-failure[:RETRIES]`")
	f.BoolVar(&g.remove, "rm", true, "its changes go when it has ended")
	f.BoolVar(&g.keep, "keep", false, "its changes stay when it has ended: machinectl-lite start starts it again, remove-machine removes it")
	f.StringVar(&g.startKept, "start-kept", "", "")
	_ = f.MarkHidden("start-kept")
	f.BoolVar(&g.replace, "replace", false, "stop a machine of the same name first")
	f.StringArrayVarP(&g.labels, "label", "l", nil, "note `KEY=VALUE` of it; its log has that too (journalctl NSPAWND_LABEL=KEY=VALUE)")
	f.StringArrayVar(&g.labelFiles, "label-file", nil, "labels from `FILE`, one a line")
	f.StringArrayVar(&g.annotations, "annotation", nil, "note `KEY=VALUE` of it, apart from labels")
	f.StringVar(&g.cidFile, "cidfile", "", "write its name to `FILE`, which must not be there yet")
	f.StringVar(&g.pidFile, "pidfile", "", "write the process ID of its first process to `FILE`")
}

func (g *lifecycleFlags) apply(m *units.Machine, _ *units.Options) error {
	if g.keep && g.flags.Changed("rm") && g.remove {
		return errors.New("--keep and --rm are opposites")
	}
	m.Keep = g.keep || !g.remove
	if g.startKept != "" {
		m.Name, g.cidFile = g.startKept, "" // that file was for its first start
	}
	var err error
	if m.Restart, err = units.ParseRestart(g.restart); err != nil {
		return fmt.Errorf("--restart: %w", err)
	}
	for _, path := range g.labelFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("--label-file: %w", err)
		}
		labels, err := units.ParseLabelFile(string(text))
		if err != nil {
			return fmt.Errorf("--label-file: %s: %w", path, err)
		}
		m.Labels.Labels = append(m.Labels.Labels, labels...)
	}
	for _, list := range []struct {
		flag  string
		words []string
		to    *[]string
	}{{"label", g.labels, &m.Labels.Labels}, {"annotation", g.annotations, &m.Labels.Annotations}} {
		for _, word := range list.words {
			label, err := units.ParseLabel(word)
			if err != nil {
				return fmt.Errorf("--%s: %w", list.flag, err)
			}
			*list.to = append(*list.to, label)
		}
	}
	return nil
}

// before does what comes just before the start.
func (g *lifecycleFlags) before(ctx context.Context, bus *dbus.Conn, set units.Set, dir string) error {
	if (g.keep || !g.remove) && g.startKept == "" {
		if err := g.save(dir); err != nil {
			return err
		}
	}
	if g.cidFile != "" {
		var err error
		g.cid, err = os.OpenFile(g.cidFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s is there already: the machine that it names may run; remove the file if it does not", g.cidFile)
		}
		if err != nil {
			return fmt.Errorf("--cidfile: %w", err)
		}
	}
	if g.replace {
		return bus.Replace(ctx, set)
	}
	return nil
}

// release removes the file of a machine that was not started.
func (g *lifecycleFlags) release() {
	if g.cid != nil {
		os.Remove(g.cid.Name())
		g.cid.Close()
	}
}

// started does what follows the start.
func (g *lifecycleFlags) started(name string, leader uint32) error {
	if g.cid != nil {
		_, err := g.cid.WriteString(name)
		err = errors.Join(err, g.cid.Close())
		g.cid = nil
		if err != nil {
			return fmt.Errorf("--cidfile: %w", err)
		}
	}
	if g.pidFile != "" && leader != 0 {
		if err := replaceFile(g.pidFile, strconv.Itoa(int(leader))+"\n"); err != nil {
			return fmt.Errorf("--pidfile: %w", err)
		}
	}
	return nil
}

// replaceFile writes a file so that it is never seen half.
func replaceFile(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// machineDir makes the machine's directory.
func (g *lifecycleFlags) machineDir(store *image.Store, m *units.Machine, manager func() (*dbus.Conn, int, error)) (*os.File, error) {
	if g.startKept == "" && image.IsKept(store.KeptDir(m.Name)) {
		return nil, fmt.Errorf("the name is a kept machine's (machinectl-lite start %s starts that, machinectl-lite remove-machine %s removes it)", m.Name, m.Name)
	}
	if m.Keep {
		dir, err := store.KeepMachine(m.Name, g.startKept != "")
		if err == nil && g.startKept != "" {
			var bus *dbus.Conn
			// Asked with the lock held: the client of another start lets go of it when the units are there.
			if bus, _, err = manager(); err == nil {
				var free bool
				if free, err = bus.AwaitDirectory(context.Background(), m.Name); err == nil && !free {
					err = nameTaken(m.Name, errors.New("it runs"))
				}
			}
			if err != nil {
				dir.Close()
			}
		}
		if err == nil { // what was laid over other file systems than the root goes with each run
			overlays, _ := filepath.Glob(filepath.Join(dir.Name(), "overlay-*"))
			for _, overlay := range overlays {
				err = errors.Join(err, os.RemoveAll(overlay))
			}
		}
		return dir, err
	}
	return store.NewMachine(m.Name)
}

// save notes how the machine was started.
func (g *lifecycleFlags) save(dir string) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { // what is about this one call
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains([]string{"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}, name)
	})
	return image.Kept{Args: os.Args[1:], Env: env, Directory: here}.Keep(dir)
}
