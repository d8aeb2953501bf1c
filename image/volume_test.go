package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVolumes(t *testing.T) {
	ctx := context.Background()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	machine := func(name string) string {
		dir, err := store.NewMachine(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		return dir.Name()
	}
	content := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(content, "file"), []byte("x"), 0o640), os.Mkdir(filepath.Join(content, "dir"), 0o751), os.Link(filepath.Join(content, "file"), filepath.Join(content, "dir/hard")),
		os.Symlink("/etc", filepath.Join(content, "link")), unix.Setxattr(filepath.Join(content, "file"), "user.a", []byte("b"), 0), os.Chmod(content, os.ModeSticky|0o730)); err != nil {
		t.Fatal(err)
	}
	image, err := os.Open(content)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	names := func(dir *os.File) string {
		entries, err := os.ReadDir(dir.Name())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return strings.Join(out, " ")
	}
	use := func(name, machine string, content *os.File) *os.File {
		dir, err := store.UseVolume(ctx, name, machine, content, uint32(os.Getuid()), uint32(os.Getgid()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		return dir
	}

	// What one that was killed left is not content.
	if err := os.MkdirAll(store.path("tmp", "volume-data", "content", "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	web := machine("my.web")
	data := use("data", web, image)
	if got := names(data); got != "dir file link" {
		t.Errorf("it has %s", got)
	}
	var file, hard, root unix.Stat_t
	if err := errors.Join(unix.Stat(data.Name()+"/file", &file), unix.Stat(data.Name()+"/dir/hard", &hard), unix.Stat(data.Name(), &root)); err != nil || file.Ino != hard.Ino || file.Mode&0o7777 != 0o640 || root.Mode&0o7777 != 0o1730 {
		t.Errorf("%v: inodes %d, %d, modes %o %o", err, file.Ino, hard.Ino, file.Mode, root.Mode)
	}
	value := make([]byte, 8)
	if n, err := unix.Getxattr(data.Name()+"/file", "user.a", value); err != nil || string(value[:n]) != "b" {
		t.Errorf("attribute %q, %v", value[:max(n, 0)], err)
	}
	if err := os.Remove(data.Name() + "/link"); err != nil {
		t.Fatal(err)
	}
	if got := names(use("data", machine("other"), image)); got != "dir file" {
		t.Errorf("it was filled again: %s", got)
	}

	// One that is empty is filled, unless another machine has it.
	if err := store.CreateVolume(ctx, "empty"); err != nil {
		t.Fatal(err)
	}
	if err := store.CreateVolume(ctx, "empty"); !errors.Is(err, ErrVolumeExists) {
		t.Error(err)
	}
	if got := names(use("empty", web, nil)); got != "" {
		t.Errorf("it has %s", got)
	}
	if got := names(use("empty", machine("other"), image)); got != "" {
		t.Errorf("it was filled while another machine has it: %s", got)
	}
	volumes, err := store.Volumes()
	if err != nil || len(volumes) != 2 || volumes[0].Name != "data" || !slices.Equal(volumes[0].Users, []string{"my.web", "other"}) || volumes[0].Created.IsZero() {
		t.Errorf("%+v, %v", volumes, err)
	}
	if _, errs := store.RemoveVolumes(ctx, []string{"data", "none"}); len(errs) != 2 || !strings.Contains(errs[0].Error(), "machine my.web has it") || !errors.Is(errs[1], ErrNotFound) {
		t.Error(errs)
	}
	if err := os.RemoveAll(store.Machines()); err != nil {
		t.Fatal(err)
	}
	if got := names(use("empty", machine("third"), image)); got != "dir file link" {
		t.Errorf("it was not filled: %s", got)
	}
	if removed, errs := store.RemoveVolumes(ctx, []string{"data"}); len(errs) != 0 || len(removed) != 1 || removed[0].Size == 0 {
		t.Error(removed, errs)
	}
	if left, _ := os.ReadDir(store.path("tmp")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
