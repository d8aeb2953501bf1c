package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ImageEvent is what happens to the name of an image.
type ImageEvent struct {
	Kind      string // "add", "replace", "remove"
	Reference Reference
	Image     *Image // as it is now, or was
}

// Watch tells of images that come and go until ctx ends.
func (s *Store) Watch(ctx context.Context, tell func(ImageEvent)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching images: %w", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	defer changes.Close()
	defer context.AfterFunc(ctx, func() { changes.Close() })() // which ends the read
	if err := os.MkdirAll(s.path("images"), 0o700); err != nil {
		return err
	}
	known, err := s.watched(fd)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		if _, err := changes.Read(buf); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("watching images: %w", err)
		}
		// What the kernel says is only that there is something new: what, the store says, however many changes there were.
		now, err := s.watched(fd)
		if err != nil {
			return err
		}
		for _, event := range compareImages(known, now) {
			tell(event)
		}
		known = now
	}
}

// watched has the kernel tell of changes in all directories of records, and gives the images in them: in this order, so that none is missed.
func (s *Store) watched(fd int) (map[Reference]*Image, error) {
	err := filepath.WalkDir(s.path("images"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_, err = unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR)
		}
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watching images: %w", err)
	}
	images, _ := s.Images() // one that can't be read is none
	known := map[Reference]*Image{}
	for _, img := range images {
		known[img.Reference] = img
	}
	return known, nil
}

func compareImages(before, now map[Reference]*Image) (events []ImageEvent) {
	for ref, img := range now {
		old := before[ref]
		switch {
		case old == nil:
			events = append(events, ImageEvent{"add", ref, img})
		case old.ManifestDigest != img.ManifestDigest:
			events = append(events, ImageEvent{"replace", ref, img})
		}
	}
	for ref, img := range before {
		if now[ref] == nil {
			events = append(events, ImageEvent{"remove", ref, img})
		}
	}
	slices.SortFunc(events, func(a, b ImageEvent) int { return strings.Compare(a.Reference.String(), b.Reference.String()) })
	return events
}
