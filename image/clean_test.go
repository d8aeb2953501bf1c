package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeLayer puts a layer in the store that can't be mounted.
func fakeLayer(t testing.TB, s *Store, name string) Digest {
	t.Helper()
	diffID := DigestOf([]byte(name))
	if err := os.Mkdir(s.layerDir(diffID), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.layerDir(diffID), "layer.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return diffID
}

// fakeBlob puts a blob in the store, as a writer that is gone has.
func fakeBlob(t testing.TB, s *Store, content string) Digest {
	t.Helper()
	digest := DigestOf([]byte(content))
	if err := os.WriteFile(s.path("blobs", "sha256", digest.Hex()), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return digest
}

func mustParse(t testing.TB, name string) Reference {
	t.Helper()
	ref, err := ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// fakeImage stores an image of the layers and blobs that are named after what they are.
func fakeImage(t testing.TB, s *Store, name string) *Image {
	t.Helper()
	img := &Image{
		Reference:      mustParse(t, name),
		ManifestDigest: fakeBlob(t, s, name+" manifest"),
		ConfigDigest:   fakeBlob(t, s, name+" config"),
		Layers:         []Digest{fakeLayer(t, s, name+" layer 1"), fakeLayer(t, s, name+" layer 2")},
		Trust:          Trust{Signed: fakeBlob(t, s, name+" index"), Signatures: []Digest{fakeBlob(t, s, name+" signature 1"), fakeBlob(t, s, name+" signature 2")}},
	}
	write(t, s, func(w *Writer) error { return w.AddImage(img) })
	return img
}

func write(t testing.TB, s *Store, f func(*Writer) error) {
	t.Helper()
	w, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := f(w); err != nil {
		t.Fatal(err)
	}
}

// emptyStore is a store that nobody writes to.
func emptyStore(t testing.TB) *Store {
	t.Helper()
	s, w := newStore(t)
	w.Close()
	return s
}

// claimFor makes the directory of a machine that runs on img, as its client leaves it to the unit.
func claimFor(t testing.TB, s *Store, name string, img *Image) (dir string) {
	t.Helper()
	machine, err := s.NewMachine(name)
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	if err := s.Claim(img, machine.Name()); err != nil {
		t.Fatal(err)
	}
	return machine.Name()
}

func kinds(removed []Removed) map[string]int {
	n := map[string]int{}
	for _, r := range removed {
		n[r.Kind]++
	}
	return n
}

// What is removed is what nothing refers to, and nothing else.
func TestClean(t *testing.T) {
	ctx := context.Background()
	s := emptyStore(t)
	fakeImage(t, s, "a.test/image:1")
	index := fakeBlob(t, s, "an index that was named")
	pinned := fakeImage(t, s, "a.test/pinned@"+string(index))
	claimFor(t, s, "web", fakeImage(t, s, "a.test/running:1"))
	claimFor(t, s, "db", fakeImage(t, s, "a.test/replaced:1"))
	write(t, s, func(w *Writer) error {
		// The digest is that of a name which it is not stored under any more.
		if err := w.Rename(ctx, pinned.Reference, mustParse(t, "a.test/renamed:1")); err != nil {
			return err
		}
		return w.Tag(ctx, mustParse(t, "a.test/image:1"), mustParse(t, "a.test/replaced:1"))
	})
	if err := os.Remove(s.RecordPath(mustParse(t, "a.test/running:1"))); err != nil {
		t.Fatal(err)
	}
	// What is not ours is not touched.
	os.WriteFile(s.path("layers", "sha256-notes"), nil, 0o600)
	os.WriteFile(s.path("blobs", "sha256", "notes"), nil, 0o600)
	writer, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	ofWriter, err := writer.AddBlob([]byte("a blob of an image to come"))
	if err != nil {
		t.Fatal(err)
	}
	claimedLayer := fakeLayer(t, s, "a layer that is there and an image to come needs")
	if err := writer.AddLayer(ctx, claimedLayer, nil); err != nil {
		t.Fatal(err)
	}
	want := files(t, s)

	fakeBlob(t, s, "a blob that nothing needs")
	fakeLayer(t, s, "a layer that nothing needs")
	dead, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	ofDead, err := dead.AddBlob([]byte("a blob of a dead writer"))
	if err != nil {
		t.Fatal(err)
	}
	dead.dir.Close()
	os.MkdirAll(s.path("tmp", layerName(ofDead)), 0o700)
	os.MkdirAll(s.path("images", "left.test", "by", "the dead"), 0o700)

	removed, err := s.Clean(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, files(t, s)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int{"blob": 2, "layer": 1, "leftover": 2}, kinds(removed)); diff != "" {
		t.Error(diff)
	}
	for _, r := range removed {
		if r.Kind != "leftover" && r.Size == 0 {
			t.Errorf("%s %s: no size", r.Kind, r.Name)
		}
	}
	if _, err := os.Stat(s.path("images", "left.test")); err == nil {
		t.Error("an empty directory is left")
	}
	if again, err := s.Clean(ctx, false); err != nil || len(again) != 0 {
		t.Errorf("again: %v, %v", again, err)
	}

	// All: what a machine uses stays, under whatever name, and what is read-only.
	write(t, s, func(w *Writer) error { return w.SetReadOnly(ctx, mustParse(t, "a.test/renamed:1"), true) })
	claimFor(t, s, "job", fakeImage(t, s, "a.test/used:1"))
	write(t, s, func(w *Writer) error { return w.Tag(ctx, mustParse(t, "a.test/used:1"), mustParse(t, "a.test/used:2")) })
	if _, err := s.Clean(ctx, true); err != nil {
		t.Fatal(err)
	}
	var names []string
	images, err := s.Images()
	for _, img := range images {
		names = append(names, img.Reference.String())
	}
	if diff := cmp.Diff([]string{"a.test/renamed:1", "a.test/used:1", "a.test/used:2"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := s.Blob(ofWriter); err != nil {
		t.Error(err)
	}

	// When all is gone that refers to anything, nothing is there.
	os.RemoveAll(s.Machines())
	writer.Close()
	write(t, s, func(w *Writer) error { return w.SetReadOnly(ctx, mustParse(t, "a.test/renamed:1"), false) })
	if _, err := s.Clean(ctx, true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"blobs/sha256/notes", "layers/sha256-notes"}, files(t, s)); diff != "" {
		t.Error(diff)
	}
}

func TestCleanOfNothing(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Clean(context.Background(), true); err != nil || len(removed) != 0 {
		t.Error(removed, err)
	}
	if _, errs := s.Remove(context.Background(), []Reference{mustParse(t, "a.test/x")}); len(errs) != 1 || !errors.Is(errs[0], ErrNotFound) {
		t.Error(errs)
	}
	if _, err := os.Stat(s.root); err == nil {
		t.Error("a store was made")
	}
}

// What a damaged record needs is not known, so nothing goes, and the error says how to go on.
func TestCleanDamaged(t *testing.T) {
	ctx := context.Background()
	s := emptyStore(t)
	img := fakeImage(t, s, "a.test/x:1")
	fakeBlob(t, s, "a blob that nothing needs")
	if err := os.WriteFile(s.RecordPath(img.Reference), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := files(t, s)
	_, err := s.Clean(ctx, true)
	if err == nil || !strings.HasPrefix(err.Error(), "nothing was freed") || !strings.HasSuffix(err.Error(), "to remove it: machinectl-lite remove a.test/x:1") {
		t.Error(err)
	}
	if diff := cmp.Diff(want, files(t, s)); diff != "" {
		t.Error(diff)
	}
	stray := s.path("images", "stray")
	os.WriteFile(stray, nil, 0o600)
	if _, errs := s.Remove(ctx, []Reference{img.Reference}); len(errs) != 1 || !strings.HasSuffix(errs[0].Error(), "to remove it: rm "+stray) {
		t.Error(errs)
	}
	os.Remove(stray)
	dir := claimFor(t, s, "my.web", fakeImage(t, s, "a.test/y:1"))
	record := filepath.Join(dir, "image.json")
	os.Remove(record)
	os.WriteFile(record, []byte("{"), 0o600)
	if _, err := s.Clean(ctx, false); err == nil || !strings.HasSuffix(err.Error(), "machinectl-lite terminate my.web") {
		t.Error(err)
	}
	os.RemoveAll(dir)
	if removed, err := s.Clean(ctx, true); err != nil || kinds(removed)["image"] != 1 {
		t.Error(removed, err)
	}
	if diff := cmp.Diff([]string(nil), files(t, s)); diff != "" {
		t.Error(diff)
	}
}

func TestRemove(t *testing.T) {
	ctx := context.Background()
	s := emptyStore(t)
	free, used, locked := fakeImage(t, s, "a.test/free:1"), fakeImage(t, s, "a.test/used:1"), fakeImage(t, s, "a.test/locked:1")
	claimFor(t, s, "web", used)
	alias := mustParse(t, "alias")
	write(t, s, func(w *Writer) error {
		return errors.Join(w.SetReadOnly(ctx, locked.Reference, true), w.Tag(ctx, used.Reference, alias))
	})
	none := mustParse(t, "a.test/none")
	removed, errs := s.Remove(ctx, []Reference{none, free.Reference, used.Reference, alias, locked.Reference})
	if diff := cmp.Diff(map[string]int{"image": 2, "blob": 5, "layer": 2}, kinds(removed)); diff != "" {
		t.Error(diff)
	}
	var got []string
	for _, err := range errs {
		got = append(got, err.Error())
	}
	want := []string{
		"image a.test/none:latest: not in the store",
		"image docker.io/library/alias:latest: machine web uses it; to end that: machinectl-lite terminate web",
		"image a.test/locked:1: is marked read-only; to let it change: machinectl-lite read-only a.test/locked:1 false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if img, err := s.Image(alias); err != nil || img.VerifiedAs() != used.Reference {
		t.Errorf("%+v, %v", img, err)
	}
}

func TestNames(t *testing.T) {
	ctx := context.Background()
	s := emptyStore(t)
	img, other := fakeImage(t, s, "a.test/x:1"), fakeImage(t, s, "a.test/other:1")
	tag, clone, renamed := mustParse(t, "a.test/tag"), mustParse(t, "a.test/clone"), mustParse(t, "b.test/renamed")
	w, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// In this order.
	for _, step := range []struct {
		what string
		err  error
		want string
	}{
		{"tag", w.Tag(ctx, img.Reference, tag), ""},
		{"tag of a tag", w.Tag(ctx, tag, other.Reference), ""},
		{"tag with a digest", w.Tag(ctx, tag, tag.WithDigest(someDigest)), "has a digest"},
		{"clone", w.Clone(ctx, img.Reference, clone, true), ""},
		{"clone to a taken name", w.Clone(ctx, img.Reference, tag, false), "the name a.test/tag:latest is taken; to free it: machinectl-lite remove a.test/tag:latest"},
		{"tag of a read-only name", w.Tag(ctx, img.Reference, clone), "marked read-only"},
		{"image of a read-only name", w.AddImage(img.under(clone)), "marked read-only"},
		{"rename", w.Rename(ctx, clone, renamed), ""},
		{"rename to a taken name", w.Rename(ctx, tag, renamed), "is taken"},
		{"rename of nothing", w.Rename(ctx, clone, mustParse(t, "a.test/y")), "not in the store"},
		{"clone of nothing", w.Clone(ctx, clone, mustParse(t, "a.test/y"), false), "not in the store"},
		{"mark of nothing", w.SetReadOnly(ctx, clone, true), "not in the store"},
		{"tag back", w.Tag(ctx, tag, img.Reference), ""},
	} {
		if (step.err == nil) != (step.want == "") || step.err != nil && !strings.Contains(step.err.Error(), step.want) {
			t.Errorf("%s: want %q, got %v", step.what, step.want, step.err)
		}
	}
	type entry struct {
		Name, Source string
		ReadOnly     bool
	}
	var got []entry
	images, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range images {
		if found.ManifestDigest != img.ManifestDigest || found.VerifiedAs() != img.Reference {
			t.Errorf("%s: another image", found.Reference)
		}
		e := entry{Name: found.Reference.String(), ReadOnly: found.ReadOnly}
		if found.Source != (Reference{}) {
			e.Source = found.Source.String()
		}
		got = append(got, e)
	}
	want := []entry{{"a.test/other:1", "a.test/x:1", false}, {"a.test/tag:latest", "a.test/x:1", false}, {"a.test/x:1", "", false}, {"b.test/renamed:latest", "a.test/x:1", true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A start whose image is replaced or removed under it notices.
func TestClaim(t *testing.T) {
	s := emptyStore(t)
	img := fakeImage(t, s, "a.test/x:1")
	machine, err := s.NewMachine("web")
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	newer := *img
	newer.ManifestDigest = someDigest
	write(t, s, func(w *Writer) error { return w.AddImage(&newer) })
	if err := s.Claim(img, machine.Name()); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
	if err := s.Claim(&newer, machine.Name()); err != nil {
		t.Error(err)
	}
	os.Remove(filepath.Join(machine.Name(), "image.json"))
	os.Remove(s.RecordPath(img.Reference))
	if err := s.Claim(&newer, machine.Name()); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(machine.Name()); err != nil || len(entries) != 0 {
		t.Errorf("%v is left, %v", entries, err)
	}
}

// Writers, starts and cleaners at the same time: what a writer has added is there until its image is, and what a start has
// claimed can be mounted.
func TestCleanTogether(t *testing.T) {
	needMounts(t)
	ctx := context.Background()
	s := emptyStore(t)
	var layers [][]byte
	for i := range 6 {
		layers = append(layers, makeTar(t, file(fmt.Sprint("file", i), "content")))
	}
	const pullers, rounds = 4, 25
	names := make([]Reference, pullers)
	for i := range names {
		names[i] = mustParse(t, fmt.Sprintf("a.test/image%d:1", i))
	}
	whole := func(img *Image) error {
		for _, layer := range img.Layers {
			if _, err := os.Stat(filepath.Join(s.layerDir(layer), tarFile)); err != nil {
				return err
			}
		}
		_, err := s.Blob(img.ManifestDigest)
		return err
	}
	pull := func(ref Reference) error {
		w, err := s.Writer()
		if err != nil {
			return err
		}
		defer w.Close()
		img := &Image{Reference: ref, ConfigDigest: someDigest}
		if img.ManifestDigest, err = w.AddBlob(fmt.Append(nil, "manifest", rand.IntN(4))); err != nil {
			return err
		}
		for _, i := range rand.Perm(len(layers))[:3] {
			diffID := DigestOf(layers[i])
			img.Layers = append(img.Layers, diffID)
			if err := w.AddLayer(ctx, diffID, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layers[i])), nil }); err != nil {
				return err
			}
			if err := whole(img); err != nil {
				return fmt.Errorf("while it is pulled: %w", err)
			}
		}
		return w.AddImage(img)
	}
	start := func(ref Reference) error {
		img, err := s.Image(ref)
		if err != nil {
			return err
		}
		dir, err := s.NewMachine("web")
		if err != nil {
			return err
		}
		defer dir.Close()
		defer os.RemoveAll(dir.Name())
		if err := s.Claim(img, dir.Name()); err != nil {
			return err
		}
		if err := whole(img); err != nil {
			return fmt.Errorf("in use: %w", err)
		}
		mount, err := s.Mount(img, dir.Name())
		if err != nil {
			return fmt.Errorf("in use: %w", err)
		}
		return mount.Close()
	}
	var work, others sync.WaitGroup
	done := make(chan struct{})
	forever := func(f func() error) {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := f(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	started := 0
	forever(func() error { _, err := s.Clean(ctx, false); return err })
	forever(func() error { _, err := s.Images(); return err })
	forever(func() error { _, err := s.Clean(ctx, rand.IntN(4) == 0); return err })
	forever(func() error {
		err := start(names[rand.IntN(len(names))])
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrChanged) {
			return nil
		}
		started++
		return err
	})
	for _, ref := range names {
		work.Go(func() {
			for range rounds {
				if err := pull(ref); err != nil {
					t.Errorf("%s: %v", ref, err)
					return
				}
			}
		})
	}
	work.Wait()
	close(done)
	others.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d pulls, %d starts", pullers*rounds, started)
	if _, err := s.Clean(ctx, true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string(nil), files(t, s)); diff != "" {
		t.Error(diff)
	}
}

// A writer that stores no image leaves no blob, and a layer only if there was space.
func TestWriterWithoutImage(t *testing.T) {
	for _, full := range []bool{false, true} {
		s := emptyStore(t)
		other, err := s.Writer()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		both, err := other.AddBlob([]byte("a blob of two"))
		if err != nil {
			t.Fatal(err)
		}
		fakeBlob(t, s, "a blob of somebody before")
		want := files(t, s)
		w, err := s.Writer()
		if err != nil {
			t.Fatal(err)
		}
		fetched := DigestOf([]byte("a configuration"))
		if _, err := w.FetchBlob(context.Background(), fetched, func() ([]byte, error) { return []byte("a configuration"), nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := w.FetchBlob(context.Background(), both, nil); err != nil {
			t.Fatal(err)
		}
		layer := fakeLayer(t, s, "a layer")
		if err := w.AddLayer(context.Background(), layer, nil); err != nil {
			t.Fatal(err)
		}
		if full {
			w.noticeFull(fmt.Errorf("a file: %w", unix.ENOSPC))
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if s.HasLayer(layer) == full {
			t.Errorf("disk full: %t, the layer is there: %t", full, s.HasLayer(layer))
		}
		os.RemoveAll(s.layerDir(layer))
		if diff := cmp.Diff(want, files(t, s)); diff != "" {
			t.Error(diff)
		}
	}
}
