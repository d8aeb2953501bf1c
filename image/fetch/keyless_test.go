package fetch

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	ggcrtypes "github.com/google/go-containerregistry/pkg/v1/types"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"nspawnd/image"
)

// sigstoreWorld is a certificate authority and a log of its own.
type sigstoreWorld struct {
	t    *testing.T
	ca   *ca.VirtualSigstore
	root []byte // trusted_root.json
}

const (
	issuer  = "https://accounts.example"
	subject = "ci@team.example"
)

func newSigstoreWorld(t *testing.T) sigstoreWorld {
	t.Helper()
	virtual, err := ca.NewVirtualSigstore()
	must(t, err)
	logs := map[string]*root.TransparencyLog{}
	for id, log := range virtual.RekorLogs() {
		same := *log
		same.ID, err = hex.DecodeString(id)
		must(t, err)
		same.SignatureHashFunc = log.HashFunc
		logs[id] = &same
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, virtual.FulcioCertificateAuthorities(), nil, nil, logs)
	must(t, err)
	data, err := trusted.MarshalJSON()
	must(t, err)
	return sigstoreWorld{t, virtual, data}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// signing is how an image is signed.
type signing struct {
	by, through string // subject and issuer
	predicate   string
	after       time.Duration // when the log saw it; certificates are good for ten minutes
}

var right = signing{subject, issuer, signPredicate, 5 * time.Minute}

// bundle makes what cosign 3 does by default: a statement about a digest.
func (w sigstoreWorld) bundle(s signing, digest string) []byte {
	w.t.Helper()
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(digest, "sha256:"), s.predicate)
	entity, err := w.ca.AttestAtTime(s.by, s.through, []byte(statement), time.Now().Add(s.after), true)
	must(w.t, err)
	content, err := entity.SignatureContent()
	must(w.t, err)
	envelope := content.EnvelopeContent().RawEnvelope()
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	must(w.t, err)
	sig, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	must(w.t, err)
	verification, err := entity.VerificationContent()
	must(w.t, err)
	data, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: verification.Certificate().Raw}},
			TlogEntries: []*protorekor.TransparencyLogEntry{w.logEntry(entity)},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: envelope.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}},
		}},
	})
	must(w.t, err)
	return data
}

// logEntry gives a signature's entry with the log's promise that it is one, which the library's own leaves out.
func (w sigstoreWorld) logEntry(entity *ca.TestEntity) *protorekor.TransparencyLogEntry {
	w.t.Helper()
	entries, err := entity.TlogEntries()
	must(w.t, err)
	entry := entries[0].TransparencyLogEntry()
	set, err := w.ca.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(entry.CanonicalizedBody), IntegratedTime: entry.IntegratedTime,
		LogIndex: entry.LogIndex, LogID: hex.EncodeToString(entry.LogId.KeyId),
	})
	must(w.t, err)
	entry.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: set}
	entry.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	return entry
}

// pushBundle makes the registry have a bundle that refers to an image.
func (l *lab) pushBundle(repo string, img v1.Image, bundle []byte) {
	l.t.Helper()
	digest, err := img.Digest()
	must(l.t, err)
	size, err := img.Size()
	must(l.t, err)
	kind := ggcrtypes.MediaType("application/vnd.dev.sigstore.bundle.v0.3+json")
	referrer, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, ggcrtypes.OCIManifestSchema1), kind), static.NewLayer(bundle, kind))
	must(l.t, err)
	l.push(repo+":bundle", mutate.Subject(referrer, v1.Descriptor{MediaType: ggcrtypes.OCIManifestSchema1, Digest: digest, Size: size}).(v1.Image))
}

// pushAttachment makes the registry have a signature as cosign 2 does: an image beside img, under a tag made of its digest.
func (l *lab) pushAttachment(w sigstoreWorld, s signing, repo, name, digest string, img v1.Image) {
	l.t.Helper()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, digest)
	entity, err := w.ca.SignAtTime(s.by, s.through, payload, time.Now().Add(s.after))
	must(l.t, err)
	content, err := entity.SignatureContent()
	must(l.t, err)
	verification, err := entity.VerificationContent()
	must(l.t, err)
	entry := w.logEntry(entity)
	set, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": entry.InclusionPromise.SignedEntryTimestamp,
		"Payload": map[string]any{
			"body": entry.CanonicalizedBody, "integratedTime": entry.IntegratedTime, "logIndex": entry.LogIndex, "logID": hex.EncodeToString(entry.LogId.KeyId),
		},
	})
	must(l.t, err)
	encode := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	authority := w.ca.FulcioCertificateAuthorities()[0].(*root.FulcioCertificateAuthority)
	attachment, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, ggcrtypes.OCIManifestSchema1), ggcrtypes.OCIConfigJSON), mutate.Addendum{
		Layer: static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(content.Signature()),
			"dev.sigstore.cosign/certificate":    encode(verification.Certificate().Raw),
			"dev.sigstore.cosign/chain":          encode(authority.Intermediates[0].Raw) + encode(authority.Root.Raw),
			"dev.sigstore.cosign/bundle":         string(set),
		},
	})
	must(l.t, err)
	signed, err := img.Digest()
	must(l.t, err)
	l.push(repo+":sha256-"+signed.Hex+".sig", attachment)
}

