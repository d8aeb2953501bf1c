package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func (s *Store) readLayer(diffID Digest) ([]byte, error) {
	tar, err := s.OpenLayer(diffID)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return io.ReadAll(tar)
}

// Whichever byte of a layer changes, verification finds it; every eleventh is tried.
func TestVerifyLayer(t *testing.T) {
	layer := makeTar(t, dir("./", 0o755), dir("d/", 0o700), file("d/a", "content"), symlink("d/l", strings.Repeat("x", 600)), file("b", "other"),
		file("replaced", "before"), file("replaced", "after"), file("looked-into.conf", "log = journal"), file("last", "one"))
	files := map[string][]string{"erofs": {tarFile, indexFile, "layer.json"}, "dirs": {restFile, "tree/b", "tree/d/a", "content/2", "layer.json"}}
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		diffID, err := addTar(w, layer)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyLayer(diffID); err != nil {
			t.Fatal(err)
		}
		damaged := func(what string) {
			t.Helper()
			if err := s.VerifyLayer(diffID); err == nil || !strings.HasPrefix(err.Error(), "layer "+string(diffID)+": ") {
				t.Fatalf("%s: got %v", what, err)
			}
		}
		for _, name := range files[filepath.Base(t.Name())] {
			path := filepath.Join(s.layerDir(diffID), name)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var stat unix.Stat_t
			if err := unix.Stat(path, &stat); err != nil {
				t.Fatal(err)
			}
			change := func(data []byte) {
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				unix.UtimesNano(path, []unix.Timespec{stat.Atim, stat.Mtim})
			}
			for i := 0; i < len(good); i += 11 {
				bad := bytes.Clone(good)
				bad[i] ^= 1
				change(bad)
				damaged(name)
			}
			change(append(good, 0))
			damaged(name + ", longer")
			change(good[:len(good)-1])
			damaged(name + ", cut")
			change(good)
			if err := s.VerifyLayer(diffID); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
}

// Whatever else of a layer that is a directory changes, verification finds it too.
func TestVerifyDirectory(t *testing.T) {
	needMounts(t)
	for what, change := range map[string]func(tree string) error{
		"mode":                func(tree string) error { return os.Chmod(tree+"/a", 0o600) },
		"mode of the root":    func(tree string) error { return os.Chmod(tree, 0o700) },
		"owner":               func(tree string) error { return os.Lchown(tree+"/link", 1, 0) },
		"time":                func(tree string) error { return unix.UtimesNano(tree+"/d", make([]unix.Timespec, 2)) },
		"attribute":           func(tree string) error { return unix.Setxattr(tree+"/a", "user.a", []byte("2"), 0) },
		"attribute, added":    func(tree string) error { return unix.Setxattr(tree+"/b", "user.a", []byte("1"), 0) },
		"attribute, removed":  func(tree string) error { return unix.Removexattr(tree+"/a", "user.a") },
		"capability":          func(tree string) error { return unix.Setxattr(tree+"/a", xattrCapability, []byte(capability), 0) },
		"name":                func(tree string) error { return os.Rename(tree+"/a", tree+"/c") },
		"file, added":         func(tree string) error { return os.WriteFile(tree+"/d/new", nil, 0o644) },
		"file, removed":       func(tree string) error { return os.Remove(tree + "/d/1") },
		"hard link, one more": func(tree string) error { return os.Link(tree+"/a", tree+"/../elsewhere") },
		"hard link, now a copy": func(tree string) error {
			return errorOf(os.Remove(tree+"/d/1"), os.Link(tree+"/d/2", tree+"/d/1"), os.Remove(tree+"/d/3"), os.Link(tree+"/d/2", tree+"/d/3"))
		},
		"link's target": func(tree string) error {
			return errorOf(os.Remove(tree+"/link"), os.Symlink("x", tree+"/link"), unix.Lutimes(tree+"/link", []unix.Timeval{{Sec: 1e9}, {Sec: 1e9}}))
		},
		"whiteout": func(tree string) error { return os.Remove(tree + "/d/hidden") },
	} {
		s, w := newStore(t)
		s.SetBackend("dirs")
		diffID, err := addTar(w, makeTar(t, dir("./", 0o755), file("a", "x").xattr("user.a", "1"), file("b", ""), dir("d/", 0o755),
			file("d/1", "x"), hardlink("d/3", "d/1"), file("d/2", "x"), hardlink("d/4", "d/2"), symlink("link", "y"), whiteout("d/.wh.hidden"),
			device("null", tar.TypeChar, 1, 3)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.VerifyLayer(diffID); err != nil {
			t.Fatal(err)
		}
		if err := change(filepath.Join(s.layerDir(diffID), treeDir)); err != nil {
			t.Fatal(what, err)
		}
		if err := s.VerifyLayer(diffID); err == nil || !strings.Contains(err.Error(), "damaged: ") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
