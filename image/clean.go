package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Removed is one thing that is gone from the store.
type Removed struct {
	Kind string // "image" (its record), "layer", "blob", "leftover" (of a command that was killed)
	Name string
	Size int64 // bytes that it took on disk
}

// Remove removes images by their names, each unless it is read-only or a machine uses it, and then all that nothing in the
// store needs any more. An image that a machine uses may lose one of several names. What went wrong with one of them comes as an
// error of its own.
func (s *Store) Remove(ctx context.Context, refs []Reference) (removed []Removed, errs []error) {
	removed, err := s.remove(ctx, func(images []*Image, uses []machineUse) (chosen []Reference) {
		for _, ref := range refs {
			if err := s.checkRemovable(ref, images, uses); err != nil {
				errs = append(errs, fmt.Errorf("image %s: %w", ref, err))
				continue
			}
			images = slices.DeleteFunc(images, func(img *Image) bool { return img.Reference == ref })
			chosen = append(chosen, ref)
		}
		return chosen
	})
	if err != nil {
		errs = append(errs, err)
	}
	return removed, errs
}

func (s *Store) checkRemovable(ref Reference, images []*Image, uses []machineUse) error {
	if _, err := os.Lstat(s.RecordPath(ref)); err != nil {
		return ErrNotFound
	}
	if err := s.CheckWritable(ref); err != nil {
		return err
	}
	// One that is not among them can't be read: nothing but this removes it.
	i := slices.IndexFunc(images, func(img *Image) bool { return img.Reference == ref })
	if i < 0 {
		return nil
	}
	hasOtherName := slices.ContainsFunc(images, func(img *Image) bool {
		return img.Reference != ref && img.ManifestDigest == images[i].ManifestDigest
	})
	if user := userOf(images[i], uses); user != "" && !hasOtherName {
		return s.inUse("uses", user)
	}
	return nil
}

// userOf returns a machine that runs on an image, under whatever name, and "" if there is none.
func userOf(img *Image, uses []machineUse) string {
	for _, use := range uses {
		if use.image.ManifestDigest == img.ManifestDigest {
			return use.machine
		}
	}
	return ""
}

// Clean removes all that nothing in the store needs: layers, blobs, what killed commands left. With all, images go too, except those
// that are read-only or that a machine uses.
func (s *Store) Clean(ctx context.Context, all bool) ([]Removed, error) {
	return s.remove(ctx, func(images []*Image, uses []machineUse) (chosen []Reference) {
		for _, img := range images {
			if all && !img.ReadOnly && userOf(img, uses) == "" {
				chosen = append(chosen, img.Reference)
			}
		}
		return chosen
	})
}

func (s *Store) remove(ctx context.Context, choose func([]*Image, []machineUse) []Reference) ([]Removed, error) {
	removed, err := s.removeLeftovers()
	if err != nil {
		return removed, fmt.Errorf("store: %w", err)
	}
	unlock, err := s.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return removed, fmt.Errorf("store: %w", err)
	}
	defer unlock()
	uses, err := s.machineUses()
	if err != nil {
		return removed, err
	}
	images, _ := s.Images() // the sweep complains of those that can't be read
	records, err := s.removeRecords(choose(images, uses))
	removed = append(removed, records...)
	if err != nil {
		return removed, err
	}
	swept, err := s.sweep(nil, unlock)
	return append(removed, swept...), err
}

// removeRecords removes the records of images for good: when it has returned, a power cut does not bring one back whose
// layers are gone.
func (s *Store) removeRecords(refs []Reference) (removed []Removed, err error) {
	var dirs []string
	for _, ref := range refs {
		size := DiskUsage(s.RecordPath(ref))
		if err := os.Remove(s.RecordPath(ref)); err != nil {
			return removed, fmt.Errorf("image %s: %w", ref, err)
		}
		removed = append(removed, Removed{"image", ref.String(), size})
		if dir := filepath.Dir(s.RecordPath(ref)); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err := syncDir(dir); err != nil {
			return removed, err
		}
	}
	return removed, s.removeEmpty()
}

