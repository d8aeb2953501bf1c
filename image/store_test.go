package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// files lists what is below the store's root, without the directories that are always there.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() && info.Mode().Perm() != 0o700 || !d.IsDir() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %s", path, info.Mode())
		}
		if name := strings.TrimPrefix(path, s.root+"/"); !d.IsDir() || strings.HasPrefix(name, "tmp/") {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestStore(t *testing.T) {
	needMounts(t)
	s, w := newStore(t)
	layer := makeTar(t, dir("./", 0o755), file("a", "content"))
	img := addImage(t, w, "registry.test:5000/demo/x:1", layer, makeTar(t, file("b", "")))
	pinned := addImage(t, w, "registry.test:5000/demo/x@"+someDigest, layer)
	img.Config = Config{Env: []string{"A=b"}, Labels: map[string]string{"l": "\x1b"}}
	img.Trust = Trust{Kind: TrustGPG, Signer: "ABC", Time: time.Unix(1e9, 0).UTC()}
	if err := w.AddImage(img); err != nil {
		t.Fatal(err)
	}
	if img.RootLayer != 0 || img.Size < int64(len(layer)) {
		t.Errorf("root layer %d, size %d", img.RootLayer, img.Size)
	}
	got, err := s.Image(img.Reference)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.AllowUnexported(Reference{})
	if diff := cmp.Diff(img, got, same); diff != "" {
		t.Error(diff)
	}
	all, err := s.Images()
	if diff := cmp.Diff([]*Image{img, pinned}, all, same); err != nil || diff != "" {
		t.Error(err, diff)
	}
	hex := strings.TrimPrefix(string(img.Layers[0]), "sha256:")
	if raw, err := os.ReadFile(filepath.Join(s.root, "layers", "sha256-"+hex, "layer.tar")); err != nil || !bytes.Equal(raw, layer) {
		t.Error("the tar is not kept byte for byte")
	}
	data := []byte("a manifest")
	digest, err := w.AddBlob(data)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := s.Blob(digest); err != nil || !bytes.Equal(back, data) {
		t.Error(err)
	}
	w.Close()
	for _, name := range files(t, s) {
		if strings.HasPrefix(name, "tmp/") {
			t.Errorf("%s is left over", name)
		}
	}
	other, _ := ParseReference("registry.test:5000/demo/y")
	if _, err := s.Image(other); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Blob(DigestOf([]byte("other"))); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestStoreDamaged(t *testing.T) {
	needMounts(t)
	s, w := newStore(t)
	img := addImage(t, w, "a.test/x", makeTar(t))
	digest, err := w.AddBlob([]byte("a manifest"))
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(s.path("blobs", "sha256", digest.Hex()), []byte("another"), 0o600)
	if _, err := s.Blob(digest); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
	record := s.path("images", img.Reference.recordPath())
	os.Link(record, s.path("images", "a.test", "other:latest.json"))
	os.WriteFile(s.path("images", "a.test", "broken:1.json"), []byte("{"), 0o600)
	all, err := s.Images()
	if len(all) != 1 || err == nil || !strings.Contains(err.Error(), "broken:1.json") || !strings.Contains(err.Error(), "is that of a.test/x:latest") {
		t.Error(all, err)
	}
}

func TestEmptyStore(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if all, err := s.Images(); len(all) != 0 || err != nil {
		t.Error(all, err)
	}
	if _, err := os.Stat(s.root); !errors.Is(err, fs.ErrNotExist) {
		t.Error("looking made a directory")
	}
}

func TestAddLayerRefuses(t *testing.T) {
	needMounts(t)
	s, w := newStore(t)
	data := makeTar(t, file("a", ""))
	opener := func(r io.Reader) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(r), nil }
	}
	cut := errors.New("cut")
	for want, open := range map[string]func() (io.ReadCloser, error){
		"its uncompressed content has digest " + string(DigestOf(data)): opener(bytes.NewReader(data)),
		"cut":    opener(io.MultiReader(bytes.NewReader(data), errorReader{cut})),
		"opened": func() (io.ReadCloser, error) { return nil, errors.New("opened") },
	} {
		err := w.AddLayer(context.Background(), someDigest, open)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "layer "+someDigest) {
			t.Errorf("want …%s…, got %v", want, err)
		}
	}
	w.Close()
	if left := files(t, s); left != nil {
		t.Errorf("%v is left over", left)
	}
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

