package image

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Layers that try to get out are refused, or what they do stays in the layer: nothing beside it changes, through either backend.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	for name, content := range map[string]string{"file": "untouched", "dir/file": "untouched"} {
		path := filepath.Join(outside, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := strings.Repeat("../", 30)
	layers := []struct {
		name, refused string // by which words, "" if it is taken
		entries       []entry
	}{
		{"a name with ..", `".." is not allowed`, []entry{file(up+outside+"/file", "x")}},
		{"a directory with ..", `".." is not allowed`, []entry{dir("a/../../b/", 0o777)}},
		{"an absolute name", "", []entry{file(outside+"/file", "x"), dir(outside+"/dir", 0o777)}},
		{"through an absolute link", "", []entry{symlink("l", outside), file("l/file", "x"), dir("l/dir/", 0o777)}},
		{"through a relative link", "", []entry{symlink("l", up+outside), file("l/file", "x"), file("l/dir/file", "x")}},
		{"through a chain of links", "", []entry{symlink("a", outside), symlink("b", "a/dir"), symlink("c", "b/.."), file("c/file", "x")}},
		{"through a link of /proc", "", []entry{symlink("l", "/proc/self/root"+outside), file("l/file", "x"), symlink("m", "/proc/self/cwd"), file("m/file", "x")}},
		{"a file in place of a link out", "", []entry{symlink("l", outside+"/file"), file("l", "x")}},
		{"a directory in place of a link out", "", []entry{symlink("l", outside), dir("l/", 0o777), file("l/file", "x")}},
		{"a link in place of a directory", "", []entry{dir("d/", 0o755), file("d/file", "x"), symlink("d", outside), file("d/file", "y")}},
		{"the root is a link", "the root is not a directory", []entry{symlink(".", outside), file("file", "x")}},
		{"a hard link to the host", "which this layer does not have", []entry{hardlink("h", outside+"/file"), file("h", "x")}},
		{"a hard link with ..", `".." is not allowed`, []entry{hardlink("h", up+outside+"/file")}},
		{"a hard link through a link", "which this layer does not have", []entry{symlink("l", outside), hardlink("h", "l/file")}},
		{"a hard link to a link, written through", "", []entry{symlink("l", outside+"/file"), hardlink("h", "l"), file("h", "x")}},
		{"a hard link that changes its target's mode", "", []entry{symlink("l", outside+"/file"), hardlink("h", "l").with(func(h *tar.Header) { h.Mode = 0o777; h.Uid = 5 })}},
		{"devices of the host", "", []entry{device("disk", tar.TypeBlock, 254, 0), device("mem", tar.TypeChar, 1, 1), file("mem", "x")}},
		{"a device, written to", "", []entry{device("null", tar.TypeChar, 1, 3), hardlink("l", "null"), file("l", "x")}},
		{"a FIFO, written to", "", []entry{device("fifo", tar.TypeFifo, 0, 0), hardlink("l", "fifo"), file("fifo", "x")}},
		{"a whiteout of ..", "a whiteout of nothing", []entry{whiteout(".wh...")}},
		{"a whiteout of .", "a whiteout of nothing", []entry{whiteout(".wh..")}},
		{"a whiteout of nothing", "a whiteout of nothing", []entry{whiteout("a/.wh.")}},
		{"a whiteout with a path", `a whiteout is not a directory`, []entry{file(".wh./file", "x")}},
		{"a whiteout that is a directory", `a whiteout is not a directory`, []entry{file(".wh.d/file", "x")}},
		{"a whiteout of a mark", "unknown whiteout mark", []entry{whiteout(".wh..wh.x")}},
		{"a whiteout through a link", "", []entry{symlink("l", outside), whiteout("l/.wh.file"), whiteout("l/.wh..wh..opq")}},
		{"overlayfs's whiteout", "overlay whiteout", []entry{device("w", tar.TypeChar, 0, 0)}},
		{"overlayfs's redirect", "belongs to overlayfs", []entry{dir("d/", 0o755).xattr("trusted.overlay.redirect", outside)}},
		{"overlayfs's metacopy", "belongs to overlayfs", []entry{file("f", "").xattr("trusted.overlay.metacopy", "")}},
		{"links in a circle", "too many levels", []entry{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}},
		{"a link to itself", "too many levels", []entry{symlink("a", "a/a"), file("a/f", "x")}},
		{"too deep", "directories deep", []entry{dir(strings.Repeat("d/", 1026), 0o755)}},
		{"deeper by links", "directories deep", deeperByLinks(11)},
		{"as deep as can be", "", deeperByLinks(9)},
		{"a name too long", "name too long", []entry{file(strings.Repeat("n", 256), "")}},
		{"a path too long", "name too long", []entry{file(strings.Repeat("n/", 2050)+"n", "")}},
		{"more directories than entries", "more than 1048576 entries", manyDirectories()},
		{"a broken access control list", "not a valid access control list", []entry{file("f", "").xattr(xattrACL, "\x02\x00\x00\x00")}},
	}
	before := describe(t, outside)
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		for _, layer := range layers {
			diffID, err := addTar(w, makeTar(t, layer.entries...))
			if layer.refused == "" && err != nil || layer.refused != "" && (err == nil || !strings.Contains(err.Error(), layer.refused)) {
				t.Errorf("%s: want %q, got %.300v", layer.name, layer.refused, err)
			}
			if err == nil {
				if err := s.VerifyLayer(diffID); err != nil {
					t.Errorf("%s: %.300v", layer.name, err)
				}
			}
			if diff := cmp.Diff(before, describe(t, outside)); diff != "" {
				t.Fatalf("%s: got out:\n%s", layer.name, diff)
			}
			entries, err := os.ReadDir(s.path("tmp"))
			if err != nil || len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), writerPrefix) {
				t.Errorf("%s: left over: %v, %v", layer.name, entries, err)
			}
		}
		if entries, err := os.ReadDir(s.root); err != nil || len(entries) != 5 {
			t.Errorf("in the store: %v, %v", entries, err)
		}
	})
}

