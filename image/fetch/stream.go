package fetch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.podman.io/image/v5/types"

	"nspawnd/image"
	"nspawnd/image/internal/inflate"
)

const (
	// Between two steps of the pipeline at most queueLength pieces of pieceSize bytes wait.
	queueLength = 4
	pieceSize   = 256 << 10
	// What zstd calls its largest window that a decoder should accept unasked is 8 MiB, its command takes 128.
	maxZstdWindow = 128 << 20
)

var errDigest = errors.New("its content has another digest")

// verifier reads a blob and fails at its end unless size and digest are what the manifest says.
type verifier struct {
	ctx      context.Context
	blob     io.ReadCloser
	info     types.BlobInfo
	hash     hash.Hash
	n        int64
	watchdog *watchdog

	waited time.Duration // for the last of the bytes
	last   int64         // bytes
}

func (v *verifier) Read(p []byte) (int, error) {
	start := time.Now()
	v.watchdog.begin()
	n, err := v.blob.Read(p)
	v.watchdog.end()
	if err == nil {
		err = v.checkRate(int64(n), time.Since(start))
	}
	v.hash.Write(p[:n])
	v.n += int64(n)
	switch {
	case v.n > v.info.Size:
		err = fmt.Errorf("longer than the %d bytes that the manifest says", v.info.Size)
	case err == io.EOF && v.n < v.info.Size:
		err = fmt.Errorf("%d bytes, but the manifest says %d", v.n, v.info.Size)
	case err == io.EOF && hex.EncodeToString(v.hash.Sum(nil)) != v.info.Digest.Encoded():
		err = errDigest
	case err != nil && err != io.EOF && v.ctx.Err() != nil:
		err = context.Cause(v.ctx)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("blob %s: %w", v.info.Digest, err)
	}
	return n, err
}

// checkRate gives up a registry that sends just enough not to be silent. Only the time that it is waited for counts.
func (v *verifier) checkRate(n int64, waited time.Duration) error {
	v.last += n
	v.waited += waited
	if v.waited < patience {
		return nil
	}
	if v.last < int64(patience.Seconds()*minRate) {
		return fmt.Errorf("the registry sent only %d bytes in %v", v.last, v.waited.Round(time.Second/10))
	}
	v.last, v.waited = 0, 0
	return nil
}

func (v *verifier) Close() error { return v.blob.Close() }

// progressReader tells how far it is.
type progressReader struct {
	io.ReadCloser
	tell        func(layer image.Digest, done, total int64)
	layer       image.Digest
	total, done int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.done += int64(n)
	p.tell(p.layer, p.done, p.total)
	return n, err
}

// uncompress gives a layer's tar: gzip, zstd or what is neither. The blob is read to its end, so that its digest is checked,
// and nothing may follow the compressed data. interrupt has to end a read of the blob that waits for the network.
func uncompress(blob io.ReadCloser, interrupt func()) io.ReadCloser {
	ahead := readAhead(blob, interrupt)
	layer := &layerReader{compressed: bufio.NewReader(ahead)} // for the first bytes, large reads go past it
	return readAhead(layer, func() { ahead.Close() })
}

// layerReader decompresses. What the data is shows in the first read, which may have to wait.
type layerReader struct {
	compressed *bufio.Reader
	tar        io.ReadCloser
}

func (l *layerReader) Read(p []byte) (n int, err error) {
	if l.tar == nil {
		if l.tar, err = decompressor(l.compressed); err != nil {
			l.tar = io.NopCloser(l.compressed)
			return 0, err
		}
	}
	n, err = l.tar.Read(p)
	if err != io.EOF {
		return n, err
	}
	rest, restErr := io.Copy(io.Discard, l.compressed)
	if restErr != nil {
		return n, restErr
	}
	if rest > 0 {
		return n, errors.New("data after the end of the compressed layer")
	}
	return n, io.EOF
}

func (l *layerReader) Close() error {
	if l.tar == nil {
		return nil
	}
	return l.tar.Close()
}

// The first bytes of compressed data. A zstd file may begin with a frame to skip, whose last four bits vary.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	skipMagic = []byte{0x2a, 0x4d, 0x18}
)

func isGzip(magic []byte) bool { return bytes.HasPrefix(magic, gzipMagic) }

func isZstd(magic []byte) bool {
	return bytes.Equal(magic, zstdMagic) || len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], skipMagic)
}

func decompressor(r *bufio.Reader) (io.ReadCloser, error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case isGzip(magic):
		return io.NopCloser(inflate.NewReader(r)), nil
	case isZstd(magic):
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// readAhead reads r in a goroutine of its own. Close calls interrupt, which has to end a read that waits, and closes r.
func readAhead(r io.ReadCloser, interrupt func()) io.ReadCloser {
	a := &aheadReader{
		r:         r,
		interrupt: interrupt,
		full:      make(chan piece, queueLength),
		free:      make(chan []byte, queueLength),
		stop:      make(chan struct{}),
		ended:     make(chan struct{}),
	}
	for range queueLength {
		a.free <- make([]byte, pieceSize)
	}
	go a.fill()
	return a
}

type aheadReader struct {
	r           io.ReadCloser
	interrupt   func()
	full        chan piece
	free        chan []byte
	stop, ended chan struct{}

	current piece
	read    int // bytes of current
}

type piece struct {
	data []byte
	err  error
}

func (a *aheadReader) fill() {
	defer close(a.ended)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		var n int
		var err error
		for n < len(buf) && err == nil {
			var m int
			m, err = a.r.Read(buf[n:])
			n += m
		}
		a.full <- piece{buf[:n], err} // there are as many places as buffers
		if err != nil {
			return
		}
	}
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for a.read == len(a.current.data) {
		if a.current.err != nil {
			return 0, a.current.err
		}
		if a.current.data != nil {
			a.free <- a.current.data[:pieceSize]
		}
		a.read = 0
		select {
		case a.current = <-a.full:
		case <-a.stop:
			a.current = piece{nil, io.ErrClosedPipe}
		}
	}
	n := copy(p, a.current.data[a.read:])
	a.read += n
	return n, nil
}

func (a *aheadReader) Close() error {
	close(a.stop)
	a.interrupt()
	<-a.ended
	return a.r.Close()
}

// budget is what an image's layers may take together.
type budget struct{ used atomic.Int64 }

func (b *budget) limit(r io.ReadCloser) io.ReadCloser { return &limitedReader{r, b} }

type limitedReader struct {
	io.ReadCloser
	budget *budget
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if l.budget.used.Add(int64(n)) > maxImageSize {
		return n, fmt.Errorf("image larger than %d GiB uncompressed", maxImageSize>>30)
	}
	return n, err
}

// watchdog ends a context when a registry that is waited for sends nothing for too long.
type watchdog struct {
	mu       sync.Mutex
	timer    *time.Timer
	patience time.Duration
	waiting  int    // how many wait
	stop     func() // ends the context for good
}

func withWatchdog(ctx context.Context, patience time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{patience: patience, stop: func() { cancel(nil) }}
	w.timer = time.AfterFunc(patience, func() { cancel(fmt.Errorf("the registry sent nothing for %v", patience)) })
	w.timer.Stop()
	return ctx, w
}

func (w *watchdog) begin() { w.wait(1) }
func (w *watchdog) end()   { w.wait(-1) }

func (w *watchdog) wait(more int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting += more; w.waiting > 0 {
		w.timer.Reset(w.patience)
	} else {
		w.timer.Stop()
	}
}
