package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits on one layer. They keep what a stranger's tar costs in memory and on disk within what the largest real images
// need several times over.
const (
	maxLayerEntries = 1 << 20   // files, directories, links and whiteouts, with the directories that no entry names
	maxLayerText    = 256 << 20 // bytes of names, link targets and extended attributes
	maxDepth        = 1 << 10   // directories in each other
	maxLinksInPath  = 40        // symbolic links in the way to one entry, as in path_resolution(7)
)

// maxLayerSize is how many bytes of uncompressed tar a layer may have. Tests lower it.
var maxLayerSize int64 = 64 << 30

// sparseBlock is what holes in sparse files are multiples of: blocks of the host's file systems.
const sparseBlock = 4096

// Marks of the image-spec's layer format (layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// overlayfs's own attributes on a lower directory: what the marks above become.
const (
	xattrOpaque = "trusted.overlay.opaque"
	// xattrOrigin on a directory that holds whiteouts makes overlayfs hide them although no other layer has that directory.
	xattrOrigin = "trusted.overlay.origin"
)

// tree is the content of one layer as its tar describes it: what an unpacker would have made of it in an empty
// directory. What becomes of the data of files is for a keeper to say.
type tree struct {
	root    *node
	entries int
	text    int
	size    int64 // of the tar
	sparse  int64 // bytes that sparse files have together
	reopens bool  // see Reopens
	keeper  keeper
	rest    io.Writer
}

// keeper is told of each regular file that is not empty while the tar is read; content is what the file has, from its
// first byte on, and need not be read. Content that is the next n.size bytes of the tar is at n.data there; that of a sparse
// file is put together from pieces of the tar. Later entries may replace the file: then n.links is 0 in the end.
type keeper interface {
	keep(n *node, content io.Reader) error
}

// node is a file, directory or special file. Hard links are one node below several names.
type node struct {
	mode     uint32 // type and permissions as in stat(2)
	uid, gid uint32
	mtime    int64
	nsec     uint32
	links    uint32
	size     int64  // of a regular file
	data     int64  // where its content is: in the tar, or where the keeper put it
	sparse   bool   // its content is not one piece of the tar
	rdev     uint32 // of a device
	target   string // of a symbolic link
	xattrs   map[string]string

	// Of a directory.
	children map[string]*node
	parent   *node // of another file: see nameBelow
	depth    int
	opaque   bool     // hides what lower layers have in it
	hidden   []string // names in it that lower layers may have and that are gone
	implied  bool     // no entry named it

	position int64  // in the index; 0 is none yet
	name     string // see nameBelow
}

func (n *node) isDir() bool     { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isRegular() bool { return n.mode&unix.S_IFMT == unix.S_IFREG }
func (n *node) isLink() bool    { return n.mode&unix.S_IFMT == unix.S_IFLNK }

// readTar builds the tree of a layer from its uncompressed tar. It reads r to its end, also past the end of the archive,
// and in pieces of 512 bytes. The keeper may be nil. All bytes of the tar that are not the content of files in one piece go to rest, if that is not nil.
func readTar(r io.Reader, k keeper, rest io.Writer) (*tree, error) {
	t := &tree{root: &node{mode: unix.S_IFDIR | 0o755, links: 2, children: map[string]*node{}, implied: true}, keeper: k, rest: rest}
	t.root.parent = t.root
	counted := &countingReader{r: r, copy: rest}
	archive := tar.NewReader(counted)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading tar: %w", err)
		}
		if err := t.add(header, archive, counted); err != nil {
			return nil, fmt.Errorf("entry %q: %w", header.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return nil, fmt.Errorf("reading tar: %w", err)
	}
	t.size = counted.n
	t.applyWhiteouts(t.root)
	return t, nil
}

type countingReader struct {
	r    io.Reader
	n    int64
	copy io.Writer // of what is read, if not nil
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.copy != nil {
		if _, err := c.copy.Write(p[:n]); err != nil {
			return n, err
		}
	}
	if c.n > maxLayerSize {
		return n, fmt.Errorf("layer larger than %d GiB", maxLayerSize>>30)
	}
	return n, err
}

// add enters one entry, whose data comes next from the tar.
func (t *tree) add(h *tar.Header, content io.Reader, from *countingReader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // as Go's and therefore everybody's unpacker does
	}
	parent, name, err := t.place(h.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return t.whiteOut(parent, name)
	}
	if h.Typeflag == tar.TypeLink {
		return t.link(parent, name, h.Linkname)
	}
	// The reader has taken the headers and not one byte more: the entry's data begins here.
	n, err := t.newNode(h, from.n)
	if err != nil {
		return err
	}
	if name == "" { // the root
		if !n.isDir() {
			return errors.New("the root is not a directory")
		}
		parent.become(n)
		return nil
	}
	if old := parent.children[name]; old != nil && old.isDir() && n.isDir() {
		old.become(n)
		return nil
	}
	if err := t.put(parent, name, n); err != nil {
		return err
	}
	if !n.sparse && n.size > 0 {
		from.copy = nil
	}
	// The keeper is told first: one has to know of a file before anything is read of its content.
	var read *bytes.Buffer
	kept := content
	if !t.reopens && mayNameOutput(h.Name, n) {
		read = &bytes.Buffer{}
		kept = io.TeeReader(content, read)
	}
	if n.size > 0 && t.keeper != nil {
		err = t.keeper.keep(n, kept)
	}
	if read != nil && err == nil {
		err = t.look(n, read, content)
	}
	from.copy = t.rest
	return err
}

