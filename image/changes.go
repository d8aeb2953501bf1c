package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Change is what a machine has done to a path of its image.
type Change struct {
	Kind byte // 'A' added, 'C' changed, 'D' deleted
	Path string
}

// maxTreeDepth is how many directories may be in each other where a machine made them.
const maxTreeDepth = 1024

// xattrWhiteout makes an empty file one that says that another is deleted (Documentation/filesystems/overlayfs.rst).
const xattrWhiteout = "trusted.overlay.whiteout"

// ownPaths are what a machine does not have of its own doing: mount points and files of its client's and its manager's. They are podman's, and with
// all that is in it /run, which is empty at each start but for what the image has there.
var ownPaths = []string{"dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}

// own says whether a path is one of those or in one.
func own(name string) bool {
	return slices.ContainsFunc(ownPaths, func(own string) bool { return name == own || strings.HasPrefix(name, own+"/") })
}

// MachineChanges gives what the machine with the directory dir, made of img, has added, changed and deleted, in the order of paths.
func (s *Store) MachineChanges(ctx context.Context, img *Image, dir string) (changes []Change, err error) {
	lower, err := s.Mount(img, "")
	if err != nil {
		return nil, err
	}
	defer lower.Close()
	upper, err := os.Open(filepath.Join(dir, upperDir))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	err = walkTree(ctx, upper, func(e *treeEntry) error {
		_, inImage := statBeneath(lower, e.path)
		switch {
		case e.path == "." || own(e.path):
		case e.whiteout && inImage:
			changes = append(changes, Change{'D', "/" + e.path})
		case e.whiteout:
		case !inImage:
			changes = append(changes, Change{'A', "/" + e.path})
		default:
			changes = append(changes, Change{'C', "/" + e.path})
			if e.opaque { // all that the image has in it and that is not there again
				hidden, err := hiddenBy(lower, e)
				if err != nil {
					return err
				}
				changes = append(changes, hidden...)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return changes, nil
}

// hiddenBy gives what an opaque directory hides of the image's one.
func hiddenBy(lower *os.File, e *treeEntry) (hidden []Change, err error) {
	old, err := openEntry(lower, e.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer old.Close()
	names, err := old.Readdirnames(-1)
	for _, name := range names {
		if _, there := statBeneath(e.file, name); !there {
			hidden = append(hidden, Change{'D', "/" + path.Join(e.path, name)})
		}
	}
	return hidden, err
}

// ExportMachine writes the tree of the machine with the directory dir, made of img, as a tar: what is in it without its mounts.
func (s *Store) ExportMachine(ctx context.Context, img *Image, dir string, w io.Writer) error {
	mount, err := s.mountMachine(img, dir)
	if err != nil {
		return err
	}
	defer mount.Close()
	root, err := openEntry(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY) // which a mount's own descriptor can't be read by
	if err != nil {
		return err
	}
	defer root.Close()
	out := newTreeWriter(w)
	err = walkTree(ctx, root, func(e *treeEntry) error {
		if e.path == "." { // as podman export, so that unpacking it changes no attributes of where that is done
			return nil
		}
		return out.add(e)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return out.tar.Close()
}

// exportChanges writes what the machine with the directory dir has changed as the tar of a layer.
func exportChanges(ctx context.Context, dir string, w io.Writer) error {
	upper, err := os.Open(filepath.Join(dir, upperDir))
	if err != nil {
		return err
	}
	defer upper.Close()
	out := newTreeWriter(w)
	err = walkTree(ctx, upper, func(e *treeEntry) error {
		name := path.Base(e.path)
		switch {
		case own(e.path):
			return nil
		case strings.HasPrefix(name, whiteoutPrefix):
			return fmt.Errorf("/%s: a layer can't have a file of this name, which says that another is deleted", e.path)
		case e.whiteout:
			return out.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(e.path), whiteoutPrefix+name), Mode: 0o600, Format: tar.FormatPAX})
		}
		if err := out.add(e); err != nil || !e.opaque {
			return err
		}
		return out.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(e.path, whiteoutPrefix+whiteoutPrefix+".opq"), Mode: 0o600, Format: tar.FormatPAX})
	})
	if err != nil {
		return err
	}
	return out.tar.Close()
}

// treeEntry is a file in a tree that a machine writes meanwhile: all is read by descriptors that were opened without following a link.
type treeEntry struct {
	path     string // "." for the root, without a slash before it
	stat     unix.Stat_t
	file     *os.File // a directory or a regular file; else an O_PATH handle
	target   string   // of a symbolic link
	whiteout bool     // it says that the image's file of this name is deleted
	opaque   bool     // nothing of the image's directory shows in this one
}

// walkTree calls f for root and all in it, directories before what is in them. What goes meanwhile is left out.
func walkTree(ctx context.Context, root *os.File, f func(*treeEntry) error) error {
	return walkDirectory(ctx, root, ".", 0, f)
}

func walkDirectory(ctx context.Context, dir *os.File, name string, depth int, f func(*treeEntry) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if depth > maxTreeDepth {
		return fmt.Errorf("more than %d directories in each other", maxTreeDepth)
	}
	e := &treeEntry{path: name, file: dir}
	if err := unix.Fstat(int(dir.Fd()), &e.stat); err != nil {
		return err
	}
	e.opaque = xattr(dir, xattrOpaque) == "y"
	if err := f(e); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	slices.Sort(names)
	for _, child := range names {
		if err := walkEntry(ctx, dir, path.Join(name, child), depth, f); err != nil {
			return err
		}
	}
	return nil
}

func walkEntry(ctx context.Context, dir *os.File, name string, depth int, f func(*treeEntry) error) error {
	child := path.Base(name)
	var stat unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), child, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(err)
	}
	flags := unix.O_PATH
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	case unix.S_IFREG:
		flags = unix.O_RDONLY | unix.O_NONBLOCK // another file may be in its place by now
	}
	file, err := openEntry(dir, child, flags)
	if err != nil {
		return ignoreGone(err)
	}
	defer file.Close()
	if flags&unix.O_DIRECTORY != 0 {
		return walkDirectory(ctx, file, name, depth+1, f)
	}
	e := &treeEntry{path: name, file: file}
	if err := unix.Fstat(int(file.Fd()), &e.stat); err != nil {
		return err
	}
	if e.stat.Mode&unix.S_IFMT != stat.Mode&unix.S_IFMT { // was replaced just now
		return nil
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		e.whiteout = e.stat.Rdev == 0
	case unix.S_IFREG:
		e.whiteout = e.stat.Size == 0 && xattr(file, xattrWhiteout) != ""
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(file.Fd()), "", target)
		if err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
		e.target = string(target[:n])
	}
	return f(e)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// openEntry opens a path in a directory, without following any link and without crossing into another mount.
