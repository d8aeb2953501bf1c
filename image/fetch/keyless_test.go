package fetch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ggcrtypes "github.com/google/go-containerregistry/pkg/v1/types"

	"nspawnd/image"
	"nspawnd/tests/keyless"
)

const (
	issuer   = "https://accounts.example"
	subject  = "ci@team.example"
	workflow = "https://github.com/team/app/.github/workflows/release.yml@refs/heads/main"
)

func newWorld(t *testing.T) *keyless.World {
	t.Helper()
	w, err := keyless.New()
	must(t, err)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pushBundle makes the registry have a bundle that refers to an image.
func (l *lab) pushBundle(repo string, img v1.Image, bundle []byte) {
	l.t.Helper()
	digest, err := img.Digest()
	must(l.t, err)
	size, err := img.Size()
	must(l.t, err)
	referrer, err := keyless.Referrer(bundle, v1.Descriptor{MediaType: ggcrtypes.OCIManifestSchema1, Digest: digest, Size: size})
	must(l.t, err)
	l.push(repo+":bundle", referrer)
}

// pushAttachment makes the registry have a signature of digest as cosign 2 does: an image beside img, under a tag made of its digest.
func (l *lab) pushAttachment(w *keyless.World, s keyless.Signing, repo, name, digest string, img v1.Image) {
	l.t.Helper()
	attachment, err := w.Attachment(s, name, digest)
	must(l.t, err)
	signed, err := img.Digest()
	must(l.t, err)
	l.push(repo+":sha256-"+signed.Hex+".sig", attachment)
}

// Signatures by an identity, as cosign 2 and 3 make them, against every way in which they can be wrong.
func TestKeylessVerdicts(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	w, stranger := newWorld(t), newWorld(t)
	img := makeImage(t, layerTar("file", "content"))
	digest, err := img.Digest()
	must(t, err)
	another := string(image.DigestOf([]byte("another")))
	for repositories, identity := range map[string]string{"mail": subject, "workflow": workflow} {
		prefix := l.host + "/" + repositories
		key := image.TrustKey{Type: image.KeyKeyless, Issuer: issuer, Subject: identity}
		rule, err := image.AddTrust(l.options().TrustDirs, prefix, key, "root", w.Root, "")
		must(t, err)
		right := keyless.Signing{Subject: identity, Issuer: issuer, Predicate: signPredicate, After: 5 * time.Minute}
		with := func(change func(*keyless.Signing)) keyless.Signing {
			changed := right
			change(&changed)
			return changed
		}
		for _, test := range []struct {
			name                   string
			world                  *keyless.World
			how                    keyless.Signing
			digest                 string
			repository             string // that the signature names; a bundle names none
			attachment, wantBundle bool
		}{
			{"right", w, right, digest.String(), "", true, true},
			{"other-root", stranger, right, digest.String(), "", false, false},
			{"other-subject", w, with(func(s *keyless.Signing) { s.Subject = "evil@team.example" }), digest.String(), "", false, false},
			{"other-workflow", w, with(func(s *keyless.Signing) { s.Subject = strings.Replace(workflow, "main", "evil", 1) }), digest.String(), "", false, false},
			{"longer-subject", w, with(func(s *keyless.Signing) { s.Subject += ".evil" }), digest.String(), "", false, false},
			{"other-issuer", w, with(func(s *keyless.Signing) { s.Issuer = "https://evil.example" }), digest.String(), "", false, false},
			{"certificate-expired-before", w, with(func(s *keyless.Signing) { s.After = 30 * time.Minute }), digest.String(), "", false, false},
			{"certificate-made-later", w, with(func(s *keyless.Signing) { s.After = -time.Minute }), digest.String(), "", false, false},
			{"other-digest", w, right, another, "", false, false},
			{"other-name", w, right, digest.String(), "elsewhere", false, true},
			{"no-signature-but-a-statement", w, with(func(s *keyless.Signing) { s.Predicate = "https://slsa.dev/provenance/v1" }), digest.String(), "", true, false},
		} {
			for _, form := range []string{"attachment", "bundle"} {
				repo := repositories + "/" + form + "/" + test.name
				l.push(repo+":1", img)
				want := test.attachment
				if form == "bundle" {
					want = test.wantBundle
					bundle, err := test.world.Bundle(test.how, test.digest)
					must(t, err)
					l.pushBundle(repo, img, bundle)
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
				if got.Trust.Kind != image.TrustKeyless || got.Trust.Signer != key.Identity() || got.Trust.Rule != rule.Path+": "+prefix || len(got.Trust.Signatures) != 1 {
					t.Errorf("%s: %+v", repo, got.Trust)
				}
				l.verifyAgain(got)
			}
		}
	}
	// Without any, and with a bundle that is none.
	_, err = image.AddTrust(l.options().TrustDirs, l.host, image.TrustKey{Type: image.KeyKeyless, Issuer: issuer, Subject: subject}, "root", w.Root, "")
	must(t, err)
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
