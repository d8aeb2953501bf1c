package image

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// checkIndex reads an index back as the kernel does and compares it with the tree it was made of. It is independent of
// the writer: numbers are those of fs/erofs/erofs_fs.h.
func checkIndex(t testing.TB, index []byte, want *tree) {
	t.Helper()
	r := indexReader{t, index}
	if r.u32(1024) != 0xE0F5E1E2 || index[1024+12] != 9 {
		t.Fatal("no superblock")
	}
	if blocks := int(r.u32(1024 + 36)); blocks*512 != len(index) {
		t.Fatalf("%d blocks, %d bytes", blocks, len(index))
	}
	if inodes := r.check(uint64(r.u16(1024+14)), want.root, map[uint64]*node{}); uint64(inodes) != r.u64(1024+16) {
		t.Fatalf("superblock says %d inodes, there are %d", r.u64(1024+16), inodes)
	}
}

type indexReader struct {
	t testing.TB
	b []byte
}

func (r indexReader) bytes(at, n int) []byte {
	if at < 0 || n < 0 || at+n > len(r.b) {
		r.t.Fatalf("%d bytes at %d of an index of %d", n, at, len(r.b))
	}
	return r.b[at : at+n]
}

func (r indexReader) u16(at int) uint16 { return binary.LittleEndian.Uint16(r.bytes(at, 2)) }
func (r indexReader) u32(at int) uint32 { return binary.LittleEndian.Uint32(r.bytes(at, 4)) }
func (r indexReader) u64(at int) uint64 { return binary.LittleEndian.Uint64(r.bytes(at, 8)) }

// check compares an inode and what is below it, and counts inodes.
func (r indexReader) check(nid uint64, want *node, seen map[uint64]*node) int {
	if known, ok := seen[nid]; ok {
		if known != want {
			r.t.Fatalf("inode %d is two files", nid)
		}
		return 0
	}
	seen[nid] = want
	at := int(nid * 32)
	format, size, where := r.u16(at), r.u64(at+8), int(r.u32(at+16))
	if format&1 != 1 || at%64 != 0 {
		r.t.Fatalf("inode %d: format %x", nid, format)
	}
	if uint32(r.u16(at+4)) != want.mode || r.u32(at+24) != want.uid || r.u32(at+28) != want.gid ||
		int64(r.u64(at+32)) != want.mtime || r.u32(at+40) != want.nsec || r.u32(at+44) != want.links {
		r.t.Fatalf("inode %d differs from %+v", nid, want)
	}
	end := at + 64
	if count := int(r.u16(at + 2)); count > 0 {
		r.checkXattrs(end, 12+4*(count-1), want.xattrs)
		end += 12 + 4*(count-1)
	} else if len(want.xattrs) > 0 {
		r.t.Fatalf("inode %d: no attributes", nid)
	}
	var content []byte
	switch layout := format >> 1; {
	case layout == 4:
		end = (end + 7) / 8 * 8
		if bits := where&0x1f + 9; where&0x20 == 0 || size > 1<<bits {
			r.t.Fatalf("inode %d: chunks of %d bits for %d bytes", nid, bits, size)
		}
		device := uint16(1)
		if want.sparse {
			device = 2
		}
		if r.u16(end+2) != device || int64(r.u32(end+4))*512 != want.data || int64(size) != want.size {
			r.t.Fatalf("inode %d: content is elsewhere", nid)
		}
		return 1
	case layout == 2:
		if end/512 != (end+int(size)-1)/512 {
			r.t.Fatalf("inode %d: inline content goes over a block's end", nid)
		}
		content = r.bytes(end, int(size))
	case layout == 0 && (want.isDir() || want.isLink()):
		content = r.bytes(where*512, int(size))
	case layout == 0 && size == 0:
		if uint32(where) != want.rdev {
			r.t.Fatalf("inode %d: device %x", nid, where)
		}
		return 1
	default:
		r.t.Fatalf("inode %d: layout %d", nid, layout)
	}
	if want.isLink() {
		if string(content) != want.target {
			r.t.Fatalf("inode %d: target %q", nid, content)
		}
		return 1
	}
	return 1 + r.checkDir(nid, content, want, seen)
}

func (r indexReader) checkXattrs(at, size int, want map[string]string) {
	prefixes := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
	got := 0
	for p := at + 12; p < at+size; got++ {
		nameLen, valueLen := int(r.b[p]), int(r.u16(p+2))
		name := prefixes[r.b[p+1]] + string(r.bytes(p+4, nameLen))
		if value, ok := want[name]; !ok || value != string(r.bytes(p+4+nameLen, valueLen)) {
			r.t.Fatalf("attribute %q is wrong", name)
		}
		p += (4 + nameLen + valueLen + 3) / 4 * 4
	}
	if got != len(want) {
		r.t.Fatalf("%d attributes instead of %d", got, len(want))
	}
}

func (r indexReader) checkDir(nid uint64, content []byte, want *node, seen map[uint64]*node) (inodes int) {
	var names []string
	for len(content) > 0 {
		block := content[:min(512, len(content))]
		content = content[len(block):]
		count := int(binary.LittleEndian.Uint16(block[8:])) / 12
		for i := range count {
			entry := block[i*12:]
			from, to := int(binary.LittleEndian.Uint16(entry[8:])), len(block)
			if i+1 < count {
				to = int(binary.LittleEndian.Uint16(entry[12+8:]))
			}
			name := block[from:to]
			if zero := slices.Index(name, 0); zero >= 0 {
				name = name[:zero]
			}
			names = append(names, string(name))
			child := want.children[string(name)]
			switch string(name) {
			case ".":
				child = want
			case "..":
				child = want.parent
			}
			if child == nil {
				r.t.Fatalf("inode %d has an entry %q", nid, name)
			}
			if kind := entry[10]; kind != map[uint32]byte{unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFLNK: 7}[child.mode&unix.S_IFMT] {
				r.t.Fatalf("%q has type %d", name, kind)
			}
			inodes += r.check(binary.LittleEndian.Uint64(entry), child, seen)
		}
	}
	if !slices.IsSorted(names) || len(names) != len(want.children)+2 || len(slices.Compact(names)) != len(want.children)+2 {
		r.t.Fatalf("inode %d: entries %q", nid, names)
	}
	return inodes
}
