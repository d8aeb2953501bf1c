package fetch

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"go.podman.io/storage/pkg/chunked/compressor"
	"golang.org/x/sys/unix"

	"nspawnd/image"
)

func insecureTransport() http.RoundTripper {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	return transport
}

// needMounts skips what stores layers: a layer that can't be mounted is not stored.
func needMounts(t *testing.T) {
	t.Helper()
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("storing layers takes root and EROFS: %v", err)
	}
	unix.Close(fd)
}

// insecure are the options for tests that are about something else than trust.
func (l *lab) insecure() Options {
	options := l.options()
	options.InsecureImage = true
	return options
}

// wantError pulls, wants a failure with certain words and that nothing of it stays in the store.
func (l *lab) wantError(name string, options Options, want string) {
	l.t.Helper()
	_, err := l.pullWith(name, options)
	if err == nil || !strings.Contains(err.Error(), want) {
		l.t.Errorf("%s: want …%s…, got %v", name, want, err)
		return
	}
	if prefix := "image " + l.host + "/" + name; !strings.HasPrefix(err.Error(), prefix) || strings.ContainsAny(err.Error(), "\n\x1b") {
		l.t.Errorf("%q does not begin with %q", err, prefix)
	}
	for _, sub := range []string{"tmp", "images"} {
		entries, err := os.ReadDir(filepath.Join(l.storeDir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.t.Fatal(err)
		}
		for _, entry := range entries {
			l.t.Errorf("%s: %s/%s is left over", name, sub, entry.Name())
		}
	}
}

func (l *lab) asked(words string) bool {
	return slices.ContainsFunc(l.requests, func(request string) bool { return strings.Contains(request, words) })
}

func TestPull(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	base, top := layerTar("bin/hello", "hello"), layerTar("etc/motd", "welcome")
	img := makeImage(t, base, top)
	digest := l.push("demo/x:1", img)
	var progress atomic.Int64
	options := l.insecure()
	options.Progress = func(_ image.Digest, done, total int64) { progress.Add(1) }
	got, err := l.pullWith("demo/x:1", options)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.ManifestDigest) != digest || len(got.Layers) != 2 || got.Layers[0] != image.DigestOf(base) || got.Config.Env[0] != "A=b" {
		t.Errorf("%+v", got)
	}
	if progress.Load() == 0 {
		t.Error("no progress")
	}
	if got.Trust.Kind != image.TrustInsecure || !slices.Equal(got.Trust.Insecure, []string{"image"}) {
		t.Errorf("%+v", got.Trust)
	}
	for _, blob := range []image.Digest{got.ManifestDigest, got.ConfigDigest} {
		if _, err := l.store.Blob(blob); err != nil {
			t.Error(err)
		}
	}
	mount, err := l.store.Mount(got, "")
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	if data, err := image.NewRoot(mount).ReadFile("etc/motd", 100); string(data) != "welcome" {
		t.Error(err)
	}

	// Again: the manifest is all that is asked for.
	if _, err := l.pullWith("demo/x:1", l.insecure()); err != nil {
		t.Fatal(err)
	}
	if l.asked("/blobs/") || len(l.requests) != 2 {
		t.Errorf("requests: %s", l.requests)
	}
	// Another image with a layer of the first: only the rest is fetched.
	l.push("demo/y:1", makeImage(t, base, layerTar("other", "x")))
	if _, err := l.pullWith("demo/y:1", l.insecure()); err != nil {
		t.Fatal(err)
	}
	if blobs := strings.Count(strings.Join(l.requests, " "), "/blobs/"); blobs != 2 {
		t.Errorf("%d blobs instead of a configuration and a layer: %s", blobs, l.requests)
	}
}