// deeperByLinks goes on in each step at the end of the last one's path, which is a link's target, for 100 directories.
func deeperByLinks(steps int) []entry {
	var entries []entry
	path := ""
	for i := range steps {
		entries = append(entries, dir(path+strings.Repeat("d/", 100), 0o755))
		target := path + strings.Repeat("d/", 100)
		path = fmt.Sprintf("l%d/", i)
		entries = append(entries, symlink(strings.TrimSuffix(path, "/"), target))
	}
	return append(entries, file(path+"deep", "x"), file(path+"deep", "replaced"), file(path+strings.Repeat("n", 255), "x"), hardlink(path+"h", path+"deep"))
}

// manyDirectories is a small tar with more directories than a layer may have.
func manyDirectories() []entry {
	var entries []entry
	for i := range 1100 {
		entries = append(entries, file(fmt.Sprintf("%d/%sa", i, strings.Repeat("a/", 1000)), ""))
	}
	return entries
}

// A tar that is small when compressed, and endless, ends at a limit.
func TestEndlessLayers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, test := range []struct {
		want  string
		entry func(i int) tar.Header
	}{
		{"more than 1048576 entries", func(i int) tar.Header { return tar.Header{Name: fmt.Sprint(i)} }},
		{"more than 1048576 entries", func(i int) tar.Header { return tar.Header{Name: ".wh." + fmt.Sprint(i)} }},
		{"more than 256 MiB of names and attributes", func(i int) tar.Header {
			return tar.Header{Name: "same", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 60<<10)}}
		}},
		{"more than 256 MiB of names and attributes", func(i int) tar.Header {
			return tar.Header{Name: "same", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 4000)}
		}},
	} {
		r, w := io.Pipe()
		go func() {
			tw := tar.NewWriter(bufio.NewWriterSize(w, 1<<20))
			for i := 0; ; i++ {
				h := test.entry(i)
				if tw.WriteHeader(&h) != nil {
					return
				}
			}
		}()
		if _, err := readTar(r, nil, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("want %s, got %v", test.want, err)
		}
		r.Close()
	}
	// Holes cost a tar nothing: the file's size is in the header alone.
	for _, size := range []string{"68719476737", "9000000000000000000"} {
		sparse := makeTar(t, file("f", "").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"GNU_sparse.numblocks": "1", "GNU_sparse.map": size + ",0", "GNU_sparse.size": size}
		}))
		sparse = []byte(strings.ReplaceAll(string(sparse), "GNU_", "GNU."))
		if _, err := readTar(strings.NewReader(string(sparse)), nil, nil); err == nil || !strings.Contains(err.Error(), "sparse files of more than 64 GiB") {
			t.Errorf("a hole of %s bytes: %v", size, err)
		}
	}
}

// A layer that is small when compressed ends at the limit, and leaves nothing.
func TestLargeLayer(t *testing.T) {
	defer func(before int64) { maxLayerSize = before }(maxLayerSize)
	maxLayerSize = 16 << 20
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		if _, err := addTar(w, makeTar(t, file("zeros", string(make([]byte, 17<<20))))); err == nil || !strings.Contains(err.Error(), "layer larger than") {
			t.Error(err)
		}
		if _, err := addTar(w, makeTar(t, file("zeros", string(make([]byte, 15<<20))))); err != nil {
			t.Error(err)
		}
		if entries, err := os.ReadDir(s.path("tmp")); err != nil || len(entries) != 1 {
			t.Errorf("left over: %v, %v", entries, err)
		}
	})
}
