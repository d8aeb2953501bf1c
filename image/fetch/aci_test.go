package fetch

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	"nspawnd/image"
)

// makeACI is an archive with one file.
func makeACI(manifest, file, content string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{{Name: "manifest", Typeflag: tar.TypeReg}, {Name: "rootfs/", Typeflag: tar.TypeDir}, {Name: "rootfs/" + file, Typeflag: tar.TypeReg}} {
		data := map[string]string{"manifest": manifest, "rootfs/" + file: content}[h.Name]
		h.Mode, h.Size = 0o755, int64(len(data))
		w.WriteHeader(&h)
		io.WriteString(w, data)
	}
	w.Close()
	return buf.Bytes()
}

const aciManifest = `{"acKind":"ImageManifest","acVersion":"0.8.11","name":"app.test/x"}`

func (l *lab) pullACI(source string) (*image.Image, error) {
	l.t.Helper()
	from, err := ParseACISource(source)
	if err != nil {
		l.t.Fatal(err)
	}
	os.RemoveAll(l.storeDir)
	img, _, err := PullACI(context.Background(), l.store, from, "", l.insecure())
	return img, err
}

// site is a publisher's web site.
func (l *lab) site(handler http.HandlerFunc) string {
	server := httptest.NewTLSServer(handler)
	before := webTransport
	webTransport = server.Client().Transport
	l.t.Cleanup(func() { webTransport = before; server.Close() })
	return server.URL
}

// A download that breaks off goes on where it was if the server has ranges and still has the same, and is never put together from two files.
func TestACIResume(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	archive := makeACI(aciManifest, "random", randomText(6<<20))
	tag := func(s string) func(int32) string { return func(int32) string { return s } }
	for _, test := range []struct {
		name   string
		ranges bool
		tag    func(n int32) string
		want   string // of the error
		once   bool   // each byte is sent once
	}{
		{"ranges", true, tag(`"1"`), "", true},
		{"weak tag", true, tag(`W/"1"`), "", false},
		{"no tag", true, tag(""), "", false},
		{"no ranges", false, tag(`"1"`), "", false},
		{"changed", true, func(n int32) string { return `"` + strings.Repeat("1", int(n)) + `"` }, "has changed meanwhile", false},
	} {
		var requests atomic.Int32
		var sent atomic.Int64
		url := l.site(func(w http.ResponseWriter, r *http.Request) {
			n := requests.Add(1)
			if tag := test.tag(n); tag != "" {
				w.Header().Set("ETag", tag)
			}
			if !test.ranges {
				r.Header.Del("Range")
			}
			if n <= 3 {
				w = &shortWriter{w, int(n) << 20, &sent}
			} else {
				w = &shortWriter{w, len(archive), &sent}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(archive))
		})
		_, err := l.pullACI(url + "/x.aci")
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: want %q, got %v", test.name, test.want, err)
		}
		if once := sent.Load() == int64(len(archive)); err == nil && (once != test.once || requests.Load() != 4) {
			t.Errorf("%s: %d bytes sent of %d, %d requests", test.name, sent.Load(), len(archive), requests.Load())
		}
	}
}

// shortWriter breaks the connection after so many bytes.
type shortWriter struct {
	http.ResponseWriter
	left int
	sent *atomic.Int64
}

func (w *shortWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	w.sent.Add(int64(n))
	if w.left -= n; n < len(p) {
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// What an xz file takes in memory is bounded: by the dictionary of xz -9.
func TestACICompression(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	for dictionary, ok := range map[int]bool{8 << 20: true, 64 << 20: true, 128 << 20: false} {
		var file bytes.Buffer
		w, err := xz.WriterConfig{DictCap: dictionary}.NewWriter(&file)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(makeACI(aciManifest, "file", "content"))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = l.pullACI(l.write("x.aci", file.String()))
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "dictionary size exceeds max") {
			t.Errorf("a dictionary of %d bytes: %v", dictionary, err)
		}
	}
}

func TestHostileACI(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	deep := func(open, inner, end string) string {
		return strings.Repeat(open, 100_000) + inner + strings.Repeat(end, 100_000)
	}
	for name, test := range map[string]struct{ manifest, want string }{
		"deep":         {deep("[", "", "]"), "max depth"},
		"deep unknown": {strings.TrimSuffix(aciManifest, "}") + `,"x":` + deep("[", "", "]") + "}", "max depth"},
		"deep app":     {strings.TrimSuffix(aciManifest, "}") + `,"app":` + deep(`{"x":`, "1", "}") + "}", "max depth"},
		"large":        {aciManifest + strings.Repeat(" ", 4<<20), "at most 1048576 bytes"},
		"many":         {strings.TrimSuffix(aciManifest, "}") + `,"dependencies":[` + strings.Repeat("{},", 300_000) + "{}]}", "more than 64 dependencies"},
		"labels":       {strings.TrimSuffix(aciManifest, "}") + `,"labels":[` + strings.Repeat("{},", 300_000) + "{}]}", "label"},
		"long":         {`{"acKind":"` + strings.Repeat("x", 1<<19) + `"}`, "not ImageManifest"},
	} {
		start := time.Now()
		_, err := l.pullACI(l.write("x.aci", string(makeACI(test.manifest, "file", "content"))))
		if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 4000 || time.Since(start) > 10*time.Second {
			t.Errorf("%s: want …%s…, got %.500v after %v", name, test.want, err, time.Since(start))
		}
	}
}