// Signatures by an identity, as cosign 2 and 3 make them, against every way in which they can be wrong.
func TestKeylessVerdicts(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	w, stranger := newSigstoreWorld(t), newSigstoreWorld(t)
	key := image.TrustKey{Type: image.KeyKeyless, Issuer: issuer, Subject: subject}
	rule, err := image.AddTrust(l.options().TrustDirs, l.host, key, "root", w.root, "")
	must(t, err)
	img := makeImage(t, layerTar("file", "content"))
	digest, err := img.Digest()
	must(t, err)
	another := string(image.DigestOf([]byte("another")))
	for _, test := range []struct {
		name                   string
		world                  sigstoreWorld
		how                    signing
		digest                 string
		repository             string // that the signature names; a bundle names none
		attachment, wantBundle bool
	}{
		{"right", w, right, digest.String(), "", true, true},
		{"other-root", stranger, right, digest.String(), "", false, false},
		{"other-subject", w, signing{"evil@team.example", issuer, signPredicate, right.after}, digest.String(), "", false, false},
		{"longer-subject", w, signing{"ci@team.example.evil", issuer, signPredicate, right.after}, digest.String(), "", false, false},
		{"other-issuer", w, signing{subject, "https://evil.example", signPredicate, right.after}, digest.String(), "", false, false},
		{"certificate-expired-before", w, signing{subject, issuer, signPredicate, time.Hour}, digest.String(), "", false, false},
		{"other-digest", w, right, another, "", false, false},
		{"other-name", w, right, digest.String(), "elsewhere", false, true},
		{"no-signature-but-a-statement", w, signing{subject, issuer, "https://slsa.dev/provenance/v1", right.after}, digest.String(), "", true, false},
	} {
		for _, form := range []string{"attachment", "bundle"} {
			repo := form + "/" + test.name
			l.push(repo+":1", img)
			want := test.attachment
			if form == "bundle" {
				want = test.wantBundle
				l.pushBundle(repo, img, test.world.bundle(test.how, test.digest))
			} else {
				named := repo
				if test.repository != "" {
					named = test.repository
				}
				l.pushAttachment(test.world, test.how, repo, l.host+"/"+named, test.digest, img)
			}
			got, err := l.pull(repo + ":1")
			t.Logf("%-40s %v", repo, err)
			if (err == nil) != want || err != nil && !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s: accepted %v, want %v: %v", repo, err == nil, want, err)
				continue
			}
			if err != nil {
				continue
			}
			if got.Trust.Kind != image.TrustKeyless || got.Trust.Signer != key.Identity() || got.Trust.Rule != rule.Path+": "+l.host || len(got.Trust.Signatures) != 1 {
				t.Errorf("%s: %+v", repo, got.Trust)
			}
			l.verifyAgain(got)
		}
	}
	// Without any, and with a bundle that is none.
	l.push("unsigned/x:1", img)
	l.push("garbage/x:1", img)
	l.pushBundle("garbage/x", img, []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	for _, name := range []string{"unsigned/x:1", "garbage/x:1"} {
		if _, err := l.pull(name); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A root that is none.
	l.write("root.json", "{}")
	l.write("trust.d/bad.json", fmt.Sprintf(`{"prefix": %q, "keys": [{"type": "keyless", "file": %q, "issuer": "i", "subject": "s"}]}`, l.host+"/bad", filepath.Join(l.etc, "root.json")))
	if _, err := l.pull("bad/x:1"); err == nil || !strings.Contains(err.Error(), "root.json") {
		t.Error(err)
	}
}

func FuzzBundle(f *testing.F) {
	key, err := os.ReadFile("testdata/cosign.pub")
	if err != nil {
		f.Fatal(err)
	}
	keys, err := ParseKeys(key)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := newKeyBundleVerifier(keys[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if verifier.verify(data, image.DigestOf(nil)) == nil {
			t.Error("nobody has signed that")
		}
	})
}
