package fetch

import (
	"bytes"
	"compress/zlib"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"nspawnd/image"
	"nspawnd/tests/keyless"
)

// Manifests that mean one thing to one reader and another to the next.
func TestAmbiguousManifests(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	img := makeImage(t, layerTar("file", "content"))
	evil := makeImage(t, layerTar("file", "evil"))
	raw, _ := img.RawManifest()
	evilManifest, _ := evil.Manifest()
	evilDigest, _ := evil.Digest()
	good, other := string(raw), evilManifest.Layers[0]
	evilLayers := fmt.Sprintf(`[{"mediaType":%q,"size":%d,"digest":%q}]`, other.MediaType, other.Size, other.Digest)
	instances := fmt.Sprintf(`[{"mediaType":%q,"size":1,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]`, types.OCIManifestSchema1, evilDigest)
	and := func(more string) string { return strings.TrimSuffix(good, "}") + "," + more + "}" }
	for _, test := range []struct {
		name, manifest string
		mediaType      types.MediaType
		want           string
	}{
		{"twice", and(`"layers":` + evilLayers), types.OCIManifestSchema1, `manifest: ambiguous: has "layers" twice`},
		{"case", and(`"Layers":` + evilLayers), types.OCIManifestSchema1, `manifest: ambiguous: has "Layers" twice`},
		{"folding", and(`"layerſ":` + evilLayers), types.OCIManifestSchema1, `twice`},
		{"inner", strings.Replace(good, `"digest":`, fmt.Sprintf(`"Digest":%q,"digest":`, other.Digest), 1), types.OCIManifestSchema1, `has "digest" twice`},
		{"both", and(`"manifests":` + instances), types.OCIManifestSchema1, "ambiguous manifest"},
		{"both-as-index", and(`"manifests":` + instances), types.OCIImageIndex, "ambiguous manifest"},
		{"both-as-list", and(`"manifests":` + instances), types.DockerManifestList, "ambiguous manifest"},
		{"index-as-image", fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":%s}`, types.OCIManifestSchema1, instances), types.OCIManifestSchema1, "ambiguous manifest"},
		{"image-as-index", good, types.OCIImageIndex, "ambiguous manifest"},
		{"oci-as-docker", good, types.DockerManifestSchema2, "unsupported docker v2s2 media type"},
		{"docker-as-oci", strings.Replace(good, string(types.OCIManifestSchema1), string(types.DockerManifestSchema2), 1), types.OCIManifestSchema1, "says that it is \"application/vnd.docker"},
		{"image-as-schema1", good, types.DockerManifestSchema1, "not supported"},
	} {
		l.push(test.name+":parts", img) // so that all blobs are there
		l.push(test.name+":parts", evil)
		l.push(test.name+":1", rawTaggable{test.manifest, test.mediaType})
		started := time.Now()
		l.wantError(test.name+":1", l.insecure(), test.want)
		if took := time.Since(started); took > 5*time.Second {
			t.Errorf("%s: took %v", test.name, took)
		}
	}
	for document, want := range map[string]string{
		"{": "", "": "", `"a"`: "", `{"a":{"a":"a"},"b":["a","a",{"a":1}]}`: "",
		`{"a" : 1, "\u0061"` + "\t" + `: 2}`:                `has "a" twice`,
		`{"a\"":1,"a\\":2,"a\"":3}`:                         `has "a\"" twice`,
		`{"labels":{"x":1,"x":2}}`:                          `has "x" twice`,
		`{"labels":[{"x":1,"X":2}]}`:                        `has "X" twice`,
		strings.Repeat("[", 101) + strings.Repeat("]", 101): "objects in each other",
	} {
		if err := checkUnambiguous([]byte(document)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", document, err)
		}
	}
	// Labels are named by users.
	if err := checkUnambiguous([]byte(`{"a":[{"b":1},{"b":2}],"annotations":{"x":"1","X":"2"},"A_":{}}`)); err != nil {
		t.Error(err)
	}
}

// Indexes in each other, or with instances that somebody else signed.
func TestHostileIndexes(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	img := makeImage(t, layerTar("file", "content"))
	platform := &v1.Platform{OS: "linux", Architecture: "amd64"}
	wrap := func(inner mutate.Appendable) v1.ImageIndex {
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: inner, Descriptor: v1.Descriptor{Platform: platform}})
	}
	l.push("nested/x:1", wrap(wrap(img)))
	l.wantError("nested/x:1", l.insecure(), `manifest of type "application/vnd.oci.image.index.v1+json" is not supported`)

	// An index can't have its own digest in it; a registry can say that it does.
	digest := image.DigestOf([]byte("anything"))
	loop := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%[1]q,"size":1,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`, types.OCIImageIndex, digest)
	honest := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			honest.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		io.WriteString(w, loop)
	})
	l.wantError("loop/x:1", l.insecure(), "does not match")
	if n := len(l.requests); n > 10 {
		t.Errorf("%d requests: %q", n, l.requests)
	}
	for _, digest := range []string{"sha512:" + strings.Repeat("0", 128), "sha256:../../../fifo", "sha256:" + strings.Repeat("0", 63), ""} {
		index := strings.Replace(loop, "sha256:"+image.DigestOf([]byte("anything")).Hex(), digest, 1)
		l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			io.WriteString(w, index)
		})
		l.wantError("digest/x:1", l.insecure(), "digest")
		if len(l.requests) > 3 {
			t.Errorf("%s: %q", digest, l.requests)
		}
	}
	l.handler = honest
	if _, err := image.ParseReference("a.test/x@sha512:" + strings.Repeat("0", 128)); err == nil {
		t.Error("a name with a digest that is not checked")
	}

	// The rule's key signs the index or the image; another signs the other one.
	right, wrong := gpgKey(t, "Right"), gpgKey(t, "Wrong")
	l.trust("/signed", image.KeyGPG, publicKey(t, right), l.lookaside())
	instance, _ := img.Digest()
	for _, test := range []struct {
		name  string
		index bool // the right key has signed it; else the instance
		both  bool
		want  bool
	}{{"index", true, true, true}, {"instance", false, true, true}, {"wrong-index", true, false, false}, {"wrong-instance", false, false, false}} {
		repo := "signed/" + test.name
		signed := []string{l.push(repo+":1", wrap(img)), instance.String()}
		if !test.index {
			signed[0], signed[1] = signed[1], signed[0]
		}
		if test.both {
			l.signGPG(right, repo, l.host+"/"+repo+":1", signed[0])
			l.signGPG(wrong, repo, l.host+"/"+repo+":1", signed[1])
		} else {
			l.signGPG(wrong, repo, l.host+"/"+repo+":1", signed[0])
		}
		got, err := l.pull(repo + ":1")
		if (err == nil) != test.want || err != nil && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", repo, err)
		}
		if err == nil {
			l.verifyAgain(got)
		}
	}
}

// More signatures, or larger ones, than anybody makes.
func TestSignatureFloods(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	key := gpgKey(t, "Team")
	_, public := sigstoreKey(t)
	w := newWorld(t)
	l.trust("/gpg", image.KeyGPG, publicKey(t, key), l.lookaside())
	l.trust("/sigstore", image.KeySigstore, string(public), "")
	_, err := image.AddTrust(l.options().TrustDirs, l.host+"/keyless", image.TrustKey{Type: image.KeyKeyless, Issuer: issuer, Subject: subject}, "root", w.Root, "")
	must(t, err)
	img := makeImage(t, layerTar("file", "content"))
	digest, _ := img.Digest()
	refused := func(name, want string) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		started := time.Now()
		_, err := l.pull(name)
		runtime.ReadMemStats(&after)
		t.Logf("%s: %v, %d MiB allocated, %d requests: %.200s", name, time.Since(started).Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20, len(l.requests), err)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: want …%s…, got %.2000v", name, want, err)
		}
		if len(err.Error()) > 4000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if len(l.requests) > 200 {
			t.Errorf("%s: %d requests", name, len(l.requests))
		}
	}

	// 10,000 attachments, all the same blob.
	layer := static.NewLayer([]byte("{}"), types.MediaType(attachmentType))
	flood := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	flood, err = mutate.AppendLayers(flood, layer)
	must(t, err)
	raw, _ := flood.RawManifest()
	start, one, end := cutLayer(t, string(raw))
	for _, repo := range []string{"sigstore/x", "keyless/x"} {
		l.push(repo+":1", img)
		l.push(repo+":parts", flood)
		l.push(repo+":sha256-"+digest.Hex+".sig", rawTaggable{start + strings.Repeat(one+",", 9999) + one + end, types.OCIManifestSchema1})
		refused(repo+":1", "more than 128 signatures")
	}

	// A lookaside directory without end, and OpenPGP messages that are a thousand times as large when they are uncompressed, or a million.
	repo := "gpg/many"
	l.signGPG(key, repo, l.host+"/gpg/elsewhere:1", l.push(repo+":1", img))
	dir := filepath.Join(l.etc, "lookaside", repo+"@sha256="+digest.Hex)
	for i := 2; i < 200; i++ {
		must(t, os.Link(filepath.Join(dir, "signature-1"), filepath.Join(dir, fmt.Sprintf("signature-%d", i))))
	}
	refused(repo+":1", "128 signatures")
	repo = "gpg/bomb"
	l.push(repo+":1", img)
	dir = filepath.Join(l.etc, "lookaside", repo+"@sha256="+digest.Hex)
	must(t, os.Mkdir(dir, 0o755))
	for _, times := range []int{1, 2} {
		bomb := literal(t, 128<<20)
		for range times {
			bomb = compressed(t, bomb)
		}
		data, err := io.ReadAll(bomb)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "signature-1"), data, 0o644))
		t.Logf("a signature of %d bytes", len(data))
		refused(repo+":1", "decompressed message size exceeds")
	}

	// Bundles: 32 of nearly 4 MiB each, of which the last is right, and one more.
	repo = "keyless/bundles"
	l.push(repo+":1", img)
	right, err := w.Bundle(keyless.Signing{Subject: subject, Issuer: issuer, Predicate: signPredicate, After: time.Second}, digest.String())
	must(t, err)
	for i := range maxBundles {
		l.pushBundle(repo, img, fmt.Appendf(nil, `{"mediaType":%q,"dsseEnvelope":{"payload":%q}}`, keyless.BundleType, strings.Repeat(string(rune('A'+i%26)), image.MaxBlob-1000-i)))
	}
	refused(repo+":1", "not trusted: bundle: ")
	l.pushBundle(repo, img, right)
	refused(repo+":1", "more than 32 bundles")
	repo = "keyless/large"
	l.push(repo+":1", img)
	l.pushBundle(repo, img, bytes.Repeat([]byte(" "), image.MaxBlob+1))
	refused(repo+":1", "more than 4194304")
}

// cutLayer gives a manifest with one layer in three pieces: the layer is the middle one.
func cutLayer(t *testing.T, manifest string) (start, layer, end string) {
	t.Helper()
	start, rest, ok := strings.Cut(manifest, `"layers":[`)
	layer, end, ok2 := strings.Cut(rest, "]")
	if !ok || !ok2 {
		t.Fatal(manifest)
	}
	return start + `"layers":[`, layer, "]" + end
}

// literal is an OpenPGP message of zeros that says that it is signed.
func literal(t *testing.T, size int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		err := (&packet.OnePassSignature{Version: 3, SigType: packet.SigTypeBinary, Hash: crypto.SHA256, PubKeyAlgo: packet.PubKeyAlgoRSA, IsLast: true}).Serialize(w)
		must(t, err)
		message, err := packet.SerializeLiteral(nopCloser{w}, true, "", 0)
		if err == nil {
			_, err = io.Copy(message, io.LimitReader(zeros{}, size))
			message.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// compressed packs an OpenPGP message into one that is compressed.
func compressed(t *testing.T, message io.Reader) io.Reader {
	var body bytes.Buffer
	body.WriteByte(2) // ZLIB
	w := zlib.NewWriter(&body)
	_, err := io.Copy(w, message)
	must(t, err)
	must(t, w.Close())
	// An old-format packet of type 8 with a length of four bytes (RFC 4880, 4.2.1).
	n := body.Len()
	return io.MultiReader(bytes.NewReader([]byte{0x80 | 8<<2 | 2, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), &body)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
