package image

import (
	"bufio"
	"encoding/binary"
	"io"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An EROFS index is a file system of metadata alone whose files have their content on a second device: the tar. This
// writes one; the format is in Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of the kernel.
//
// Why not mkfs.erofs --tar=i, which makes the same thing: its reading of tar differs from that of the tools that
// people build and run images with, silently. Directories that no entry names become 0777 (1.8.6 and 1.9.4), entries of the old
// regular type and sparse files vanish, fractions of times are wrong (1.8.6), and a whiteout removes what its own layer has. This
// way a stranger's tar meets one parser, Go's, and the kernel sees no metadata but ours.
const (
	erofsMagic      = 0xE0F5E1E2
	erofsSuperblock = 1024 // where the superblock begins; the block size has nothing to do with it
	erofsSuperSize  = 128
	erofsDeviceSize = 128
	erofsBlockBits  = 9 // tar's blocks, so that content is aligned
	erofsBlock      = 1 << erofsBlockBits
	erofsSlotBits   = 5 // inodes are numbered by their place in units of 32 bytes
	erofsInode      = 64
	erofsDirent     = 12

	erofsCompatMtime     = 0x2
	erofsIncompatChunked = 0x4
	erofsIncompatDevices = 0x8

	// Layouts of an inode's content, with the bit that says that the inode is one of 64 bytes.
	erofsPlain  = 0<<1 | 1 // in blocks of the index
	erofsInline = 2<<1 | 1 // right behind the inode, in the same block
	erofsChunks = 4<<1 | 1 // on a device

	erofsChunkIndexes = 0x20
)

const (
	maxXattrName  = 1<<8 - 1
	maxXattrValue = 1<<16 - 1
	maxXattrs     = 1 << 17
)

// erofsIndex is an index being laid out.
type erofsIndex struct {
	inodes []*node         // in the order of their positions
	data   []*node         // those whose content needs blocks of its own, in order
	block  map[*node]int64 // where it is, counted from the end of the inodes
	end    int64           // of the inodes
	blocks int64           // of content
}

// writeErofs writes the index of t over its tar, and a second device of t.sparse bytes for what sparse files have if
// there are any. The same tree gives the same bytes.
func writeErofs(w io.Writer, t *tree) error {
	devices := []int64{t.size}
	if t.sparse > 0 {
		devices = append(devices, t.sparse)
	}
	x := &erofsIndex{end: erofsSuperblock + erofsSuperSize + int64(len(devices))*erofsDeviceSize, block: map[*node]int64{}}
	x.place(t.root)
	x.end = alignUp(x.end, erofsBlock)

	out := &offsetWriter{w: bufio.NewWriterSize(w, 64<<10)}
	out.padTo(erofsSuperblock)
	out.write(x.superblock(t.root, len(devices)))
	for _, size := range devices {
		out.write(erofsDevice(size))
	}
	for _, n := range x.inodes {
		out.padTo(n.position)
		out.write(x.inode(n))
	}
	for _, n := range x.data {
		out.padTo(x.end + x.block[n]*erofsBlock)
		out.write(n.content())
	}
	out.padTo(x.end + x.blocks*erofsBlock)
	return out.flush()
}

// place gives n and what is below it their positions; the root is first, its number has only 16 bits.
func (x *erofsIndex) place(n *node) {
	if n.position != 0 { // by another name
		return
	}
	// An inode of 64 bytes at a multiple of 64 lies in one block.
	n.position = alignUp(x.end, erofsInode)
	size := int64(erofsInode + xattrsSize(n.xattrs))
	switch {
	case n.isRegular():
		if n.size > 0 {
			size = alignUp(size, 8) + 8
		}
	case n.isDir() || n.isLink():
		length := n.contentSize()
		inline := n.position
		for range erofsBlock / erofsInode {
			if (inline+size)%erofsBlock+length <= erofsBlock {
				n.position, size = inline, size+length
				length = 0
				break
			}
			inline += erofsInode
		}
		if length > 0 {
			x.data = append(x.data, n)
			x.block[n] = x.blocks
			x.blocks += alignUp(length, erofsBlock) / erofsBlock
		}
	}
	x.inodes = append(x.inodes, n)
	x.end = n.position + size
	for _, name := range n.names() {
		x.place(n.children[name])
	}
}

func (x *erofsIndex) superblock(root *node, devices int) []byte {
	le := binary.LittleEndian
	b := make([]byte, erofsSuperSize)
	le.PutUint32(b[0:], erofsMagic)
	le.PutUint32(b[8:], erofsCompatMtime)
	b[12] = erofsBlockBits
	le.PutUint16(b[14:], uint16(root.number()))
	le.PutUint64(b[16:], uint64(len(x.inodes)))
	le.PutUint32(b[36:], uint32(x.end/erofsBlock+x.blocks))
	le.PutUint32(b[80:], erofsIncompatChunked|erofsIncompatDevices)
	le.PutUint16(b[86:], uint16(devices))
	le.PutUint16(b[88:], (erofsSuperblock+erofsSuperSize)/erofsDeviceSize) // their table
	return b
}

func erofsDevice(size int64) []byte {
	b := make([]byte, erofsDeviceSize)
	binary.LittleEndian.PutUint32(b[64:], uint32(alignUp(size, erofsBlock)/erofsBlock))
	return b
}

// inode returns an inode with all that follows it directly.
func (x *erofsIndex) inode(n *node) []byte {
	le := binary.LittleEndian
	b := make([]byte, erofsInode, 2*erofsInode)
	var layout uint16 = erofsPlain
	var what uint32 // depends on the type
	var tail []byte
	var size int64
	block, inBlocks := x.block[n]
	xattrs := encodeXattrs(n.xattrs)
	switch {
	case n.isRegular() && n.size > 0:
		layout, size = erofsChunks, n.size
		chunkBits := max(erofsBlockBits, bits.Len64(uint64(n.size-1))) // all of it is one chunk
		what = uint32(chunkBits-erofsBlockBits) | erofsChunkIndexes
		tail = make([]byte, alignUp(int64(len(xattrs)), 8)-int64(len(xattrs)), 16)
		tail = le.AppendUint16(tail, 0)
		device := uint16(1)
		if n.sparse {
			device = 2
		}
		tail = le.AppendUint16(tail, device)
		tail = le.AppendUint32(tail, uint32(n.data/erofsBlock))
	case n.isDir() || n.isLink():
		size = n.contentSize()
		if inBlocks {
			what = uint32(x.end/erofsBlock + block)
		} else {
			layout, tail = erofsInline, n.content()
		}
	default:
		what = n.rdev
	}
	le.PutUint16(b[0:], layout)
	if len(xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.mode))
	le.PutUint64(b[8:], uint64(size))
	le.PutUint32(b[16:], what)
	le.PutUint32(b[20:], uint32(n.number()))
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.links)
	return append(append(b, xattrs...), tail...)
}

