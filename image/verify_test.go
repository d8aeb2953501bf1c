package image

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whichever byte of a layer changes, verification finds it.
func TestVerifyLayer(t *testing.T) {
	needMounts(t)
	s, w := newStore(t)
	layer := makeTar(t, dir("./", 0o755), dir("d/", 0o700), file("d/a", "content"), symlink("d/l", strings.Repeat("x", 600)), file("b", "other"))
	diffID, err := addTar(w, layer)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyLayer(diffID); err != nil {
		t.Fatal(err)
	}
	tar, err := s.OpenLayer(diffID)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(tar); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("the layer's tar is another: %v", err)
	}
	tar.Close()
	damaged := func(what string) {
		t.Helper()
		if err := s.VerifyLayer(diffID); err == nil || !strings.HasPrefix(err.Error(), "layer "+string(diffID)+": ") {
			t.Fatalf("%s: got %v", what, err)
		}
	}
	for _, name := range []string{tarFile, indexFile, "layer.json"} {
		path := filepath.Join(s.layerDir(diffID), name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			os.WriteFile(path, bad, 0o600)
			damaged(name)
		}
		os.WriteFile(path, append(good, 0), 0o600)
		damaged(name + ", longer")
		os.WriteFile(path, good[:len(good)-1], 0o600)
		damaged(name + ", cut")
		os.Remove(path)
		damaged("no " + name)
		os.WriteFile(path, good, 0o600)
		if err := s.VerifyLayer(diffID); err != nil {
			t.Fatal(err)
		}
	}
}
