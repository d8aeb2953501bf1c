package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is a tar entry with its content.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, ""}
}

func device(name string, typeflag byte, major, minor int64) entry {
	return entry{tar.Header{Name: name, Typeflag: typeflag, Mode: 0o600, Devmajor: major, Devminor: minor}, ""}
}

func whiteout(name string) entry { return file(name, "") }

// with changes a header.
func (e entry) with(change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

func (e entry) xattr(name, value string) entry {
	return e.with(func(h *tar.Header) {
		h.PAXRecords = maps.Clone(h.PAXRecords)
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	})
}

// makeTar writes entries as they are: what Go's writer refuses, a test makes by hand.
func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.data))
		if h.ModTime.IsZero() && h.Typeflag != tar.TypeXGlobalHeader {
			h.ModTime = time.Unix(1e9, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%.300q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// needMounts skips tests that mount when this is not the place for it. The lab is.
func needMounts(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if !KernelAtLeast(6, 12) {
		t.Skipf("mounting EROFS from files takes Linux 6.12, this is %s", kernelRelease())
	}
}

// eachBackend runs a test with a store of each kind.
func eachBackend(t *testing.T, f func(t *testing.T, s *Store, w *Writer)) {
	needMounts(t)
	for name := range backends {
		t.Run(name, func(t *testing.T) {
			s, w := newStore(t)
			if err := s.SetBackend(name); err != nil {
				t.Fatal(err)
			}
			f(t, s, w)
		})
	}
}

// newStore returns an empty store and a writer for it.
func newStore(t testing.TB) (*Store, *Writer) {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return s, w
}

// addTar stores a layer.
func addTar(w *Writer, data []byte) (Digest, error) {
	diffID := DigestOf(data)
	return diffID, w.AddLayer(context.Background(), diffID, func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// addImage stores an image of layers, base first.
func addImage(t testing.TB, w *Writer, name string, layers ...[]byte) *Image {
	t.Helper()
	ref, err := ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	img := &Image{Reference: ref, ManifestDigest: DigestOf([]byte("manifest")), ConfigDigest: DigestOf([]byte("config"))}
	for _, layer := range layers {
		diffID, err := addTar(w, layer)
		if err != nil {
			t.Fatal(err)
		}
		img.Layers = append(img.Layers, diffID)
	}
	if err := w.AddImage(img); err != nil {
		t.Fatal(err)
	}
	return img
}

// mountImage mounts an image and gives a path to it.
func mountImage(t testing.TB, s *Store, img *Image, writable string) (*os.File, string) {
	t.Helper()
	mount, err := s.Mount(img, writable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mount.Close() })
	return mount, fdPath(mount)
}

// describe says in one line for each file what is below dir.
func describe(t testing.TB, dir string) map[string]string {
	t.Helper()
	type inode struct{ dev, ino uint64 }
	firstName := map[inode]string{}
	tree := map[string]string{}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var parent *os.File
	defer func() { parent.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// By the directory it is in: the path may be longer than the kernel takes.
		if above := filepath.Dir(name); parent == nil || parent.Name() != above {
			if parent != nil {
				parent.Close()
			}
			if parent, err = root.Open(above); err != nil {
				return err
			}
		}
		path := fdPath(parent) + "/" + filepath.Base(name)
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		line := fmt.Sprintf("%07o %d:%d %d.%09d", stat.Mode, stat.Uid, stat.Gid, stat.Mtim.Sec, stat.Mtim.Nsec)
		switch stat.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFREG:
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			hash := sha256.New()
			if _, err := io.Copy(hash, f); err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", stat.Size, hash.Sum(nil)[:6])
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		default:
			line += fmt.Sprintf(" %d,%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		}
		if stat.Nlink > 1 && !d.IsDir() {
			id := inode{stat.Dev, stat.Ino}
			if firstName[id] == "" {
				firstName[id] = name
			}
			line += fmt.Sprintf(" %d names, one is %s", stat.Nlink, firstName[id])
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		list := strings.FieldsFunc(string(names[:n]), func(c rune) bool { return c == 0 })
		slices.Sort(list)
		for _, xattr := range list {
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(path, xattr, value)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", path, xattr, err)
			}
			line += fmt.Sprintf(" %s=%q", xattr, value[:n])
		}
		tree[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