func openEntry(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func statBeneath(dir *os.File, name string) (stat unix.Stat_t, there bool) {
	file, err := openEntry(dir, name, unix.O_PATH)
	if err != nil {
		return stat, false
	}
	defer file.Close()
	return stat, unix.Fstat(int(file.Fd()), &stat) == nil
}

// xattr gives an attribute of overlayfs's, "" if a file does not have it.
func xattr(file *os.File, name string) string {
	value := make([]byte, 64)
	n, err := unix.Fgetxattr(int(file.Fd()), name, value)
	if err != nil {
		return ""
	}
	return cmp.Or(string(value[:n]), "y")
}

// treeWriter writes a tree as a tar in the pax format.
type treeWriter struct {
	tar   *tar.Writer
	links map[uint64]string // files with several names, by inode
}

func newTreeWriter(w io.Writer) *treeWriter {
	return &treeWriter{tar.NewWriter(w), map[uint64]string{}}
}

func (w *treeWriter) add(e *treeEntry) error {
	if err := w.write(e); err != nil {
		return fmt.Errorf("/%s: %w", e.path, err)
	}
	return nil
}

func (w *treeWriter) write(e *treeEntry) error {
	h := &tar.Header{
		Name: e.path, Linkname: e.target, Mode: int64(e.stat.Mode & 0o7777), Uid: int(e.stat.Uid), Gid: int(e.stat.Gid),
		ModTime: time.Unix(e.stat.Mtim.Sec, e.stat.Mtim.Nsec), Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, e.stat.Size
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // a socket is nothing without its process, and no tar has one
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(e.stat.Rdev)), int64(unix.Minor(e.stat.Rdev))
	}
	if e.stat.Nlink > 1 && h.Typeflag != tar.TypeDir {
		if first, known := w.links[e.stat.Ino]; known {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.tar.WriteHeader(h)
		}
		w.links[e.stat.Ino] = e.path
	}
	if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeReg {
		if err := addXattrs(h, e.file); err != nil {
			return err
		}
	}
	if err := w.tar.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	// The file may grow or shrink meanwhile: it is as long as it was.
	content := io.MultiReader(io.LimitReader(e.file, h.Size), zeros{})
	_, err := io.CopyN(w.tar, content, h.Size)
	return err
}

// addXattrs adds the attributes that images have: capabilities, access control lists and the user's own.
func addXattrs(h *tar.Header, file *os.File) error {
	names := make([]byte, math.MaxUint16+1)
	n, err := unix.Flistxattr(int(file.Fd()), names)
	if err != nil {
		return fmt.Errorf("listing attributes: %w", err)
	}
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		name := string(name)
		if name != "security.capability" && name != xattrACL && name != xattrDefaultACL && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		value := make([]byte, math.MaxUint16+1)
		if n, err := unix.Fgetxattr(int(file.Fd()), name, value); err == nil { // else it has just gone
			h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