// isSparse says whether a file's content in the tar lacks its holes.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// newNode makes a node of an entry's header.
func (t *tree) newNode(h *tar.Header, data int64) (*node, error) {
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return nil, fmt.Errorf("owner %d:%d out of range", h.Uid, h.Gid)
	}
	n := &node{
		mode:  uint32(h.Mode & 0o7777),
		uid:   uint32(h.Uid),
		gid:   uint32(h.Gid),
		mtime: h.ModTime.Unix(),
		nsec:  uint32(h.ModTime.Nanosecond()),
		links: 1,
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.mode |= unix.S_IFREG
		n.size, n.data, n.sparse = h.Size, data, isSparse(h)
		if n.sparse {
			if t.sparse += alignUp(n.size, sparseBlock); n.size > maxLayerSize || t.sparse > maxLayerSize {
				return nil, fmt.Errorf("sparse files of more than %d GiB in the layer", maxLayerSize>>30)
			}
		}
	case tar.TypeDir:
		n.mode |= unix.S_IFDIR
		n.links, n.children = 2, map[string]*node{}
	case tar.TypeSymlink:
		n.mode = unix.S_IFLNK | 0o777
		n.target = h.Linkname
		if n.target == "" || len(n.target) >= unix.PathMax {
			return nil, errors.New("the link's target is empty or too long")
		}
	case tar.TypeFifo:
		n.mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			n.mode ^= unix.S_IFBLK ^ unix.S_IFCHR
			if h.Devmajor == 0 && h.Devminor == 0 {
				return nil, errors.New("character device 0:0 is an overlay whiteout, which a layer must not contain")
			}
		}
		if h.Devmajor>>12 != 0 || h.Devminor>>20 != 0 {
			return nil, fmt.Errorf("device %d:%d out of range", h.Devmajor, h.Devminor)
		}
		n.rdev = encodeDevice(uint32(h.Devmajor), uint32(h.Devminor))
	default:
		return nil, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if err := n.takeXattrs(h.PAXRecords); err != nil {
		return nil, err
	}
	return n, t.count(0, len(n.target)+xattrsSize(n.xattrs))
}

// takeXattrs takes what Linux can hold on such a file. Other attributes (macOS's, for one) no Linux file system can.
func (n *node) takeXattrs(pax map[string]string) error {
	for key, value := range pax {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return fmt.Errorf("attribute %q belongs to overlayfs, a layer must not contain it", name)
		}
		// Labels are the policy's of the host that made the layer.
		if _, suffix, ok := xattrIndex(name); !ok || name == "security.selinux" || len(suffix) > maxXattrName {
			continue
		}
		switch {
		case strings.HasPrefix(name, "user.") && !n.isRegular() && !n.isDir(),
			name == xattrACL && n.isLink(), name == xattrDefaultACL && !n.isDir():
			continue // xattr(7), acl(5): not for this type of file
		case len(value) > maxXattrValue:
			return fmt.Errorf("attribute %q is larger than %d bytes", name, maxXattrValue)
		case name == xattrACL || name == xattrDefaultACL:
			var mode uint32
			var err error
			if value, mode, err = parseACL(value); err != nil {
				return fmt.Errorf("attribute %q: %w", name, err)
			}
			if name == xattrACL {
				n.mode = n.mode&^0o777 | mode
				if len(value) == aclMinimal {
					continue // says what the mode says
				}
			}
		}
		n.setXattr(name, value)
	}
	if size := xattrsSize(n.xattrs); size > maxXattrs {
		return fmt.Errorf("more than %d bytes of attributes", maxXattrs)
	}
	return nil
}

