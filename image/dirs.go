package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dirsBackend keeps a layer as a directory tree, for hosts that can't mount EROFS from files. With the tree it keeps all of the
// tar that is not the content of files, so that the tar can be put together again, byte for byte.
//
// Which names there are, and what links mean, is decided in memory by readTar, as for the other backend. The content of files is
// written to files that are numbers while the tar is read. What is made on disk then is made from the root down, each name of one
// component, in a directory that was just made, by its descriptor: no link is ever followed.
type dirsBackend struct {
	userXattrs bool // for overlays that are mounted with "userxattr"
}

const (
	treeDir    = "tree"       // what overlayfs gets
	contentDir = "content"    // of files that later entries of the layer replaced, by number
	restFile   = "layer.rest" // the tar without the content of files
)

func (b dirsBackend) create(dir string, r io.Reader) (record layerRecord, err error) {
	rest, err := createIn(dir, restFile)
	if err != nil {
		return record, err
	}
	defer rest.Close()
	restBuffer := bufio.NewWriterSize(rest, copyBuffer)
	content, err := makeDir(filepath.Join(dir, contentDir))
	if err != nil {
		return record, err
	}
	defer content.Close()
	keeper := &contentKeeper{dir: int(content.Fd()), buf: make([]byte, copyBuffer)}
	t, err := readTar(bufio.NewReaderSize(r, copyBuffer), keeper, restBuffer)
	if err != nil {
		return record, err
	}
	if err := restBuffer.Flush(); err != nil {
		return record, err
	}
	if b.userXattrs {
		t.root.useUserXattrs()
	}
	root, err := makeDir(filepath.Join(dir, treeDir))
	if err != nil {
		return record, err
	}
	defer root.Close()
	if err := (&unpacker{content: keeper.dir, pending: map[*node]uint32{}}).unpack(int(root.Fd()), t.root); err != nil {
		return record, err
	}
	if err := setAttributes(unix.AT_FDCWD, filepath.Join(dir, treeDir), t.root); err != nil {
		return record, err
	}
	for _, n := range keeper.nodes {
		if n.links == 0 && n.sparse { // its bytes are in restFile
			if err := unix.Unlinkat(keeper.dir, contentName(n), 0); err != nil {
				return record, err
			}
		}
	}
	// One call for the whole file system is faster than one for each file, and a pull is all that writes here.
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return record, fmt.Errorf("syncfs: %w", err)
	}
	return t.record(0), nil
}

// useUserXattrs renames overlayfs's attributes of a directory and all below it.
func (n *node) useUserXattrs() {
	for _, name := range []string{xattrOpaque, xattrOrigin} {
		if value, ok := n.xattrs[name]; ok {
			delete(n.xattrs, name)
			n.xattrs[strings.Replace(name, "trusted.", "user.", 1)] = value
		}
	}
	for _, child := range n.children {
		child.useUserXattrs()
	}
}