// Many who want the same layer: one reads it, the others wait. If that one fails, the next one tries.
func TestAddLayerTogether(t *testing.T) {
	needMounts(t)
	s, _ := newStore(t)
	data := makeTar(t, file("a", "content"))
	var opened, failed atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			w, err := s.Writer()
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			err = w.AddLayer(context.Background(), DigestOf(data), func() (io.ReadCloser, error) {
				if opened.Add(1) == 1 {
					return nil, errors.New("the first fails")
				}
				return io.NopCloser(bytes.NewReader(data)), nil
			})
			if err != nil {
				failed.Add(1)
			}
		})
	}
	group.Wait()
	if opened.Load() != 2 || failed.Load() != 1 || !s.HasLayer(DigestOf(data)) {
		t.Errorf("opened %d times, %d failed", opened.Load(), failed.Load())
	}
}

func TestAddLayerCancelled(t *testing.T) {
	needMounts(t)
	_, w := newStore(t)
	data := makeTar(t, file("a", "content"))
	r, holder := io.Pipe()
	first := make(chan error)
	reading := make(chan struct{})
	go func() {
		first <- w.AddLayer(context.Background(), DigestOf(data), func() (io.ReadCloser, error) {
			close(reading)
			return r, nil
		})
	}()
	<-reading
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("had enough")
	second := make(chan error)
	go func() {
		second <- w.AddLayer(ctx, DigestOf(data), func() (io.ReadCloser, error) { panic("the first one is at it") })
	}()
	cancel(reason)
	if err := <-second; !errors.Is(err, reason) {
		t.Error(err)
	}
	holder.Write(data)
	holder.Close()
	if err := <-first; err != nil {
		t.Error(err)
	}
	// The lock that was waited for is not held by anybody.
	if err := w.AddLayer(context.Background(), DigestOf(data), nil); err != nil {
		t.Error(err)
	}
}

func TestWriterRemovesLeftovers(t *testing.T) {
	s, w := newStore(t)
	if _, err := w.AddBlob([]byte("a manifest")); err != nil {
		t.Fatal(err)
	}
	layer, err := lockDir(context.Background(), s.path("tmp", layerName(someDigest)))
	if err != nil {
		t.Fatal(err)
	}
	living := files(t, s)
	os.WriteFile(s.path("tmp", "file-1"), nil, 0o600)
	os.MkdirAll(s.path("tmp", "writer-1", "sha256-x"), 0o700)
	second, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if diff := cmp.Diff(living, files(t, s)); diff != "" {
		t.Error(diff)
	}
	w.dir.Close() // what is left when it is killed
	layer.Close()
	third, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("%v is left over, %v", left, err)
	}
}

func FuzzParseImage(f *testing.F) {
	f.Add([]byte(`{"reference":"a.test/x:1","manifestDigest":"` + someDigest + `","configDigest":"` + someDigest + `","layers":[],"rootLayer":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := parseImage(data)
		if err != nil {
			return
		}
		path := filepath.Clean("/images/" + img.Reference.recordPath())
		if !strings.HasPrefix(path, "/images/") || filepath.Base(path) == ".json" {
			t.Errorf("the record of %s is %s", img.Reference, path)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"User":"1000","Env":["A=b"],"ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["NONE"]}},"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, config, layers, err := ParseConfig(data)
		if err != nil {
			return
		}
		for _, layer := range layers {
			if len(layer) != len(someDigest) {
				t.Errorf("a DiffID %q", layer)
			}
		}
		for _, word := range append(append(config.Env, config.Cmd...), config.User) {
			if strings.Contains(word, "\x00") {
				t.Error("NUL")
			}
		}
	})
}

func TestParseConfig(t *testing.T) {
	for want, data := range map[string]string{
		"":                    `{"rootfs":{"type":"layers"},"config":null,"unknown":[1]}`,
		"not of layers":       `{"rootfs":{"type":"other"}}`,
		"not a sha256":        `{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}`,
		"NUL":                 `{"rootfs":{"type":"layers"},"config":{"Cmd":["a\u0000b"]}}`,
		"image configuration": `[]`,
	} {
		_, _, _, err := ParseConfig([]byte(data))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", data, err)
		}
	}
	_, config, _, err := ParseConfig([]byte(`{"rootfs":{"type":"layers"},"config":{"cmd":["x"],"Env":null,"Entrypoint":[],"Volumes":null,"StopTimeout":null,"User":null,
		"OnBuild":["RUN x"],"Memory":1,"Hostname":"","AttachStdin":false,"Shell":null,"MemorySwap":0,"Tty":true,"Other":["y"],"ArgsEscaped":true,"Image":"sha256:00","x-y":{}}}`))
	want := Config{Cmd: []string{"x"}, Entrypoint: []string{}, Other: []string{"ArgsEscaped", "Image", "Memory", "OnBuild", "Other", "Tty"}}
	if diff := cmp.Diff(want, config); err != nil || diff != "" {
		t.Error(err, diff)
	}
}