const (
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
	aclMinimal      = 4 + 3*8 // bytes of a list that has no more than a mode
)

// parseACL refuses an access control list that the kernel would refuse: acl(5), include/uapi/linux/posix_acl_xattr.h. It gives
// the list as the kernel gives it back, and the permission bits of a file that has it.
func parseACL(value string) (list string, mode uint32, err error) {
	const user, group, mask, other = 1, 4, 16, 32 // a named user or group is the next power of two
	le := binary.LittleEndian
	b := []byte(value)
	if len(b) < aclMinimal || len(b)%8 != 4 || le.Uint32(b) != 2 {
		return "", 0, errACL
	}
	var seen, last uint16
	for entry := range slices.Chunk(b[4:], 8) {
		tag, perm := le.Uint16(entry), le.Uint16(entry[2:])
		named := tag == user<<1 || tag == group<<1
		if bits.OnesCount16(tag) != 1 || tag > other || perm > 7 || tag < last || tag == last && !named || named && le.Uint32(entry[4:]) > maxID {
			return "", 0, errACL
		}
		last = tag
		seen |= tag
		if !named {
			le.PutUint32(entry[4:], maxID+1)
		}
		switch tag {
		case user:
			mode |= uint32(perm) << 6
		case group, mask: // the mask comes later and counts
			mode = mode&^0o070 | uint32(perm)<<3
		case other:
			mode |= uint32(perm)
		}
	}
	needs := uint16(user | group | other)
	if seen&(user<<1|group<<1) != 0 {
		needs |= mask
	}
	if seen&needs != needs {
		return "", 0, errACL
	}
	return string(b), mode, nil
}

var errACL = errors.New("not a valid access control list")

// place finds the directory that an entry goes to, and the entry's name in it; "" is the root itself. Like an unpacker
// below chroot(2) it follows symbolic links of the layer and makes directories that are missing.
func (t *tree) place(name string) (parent *node, base string, err error) {
	dir, base, err := splitEntry(name)
	if err != nil {
		return nil, "", err
	}
	links := 0
	parent, err = t.walk(t.root, dir, &links, true)
	return parent, base, err
}

// splitEntry separates the last component of an entry's name or of a hard link's target; names are relative to the root
// also if they begin with a slash.
func splitEntry(name string) (dir, base string, err error) {
	if len(name) >= unix.PathMax {
		return "", "", errNameTooLong
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", "", errors.New(`".." is not allowed in a layer`)
	}
	dir, base = path.Split(path.Clean("/" + name))
	if len(base) > unix.NAME_MAX {
		return "", "", errNameTooLong
	}
	return dir, base, nil
}

var errNameTooLong = errors.New("name too long")

// walk resolves a directory's path from dir on, as a process in the root would.
func (t *tree) walk(dir *node, name string, links *int, create bool) (*node, error) {
	if strings.HasPrefix(name, "/") {
		dir = t.root
	}
	for component := range strings.SplitSeq(name, "/") {
		switch component {
		case "", ".":
			continue
		case "..":
			dir = dir.parent // the root's is the root
			continue
		}
		if len(component) > unix.NAME_MAX {
			return nil, errNameTooLong
		}
		child := dir.children[component]
		switch {
		case child == nil && !create:
			return nil, unix.ENOENT
		case child == nil && strings.HasPrefix(component, whiteoutPrefix):
			return nil, errors.New("a whiteout is not a directory")
		case child == nil:
			child = &node{mode: unix.S_IFDIR | 0o755, links: 2, children: map[string]*node{}, implied: true}
			if err := t.put(dir, component, child); err != nil {
				return nil, err
			}
		case child.isLink():
			if *links++; *links > maxLinksInPath {
				return nil, unix.ELOOP
			}
			var err error
			if child, err = t.walk(dir, child.target, links, create); err != nil {
				return nil, err
			}
		case !child.isDir():
			return nil, fmt.Errorf("%q is not a directory", component)
		}
		dir = child
	}
	return dir, nil
}

