package aci

import (
	"archive/tar"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Limits on one archive; package image has its own on what becomes of it.
const (
	maxEntries = 1 << 20
	maxNames   = 256 << 20 // bytes of names
	maxFiles   = 64 << 30  // bytes of content, with what sparse files leave out
)

// Read reads an uncompressed ACI to its end. It writes the content of rootfs/ to layer, as the tar of an OCI layer, and returns the
// manifest and the image ID. The same archive always gives the same layer. Headers stay as they are, but for the names and for the
// holes of sparse files, which are written out.
func Read(archive io.Reader, layer io.Writer) (manifest []byte, id string, err error) {
	hash := sha512.New()
	r := io.TeeReader(archive, hash)
	c := converter{in: tar.NewReader(r), out: tar.NewWriter(layer), seen: map[string]bool{}}
	if err := c.run(); err != nil {
		return nil, "", err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, "", err
	}
	return c.manifest, idPrefix + hex.EncodeToString(hash.Sum(nil)), nil
}

type converter struct {
	in       *tar.Reader
	out      *tar.Writer
	manifest []byte
	seen     map[string]bool // by clean name
	names    int             // bytes
	files    int64           // bytes
	rootfs   bool
}

func (c *converter) run() error {
	for {
		header, err := c.in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading tar: %w", err)
		}
		if err := c.add(header); err != nil {
			return fmt.Errorf("entry %q: %w", header.Name, err)
		}
	}
	switch {
	case c.manifest == nil:
		return errors.New("not an ACI: it has no manifest")
	case !c.rootfs:
		return errors.New("not an ACI: it has no rootfs")
	}
	return c.out.Close()
}

func (c *converter) add(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // as every unpacker does
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if c.seen[name] {
		return errors.New("is there twice")
	}
	c.seen[name] = true
	c.names += len(name)
	c.files += h.Size
	if len(c.seen) > maxEntries || c.names > maxNames || c.files > maxFiles {
		return errors.New("the archive is too large")
	}
	inside, isInside := strings.CutPrefix(name, "/rootfs")
	switch {
	case name == "/" && h.Typeflag == tar.TypeDir: // "tar -c ." makes it
		return nil
	case name == "/manifest":
		return c.readManifest(h)
	case !isInside || inside != "" && inside[0] != '/':
		return errors.New("only manifest and rootfs/ may be in an ACI")
	case inside == "" && h.Typeflag != tar.TypeDir:
		return errors.New("rootfs is not a directory")
	}
	c.rootfs = true
	return c.copy(h, "."+inside)
}

// clean gives a name from the archive's top on; the top itself is "/".
func clean(name string) (string, error) {
	for component := range strings.SplitSeq(name, "/") {
		switch {
		case component == "..":
			return "", errors.New(`".." is not allowed`)
		case strings.HasPrefix(component, ".wh."): // an ordinary name in an ACI, but not in a layer
			return "", errors.New("names that begin with .wh. are not supported")
		}
	}
	return path.Clean("/" + name), nil
}

func (c *converter) readManifest(h *tar.Header) (err error) {
	if h.Typeflag != tar.TypeReg || h.Size > MaxManifest {
		return fmt.Errorf("not a regular file of at most %d bytes", MaxManifest)
	}
	c.manifest, err = io.ReadAll(c.in)
	return err
}

func (c *converter) copy(h *tar.Header, name string) error {
	if strings.HasSuffix(h.Name, "/") || name == "." {
		name += "/"
	}
	h.Name = strings.TrimPrefix(name, "./")
	if h.Name == "" {
		h.Name = "./"
	}
	switch h.Typeflag {
	case tar.TypeLink:
		target, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		inside, ok := strings.CutPrefix(target, "/rootfs/")
		if !ok {
			return fmt.Errorf("hard link to %q, which is not in rootfs", h.Linkname)
		}
		h.Linkname = inside
	case tar.TypeGNUSparse, tar.TypeCont:
		h.Typeflag = tar.TypeReg // the reader fills the holes
	}
	h.Format = tar.FormatPAX // holds whatever the other formats do; records are written only where they are needed
	if err := c.out.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(c.out, c.in)
	return err
}

// ID reads an uncompressed ACI to its end and returns the image ID.
func ID(archive io.Reader) (string, error) {
	hash := sha512.New()
	_, err := io.Copy(hash, archive)
	return idPrefix + hex.EncodeToString(hash.Sum(nil)), err
}

const idPrefix = "sha512-"
