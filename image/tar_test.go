package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// outline gives a tree in one line: names, with what matters for stacking. A directory has "/", one that no entry named "?/".
func outline(n *node) string {
	var parts []string
	for _, name := range n.names() {
		child := n.children[name]
		switch child.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if child.implied {
				name += "?"
			}
			name += "/(" + outline(child) + ")"
		case unix.S_IFLNK:
			name += "->" + child.target
		case unix.S_IFCHR:
			name += fmt.Sprintf(" dev %x", child.rdev)
		case unix.S_IFREG:
			if child.links > 1 {
				name += fmt.Sprintf("*%d", child.links)
			}
		}
		for _, xattr := range slices.Sorted(maps.Keys(child.xattrs)) {
			name += " " + strings.TrimPrefix(xattr, "trusted.overlay.")
		}
		parts = append(parts, name)
	}
	return strings.Join(parts, " ")
}

func TestReadTar(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"nothing", nil, ""},
		{"names", []entry{file("./a", ""), file("/b", ""), file("c/./d", ""), file("e//f", ""), dir("g/.", 0o700)}, "a b c?/(d) e?/(f) g/()"},
		{"the last wins", []entry{file("a", "1"), dir("a/", 0o755), file("a/b", ""), file("a", "2")}, "a"},
		{"a directory again keeps what is in it", []entry{dir("a/", 0o700), file("a/b", ""), dir("a/", 0o711)}, "a/(b)"},
		{"through a link", []entry{symlink("l", "/x/../real"), dir("real/", 0o755), file("l/f", "")}, "l->/x/../real real/(f) x?/()"},
		{"through a link that dangles", []entry{symlink("l", "../../made"), file("l/f", "")}, "l->../../made made?/(f)"},
		{"a directory in place of a link", []entry{symlink("l", "real"), dir("l/", 0o755), file("l/f", "")}, "l/(f)"},
		{"hard links", []entry{file("a", "x"), hardlink("b", "a"), hardlink("d/c", "/./b")}, "a*3 b*3 d?/(c*3)"},
		{"hard link, replaced", []entry{file("a", "x"), hardlink("b", "a"), file("a", "y")}, "a b"},
		{"hard link to itself", []entry{file("a", "x"), hardlink("a", "a")}, "a"},
		{"hard link to a link", []entry{symlink("a", "x"), hardlink("b", "a")}, "a->x b->x"},
		{"hard link in place of what it is in", []entry{file("a/b", ""), hardlink("a", "a/b")}, "a"},
		{"whiteout", []entry{dir("d/", 0o755), whiteout("d/.wh.x")}, "d/(x dev 0) origin"},
		{"whiteout of what is here", []entry{file("x", ""), whiteout(".wh.x")}, "x"},
		{"whiteout before what is here", []entry{whiteout(".wh.x"), file("x", "")}, "x"},
		{"whiteout of a directory that is here", []entry{whiteout(".wh.x"), dir("x/", 0o755), file("x/y", "")}, "x/(y) opaque"},
		{"opaque", []entry{whiteout("d/.wh..wh..opq"), dir("d/", 0o755), file("d/x", "")}, "d/(x) opaque"},
		{"opaque below an unnamed directory", []entry{whiteout("a/b/.wh..wh..opq")}, "a?/(b?/() opaque)"},
		{"attributes", []entry{file("f", "").xattr("user.a", "1").xattr("com.apple.x", "1").xattr("security.selinux", "1").xattr("system.other", "1").xattr("security.capability", "1")}, "f security.capability user.a"},
		{"a header for all", []entry{{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}, ""}, file("f", "")}, "f"},
		{"attributes of what can't have them", []entry{symlink("l", "x").xattr("user.a", "1").xattr(xattrACL, ""), file("f", "").xattr(xattrDefaultACL, "1")}, "f l->x"},
		{"not all types of attributes", []entry{file("f", "").xattr("user.", "1").xattr("user", "1")}, "f"},
		{"device", []entry{device("d", tar.TypeChar, 1, 3), device("e", tar.TypeChar, 0xfff, 0xfffff)}, "d dev 103 e dev ffffffff"},
	} {
		got, err := readTar(bytes.NewReader(makeTar(t, test.entries...)), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if outline := outline(got.root); outline != test.want {
			t.Errorf("%s: got %q, want %q", test.name, outline, test.want)
		}
	}
}

func TestReadTarRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, test := range []struct {
		want    string
		entries []entry
	}{
		{`entry "../a": ".." is not allowed`, []entry{file("../a", "")}},
		{`".." is not allowed`, []entry{file("a/../b", "")}},
		{`".." is not allowed`, []entry{dir("a/..", 0o755)}},
		{`".." is not allowed`, []entry{file("a", ""), hardlink("b", "../a")}},
		{"name too long", []entry{file(long, "")}},
		{"name too long", []entry{file(long+"/a", "")}},
		{"name too long", []entry{file(strings.Repeat("a/", 2048)+"a", "")}},
		{"directories deep", []entry{file(strings.Repeat("a/", 1030)+"a", "")}},
		{"more names for one file", []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}},
		{`"a" is not a directory`, []entry{file("a", ""), file("a/b", "")}},
		{"the root is not a directory", []entry{file(".", "")}},
		{"hard link to \"b\", which this layer does not have", []entry{hardlink("a", "b")}},
		{"which this layer does not have", []entry{hardlink("a", "b/c")}},
		{"directories can't have one", []entry{dir("d/", 0o755), hardlink("a", "d")}},
		{"directories can't have one", []entry{file("a", ""), hardlink("/", "a")}},
		{"is an overlay whiteout", []entry{device("w", tar.TypeChar, 0, 0)}},
		{"device 4096:0 out of range", []entry{device("d", tar.TypeBlock, 4096, 0)}},
		{`"trusted.overlay.opaque" belongs to overlayfs`, []entry{dir("d/", 0o755).xattr("trusted.overlay.opaque", "y")}},
		{`"trusted.overlay.redirect" belongs`, []entry{dir("d/", 0o755).xattr("trusted.overlay.redirect", "/etc")}},
		{`"user.overlay.whiteout" belongs`, []entry{file("d", "").xattr("user.overlay.whiteout", "")}},
		{"larger than 65535 bytes", []entry{file("f", "").xattr("user.a", strings.Repeat("x", 65536))}},
		{"bytes of attributes", []entry{file("f", "").xattr("user.a", strings.Repeat("x", 65535)).xattr("user.b", strings.Repeat("x", 65535)).xattr("user.c", "x")}},
		{"a whiteout of nothing", []entry{whiteout(".wh.")}},
		{"a whiteout of nothing", []entry{whiteout("a/.wh..")}},
		{"a whiteout of nothing", []entry{whiteout("a/.wh...")}},
		{"unknown whiteout mark", []entry{whiteout(".wh..wh.plnk")}},
		{"a whiteout is not a directory", []entry{file(".wh.a/b", "")}},
		{"out of range", []entry{file("f", "").with(func(h *tar.Header) { h.Uid = -2; h.Format = tar.FormatGNU })}},
		{"out of range", []entry{file("f", "").with(func(h *tar.Header) { h.Gid = 1<<32 - 1 })}},
		{"unknown type", []entry{file("f", "").with(func(h *tar.Header) { h.Typeflag = 'V' })}},
		{"target is empty", []entry{symlink("l", "").with(func(h *tar.Header) { h.Format = tar.FormatGNU })}},
		{"target is empty or too long", []entry{symlink("l", strings.Repeat("x", 4096))}},
	} {
		_, err := readTar(bytes.NewReader(makeTar(t, test.entries...)), nil, nil)
		want := strings.Replace(test.want, "more names for one file", unix.ELOOP.Error(), 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want …%s…, got %v", want, err)
		}
	}
}

