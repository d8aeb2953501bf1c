package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ExportMStack writes img as the new directory dir, in the form that systemd 260 and later call a mount stack (systemd.mstack(7)): a
// directory for each layer, with overlayfs's whiteouts, and unless readOnly one for changes. The digests of all layers are checked.
// What is half done when ctx ends or an error comes up is removed.
func (s *Store) ExportMStack(ctx context.Context, img *Image, dir string, readOnly bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s: exporting: %w", img.Reference, err)
		}
	}()
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s exists already; remove it or name another", dir)
	}
	scratch, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	stack := filepath.Join(scratch, "stack")
	if err := os.Mkdir(stack, 0o755); err != nil {
		return err
	}
	var root *os.File // what the root directory's attributes are those of
	top := ""
	for _, i := range img.shown() {
		// Names are put into order as versions are.
		top = filepath.Join(stack, fmt.Sprintf("layer@%d", i))
		if err := s.exportLayer(ctx, img.Layers[i], scratch, top); err != nil {
			return fmt.Errorf("layer %s: %w", img.Layers[i], err)
		}
		if i == img.RootLayer {
			if root, err = os.Open(top); err != nil {
				return err
			}
			defer root.Close()
		}
	}
	if top == "" {
		return errors.New("it has no layers")
	}
	shows := []string{top}
	if !readOnly {
		for _, name := range []string{"rw", "rw/data", "rw/work"} {
			if err := os.Mkdir(filepath.Join(stack, name), 0o755); err != nil {
				return err
			}
		}
		shows = append(shows, filepath.Join(stack, "rw/data"))
	}
	for _, path := range shows {
		if err := copyAttributesTo(root, path); err != nil {
			return err
		}
	}
	made, err := os.Open(stack)
	if err != nil {
		return err
	}
	defer made.Close()
	if err := unix.Syncfs(int(made.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, stack, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("renaming to %s: %w", dir, err)
	}
	return syncDir(filepath.Dir(dir))
}

// exportLayer unpacks a layer as path; scratch is on the same file system.
func (s *Store) exportLayer(ctx context.Context, diffID Digest, scratch, path string) error {
	layer, err := os.MkdirTemp(scratch, "layer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(layer)
	tar, err := s.openLayer(diffID)
	if err != nil {
		return err
	}
	defer tar.Close()
	hash := sha256.New()
	// systemd mounts with "userxattr", always.
	if _, err := (dirsBackend{userXattrs: true}).create(layer, io.TeeReader(contextReader{ctx, tar}, hash)); err != nil {
		return err
	}
	if got := digestFromSum(hash.Sum(nil)); got != diffID {
		return fmt.Errorf("damaged: its uncompressed content has digest %s", got)
	}
	return os.Rename(filepath.Join(layer, treeDir), path)
}

func copyAttributesTo(from *os.File, path string) error {
	to, err := os.Open(path)
	if err != nil {
		return err
	}
	defer to.Close()
	if from != nil && from.Name() == path {
		return nil
	}
	return copyAttributes(from, to)
}

// contextReader fails when its context ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// shown returns the indexes of the layers that are mounted, base first. What a layer says, it says again where it is uppermost, and overlayfs
// refuses one directory twice.
func (img *Image) shown() (layers []int) {
	for i, diffID := range img.Layers {
		if i >= img.BaseLayer && !slices.Contains(img.Layers[i+1:], diffID) {
			layers = append(layers, i)
		}
	}
	return layers
}
