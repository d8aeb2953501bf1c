package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// erofsBackend keeps a layer as its uncompressed tar, byte for byte, and an EROFS index over it. Nothing is extracted:
// no name of a stranger's tar is ever a path on the host. Only the content of sparse files, which is not in one piece in the
// tar, is written to one more file.
type erofsBackend struct{}

const (
	tarFile    = "layer.tar"
	indexFile  = "layer.erofs"
	sparseFile = "layer.sparse"
)

// copyBuffer is how many bytes of a layer go from file to file at a time.
const copyBuffer = 256 << 10

func (erofsBackend) create(dir string, r io.Reader) (layerRecord, error) {
	// File systems in plain files, without loop devices, came with 6.12.
	if !KernelAtLeast(6, 12) {
		return layerRecord{}, fmt.Errorf("mounting EROFS from files takes Linux 6.12 or later, this is %s", kernelRelease())
	}
	tarball, err := createIn(dir, tarFile)
	if err != nil {
		return layerRecord{}, err
	}
	defer tarball.Close()
	sparse := &sparseKeeper{dir: dir}
	defer sparse.close()
	t, err := readTar(bufio.NewReaderSize(io.TeeReader(r, &earlyWriter{f: tarball}), copyBuffer), sparse, nil)
	if err != nil {
		return layerRecord{}, err
	}
	if err := tarball.Sync(); err != nil {
		return layerRecord{}, err
	}
	if err := sparse.sync(); err != nil {
		return layerRecord{}, err
	}
	index, err := createIn(dir, indexFile)
	if err != nil {
		return layerRecord{}, err
	}
	defer index.Close()
	if err := writeErofs(index, t); err != nil {
		return layerRecord{}, err
	}
	if err := index.Sync(); err != nil {
		return layerRecord{}, err
	}
	indexSize, err := index.Seek(0, io.SeekEnd)
	return t.record(indexSize), err
}

// earlyWriter writes to a file, and has the kernel write to disk what there is while more comes: the sync in the end, for which nothing
// else is left to do, has little to wait for then.
type earlyWriter struct {
	f            *os.File
	end, started int64
}

// earlyBytes are written to disk together.
const earlyBytes = 8 << 20

func (w *earlyWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if w.end += int64(n); w.end-w.started >= earlyBytes {
		// If it can't, the sync does all, and says so when that fails.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.started, w.end-w.started, unix.SYNC_FILE_RANGE_WRITE)
		w.started = w.end
	}
	return n, err
}

func createIn(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

// record gives what is to be known of a layer; more is the bytes that it takes on disk with what is in the tar.
func (t *tree) record(more int64) layerRecord {
	return layerRecord{Size: t.size + more, Root: !t.root.implied, Opaque: t.root.opaque, Reopens: reopens(t.reopens)}
}

func (erofsBackend) lower(dir string) (lower *os.File, detached bool, err error) {
	options := []string{"source=" + filepath.Join(dir, indexFile), "device=" + filepath.Join(dir, tarFile)}
	if _, err := os.Lstat(filepath.Join(dir, sparseFile)); err == nil {
		options = append(options, "device="+filepath.Join(dir, sparseFile))
	}
	lower, err = newMount("erofs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV, options...)
	return lower, true, err
}

func (erofsBackend) open(dir string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(dir, tarFile))
}

func (erofsBackend) verify(dir string, r io.Reader) (layerRecord, error) {
	check := &sparseChecker{}
	sparse, err := os.Open(filepath.Join(dir, sparseFile))
	switch {
	case err == nil:
		defer sparse.Close()
		check.r = bufio.NewReaderSize(sparse, copyBuffer)
	case errors.Is(err, fs.ErrNotExist):
		check.r = bytes.NewReader(nil)
	default:
		return layerRecord{}, err
	}
	t, err := readTar(bufio.NewReaderSize(r, copyBuffer), check, nil)
	if err == nil {
		if err = check.end(); err != nil {
			err = fmt.Errorf("%s: %w", sparseFile, err)
		}
	}
	if err != nil {
		return layerRecord{}, err
	}
	index, err := os.Open(filepath.Join(dir, indexFile))
	if err != nil {
		return layerRecord{}, err
	}
	defer index.Close()
	same := &sameWriter{r: bufio.NewReaderSize(index, copyBuffer)}
	if err = writeErofs(same, t); err == nil {
		err = same.end()
	}
	if err != nil {
		return layerRecord{}, fmt.Errorf("%s: %w", indexFile, err)
	}
	return t.record(same.n), nil
}

// sparseKeeper writes the content of sparse files into sparseFile, one behind the other, holes as holes.
type sparseKeeper struct {
	dir string
	f   *os.File
	end int64
}

func (k *sparseKeeper) keep(n *node, content io.Reader) (err error) {
	if !n.sparse {
		return nil
	}
	if k.f == nil {
		if k.f, err = createIn(k.dir, sparseFile); err != nil {
			return err
		}
	}
	n.data = k.end
	k.end += alignUp(n.size, sparseBlock)
	if err := writeSparse(k.f, n.data, n.size, content); err != nil {
		return err
	}
	return k.f.Truncate(k.end)
}

func (k *sparseKeeper) sync() error {
	if k.f == nil {
		return nil
	}
	return k.f.Sync()
}

func (k *sparseKeeper) close() {
	if k.f != nil {
		k.f.Close()
	}
}

// writeSparse writes the size bytes of content into f from the offset start on, without blocks of zeros.
func writeSparse(f *os.File, start, size int64, content io.Reader) error {
	buf := make([]byte, copyBuffer)
	zeros := make([]byte, sparseBlock)
	for at := int64(0); at < size; at += copyBuffer {
		buf = buf[:min(copyBuffer, size-at)]
		if _, err := io.ReadFull(content, buf); err != nil {
			return fmt.Errorf("reading tar: %w", err)
		}
		for i := 0; i < len(buf); i += sparseBlock {
			block := buf[i:min(i+sparseBlock, len(buf))]
			if bytes.Equal(block, zeros[:len(block)]) {
				continue
			}
			if _, err := f.WriteAt(block, start+at+int64(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sparseChecker compares with what sparseKeeper wrote.
type sparseChecker struct{ sameWriter }

func (c *sparseChecker) keep(n *node, content io.Reader) error {
	if !n.sparse {
		return nil
	}
	n.data = c.n
	padding := alignUp(n.size, sparseBlock) - n.size
	_, err := io.CopyBuffer(onlyWriter{&c.sameWriter}, io.MultiReader(content, bytes.NewReader(make([]byte, padding))), make([]byte, copyBuffer))
	if err != nil {
		return fmt.Errorf("%s: %w", sparseFile, err)
	}
	return nil
}

// onlyWriter hides that a writer can do more, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }
