package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Tag gives the image src another name, also if that is another image's. The image keeps the name that it was verified under.
func (w *Writer) Tag(ctx context.Context, src, dst Reference) error {
	return w.edit(ctx, src, func(img *Image) error {
		if err := checkNewName(dst); err != nil {
			return err
		}
		if err := w.store.CheckWritable(dst); err != nil {
			return fmt.Errorf("%s: %w", dst, err)
		}
		return w.writeRecord(img.under(dst))
	})
}

// Clone gives the image src another name that must be free. To copy an image takes no more: its content never changes.
func (w *Writer) Clone(ctx context.Context, src, dst Reference, readOnly bool) error {
	return w.edit(ctx, src, func(img *Image) error {
		if err := w.checkFree(dst); err != nil {
			return err
		}
		clone := img.under(dst)
		clone.ReadOnly = readOnly
		return w.writeRecord(clone)
	})
}

// Rename gives the image src another name that must be free, instead of its own. A crash may leave both.
func (w *Writer) Rename(ctx context.Context, src, dst Reference) error {
	return w.edit(ctx, src, func(img *Image) error {
		if err := w.checkFree(dst); err != nil {
			return err
		}
		renamed := img.under(dst)
		renamed.ReadOnly = img.ReadOnly
		if err := w.writeRecord(renamed); err != nil {
			return err
		}
		_, err := w.store.removeRecords([]Reference{src})
		return err
	})
}

// SetReadOnly marks the image ref so that it is not replaced or removed, or takes the mark away.
func (w *Writer) SetReadOnly(ctx context.Context, ref Reference, readOnly bool) error {
	return w.edit(ctx, ref, func(img *Image) error {
		img.ReadOnly = readOnly
		return w.writeRecord(img)
	})
}

// edit runs f with the image ref while nobody else changes the store.
func (w *Writer) edit(ctx context.Context, ref Reference, f func(*Image) error) error {
	unlock, err := w.store.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer unlock()
	img, err := w.store.Image(ref)
	if err != nil {
		return err
	}
	if err := f(img); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}

func checkNewName(ref Reference) error {
	if ref.digest != "" {
		return fmt.Errorf("the new name %s has a digest, which says what an image is: give it a tag", ref)
	}
	return nil
}

func (w *Writer) checkFree(ref Reference) error {
	if _, err := os.Lstat(w.store.RecordPath(ref)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the name %s is taken; to free it: machinectl-lite remove %s", ref, ref)
	}
	return checkNewName(ref)
}
