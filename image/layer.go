package image

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// erofsBackend keeps a layer as its uncompressed tar, byte for byte, and an EROFS index over it. Nothing is extracted:
// no name of a stranger's tar is ever a path on the host.
type erofsBackend struct{}

const (
	tarFile   = "layer.tar"
	indexFile = "layer.erofs"
)

func (erofsBackend) create(dir string, r io.Reader) (layerRecord, error) {
	// File systems in plain files, without loop devices, came with 6.12.
	if !KernelAtLeast(6, 12) {
		return layerRecord{}, fmt.Errorf("mounting EROFS from files takes Linux 6.12 or later, this is %s", kernelRelease())
	}
	tarball, err := os.OpenFile(filepath.Join(dir, tarFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return layerRecord{}, err
	}
	defer tarball.Close()
	t, err := readTar(io.TeeReader(r, tarball))
	if err != nil {
		return layerRecord{}, err
	}
	if err := tarball.Sync(); err != nil {
		return layerRecord{}, err
	}
	tarSize, err := tarball.Seek(0, io.SeekEnd)
	if err != nil {
		return layerRecord{}, err
	}
	index, err := os.OpenFile(filepath.Join(dir, indexFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return layerRecord{}, err
	}
	defer index.Close()
	if err := writeErofs(index, t, tarSize); err != nil {
		return layerRecord{}, err
	}
	if err := index.Sync(); err != nil {
		return layerRecord{}, err
	}
	indexSize, err := index.Seek(0, io.SeekEnd)
	return t.record(tarSize + indexSize), err
}

func (erofsBackend) open(dir string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(dir, tarFile))
}

func (erofsBackend) verify(dir string, r io.Reader) (layerRecord, error) {
	counted := &countingWriter{}
	t, err := readTar(io.TeeReader(r, counted))
	if err != nil {
		return layerRecord{}, err
	}
	index, err := os.Open(filepath.Join(dir, indexFile))
	if err != nil {
		return layerRecord{}, err
	}
	defer index.Close()
	same := &sameWriter{r: index}
	err = writeErofs(io.MultiWriter(same, counted), t, counted.n)
	if err == nil {
		err = same.end()
	}
	if err != nil {
		return layerRecord{}, fmt.Errorf("%s: %w", indexFile, err)
	}
	return t.record(counted.n), nil
}

func (erofsBackend) lower(dir string) (*os.File, error) {
	return newMount("erofs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV,
		"source="+filepath.Join(dir, indexFile), "device="+filepath.Join(dir, tarFile))
}

// backendOf is the backend of a stored layer.
func backendOf(dir string) backend { return erofsBackend{} }

// record gives what is to be known of a layer that takes size bytes on disk.
func (t *tree) record(size int64) layerRecord {
	return layerRecord{Size: size, Root: !t.root.implied, Opaque: t.root.opaque}
}
