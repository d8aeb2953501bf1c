package fetch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nspawnd/image"
)

// A layer that two images share is damaged: one repair helps both, and asks for that layer alone.
func TestRepair(t *testing.T) {
	needMounts(t)
	for _, backend := range []string{"erofs", "dirs"} {
		l := newLab(t)
		must(t, l.store.SetBackend(backend))
		shared := layerTar("shared", strings.Repeat("content", 100))
		l.push("demo/a:1", makeImage(t, shared, layerTar("a", "a")))
		l.push("demo/b:1", makeImage(t, shared, layerTar("b", "b")))
		var images []*image.Image
		for _, name := range []string{"demo/a:1", "demo/b:1"} {
			img, err := l.pullWith(name, l.insecure())
			must(t, err)
			images = append(images, img)
		}
		l.push("demo/a:1", makeImage(t, layerTar("a", "of today"))) // another image has the name now
		diffID := image.DigestOf(shared)
		dir := filepath.Join(l.storeDir, "layers", "sha256-"+diffID.Hex())
		spoil := func() {
			t.Helper()
			spoiled := false
			must(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
				data, _ := os.ReadFile(path)
				if at := strings.Index(string(data), "contentcontent"); at >= 0 {
					data[at] ^= 1
					spoiled = true
					return os.WriteFile(path, data, 0o600)
				}
				return err
			}))
			for _, img := range images {
				if faults := VerifyContent(l.store, img); !spoiled || len(faults) != 1 {
					t.Fatalf("%s, %s: spoiled %v, %v", backend, img.Reference, spoiled, faults)
				}
			}
		}
		spoil()

		honest := l.handler
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Error(w, "gone", http.StatusNotFound)
				return
			}
			honest.ServeHTTP(w, r)
		})
		var e *Error
		if err := Repair(context.Background(), l.store, images[0], l.options()); !errors.As(err, &e) {
			t.Error(backend, err)
		}
		if !l.store.HasLayer(diffID) {
			t.Errorf("%s: a repair that failed has removed what was there", backend)
		}
		l.handler = honest

		l.requests = nil
		must(t, Repair(context.Background(), l.store, images[0], l.options()))
		blobs := slices.DeleteFunc(slices.Clone(l.requests), func(request string) bool { return !strings.Contains(request, "/blobs/") })
		if len(blobs) != 1 {
			t.Errorf("%s: asked for %q", backend, blobs)
		}
		for _, img := range images {
			if faults := VerifyContent(l.store, img); faults != nil {
				t.Errorf("%s, %s: %v", backend, img.Reference, faults)
			}
			if now, err := l.store.Image(img.Reference); err != nil || now.ManifestDigest != img.ManifestDigest {
				t.Error(now, err)
			}
		}
		if left, _ := os.ReadDir(filepath.Join(l.storeDir, "tmp")); len(left) > 0 {
			t.Errorf("%s: %v", backend, left)
		}
		must(t, Repair(context.Background(), l.store, images[0], l.options())) // of nothing
	}
}