// put enters n as name, in place of what was there.
func (t *tree) put(dir *node, name string, n *node) error {
	if dir.depth >= maxDepth {
		return fmt.Errorf("more than %d directories deep", maxDepth)
	}
	if old := dir.children[name]; old != nil {
		t.remove(dir, old)
	}
	if err := t.count(1, len(name)); err != nil {
		return err
	}
	dir.children[name] = n
	if n.isDir() {
		n.parent, n.depth = dir, dir.depth+1
		dir.links++
	}
	return nil
}

// remove undoes the links of a node that is being replaced in dir.
func (t *tree) remove(dir, old *node) {
	old.links--
	if !old.isDir() {
		return
	}
	dir.links--
	for _, child := range old.children {
		t.remove(old, child)
	}
}

// link enters name as one more name of the node at target.
func (t *tree) link(dir *node, name, target string) error {
	targetDir, base, err := splitEntry(target)
	var n *node
	if err == nil {
		links := 0
		var from *node
		if from, err = t.walk(t.root, targetDir, &links, false); err == nil {
			n = from.children[base]
		}
	}
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		return fmt.Errorf("hard link to %q: %w", target, err)
	case n == nil:
		return fmt.Errorf("hard link to %q, which this layer does not have before it", target)
	case name == "" || n.isDir():
		return fmt.Errorf("hard link to %q: directories can't have one", target)
	case n == dir.children[name]:
		return nil
	}
	n.links++
	return t.put(dir, name, n)
}

// become gives a directory the attributes of a later entry for it.
func (n *node) become(entry *node) {
	n.mode, n.uid, n.gid, n.mtime, n.nsec = entry.mode, entry.uid, entry.gid, entry.mtime, entry.nsec
	n.xattrs, n.implied = entry.xattrs, false
}

// whiteOut notes a whiteout mark in dir.
func (t *tree) whiteOut(dir *node, mark string) error {
	name := strings.TrimPrefix(mark, whiteoutPrefix)
	switch {
	case mark == whiteoutOpaque:
		dir.opaque = true
		return nil
	case name == "" || name == "." || name == "..":
		return errors.New("a whiteout of nothing")
	case strings.HasPrefix(name, whiteoutPrefix):
		return errors.New("unknown whiteout mark")
	}
	dir.hidden = append(dir.hidden, name)
	return t.count(1, len(name))
}

// count holds the layer against its limits.
func (t *tree) count(entries, text int) error {
	t.entries += entries
	t.text += text
	if t.entries > maxLayerEntries {
		return fmt.Errorf("layer with more than %d entries", maxLayerEntries)
	}
	if t.text > maxLayerText {
		return fmt.Errorf("layer with more than %d MiB of names and attributes", maxLayerText>>20)
	}
	return nil
}

// applyWhiteouts turns the marks below dir into what overlayfs understands. A whiteout hides what lower layers have; what
// the same layer has under that name stays, wherever in the tar it was.
func (t *tree) applyWhiteouts(dir *node) {
	for _, child := range dir.children {
		if child.isDir() {
			t.applyWhiteouts(child)
		}
	}
	whiteouts := false
	for _, name := range dir.hidden {
		switch child := dir.children[name]; {
		case child == nil:
			dir.children[name] = &node{mode: unix.S_IFCHR, links: 1}
			whiteouts = true
		case child.isDir():
			child.setXattr(xattrOpaque, "y")
		}
	}
	if whiteouts {
		dir.setXattr(xattrOrigin, "")
	}
	if dir.opaque {
		dir.setXattr(xattrOpaque, "y")
	}
}

func (n *node) setXattr(name, value string) {
	if n.xattrs == nil {
		n.xattrs = map[string]string{}
	}
	n.xattrs[name] = value
}

// names returns a directory's names in byte order.
func (n *node) names() []string { return slices.Sorted(maps.Keys(n.children)) }