// rawImage is an image whose layers are blobs as they are; diffIDs are what the configuration says of them.
func rawImage(t *testing.T, mediaType types.MediaType, diffIDs []string, blobs ...[]byte) v1.Image {
	t.Helper()
	config := map[string]any{"os": "linux", "architecture": "amd64", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return customImage(t, mediaType, data, blobs...)
}

func customImage(t *testing.T, mediaType types.MediaType, config []byte, blobs ...[]byte) v1.Image {
	t.Helper()
	img := &fixedImage{Image: empty.Image, config: config}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(config)), Digest: hashOf(config)}}
	for _, blob := range blobs {
		img.layers = append(img.layers, static.NewLayer(blob, mediaType))
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: mediaType, Size: int64(len(blob)), Digest: hashOf(blob)})
	}
	img.manifest = manifest
	return img
}

func hashOf(data []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: image.DigestOf(data).Hex()}
}

// fixedImage says exactly what it is told to.
type fixedImage struct {
	v1.Image
	manifest v1.Manifest
	config   []byte
	layers   []v1.Layer
}

func (f *fixedImage) RawConfigFile() ([]byte, error)      { return f.config, nil }
func (f *fixedImage) ConfigName() (v1.Hash, error)        { return hashOf(f.config), nil }
func (f *fixedImage) RawManifest() ([]byte, error)        { return json.Marshal(f.manifest) }
func (f *fixedImage) Manifest() (*v1.Manifest, error)     { return &f.manifest, nil }
func (f *fixedImage) MediaType() (types.MediaType, error) { return f.manifest.MediaType, nil }
func (f *fixedImage) Layers() ([]v1.Layer, error)         { return f.layers, nil }
func (f *fixedImage) Size() (int64, error)                { data, _ := f.RawManifest(); return int64(len(data)), nil }
func (f *fixedImage) Digest() (v1.Hash, error)            { data, _ := f.RawManifest(); return hashOf(data), nil }
func (f *fixedImage) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, layer := range f.layers {
		if digest, _ := layer.Digest(); digest == h {
			return layer, nil
		}
	}
	return static.NewLayer(f.config, types.OCIConfigJSON), nil
}

func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	w.Close()
	return buf.Bytes()
}