func makeDir(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// contentKeeper writes the content of each file into a file of its own. The tar's n-th file that has content has the number n.
type contentKeeper struct {
	dir   int
	nodes []*node
	buf   []byte
}

func contentName(n *node) string { return strconv.FormatInt(n.data, 10) }

func (k *contentKeeper) keep(n *node, content io.Reader) error {
	n.data = int64(len(k.nodes))
	k.nodes = append(k.nodes, n)
	fd, err := unix.Openat(k.dir, contentName(n), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if n.sparse {
		f := os.NewFile(uintptr(fd), contentName(n))
		defer f.Close()
		if err := writeSparse(f, 0, n.size, content); err != nil {
			return err
		}
		return f.Truncate(n.size)
	}
	defer unix.Close(fd)
	_, err = io.CopyBuffer(fdWriter(fd), content, k.buf)
	return err
}

// fdWriter writes to a regular file. An [os.File] would cost three more system calls for each small file.
type fdWriter int

func (fd fdWriter) Write(p []byte) (written int, err error) {
	for written < len(p) {
		n, err := unix.Write(int(fd), p[written:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, fmt.Errorf("writing: %w", err)
		}
		written += n
	}
	return written, nil
}

// unpacker makes a tree on disk.
type unpacker struct {
	content int              // directory with the content of files; what has several names waits there for the last
	pending map[*node]uint32 // how many names are still to be made
}

// unpack makes what is in dir in the empty directory fd.
func (u *unpacker) unpack(fd int, dir *node) error {
	for _, name := range dir.names() {
		if err := u.entry(fd, name, dir.children[name]); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) entry(fd int, name string, n *node) error {
	var err error
	switch {
	case n.isDir():
		if err = unix.Mkdirat(fd, name, 0o700); err == nil {
			err = u.below(fd, name, n)
		}
	case n.links > 1:
		err = u.link(fd, name, n)
	default:
		err = u.make(fd, name, n)
	}
	var entryErr *entryError
	if errors.As(err, &entryErr) {
		entryErr.path = name + "/" + entryErr.path
	} else if err != nil {
		err = &entryError{name, err}
	}
	return err
}

// entryError says which of a layer's files an error is about.
type entryError struct {
	path string
	err  error
}

func (e *entryError) Error() string { return fmt.Sprintf("%q: %v", e.path, e.err) }
func (e *entryError) Unwrap() error { return e.err }

// below makes what is in a directory, and then gives it its attributes, of which the time would not last otherwise.
func (u *unpacker) below(parent int, name string, n *node) error {
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.unpack(fd, n); err != nil {
		return err
	}
	return setAttributes(parent, name, n)
}

// make makes a file with all its attributes.
func (u *unpacker) make(fd int, name string, n *node) (err error) {
	switch {
	case n.isLink():
		err = unix.Symlinkat(n.target, fd, name)
	case n.isRegular() && n.size > 0:
		err = unix.Renameat(u.content, contentName(n), fd, name)
	default:
		err = unix.Mknodat(fd, name, n.mode&unix.S_IFMT|0o600, kernelDevice(n.rdev))
	}
	if err != nil {
		return err
	}
	return setAttributes(fd, name, n)
}

// link makes one of a file's names. All but the last are links to the file while it is among the contents.
func (u *unpacker) link(fd int, name string, n *node) error {
	waiting := fmt.Sprintf("linked-%d", n.position)
	left, ok := u.pending[n]
	if !ok {
		left = n.links
		n.position = int64(len(u.pending))
		waiting = fmt.Sprintf("linked-%d", n.position)
		if err := u.make(u.content, waiting, n); err != nil {
			return err
		}
	}
	u.pending[n] = left - 1
	if left == 1 {
		return unix.Renameat(u.content, waiting, fd, name)
	}
	return unix.Linkat(u.content, waiting, fd, name, 0)
}

// setAttributes gives a file or directory its owner, attributes, mode and time. In this order: a change of owner clears
// capabilities and setuid, an access control list sets the mode.
func setAttributes(fd int, name string, n *node) error {
	if err := unix.Fchownat(fd, name, int(n.uid), int(n.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	path := attributePath(fd, name)
	for xattr, value := range n.xattrs {
		if err := unix.Lsetxattr(path, xattr, []byte(value), 0); err != nil {
			return fmt.Errorf("the store's file system does not take attribute %q of %d bytes: %w", xattr, len(value), err)
		}
	}
	if !n.isLink() {
		if err := unix.Fchmodat(fd, name, n.mode&0o7777, 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	times := []unix.Timespec{{Sec: n.mtime, Nsec: int64(n.nsec)}, {Sec: n.mtime, Nsec: int64(n.nsec)}}
	if err := unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting its time: %w", err)
	}
	return nil
}

// attributePath is a path for the calls that have no *at variant before Linux 6.13.
func attributePath(fd int, name string) string {
	if fd == unix.AT_FDCWD {
		return name
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
}

// kernelDevice turns what EROFS stores into what system calls take.
func kernelDevice(rdev uint32) int {
	return int(unix.Mkdev(rdev>>8&0xfff, rdev&0xff|rdev>>12&0xfff00))
}

// openBeneath opens a relative path that leads through directories alone.
func openBeneath(fd int, path string, flags uint64) (int, error) {
	return unix.Openat2(fd, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func (dirsBackend) lower(dir string) (lower *os.File, detached bool, err error) {
	lower, err = os.OpenFile(filepath.Join(dir, treeDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	return lower, false, err
}

// open reads restFile twice: once to learn from its headers which content goes where, and once to return it.
func (dirsBackend) open(dir string) (_ io.ReadCloser, err error) {
	j := &joiner{}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if j.tree, err = os.Open(filepath.Join(dir, treeDir)); err != nil {
		return nil, err
	}
	if j.content, err = os.Open(filepath.Join(dir, contentDir)); err != nil {
		return nil, err
	}
	if j.rest, err = os.Open(filepath.Join(dir, restFile)); err != nil {
		return nil, err
	}
	scan := &restScanner{r: bufio.NewReaderSize(j.rest, copyBuffer)}
	t, err := readTar(scan, scan, nil)
	if err != nil {
		return nil, err
	}
	t.root.nameBelow()
	if _, err := j.rest.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	j.r, j.pieces = bufio.NewReaderSize(j.rest, copyBuffer), scan.pieces
	j.next()
	return j, nil
}

// piece is the content of a file and the bytes of restFile before it.
type piece struct {
	before int64
	n      *node
}

// restScanner reads restFile as if the content of files were zeros, and notes where it is not.
type restScanner struct {
	r      io.Reader
	read   int64 // bytes of restFile since the last piece
	zeros  int64 // to come
	files  int64
	pieces []piece
}

func (s *restScanner) Read(p []byte) (n int, err error) {
	if s.zeros > 0 {
		n = int(min(int64(len(p)), s.zeros))
		clear(p[:n])
		s.zeros -= int64(n)
		return n, nil
	}
	n, err = s.r.Read(p)
	s.read += int64(n)
	return n, err
}

func (s *restScanner) keep(n *node, _ io.Reader) error {
	n.data = s.files
	s.files++
	if !n.sparse {
		s.pieces = append(s.pieces, piece{s.read, n})
		s.read, s.zeros = 0, n.size
	}
	return nil
}

// nameBelow notes the names of all that is below a directory, one for each file.
func (n *node) nameBelow() {
	for name, child := range n.children {
		child.name, child.parent = name, n
		if child.isDir() {
			child.nameBelow()
		}
	}
}

// joiner gives a tar from its pieces.
type joiner struct {
	tree, content, rest *os.File
	r                   io.Reader // of rest
	pieces              []piece
	current             io.Reader // what of rest comes before the first piece
	file                *os.File  // or the first piece itself
	left                int64     // bytes of it
}

// next begins with what comes before the first of the pieces.
func (j *joiner) next() {
	j.current = j.r
	if len(j.pieces) > 0 {
		j.current = io.LimitReader(j.r, j.pieces[0].before)
	}
}

func (j *joiner) Read(p []byte) (n int, err error) {
	for {
		if j.file == nil {
			n, err = j.current.Read(p)
			if n > 0 || err != io.EOF || len(j.pieces) == 0 {
				return n, err
			}
			if j.file, err = j.open(j.pieces[0].n); err != nil {
				return 0, err
			}
			j.left = j.pieces[0].n.size
		}
		n, err = j.file.Read(p[:min(int64(len(p)), j.left)])
		if j.left -= int64(n); j.left == 0 {
			j.file.Close()
			j.file = nil
			j.pieces = j.pieces[1:]
			j.next()
		} else if err == io.EOF {
			err = fmt.Errorf("%q is too short", j.file.Name())
		}
		if n > 0 || err != nil && err != io.EOF {
			return n, err
		}
	}
}

func (j *joiner) open(n *node) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK
	if n.links == 0 {
		fd, err := openBeneath(int(j.content.Fd()), contentName(n), flags)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: contentDir + "/" + contentName(n), Err: err}
		}
		return os.NewFile(uintptr(fd), contentName(n)), nil
	}
	// A path in a layer may be longer than the kernel takes at once.
	var names []string
	for n := n; n.parent != n; n = n.parent {
		names = append(names, n.name)
	}
	slices.Reverse(names)
	at := int(j.tree.Fd())
	for {
		count, length := 0, 0
		for count < len(names) && length+len(names[count]) < unix.PathMax-2 {
			length += len(names[count]) + 1
			count++
		}
		last := count == len(names)
		how := uint64(flags)
		if !last {
			how = unix.O_PATH | unix.O_DIRECTORY
		}
		fd, err := openBeneath(at, strings.Join(names[:count], "/"), how)
		if at != int(j.tree.Fd()) {
			unix.Close(at)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: strings.Join(names[:count], "/"), Err: err}
		}
		if last {
			return os.NewFile(uintptr(fd), names[count-1]), nil
		}
		names, at = names[count:], fd
	}
}

func (j *joiner) Close() error {
	for _, f := range []*os.File{j.tree, j.content, j.rest, j.file} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

func (dirsBackend) verify(dir string, r io.Reader) (record layerRecord, err error) {
	sums := &sparseSums{sums: map[*node][sha256.Size]byte{}}
	t, err := readTar(bufio.NewReaderSize(r, copyBuffer), sums, nil)
	if err != nil {
		return record, err
	}
	root, err := os.Open(filepath.Join(dir, treeDir))
	if err != nil {
		return record, err
	}
	defer root.Close()
	c := &comparer{sparse: sums.sums, inodes: map[*node]uint64{}}
	if err := c.attributes(unix.AT_FDCWD, filepath.Join(dir, treeDir), t.root); err != nil {
		return record, fmt.Errorf("the root: %w", err)
	}
	if err := c.directory(root, t.root); err != nil {
		return record, err
	}
	replaced := map[string]*node{}
	for _, n := range sums.nodes {
		if n.links == 0 && !n.sparse {
			replaced[contentName(n)] = n
		}
	}
	if err := sameContents(filepath.Join(dir, contentDir), replaced); err != nil {
		return record, fmt.Errorf("%s: %w", contentDir, err)
	}
	return t.record(0), nil
}

// sameContents compares the names and sizes of files with those that should be there.
func sameContents(dir string, want map[string]*node) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if n := want[entry.Name()]; n == nil || !info.Mode().IsRegular() || info.Size() != n.size {
			return fmt.Errorf("%q: %w", entry.Name(), errDiffers)
		}
	}
	if len(entries) != len(want) {
		return fmt.Errorf("number of files: %w", errDiffers)
	}
	return nil
}

// sparseSums computes the digests of sparse files, whose content is not what the tar's digest covers once it is on disk.
type sparseSums struct {
	nodes []*node
	sums  map[*node][sha256.Size]byte
}

func (s *sparseSums) keep(n *node, content io.Reader) error {
	n.data = int64(len(s.nodes))
	s.nodes = append(s.nodes, n)
	if !n.sparse {
		return nil
	}
	hash := sha256.New()
	_, err := io.CopyBuffer(hash, content, make([]byte, copyBuffer))
	s.sums[n] = [sha256.Size]byte(hash.Sum(nil))
	return err
}

// comparer holds a tree on disk against what it should be.
type comparer struct {
	sparse map[*node][sha256.Size]byte
	inodes map[*node]uint64 // of what has several names
}

func (c *comparer) directory(f *os.File, dir *node) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	if !slices.Equal(names, dir.names()) {
		return fmt.Errorf("names in the directory: %w", errDiffers)
	}
	for _, name := range names {
		if err := c.entry(int(f.Fd()), name, dir.children[name]); err != nil {
			var entryErr *entryError
			if errors.As(err, &entryErr) {
				entryErr.path = name + "/" + entryErr.path
				return err
			}
			return &entryError{name, err}
		}
	}
	return nil
}

func (c *comparer) entry(fd int, name string, n *node) error {
	if err := c.attributes(fd, name, n); err != nil {
		return err
	}
	sum, sparse := c.sparse[n]
	if !n.isDir() && !sparse {
		return nil
	}
	flags := uint64(unix.O_RDONLY)
	if n.isDir() {
		flags |= unix.O_DIRECTORY
	}
	child, err := openBeneath(fd, name, flags)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(child), name)
	defer f.Close()
	if n.isDir() {
		return c.directory(f, n)
	}
	hash := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{hash}, f, make([]byte, copyBuffer)); err != nil {
		return err
	}
	if [sha256.Size]byte(hash.Sum(nil)) != sum {
		return fmt.Errorf("content: %w", errDiffers)
	}
	return nil
}

// attributes compares all but content and a directory's names.
func (c *comparer) attributes(fd int, name string, n *node) error {
	var stat unix.Stat_t
	if err := unix.Fstatat(fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	differs := func(what string) error { return fmt.Errorf("%s: %w", what, errDiffers) }
	switch {
	case stat.Mode != n.mode:
		return differs("type or mode")
	case stat.Uid != n.uid || stat.Gid != n.gid:
		return differs("owner")
	case !sameTime(stat.Mtim, n):
		return differs("time")
	case n.isRegular() && stat.Size != n.size:
		return differs("size")
	case stat.Mode&unix.S_IFMT != unix.S_IFREG && int(stat.Rdev) != kernelDevice(n.rdev):
		return differs("device number")
	}
	if !n.isDir() {
		if known, ok := c.inodes[n]; uint64(stat.Nlink) != uint64(n.links) || ok && known != stat.Ino {
			return differs("hard links")
		}
		if n.links > 1 {
			c.inodes[n] = stat.Ino
		}
	}
	if n.isLink() {
		target := make([]byte, unix.PathMax)
		if size, err := unix.Readlinkat(fd, name, target); err != nil || string(target[:size]) != n.target {
			return differs("target")
		}
	}
	return sameXattrs(attributePath(fd, name), n.xattrs)
}

// sameTime compares times that any file system can hold. Others have been cut to the nearest that it can.
func sameTime(have unix.Timespec, n *node) bool {
	return n.mtime != int64(int32(n.mtime)) || n.mtime < 0 || have.Sec == n.mtime && have.Nsec == int64(n.nsec)
}

// sameXattrs compares extended attributes, but not what this host's security modules add.
func sameXattrs(path string, want map[string]string) error {
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(path, buf)
	if err != nil && err != unix.ENOTSUP {
		return err
	}
	count := 0
	for name := range bytes.SplitSeq(buf[:max(size, 0)], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value, ok := want[string(name)]
		if !ok && bytes.HasPrefix(name, []byte("security.")) && string(name) != xattrCapability {
			continue
		}
		have := make([]byte, maxXattrValue)
		size, err := unix.Lgetxattr(path, string(name), have)
		if err != nil {
			return err
		}
		if !ok || string(have[:size]) != value {
			return fmt.Errorf("attribute %q: %w", name, errDiffers)
		}
		count++
	}
	if count != len(want) {
		return fmt.Errorf("attributes: %w", errDiffers)
	}
	return nil
}

const xattrCapability = "security.capability"