func (n *node) number() uint64 { return uint64(n.position) >> erofsSlotBits }

// contentSize returns len(n.content()) and can be asked before positions are known.
func (n *node) contentSize() int64 {
	if n.isLink() {
		return int64(len(n.target))
	}
	var size, used int64
	for _, name := range n.entryNames() {
		need := int64(erofsDirent + len(name))
		if used+need > erofsBlock {
			size, used = size+erofsBlock, 0
		}
		used += need
	}
	return size + used
}

// content returns a symbolic link's target or a directory's blocks: in each, entries in byte order and behind them
// their names.
func (n *node) content() []byte {
	if n.isLink() {
		return []byte(n.target)
	}
	names := n.entryNames()
	var b []byte
	for len(names) > 0 {
		count, used := 0, 0
		for count < len(names) && used+erofsDirent+len(names[count]) <= erofsBlock {
			used += erofsDirent + len(names[count])
			count++
		}
		b = append(b, make([]byte, alignUp(int64(len(b)), erofsBlock)-int64(len(b)))...)
		offset := count * erofsDirent
		for _, name := range names[:count] {
			child := n.children[name]
			switch name {
			case ".":
				child = n
			case "..":
				child = n.parent
			}
			b = binary.LittleEndian.AppendUint64(b, child.number())
			b = binary.LittleEndian.AppendUint16(b, uint16(offset))
			b = append(b, erofsFileType[child.mode&unix.S_IFMT], 0)
			offset += len(name)
		}
		for _, name := range names[:count] {
			b = append(b, name...)
		}
		names = names[count:]
	}
	return b
}

func (n *node) entryNames() []string {
	names := append(slices.Collect(maps.Keys(n.children)), ".", "..")
	slices.Sort(names)
	return names
}

var erofsFileType = map[uint32]byte{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
}

// encodeDevice gives a device number as the kernel stores 32-bit ones.
func encodeDevice(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

const xattrHeader = 12

// xattrIndex splits an attribute's name into the number that EROFS has for its prefix and the rest.
func xattrIndex(name string) (index byte, suffix string, ok bool) {
	switch name {
	case "system.posix_acl_access":
		return 2, "", true
	case "system.posix_acl_default":
		return 3, "", true
	}
	namespace, suffix, _ := strings.Cut(name, ".")
	switch namespace {
	case "user":
		index = 1
	case "trusted":
		index = 4
	case "security":
		index = 6
	}
	return index, suffix, index != 0 && suffix != ""
}

func encodeXattrs(xattrs map[string]string) []byte {
	if len(xattrs) == 0 {
		return nil
	}
	b := make([]byte, xattrHeader)
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		value := xattrs[name]
		index, suffix, _ := xattrIndex(name)
		b = append(b, byte(len(suffix)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, suffix...), value...)
		b = append(b, make([]byte, alignUp(int64(len(b)), 4)-int64(len(b)))...)
	}
	return b
}

// xattrsSize returns len(encodeXattrs(xattrs)).
func xattrsSize(xattrs map[string]string) int {
	if len(xattrs) == 0 {
		return 0
	}
	size := xattrHeader
	for name, value := range xattrs {
		_, suffix, _ := xattrIndex(name)
		size += int(alignUp(int64(4+len(suffix)+len(value)), 4))
	}
	return size
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }

// offsetWriter knows where it is. It keeps the first error for flush.
type offsetWriter struct {
	w      *bufio.Writer
	offset int64
}

func (o *offsetWriter) write(b []byte) {
	n, _ := o.w.Write(b)
	o.offset += int64(n)
}

func (o *offsetWriter) padTo(offset int64) {
	for ; o.offset < offset; o.offset++ {
		if o.w.WriteByte(0) != nil {
			return
		}
	}
}

func (o *offsetWriter) flush() error { return o.w.Flush() }