func zstdCompressed(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// randomText is the same each time.
func randomText(n int) string {
	random := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(random)
	return string(random)
}

func TestLayerFormats(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'n', 'o', 't', 'e'}
	half := func(data []byte) int { return len(data) / 2 }
	for name, make := range map[string]func(tar []byte) (types.MediaType, []byte){
		"tar":  func(tar []byte) (types.MediaType, []byte) { return types.OCIUncompressedLayer, tar },
		"gzip": func(tar []byte) (types.MediaType, []byte) { return types.OCILayer, gzipped(tar) },
		"gzip2": func(tar []byte) (types.MediaType, []byte) {
			return types.OCILayer, append(gzipped(tar[:half(tar)]), gzipped(tar[half(tar):])...)
		},
		"zstd": func(tar []byte) (types.MediaType, []byte) { return types.OCILayerZStd, zstdCompressed(t, tar) },
		"zstd2": func(tar []byte) (types.MediaType, []byte) {
			return types.OCILayerZStd, append(zstdCompressed(t, tar[:half(tar)]), zstdCompressed(t, tar[half(tar):])...)
		},
		"skip": func(tar []byte) (types.MediaType, []byte) {
			return types.OCILayerZStd, append(append(slices.Clone(skippable), zstdCompressed(t, tar)...), skippable...)
		},
		"docker": func(tar []byte) (types.MediaType, []byte) { return types.DockerLayer, gzipped(tar) },
		"wrong":  func(tar []byte) (types.MediaType, []byte) { return types.OCILayer, tar }, // it says gzip but is not: podman takes it too
	} {
		tar := layerTar("file", name)
		mediaType, blob := make(tar)
		l.push(name+":1", rawImage(t, mediaType, []string{string(image.DigestOf(tar))}, blob))
		if _, err := l.pullWith(name+":1", l.insecure()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is made to be fetched in pieces: a table of contents behind the files, as one more file, or in frames that are no content.
	tarball := layerTar("random", randomText(3<<20))
	t.Setenv("TMPDIR", t.TempDir()) // it leaves files there
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tarball), 0, int64(len(tarball))), estargz.WithChunkSize(1<<18))
	if err != nil {
		t.Fatal(err)
	}
	stargz, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	var chunked bytes.Buffer
	w, err := compressor.ZstdCompressor(&chunked, map[string]string{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(tarball)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, img := range map[string]v1.Image{
		"stargz":  rawImage(t, types.OCILayer, []string{string(built.DiffID())}, stargz),
		"chunked": rawImage(t, types.OCILayerZStd, []string{string(image.DigestOf(tarball))}, chunked.Bytes()),
	} {
		l.push(name+":1", img)
		got, err := l.pullWith(name+":1", l.insecure())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mount, err := l.store.Mount(got, "")
		if err != nil {
			t.Fatal(err)
		}
		if data, err := image.NewRoot(mount).ReadFile("random", 4<<20); string(data) != randomText(3<<20) {
			t.Errorf("%s: another file, of %d bytes, %v", name, len(data), err)
		}
		mount.Close()
	}
	empty := layerTar("x", "y")
	l.push("twice:1", rawImage(t, types.OCILayer, []string{string(image.DigestOf(empty)), string(image.DigestOf(empty))}, gzipped(empty), gzipped(empty)))
	if _, err := l.pullWith("twice:1", l.insecure()); err != nil {
		t.Error("the same layer twice:", err)
	}
}

func TestRefusedImages(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	tar := layerTar("file", strings.Repeat("content", 1000))
	diffID := []string{string(image.DigestOf(tar))}
	other := []string{string(image.DigestOf([]byte("other")))}
	blob := gzipped(tar)
	for _, test := range []struct {
		name, want string
		img        v1.Image
	}{
		{"type", "its type \"application/x\" is not supported", rawImage(t, "application/x", diffID, blob)},
		{"foreign", "is not supported", rawImage(t, types.DockerForeignLayer, diffID, blob)},
		{"restricted", "is not supported", rawImage(t, types.OCIRestrictedLayer, diffID, blob)},
		{"encrypted", "is not supported", rawImage(t, types.OCILayer+"+encrypted", diffID, blob)},
		{"count", "manifest has 1 layers, configuration 0", rawImage(t, types.OCILayer, nil, blob)},
		{"many", "layers, more than", rawImage(t, types.OCILayer, diffID, slices.Repeat([][]byte{blob}, 500)...)},
		{"config", "image configuration: invalid character", customImage(t, types.OCILayer, []byte("no JSON"), blob)},
		{"rootfs", "root file system of type", customImage(t, types.OCILayer, []byte("{}"), blob)},
		{"platform", "is for linux/arm64, not for linux/amd64", customImage(t, types.OCILayer, fmt.Appendf(nil, `{"os":"linux","architecture":"arm64","rootfs":{"type":"layers","diff_ids":[%q]}}`, diffID[0]), blob)},
		{"diffid", "its uncompressed content has digest " + diffID[0], rawImage(t, types.OCILayer, other, blob)},
		{"cut", "unexpected EOF", rawImage(t, types.OCILayer, diffID, blob[:len(blob)-20])},
		{"trailing", "gzip: data after the end", rawImage(t, types.OCILayer, diffID, append(slices.Clone(blob), "something that trails"...))},
		{"garbage", "layer " + diffID[0] + ": reading tar", rawImage(t, types.OCILayer, diffID, bytes.Repeat([]byte("x"), 2000))},
		{"hostile", `entry "../x"`, rawImage(t, types.OCILayer, []string{string(image.DigestOf(layerTar("../x", "")))}, gzipped(layerTar("../x", "")))},
		{"terminal", "entry \"\\x1b[31m/../x\"", rawImage(t, types.OCILayer, []string{string(image.DigestOf(layerTar("\x1b[31m/../x", "")))}, gzipped(layerTar("\x1b[31m/../x", "")))},
	} {
		l.push(test.name+":1", test.img)
		l.wantError(test.name+":1", l.insecure(), test.want)
		if slices.Contains([]string{"type", "foreign", "encrypted", "many"}, test.name) && l.asked("/blobs/") {
			t.Errorf("%s: asked for a blob before it was refused: %s", test.name, l.requests)
		}
	}

	l.push("schema1:1", rawTaggable{`{"schemaVersion":1,"name":"x","tag":"1","architecture":"amd64","fsLayers":[],"history":[]}`, types.DockerManifestSchema1})
	l.wantError("schema1:1", l.insecure(), "is not supported")
	l.push("artifact:1", rawTaggable{fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/x","config":{"mediaType":"application/vnd.oci.empty.v1+json","size":2,"digest":%q},"layers":[]}`,
		types.OCIManifestSchema1, image.DigestOf([]byte("{}"))), types.OCIManifestSchema1})
	l.wantError("artifact:1", l.insecure(), "not an image of a file system")
	l.push("sha512:1", rawTaggable{fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"size":2,"digest":"sha512:%s"},"layers":[]}`,
		types.OCIManifestSchema1, types.OCIConfigJSON, strings.Repeat("0", 128)), types.OCIManifestSchema1})
	l.wantError("sha512:1", l.insecure(), "not a sha256 digest")
}

// rawTaggable is a manifest as it is.
type rawTaggable struct {
	manifest  string
	mediaType types.MediaType
}

func (r rawTaggable) RawManifest() ([]byte, error)        { return []byte(r.manifest), nil }
func (r rawTaggable) MediaType() (types.MediaType, error) { return r.mediaType, nil }

// A registry that lies about what it has.
func TestLyingRegistry(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	tar := layerTar("file", "content")
	img := makeImage(t, tar)
	digest := l.push("demo/x:1", img)
	layers, _ := img.Layers()
	layerDigest, _ := layers[0].Digest()
	configDigest, _ := img.ConfigName()
	honest := l.handler
	for _, test := range []struct {
		name, path string
		answer     func([]byte) []byte
		want       string
	}{
		{"x:1", "/blobs/" + configDigest.String(), func(b []byte) []byte { return bytes.Replace(b, []byte("A=b"), []byte("A=c"), 1) }, "blob " + configDigest.String() + ": its content has another digest"},
		{"x:1", "/blobs/" + layerDigest.String(), func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "layer " + string(image.DigestOf(tar))},
		{"x:1", "/blobs/" + layerDigest.String(), func([]byte) []byte { return gzipped(layerTar("file", "another")) }, "blob " + layerDigest.String() + ": "},
		{"x:1", "/blobs/" + layerDigest.String(), func(b []byte) []byte { return append(b, "more"...) }, "longer than the"},
		{"x:1", "/blobs/" + layerDigest.String(), func(b []byte) []byte { return b[:10] }, "10 bytes, but the manifest says"},
		{"x@" + digest, "/manifests/" + digest, func(b []byte) []byte { return append(b, ' ') }, "does not match provided manifest digest"},
	} {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, test.path) {
				honest.ServeHTTP(w, r)
				return
			}
			recorder := &recorder{header: w.Header()}
			honest.ServeHTTP(recorder, r)
			w.Header().Del("Content-Length")
			w.Write(test.answer(recorder.body.Bytes()))
		})
		l.wantError("demo/"+test.name, l.insecure(), test.want)
	}
	l.handler = honest
	if _, err := l.pullWith("demo/x:1", l.insecure()); err != nil {
		t.Errorf("after all the lies: %v", err)
	}
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(int)             {}

func TestUnhappyRegistries(t *testing.T) {
	l := newLab(t)
	l.push("demo/x:1", makeImage(t))
	honest := l.handler
	check := func(name string, want error, words, advice string) {
		t.Helper()
		l.wantError(name, l.insecure(), words)
		_, err := l.pullWith(name, l.insecure())
		var e *Error
		if !errors.Is(err, want) || !errors.As(err, &e) || !strings.Contains(strings.Join(e.Advice, "\n"), advice) {
			t.Errorf("%s: %v %v", name, err, e)
		}
	}
	check("demo/x:2", ErrNoSuchImage, "not found on the registry", "")
	check("demo/none:1", ErrNoSuchImage, "not found on the registry", "")
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"\u001b[31mauthentication required"}]}`, http.StatusUnauthorized)
	})
	check("demo/x:1", ErrDenied, "access denied", "podman login "+l.host)
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"\u001b[31mno"}]}`, http.StatusForbidden)
		}
	})
	check("demo/x:1", ErrDenied, "access denied", "podman login")
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusInternalServerError) })
	l.wantError("demo/x:1", l.insecure(), "500")

	l.handler = honest
	l.system.DockerCertPath = filepath.Join(l.etc, "none")
	check("demo/x:1", ErrUnreachable, "certificate", "/etc/containers/certs.d/"+l.host)
	ref, _ := image.ParseReference("127.0.0.1:1/x")
	_, err := Pull(context.Background(), l.store, ref, l.insecure())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
	ref, _ = image.ParseReference("nowhere.invalid/x")
	if _, err := Pull(context.Background(), l.store, ref, l.insecure()); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

// A registry that says nothing, at any point, is given up; one who is told to stop stops at once.
func TestHangingRegistry(t *testing.T) {
	needMounts(t)
	defer func(before time.Duration) { patience = before }(patience)
	patience = 200 * time.Millisecond
	l := newLab(t)
	img := makeImage(t, layerTar("file", "content"))
	l.push("demo/x:1", img)
	honest := l.handler
	for _, path := range []string{"/v2/", "/manifests/1", "/blobs/"} {
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, path) {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			honest.ServeHTTP(w, r)
		})
		start := time.Now()
		l.wantError("demo/x:1", l.insecure(), "the registry sent nothing for 200ms")
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: took %v", path, took)
		}
	}
	patience = time.Minute
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := Pull(ctx, l.store, l.reference("demo/x:1"), l.insecure()); !errors.Is(err, ErrInterrupted) {
		t.Error(err)
	}
}

func TestUncompressStops(t *testing.T) {
	// The reader is closed while the network is waited for.
	r, w := io.Pipe()
	defer w.Close()
	layer := uncompress(r, func() { r.CloseWithError(context.Canceled) })
	go w.Write(gzipped(bytes.Repeat([]byte("x"), 1<<20))[:100])
	if err := layer.Close(); err != nil {
		t.Error(err)
	}
	if n, err := layer.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("read after close")
	}
}

func TestIndex(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	amd64, arm64 := makeImage(t, layerTar("arch", "amd64")), makeImage(t, layerTar("arch", "arm64"))
	arm64, err := mutate.ConfigFile(arm64, func() *v1.ConfigFile {
		c, _ := arm64.ConfigFile()
		c = c.DeepCopy()
		c.Architecture = "arm64"
		return c
	}())
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: arm64, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: amd64, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	digest := l.push("demo/x:1", index)
	want, _ := amd64.Digest()
	for _, name := range []string{"demo/x:1", "demo/x@" + digest, "demo/x:gone@" + digest} {
		got, err := l.pullWith(name, l.insecure())
		if err != nil {
			t.Fatal(err)
		}
		if string(got.ManifestDigest) != want.String() || got.Platform.Architecture != "amd64" {
			t.Errorf("%s: %+v", name, got)
		}
		if stored, err := l.store.Image(l.reference(name)); err != nil || stored.ManifestDigest != got.ManifestDigest {
			t.Error(err)
		}
	}
	options := l.insecure()
	options.Platform = image.Platform{OS: "linux", Architecture: "arm64"}
	if got, err := l.pullWith("demo/x:1", options); err != nil || got.Platform.Architecture != "arm64" {
		t.Error(got, err)
	}
	options.Platform.Architecture = "s390x"
	_, err = l.pullWith("demo/x:1", options)
	if err == nil || !strings.Contains(err.Error(), "no image found in image index for architecture \"s390x\"") {
		t.Error(err)
	}
}