func fixChecksum(header []byte) {
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header[:512] {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestReadTarBroken(t *testing.T) {
	good := makeTar(t, file("a", "content"), file("b", "content"))
	for name, data := range map[string][]byte{
		"cut in the header":  good[:100],
		"cut in the content": good[:515],
		"not a tar":          bytes.Repeat([]byte("x"), 2048),
	} {
		if _, err := readTar(bytes.NewReader(data), nil, nil); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	// What follows the end of the archive is part of the layer's content but of no file.
	r := bytes.NewReader(append(slices.Clone(good), "more"...))
	if _, err := readTar(r, nil, nil); err != nil || r.Len() != 0 {
		t.Errorf("trailing data: %v, %d bytes not read", err, r.Len())
	}
}

// Entries of the type that tar had before ustar are files.
func TestReadTarOldType(t *testing.T) {
	data := makeTar(t, file("old", "x"))
	data[156] = 0
	fixChecksum(data[:512])
	got, err := readTar(bytes.NewReader(data), nil, nil)
	if err != nil || outline(got.root) != "old" || got.root.children["old"].data != 512 {
		t.Errorf("got %v, %v", got, err)
	}
}

// Whatever a tar holds, both backends make the same of it. Seeds that GNU tar wrote are in testdata.
func FuzzReadTar(f *testing.F) {
	f.Add(makeTar(f, file("a/b", "content")))
	f.Add(makeTar(f, hardlink("c", "a"), symlink("d", "a")))
	f.Add(makeTar(f, file("e", "").xattr("user.x", "y")))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Checksums right, or hardly any input gets far.
		data = slices.Clone(data)
		for i := 0; i+512 <= len(data); i += 512 {
			if string(data[i+257:i+262]) == "ustar" {
				fixChecksum(data[i:])
			}
		}
		checkTar(t, data)
	})
}

// FuzzEntries makes tars of few names that get into each other's way.
func FuzzEntries(f *testing.F) {
	names := []string{"a", "b", "a/a", "a/b", "b/a", "a/b/c", "b/../a", ".wh.b", "b/a/.wh.a", ".", "/", "a/.", ".wh.a", "a/.wh.b", ".wh..wh..opq", "a/.wh..wh..opq", "..", "/b", strings.Repeat("c", 200)}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo}
	f.Add([]byte("\x00\x01\x02\x01\x02\x03\x02\x01\x00\x03\x02\x01"))
	f.Fuzz(func(t *testing.T, script []byte) {
		var entries []entry
		for ; len(script) >= 3; script = script[3:] {
			h := tar.Header{Typeflag: types[int(script[0])%len(types)], Name: names[int(script[1])%len(names)], Mode: int64(script[0])}
			if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
				h.Linkname = names[int(script[2])%len(names)]
			}
			if h.Typeflag != tar.TypeDir && strings.HasSuffix(h.Name, "/") {
				continue // Go's writer refuses it
			}
			entries = append(entries, entry{Header: h})
		}
		checkTar(t, makeTar(t, entries...))
	})
}

// checkTar holds what both backends make of a tar against one tree, and so against each other.
func checkTar(t *testing.T, data []byte) {
	tree, err := readTar(bytes.NewReader(data), nil, nil)
	if err != nil || tree.sparse > 1<<20 { // the rest is only slow
		return
	}
	sparse := &sparseKeeper{dir: t.TempDir()}
	defer sparse.close()
	if tree, err = readTar(bytes.NewReader(data), sparse, nil); err != nil {
		// Only who reads a sparse file's content sees that it is damaged.
		if _, dirsErr := (dirsBackend{}).create(t.TempDir(), bytes.NewReader(data)); dirsErr == nil {
			t.Errorf("one backend takes it, the other does not: %v", err)
		}
		return
	}
	var index bytes.Buffer
	if err := writeErofs(&index, tree); err != nil {
		t.Fatal(err)
	}
	if index.Len() > 8<<10+4*len(data) {
		t.Errorf("an index of %d bytes for a tar of %d", index.Len(), len(data))
	}
	checkIndex(t, index.Bytes(), tree)
	if os.Geteuid() != 0 {
		return
	}
	layer := t.TempDir()
	record, err := dirsBackend{}.create(layer, bytes.NewReader(data))
	if err != nil {
		if !strings.Contains(err.Error(), "the store's file system does not take") {
			t.Errorf("one backend takes it, the other does not: %v", err)
		}
		return
	}
	again, err := dirsBackend{}.open(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var joined bytes.Buffer
	verified, err := dirsBackend{}.verify(layer, io.TeeReader(again, &joined))
	if err != nil || verified != record {
		t.Errorf("what was unpacked is not what was in the tar: %v, %+v, %+v", err, verified, record)
	}
	if !bytes.Equal(joined.Bytes(), data) {
		t.Error("the tar that was put together again is another")
	}
}

func TestIndexOfNastyLayers(t *testing.T) {
	for _, layer := range nastyLayers(t) {
		checkTar(t, layer)
	}
}
