package fetch

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/signer"
	"go.podman.io/image/v5/signature/sigstore"
	containerstypes "go.podman.io/image/v5/types"

	"nspawnd/image"
	"nspawnd/image/internal/imagetest"
)

// lab is a registry with a host that pulls from it: its store, its trust directories and its configuration.
type lab struct {
	t        *testing.T
	host     string // of the registry
	mu       sync.Mutex
	requests []string
	handler  http.Handler // in front of the registry; tests replace it
	store    *image.Store
	storeDir string
	etc      string // trust.d, policy.json, registries.d, lookaside
	system   *containerstypes.SystemContext
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, etc: t.TempDir()}
	firstDelay = time.Millisecond
	l.handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.requests = append(l.requests, r.Method+" "+r.URL.Path)
		l.mu.Unlock()
		l.handler.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	l.host = server.Listener.Addr().String()
	for _, dir := range []string{"certs", "trust.d", "vendor.d", "registries.d", "lookaside"} {
		if err := os.Mkdir(filepath.Join(l.etc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.write("certs/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	l.write("policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`) // what Debian ships
	l.write("registries.conf", "")
	l.system = &containerstypes.SystemContext{
		SignaturePolicyPath:         filepath.Join(l.etc, "policy.json"),
		RegistriesDirPath:           filepath.Join(l.etc, "registries.d"),
		SystemRegistriesConfPath:    filepath.Join(l.etc, "registries.conf"),
		SystemRegistriesConfDirPath: filepath.Join(l.etc, "none"),
		AuthFilePath:                filepath.Join(l.etc, "auth.json"),
		DockerCertPath:              filepath.Join(l.etc, "certs"),
	}
	l.storeDir = filepath.Join(t.TempDir(), "store")
	var err error
	if l.store, err = image.Open(l.storeDir); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) write(name, content string) string {
	l.t.Helper()
	path := filepath.Join(l.etc, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func (l *lab) reference(name string) image.Reference {
	l.t.Helper()
	ref, err := image.ParseReference(l.host + "/" + name)
	if err != nil {
		l.t.Fatal(err)
	}
	return ref
}

func (l *lab) options() Options {
	return Options{
		TrustDirs: []string{filepath.Join(l.etc, "trust.d"), filepath.Join(l.etc, "vendor.d")},
		System:    l.system,
		Platform:  image.Platform{OS: "linux", Architecture: "amd64"},
	}
}

func (l *lab) pull(name string) (*image.Image, error) {
	return l.pullWith(name, l.options())
}

func (l *lab) pullWith(name string, options Options) (*image.Image, error) {
	l.t.Helper()
	l.requests = nil
	return Pull(context.Background(), l.store, l.reference(name), options)
}

// push puts an image or an index on the registry and returns its digest.
func (l *lab) push(ref string, what remote.Taggable) string {
	l.t.Helper()
	tag, err := name.ParseReference(l.host+"/"+ref, name.Insecure)
	if err != nil {
		l.t.Fatal(err)
	}
	transport := remote.WithTransport(insecureTransport())
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(tag, what, transport)
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, what, transport)
	default:
		err = remote.Put(tag, what, transport)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	manifest, err := what.RawManifest()
	if err != nil {
		l.t.Fatal(err)
	}
	return string(image.DigestOf(manifest))
}

// layerTar is a layer with one file.
func layerTar(file, content string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: file, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	io.WriteString(w, content)
	w.Close()
	return buf.Bytes()
}

// makeImage makes an OCI image of gzipped layers for amd64.
func makeImage(t *testing.T, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64",
		Config: v1.Config{Cmd: []string{"/bin/hello"}, Env: []string{"A=b"}},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return imagetest.AppendLayers(t, img, layers)
}

// sigstoreKey makes a key pair and returns the file of the private key, and the public key.
func sigstoreKey(t *testing.T) (private string, public []byte) {
	t.Helper()
	pair, err := sigstore.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	private = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(private, pair.PrivateKey, 0o600); err != nil {
		t.Fatal(err)
	}
	return private, pair.PublicKey
}

// signSigstore signs what the registry has as ref, under that name or another.
func (l *lab) signSigstore(ref, key string) {
	l.t.Helper()
	s, err := sigstore.NewSigner(sigstore.WithPrivateKeyFile(key, []byte("secret")))
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.Close()
	dir := l.t.TempDir()
	config := fmt.Sprintf(`{"docker": {%q: {"use-sigstore-attachments": true}}}`, l.host)
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(config), 0o644); err != nil {
		l.t.Fatal(err)
	}
	system := *l.system
	system.RegistriesDirPath = dir
	named, err := docker.ParseReference("//" + l.host + "/" + ref)
	if err != nil {
		l.t.Fatal(err)
	}
	accept := &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}
	policy, err := signature.NewPolicyContext(accept)
	if err != nil {
		l.t.Fatal(err)
	}
	_, err = copy.Image(context.Background(), policy, named, named, &copy.Options{
		Signers: []*signer.Signer{s}, SourceCtx: &system, DestinationCtx: &system, ImageListSelection: copy.CopyAllImages,
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func gpgKey(t *testing.T, user string) *openpgp.Entity {
	t.Helper()
	entity, err := openpgp.NewEntity(user, "", user+"@example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return entity
}

func publicKey(t *testing.T, entities ...*openpgp.Entity) string {
	t.Helper()
	var buf bytes.Buffer
	for _, entity := range entities {
		if err := entity.Serialize(&buf); err != nil {
			t.Fatal(err)
		}
	}
	return buf.String()
}

// signGPG puts a simple signature for digest into the lookaside directory: one that says that identity is digest.
func (l *lab) signGPG(key *openpgp.Entity, path, identity, digest string) {
	l.t.Helper()
	payload, err := json.Marshal(map[string]any{
		"critical": map[string]any{
			"type":     "atomic container signature",
			"image":    map[string]string{"docker-manifest-digest": digest},
			"identity": map[string]string{"docker-reference": identity},
		},
		"optional": map[string]any{},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	var buf bytes.Buffer
	w, err := openpgp.Sign(&buf, key, nil, &packet.Config{DefaultHash: crypto.SHA256})
	if err != nil {
		l.t.Fatal(err)
	}
	w.Write(payload)
	if err := w.Close(); err != nil {
		l.t.Fatal(err)
	}
	dir := filepath.Join(l.etc, "lookaside", path+"@"+strings.Replace(digest, ":", "=", 1))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "signature-1"), buf.Bytes(), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) lookaside() string { return "file://" + filepath.Join(l.etc, "lookaside") }

// trust adds a rule for a prefix below the registry's host.
func (l *lab) trust(prefix string, keyType image.KeyType, key string, lookaside string) image.TrustRule {
	l.t.Helper()
	keys, err := ParseKeys([]byte(key))
	if err != nil {
		l.t.Fatal(err)
	}
	rule, err := image.AddTrust(l.options().TrustDirs, l.host+prefix, image.TrustKey{Type: keyType}, keys[0].Fingerprint, []byte(key), lookaside)
	if err != nil {
		l.t.Fatal(err)
	}
	return rule
}

// moveSignature makes the GPG signature of one digest that of another.
func (l *lab) moveSignature(path, from, to string) {
	l.t.Helper()
	dir := func(digest string) string {
		return filepath.Join(l.etc, "lookaside", path+"@"+strings.Replace(digest, ":", "=", 1))
	}
	if err := os.Rename(dir(from), dir(to)); err != nil {
		l.t.Fatal(err)
	}
}

// copySignature puts img's sigstore signature in one repository into another.
func (l *lab) copySignature(from, to string, img v1.Image) { l.copySignatureTo(from, img, to, img) }

func (l *lab) copySignatureTo(from string, signed v1.Image, to string, img v1.Image) {
	l.t.Helper()
	tag := func(img v1.Image) string {
		digest, err := img.Digest()
		if err != nil {
			l.t.Fatal(err)
		}
		return ":sha256-" + digest.Hex + ".sig"
	}
	ref, err := name.ParseReference(l.host+"/"+from+tag(signed), name.Insecure)
	if err != nil {
		l.t.Fatal(err)
	}
	signature, err := remote.Image(ref, remote.WithTransport(insecureTransport()))
	if err != nil {
		l.t.Fatal(err)
	}
	l.push(to+tag(img), signature)
}
