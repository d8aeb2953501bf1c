package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// settingsDirs is where settings of systemd-nspawn are looked for (systemd.nspawn(5)); new ones are made in the first.
var settingsDirs = []string{"/etc/systemd/nspawn", "/run/systemd/nspawn", imageSettings}

// imageSettings has those that came with images. systemd-nspawn does not trust them, so they are not edited, but a copy in settingsDirs[0].
const imageSettings = "/var/lib/machines"

func catCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cat NAME|FILE...",
		Short: "Show the settings that systemd-nspawn has for machines",
		Long: `Show files of settings for machines of systemd-nspawn (systemd.nspawn(5)), as by machinectl: by a machine's name, or by an absolute path. Machines of nspawnd have none: see nspawnd-run
--dry-run, and systemctl cat.`,
		Example: `  machinectl-lite cat debian`,
		Args:    machineNames,
		RunE: func(cmd *cobra.Command, names []string) (err error) {
			out := openOutput(options.noPager)
			defer func() { err = errors.Join(err, out.close()) }()
			var failed failures
			for _, name := range names {
				path, found, err := findSettings(name)
				if err == nil && !found {
					err = fmt.Errorf("no settings file found for machine %q", name)
				}
				var text []byte
				if err == nil {
					text, err = os.ReadFile(path)
				}
				if err != nil {
					failed = append(failed, err)
					continue
				}
				if out.tty { // an image's settings are a stranger's
					text = []byte(printableLines(string(text)))
				}
				if _, err := fmt.Fprintf(out, "# %s\n%s", path, text); err != nil {
					return err
				}
			}
			return failed.orNil()
		},
	}
}

func editCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "edit NAME|FILE...",
		Short: "Edit the settings that systemd-nspawn has for machines",
		Long: `Edit files of settings for machines of systemd-nspawn (systemd.nspawn(5)), as by machinectl: where there is none, or only what came with the image, a new one in /etc/systemd/nspawn. The editor is $SYSTEMD_EDITOR, $EDITOR, $VISUAL, or
the first there is of editor, nano, vim and vi. It gets copies, which take the files' places when it has succeeded; an empty copy does not.`,
		Example: `  machinectl-lite edit debian`,
		Args:    machineNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			if !term.IsTerminal(0) || !term.IsTerminal(1) {
				return errors.New("edit: settings can only be edited on a terminal")
			}
			var edited []editing
			defer func() {
				for _, e := range edited {
					if !e.kept {
						os.Remove(e.copy)
					}
				}
			}()
			for _, name := range names {
				path, _, err := findSettings(name)
				if err != nil {
					return err
				}
				to := path
				if filepath.Dir(path) == imageSettings && !filepath.IsAbs(name) {
					to = filepath.Join(settingsDirs[0], filepath.Base(path))
				}
				e, err := beginEditing(path, to)
				if err != nil {
					return err
				}
				edited = append(edited, e)
			}
			if err := runEditor(edited); err != nil {
				return err
			}
			var failed failures
			for i := range edited {
				if err := edited[i].finish(); err != nil {
					failed = append(failed, err)
				}
			}
			return failed.orNil()
		},
	}
}

// findSettings gives the path of a machine's settings: of those that are there, or of those that are to be made.
func findSettings(name string) (path string, found bool, err error) {
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return filepath.Clean(name), err == nil, nil
	}
	file := strings.TrimSuffix(name, ".nspawn") + ".nspawn"
	if strings.Contains(name, "/") || file == ".nspawn" || strings.HasPrefix(file, "..") {
		return "", false, fmt.Errorf("%q is neither a machine's name nor an absolute path", name)
	}
	for _, dir := range settingsDirs {
		path := filepath.Join(dir, file)
		switch _, err := os.Stat(path); {
		case err == nil:
			return path, true, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", false, err
		}
	}
	return filepath.Join(settingsDirs[0], file), false, nil
}

// editing is a file of which a copy is edited.
type editing struct {
	path, copy string
	before     []byte
	kept       bool // the copy stays, since it could not take the file's place
}

// beginEditing makes a copy of a file beside the one that it is to become.
func beginEditing(path, to string) (e editing, err error) {
	e.path = to
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if e.before, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return e, err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return e, err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".#"+filepath.Base(to))
	if err != nil {
		return e, err
	}
	e.copy = f.Name()
	_, err = f.Write(e.before)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		os.Remove(e.copy)
	}
	return e, err
}

// finish puts the copy into the file's place.
func (e *editing) finish() error {
	after, err := os.ReadFile(e.copy)
	switch {
	case err != nil:
		return err
	case len(bytes.TrimSpace(after)) == 0:
		return fmt.Errorf("%s was not changed: its copy is empty", e.path)
	case bytes.Equal(e.before, after): // and where it came from stays what is read
		return nil
	}
	if err := os.Rename(e.copy, e.path); err != nil {
		e.kept = true
		return fmt.Errorf("%w; what was edited is in %s", err, e.copy)
	}
	fmt.Fprintf(os.Stderr, "Successfully installed edited file '%s'.\n", e.path)
	return nil
}

func runEditor(edited []editing) error {
	var argv []string
	for _, variable := range []string{"SYSTEMD_EDITOR", "EDITOR", "VISUAL"} {
		if argv = strings.Fields(os.Getenv(variable)); len(argv) > 0 {
			break
		}
	}
	for _, name := range []string{"editor", "nano", "vim", "vi"} {
		if _, err := exec.LookPath(name); err == nil && len(argv) == 0 {
			argv = []string{name}
		}
	}
	if len(argv) == 0 {
		return errors.New("there is no editor; set $SYSTEMD_EDITOR, $EDITOR or $VISUAL to one")
	}
	for _, e := range edited {
		argv = append(argv, e.copy)
	}
	editor := exec.Command(argv[0], argv[1:]...)
	editor.Stdin, editor.Stdout, editor.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := editor.Run(); err != nil {
		return fmt.Errorf("%s: %w; nothing was changed", argv[0], err)
	}
	return nil
}
