package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sparseTar makes a tar of sparse files with GNU tar, which is who makes such tars.
func sparseTar(t testing.TB, options ...string) (data []byte, from string) {
	t.Helper()
	from = t.TempDir()
	write := func(name string, size int64, pieces map[int64]string) {
		f, err := os.Create(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for at, piece := range pieces {
			if _, err := f.WriteAt([]byte(piece), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	pieces := map[int64]string{0: "begin", 1 << 20: "middle", 3<<20 - 3: "end"}
	write("sparse", 3<<20, pieces)
	write("holes", 5<<20+7, nil)
	many := map[int64]string{}
	for i := range int64(60) { // more than a header has room for
		many[i*32768] = strings.Repeat("x", 100)
	}
	write("many", 60*32768, many)
	write("plain", 5, map[int64]string{0: "plain"})
	if err := os.Link(filepath.Join(from, "sparse"), filepath.Join(from, "zlink")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", append([]string{"--create", "--sparse", "--sort=name", "--directory=" + from, "--mtime=@1000000000"}, append(options, ".")...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.Walk(from, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNano(path, []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, from
}

// Sparse files have their content and their holes, in all the ways that tar writes them.
func TestSparse(t *testing.T) {
	for _, options := range [][]string{
		{"--format=gnu"}, {"--format=posix", "--sparse-version=0.0"}, {"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
				data, from := sparseTar(t, options...)
				if len(data) > 1<<20 {
					t.Fatalf("the tar of sparse files has %d bytes", len(data))
				}
				img := addImage(t, w, "sparse", data, makeTar(t, file("plain", "changed")))
				_, path := mountImage(t, s, img, "")
				want := describe(t, from)
				want["plain"] = describe(t, path)["plain"]
				if diff := cmp.Diff(want, describe(t, path)); diff != "" {
					t.Error(diff)
				}
				for _, diffID := range img.Layers {
					if err := s.VerifyLayer(diffID); err != nil {
						t.Error(err)
					}
				}
				if tar, err := s.readLayer(img.Layers[0]); err != nil || !bytes.Equal(tar, data) {
					t.Errorf("its tar is another: %v", err)
				}
				// Holes take no room, and damage is found.
				file := filepath.Join(s.layerDir(img.Layers[0]), sparseFile)
				if s.backend == (dirsBackend{}) {
					file = filepath.Join(s.layerDir(img.Layers[0]), treeDir, "sparse")
				}
				var stat unix.Stat_t
				if err := unix.Stat(file, &stat); err != nil || stat.Blocks*512 > 1<<20 || stat.Size < 3<<20 {
					t.Errorf("%d bytes in %d blocks, %v", stat.Size, stat.Blocks, err)
				}
				f, err := os.OpenFile(file, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				f.WriteAt([]byte{1}, 2<<20)
				f.Close()
				unix.UtimesNano(file, []unix.Timespec{stat.Atim, stat.Mtim})
				if err := s.VerifyLayer(img.Layers[0]); err == nil || !strings.Contains(err.Error(), "sparse") {
					t.Errorf("a hole that is none any more: %v", err)
				}
			})
		})
	}
}
