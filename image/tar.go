package image

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits on one layer. They keep what a stranger's tar costs in memory and on disk within what the largest real images
// need several times over.
const (
	maxLayerSize    = 64 << 30  // bytes of uncompressed tar
	maxLayerEntries = 1 << 20   // files, directories, links and whiteouts, with the directories that no entry names
	maxLayerText    = 256 << 20 // bytes of names, link targets and extended attributes
	maxDepth        = 1 << 10   // directories in each other
	maxLinksInPath  = 40        // symbolic links in the way to one entry, as in path_resolution(7)
)

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
// directory, with the data of files left where it is in the tar.
type tree struct {
	root    *node
	entries int
	text    int
}

// node is a file, directory or special file. Hard links are one node below several names.
type node struct {
	mode     uint32 // type and permissions as in stat(2)
	uid, gid uint32
	mtime    int64
	nsec     uint32
	links    uint32
	size     int64  // of a regular file
	data     int64  // where in the tar its content is
	rdev     uint32 // of a device
	target   string // of a symbolic link
	xattrs   map[string]string

	// Of a directory.
	children map[string]*node
	parent   *node
	depth    int
	opaque   bool     // hides what lower layers have in it
	hidden   []string // names in it that lower layers may have and that are gone
	implied  bool     // no entry named it

	position int64 // in the index; 0 is none yet
}

func (n *node) isDir() bool     { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isRegular() bool { return n.mode&unix.S_IFMT == unix.S_IFREG }
func (n *node) isLink() bool    { return n.mode&unix.S_IFMT == unix.S_IFLNK }

// readTar builds the tree of a layer from its uncompressed tar. It reads r to its end, also past the end of the archive.
func readTar(r io.Reader) (*tree, error) {
	t := &tree{root: &node{mode: unix.S_IFDIR | 0o755, links: 2, children: map[string]*node{}, implied: true}}
	t.root.parent = t.root
	counted := &countingReader{r: bufio.NewReaderSize(r, 256<<10)}
	archive := tar.NewReader(counted)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading tar: %w", err)
		}
		// The reader has taken the headers and not one byte more: the entry's data begins here.
		if err := t.add(header, counted.n); err != nil {
			return nil, fmt.Errorf("entry %q: %w", header.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return nil, fmt.Errorf("reading tar: %w", err)
	}
	t.applyWhiteouts(t.root)
	return t, nil
}

type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n > maxLayerSize {
		return n, fmt.Errorf("layer larger than %d GiB", maxLayerSize>>30)
	}
	return n, err
}

// add enters one entry; data is the offset of its content.
func (t *tree) add(h *tar.Header, data int64) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // as Go's and therefore everybody's unpacker does
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return errSparse
		}
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
	n, err := t.newNode(h, data)
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
	return t.put(parent, name, n)
}

var errSparse = errors.New("sparse files can't be mapped from the tar")

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
	case tar.TypeReg, tar.TypeCont:
		n.mode |= unix.S_IFREG
		n.size, n.data = h.Size, data
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
	case tar.TypeGNUSparse:
		return nil, errSparse
	default:
		return nil, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if err := n.setXattrs(h.PAXRecords); err != nil {
		return nil, err
	}
	return n, t.count(0, len(n.target)+xattrsSize(n.xattrs))
}

// setXattrs takes what EROFS can hold. Other attributes (macOS's, for one) no Linux file system can.
func (n *node) setXattrs(pax map[string]string) error {
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
		if len(value) > maxXattrValue {
			return fmt.Errorf("attribute %q is larger than %d bytes", name, maxXattrValue)
		}
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = value
	}
	if size := xattrsSize(n.xattrs); size > maxXattrs {
		return fmt.Errorf("more than %d bytes of attributes", maxXattrs)
	}
	return nil
}

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