// removeEmpty removes the directories below images/ that hold no record.
func (s *Store) removeEmpty() error {
	var dirs []string
	err := filepath.WalkDir(s.path("images"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && path != s.path("images") {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) {
		_ = os.Remove(dir) // fails unless it is empty
	}
	return err
}

// sweep removes the layers and blobs that nothing needs, of those in only if that is not nil. It is called with the store locked, and unlocks it as
// soon as what goes has no name any more.
func (s *Store) sweep(only digests, unlock func()) (removed []Removed, err error) {
	needed, err := s.needed(nil)
	if err != nil {
		return nil, err
	}
	goes := func(digest Digest) bool { return !needed[digest] && (only == nil || only[digest]) }
	blobs, err := readDir(s.path("blobs", "sha256"))
	if err != nil {
		return nil, err
	}
	for _, entry := range blobs {
		digest, err := ParseDigest(sha256Prefix + entry.Name())
		if err != nil || !goes(digest) {
			continue
		}
		path := s.path("blobs", "sha256", entry.Name())
		size := DiskUsage(path)
		if err := os.Remove(path); err != nil {
			return removed, err
		}
		removed = append(removed, Removed{"blob", string(digest), size})
	}
	layers, err := readDir(s.path("layers"))
	if err != nil {
		return removed, err
	}
	var trash []string
	for _, entry := range layers {
		digest, ok := fromLayerName(entry.Name())
		if !ok || !goes(digest) {
			continue
		}
		path := s.path("tmp", "trash-"+rand.Text())
		if err := os.Rename(s.layerDir(digest), path); err != nil {
			return removed, err
		}
		trash = append(trash, path)
		removed = append(removed, Removed{"layer", string(digest), 0})
	}
	if len(trash) > 0 {
		// Or a power cut may bring back half a layer under its name.
		if err := syncDir(s.path("layers")); err != nil {
			return removed, err
		}
	}
	unlock()
	for i, path := range trash {
		removed[len(removed)-len(trash)+i].Size = DiskUsage(path)
		err = errors.Join(err, os.RemoveAll(path))
	}
	return removed, err
}

// digests is a set of layers and blobs.
type digests map[Digest]bool

// needed returns all that writers, images but for those that leave, and machines need, in this order: a writer lets go of something when its image is
// stored, and an image's record that was removed before it was looked for may just have become a machine's.
func (s *Store) needed(leaving map[Reference]bool) (digests, error) {
	needed := digests{}
	entries, err := readDir(s.path("tmp"))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), writerPrefix) {
			if err := needed.addClaims(s.path("tmp", entry.Name())); err != nil {
				return nil, fmt.Errorf("store: %w", err)
			}
		}
	}
	images, err := s.Images()
	if err != nil {
		return nil, fmt.Errorf("nothing was freed: an image needs what is not known: %w", err)
	}
	images = slices.DeleteFunc(images, func(img *Image) bool { return leaving[img.Reference] })
	uses, err := s.machineUses()
	if err != nil {
		return nil, fmt.Errorf("nothing was freed: %w", err)
	}
	for _, use := range uses {
		images = append(images, use.image)
	}
	for _, img := range images {
		for _, digest := range img.digests() {
			needed[digest] = true
		}
	}
	return needed, nil
}

// addClaims adds what a writer has claimed in its directory.
func (d digests) addClaims(dir string) error {
	claims, err := readDir(dir)
	for _, claim := range claims {
		if digest, ok := fromLayerName(claim.Name()); ok {
			d[digest] = true
		}
	}
	return err
}

// removeLeftovers removes what is in tmp/ and not locked by anybody: that of the dead. See [lockDir] for those who are about to lock.
func (s *Store) removeLeftovers() (removed []Removed, err error) {
	entries, err := readDir(s.path("tmp"))
	for _, entry := range entries {
		path := s.path("tmp", entry.Name())
		f, err := os.Open(path)
		if err != nil {
			continue // gone
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			size := DiskUsage(path)
			if err := os.RemoveAll(path); err != nil {
				f.Close()
				return removed, err
			}
			removed = append(removed, Removed{"leftover", entry.Name(), size})
		}
		f.Close()
	}
	return removed, err
}

// lock keeps the store's content as it is: shared, nothing is removed; exclusive, nobody else changes records or removes or
// claims anything either. It is never held while something is fetched. A store that is not there needs no lock.
func (s *Store) lock(ctx context.Context, how int) (unlock func(), err error) {
	dir, err := os.Open(s.path("layers"))
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, dir, how); err != nil {
		dir.Close()
		return nil, err
	}
	return sync.OnceFunc(func() { dir.Close() }), nil
}

// DiskUsage returns the bytes that a file, or all that is in a directory, takes on disk. What goes meanwhile counts nothing.
func DiskUsage(path string) (size int64) {
	_ = filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		var stat unix.Stat_t
		if err == nil && unix.Lstat(path, &stat) == nil {
			blocks := stat.Blocks * 512
			if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
				blocks /= int64(max(stat.Nlink, 1))
			}
			size += blocks
		}
		return nil
	})
	return size
}

// readDir lists a directory; one that is not there is empty.
func readDir(path string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return entries, err
}
