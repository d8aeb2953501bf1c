package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"testing"
)

// BenchmarkAddLayer keeps a layer like Debian's: 20,000 files, 380 MB.
func BenchmarkAddLayer(b *testing.B) {
	needMounts(b)
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	content := make([]byte, 19<<10)
	rand.New(rand.NewSource(1)).Read(content)
	for i := range 20000 {
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/%d/%d", i/100, i), Mode: 0o644, Size: int64(len(content))})
		w.Write(content)
	}
	w.Close()
	diffID := DigestOf(data.Bytes())
	for name := range backends {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(data.Len()))
			for range b.N {
				s, w := newStore(b)
				s.SetBackend(name)
				err := w.AddLayer(b.Context(), diffID, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.Bytes())), nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
