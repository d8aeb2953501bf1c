package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// OpenLayer returns the uncompressed tar that the layer was made of, byte for byte. What is read is what is stored: who
// needs to know that it is undamaged compares its digest with diffID.
func (s *Store) OpenLayer(diffID Digest) (io.ReadCloser, error) {
	tar, err := s.openLayer(diffID)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return tar, nil
}

func (s *Store) openLayer(diffID Digest) (io.ReadCloser, error) {
	if _, err := s.layer(diffID); err != nil {
		return nil, err
	}
	dir := s.layerDir(diffID)
	return backendOf(dir).open(dir)
}

// VerifyLayer re-checks every stored byte of a layer: its tar has the digest diffID, and all else that is stored of it,
// which is what machines see, is what the tar says.
func (s *Store) VerifyLayer(diffID Digest) error {
	if err := s.verifyLayer(diffID); err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	return nil
}

func (s *Store) verifyLayer(diffID Digest) error {
	have, err := s.layer(diffID)
	if err != nil {
		return err
	}
	tar, err := s.openLayer(diffID)
	if err != nil {
		return err
	}
	defer tar.Close()
	hash := sha256.New()
	dir := s.layerDir(diffID)
	want, err := backendOf(dir).verify(dir, io.TeeReader(tar, hash))
	if err != nil {
		return fmt.Errorf("damaged: %w", err)
	}
	if got := digestFromSum(hash.Sum(nil)); got != diffID {
		return fmt.Errorf("damaged: its uncompressed content has digest %s", got)
	}
	record, err := os.ReadFile(filepath.Join(dir, layerFile))
	if err != nil {
		return err
	}
	if written, err := json.Marshal(have); err != nil || !bytes.Equal(record, written) { // a name that is not known, for one
		return fmt.Errorf("damaged: %s: %w", layerFile, errDiffers)
	}
	if have.Reopens == ReopensUnknown { // unpacked before that was looked for
		want.Reopens = ReopensUnknown
	}
	if have != want {
		return fmt.Errorf("damaged: layer.json says %+v, its content %+v", have, want)
	}
	return nil
}

// sameWriter fails unless what is written to it is what r has.
type sameWriter struct {
	r   io.Reader
	n   int64
	buf []byte
}

var errDiffers = errors.New("differs from what the tar says")

func (s *sameWriter) Write(p []byte) (int, error) {
	s.buf = slices.Grow(s.buf[:0], len(p))[:len(p)]
	_, err := io.ReadFull(s.r, s.buf)
	if err == io.EOF || err == io.ErrUnexpectedEOF || err == nil && !bytes.Equal(s.buf, p) {
		err = errDiffers
	}
	if err != nil {
		return 0, err
	}
	s.n += int64(len(p))
	return len(p), nil
}

// end fails if r has more.
func (s *sameWriter) end() error {
	if n, err := io.Copy(io.Discard, s.r); err != nil || n == 0 {
		return err
	}
	return errDiffers
}

// backendOf is the backend of a layer that is stored in dir.
func backendOf(dir string) backend {
	if _, err := os.Lstat(filepath.Join(dir, treeDir)); err == nil {
		return dirsBackend{}
	}
	return erofsBackend{}
}
