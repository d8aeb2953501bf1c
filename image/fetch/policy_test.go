package fetch

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"

	"nspawnd/image"
)

// What decides over a name, without a registry: trust.d and policy.json together.
func TestRulesFor(t *testing.T) {
	dir := t.TempDir()
	key := gpgKey(t, "Team")
	keyFile := filepath.Join(dir, "key.gpg")
	if err := os.WriteFile(keyFile, []byte(publicKey(t, key)), 0o644); err != nil {
		t.Fatal(err)
	}
	const (
		accept = `[{"type":"insecureAcceptAnything"}]`
		reject = `[{"type":"reject"}]`
	)
	signed := fmt.Sprintf(`[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}]`, keyFile)
	trust := func(prefixes ...string) (rules []image.TrustRule) {
		for _, prefix := range prefixes {
			rules = append(rules, image.TrustRule{Path: "/t/" + prefix, Prefix: prefix, Keys: []image.TrustKey{{Type: image.KeyGPG, File: keyFile}}})
		}
		return rules
	}
	for _, test := range []struct {
		name, policy string
		trust        []image.TrustRule
		want         string // the rule and its kind
	}{
		{"nothing", ``, nil, ""},
		{"a default that accepts everything does not count", `"default":` + accept, nil, ""},
		{"nor one of the transport", `"default":` + reject + `,"transports":{"docker":{"":` + accept + `}}`, nil, ""},
		{"nor one of another transport", `"default":` + accept + `,"transports":{"docker-daemon":{"":` + accept + `}}`, nil, ""},
		{"a default that rejects", `"default":` + reject, nil, "policy.json: default policy"},
		{"a default that demands", `"default":` + signed, nil, "policy.json: default signedBy"},
		{"a scope that accepts", `"default":` + reject + `,"transports":{"docker":{"a.test":` + accept + `}}`, nil, "policy.json: a.test insecure"},
		{"the narrower scope", `"default":` + reject + `,"transports":{"docker":{"a.test":` + reject + `,"a.test/team":` + signed + `}}`, nil, "policy.json: a.test/team signedBy"},
		{"the tag", `"default":` + reject + `,"transports":{"docker":{"a.test/team/app":` + reject + `,"a.test/team/app:1":` + accept + `}}`, nil, "policy.json: a.test/team/app:1 insecure"},
		{"a wildcard", `"default":` + reject + `,"transports":{"docker":{"*.test":` + accept + `}}`, nil, "policy.json: *.test insecure"},
		{"trust", `"default":` + reject, trust("a.test"), "/t/a.test: a.test signedBy"},
		{"trust goes first", `"default":` + reject + `,"transports":{"docker":{"a.test/team":` + accept + `}}`, trust("a.test/team"), "/t/a.test/team: a.test/team signedBy"},
		{"but not before what is narrower", `"default":` + reject + `,"transports":{"docker":{"a.test/team":` + accept + `}}`, trust("a.test"), "policy.json: a.test/team insecure"},
		{"trust for all", `"default":` + reject, trust("*"), "/t/*: * signedBy"},
		{"not for all if there is a scope", `"default":` + reject + `,"transports":{"docker":{"a.test":` + accept + `}}`, trust("*"), "policy.json: a.test insecure"},
		{"a prefix ends with a component", ``, trust("a.test/te", "b.a.test", "test", "a.test/team/app/more"), ""},
		{"two requirements", `"default":` + strings.Replace(signed, "]", `,{"type":"reject"}]`, 1), nil, "policy.json: default policy"},
		{"one requirement and one that is none", `"default":` + strings.Replace(signed, "]", `,{"type":"insecureAcceptAnything"}]`, 1), nil, "policy.json: default signedBy"},
	} {
		policy := &signature.Policy{}
		if test.policy != "" {
			var err error
			if policy, err = signature.NewPolicyFromBytes([]byte("{" + test.policy + "}")); err != nil {
				t.Fatal(test.name, err)
			}
		}
		ref, err := image.ParseReference("a.test/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		rules, err := rulesFor(ref, Source{}, test.trust, policy)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var got string
		for _, a := range rules.alternatives {
			got = a.rule + " " + string(a.kind)
			if a.kind == image.TrustGPG && a.signer == "" || a.kind == image.TrustInsecure && a.signer != "" {
				t.Errorf("%s: signer %q", test.name, a.signer)
			}
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// Names mean the same to us as to containers/image, which finds signatures by them.
func TestScopesOfPolicy(t *testing.T) {
	for _, name := range []string{"nginx", "a.b.test:5000/c/d:1", "localhost/x", "quay.io/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"} {
		ours, err := image.ParseReference(name)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := docker.ParseReference("//" + ours.String())
		if err != nil {
			t.Fatal(err)
		}
		want := append([]string{theirs.PolicyConfigurationIdentity()}, theirs.PolicyConfigurationNamespaces()...)
		if got := ours.Scopes(); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Every kind of signature against every way in which it can be wrong.
func TestVerdicts(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	right, wrong := gpgKey(t, "Right"), gpgKey(t, "Wrong")
	rightSigstore, rightPublic := sigstoreKey(t)
	wrongSigstore, _ := sigstoreKey(t)
	l.trust("/gpg", image.KeyGPG, publicKey(t, right), l.lookaside())
	rule := l.trust("/sigstore", image.KeySigstore, string(rightPublic), "")
	img := makeImage(t, layerTar("file", "content"))
	another := makeImage(t, layerTar("file", "another"))

	for _, test := range []struct {
		name     string
		prepare  func(repo, digest string) // for GPG
		prepare2 func(repo string)         // for sigstore
		want     bool
	}{
		{"unsigned", func(string, string) {}, func(string) {}, false},
		{"right", func(repo, digest string) { l.signGPG(right, repo, l.host+"/"+repo+":1", digest) },
			func(repo string) { l.signSigstore(repo+":1", rightSigstore) }, true},
		{"wrong-key", func(repo, digest string) { l.signGPG(wrong, repo, l.host+"/"+repo+":1", digest) },
			func(repo string) { l.signSigstore(repo+":1", wrongSigstore) }, false},
		{"other-name", func(repo, digest string) { l.signGPG(right, repo, l.host+"/gpg/elsewhere:1", digest) },
			func(repo string) {
				l.push("sigstore/elsewhere:1", img)
				l.signSigstore("sigstore/elsewhere:1", rightSigstore)
				l.copySignature("sigstore/elsewhere", repo, img)
			}, false},
		{"other-digest", func(repo, digest string) {
			l.signGPG(right, repo, l.host+"/"+repo+":1", l.push(repo+":other", another))
			l.moveSignature(repo, l.push(repo+":other", another), digest)
		}, func(repo string) {
			l.push(repo+":other", another)
			l.signSigstore(repo+":other", rightSigstore)
			l.copySignatureTo(repo, another, repo, img)
		}, false},
	} {
		for _, kind := range []string{"gpg", "sigstore"} {
			repo := kind + "/" + test.name
			digest := l.push(repo+":1", img)
			if kind == "gpg" {
				test.prepare(repo, digest)
			} else {
				test.prepare2(repo)
			}
			got, err := l.pull(repo + ":1")
			if (err == nil) != test.want || err != nil && !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s: %v", repo, err)
				continue
			}
			t.Logf("%s: %v", repo, err)
			if err != nil {
				if l.asked("/blobs/" + mustConfigName(img)) {
					t.Errorf("%s: configuration fetched before the verdict", repo)
				}
				continue
			}
			want := image.Trust{Kind: image.TrustGPG, Rule: filepath.Join(l.etc, "trust.d", l.host+"+gpg.json") + ": " + l.host + "/gpg", Signer: fmt.Sprintf("%X", right.PrimaryKey.Fingerprint)}
			if kind == "sigstore" {
				keys, _ := ParseKeys(rightPublic)
				want = image.Trust{Kind: image.TrustSigstore, Rule: rule.Path + ": " + rule.Prefix, Signer: keys[0].Fingerprint}
			}
			trust := got.Trust
			if trust.Kind != want.Kind || trust.Rule != want.Rule || trust.Signer != want.Signer || string(trust.Signed) != digest || trust.Time.IsZero() || trust.Inputs.Paths == nil {
				t.Errorf("%s: %+v", repo, trust)
			}
			l.verifyAgain(got)
			// Pinned by its digest the rule holds all the same.
			if _, err := l.pull(repo + "@" + digest); err != nil {
				t.Errorf("%s pinned: %v", repo, err)
			}
		}
	}
	// A digest alone does not get around a rule.
	digest := l.push("gpg/unsigned:1", img)
	_, err := l.pull("gpg/unsigned@" + digest)
	var e *Error
	if !errors.Is(err, ErrUntrusted) || !errors.As(err, &e) || strings.Contains(strings.Join(e.Advice, " "), "pin") {
		t.Error(err)
	}
}

func mustConfigName(img v1.Image) string {
	name, err := img.ConfigName()
	if err != nil {
		panic(err)
	}
	return name.String()
}

// verifyAgain repeats the decision without the registry, from what the record says is stored.
func (l *lab) verifyAgain(img *image.Image) {
	l.t.Helper()
	l.requests = nil
	trust, err := Recheck(context.Background(), l.store, img, l.options())
	if err != nil {
		l.t.Errorf("%s, from the store: %v", img.Reference, err)
	}
	trust.Time, trust.Inputs = img.Trust.Time, img.Trust.Inputs
	if diff := cmp.Diff(img.Trust, trust); diff != "" || l.requests != nil {
		l.t.Errorf("%s: asked %q, %s", img.Reference, l.requests, diff)
	}
	if faults := VerifyContent(l.store, img); faults != nil {
		l.t.Errorf("%s: %v", img.Reference, faults)
	}
}

// An index that is signed vouches for the images that it lists, and so does a signature of the image itself.
func TestSignedIndex(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	key := gpgKey(t, "Team")
	l.trust("", image.KeyGPG, publicKey(t, key), l.lookaside())
	img := makeImage(t, layerTar("file", "content"))
	instance, _ := img.Digest()
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	for _, name := range []string{"index", "instance", "neither"} {
		digest := l.push("demo/"+name+":1", index)
		signed := map[string]string{"index": digest, "instance": instance.String()}[name]
		if signed != "" {
			l.signGPG(key, "demo/"+name, l.host+"/demo/"+name+":1", signed)
		}
		got, err := l.pull("demo/" + name + ":1")
		if (err == nil) != (signed != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (string(got.Trust.Signed) != signed || got.ManifestDigest != image.Digest(instance.String())) {
			t.Errorf("%s: %+v", name, got)
		}
		if err == nil {
			l.verifyAgain(got)
		}
	}
}

func TestUncovered(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	digest := l.push("demo/x:1", makeImage(t, layerTar("file", "content")))
	_, err := l.pull("demo/x:1")
	var e *Error
	if !errors.Is(err, ErrUntrusted) || !errors.As(err, &e) {
		t.Fatal(err)
	}
	for _, way := range []string{"machinectl-lite trust add --prefix " + l.host + "/demo ", l.host + "/demo/x@" + digest, "--insecure-options=image"} {
		if !strings.Contains(strings.Join(e.Advice, "\n"), way) {
			t.Errorf("%s\n%s\nhas no %s", err, strings.Join(e.Advice, "\n"), way)
		}
	}
	got, err := l.pull("demo/x@" + digest)
	if err != nil || got.Trust.Kind != image.TrustDigest {
		t.Error(got, err)
	}
	if _, err := l.store.Image(l.reference("demo/x:1")); !errors.Is(err, image.ErrNotFound) {
		t.Error("what is pinned is not the tag")
	}
	l.write("policy.json", fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"insecureAcceptAnything"}]}}}`, l.host+"/demo"))
	got, err = l.pull("demo/x:1")
	if err != nil || got.Trust.Kind != image.TrustInsecure || got.Trust.Rule != "policy.json: "+l.host+"/demo" || got.Trust.Insecure != nil {
		t.Error(got, err)
	}
	l.write("policy.json", `{"default":[{"type":"reject"}]}`)
	if _, err = l.pull("demo/x:1"); !errors.Is(err, ErrUntrusted) {
		t.Error(err)
	}
	l.write("policy.json", `{"typo"`)
	if _, err = l.pull("demo/x:1"); err == nil {
		t.Error("a policy that can't be read")
	}
	os.Remove(filepath.Join(l.etc, "policy.json"))
	l.write("trust.d/x.json", "{")
	if _, err = l.pull("demo/x:1"); err == nil || !strings.Contains(err.Error(), "x.json") {
		t.Error(err)
	}
}

// What the administrator wrote into policy.json and registries.d holds as it does for podman.
func TestHostPolicy(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	key := gpgKey(t, "Team")
	private, public := sigstoreKey(t)
	l.write("key.gpg", publicKey(t, key))
	l.write("key.pub", string(public))
	l.write("policy.json", fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{
		%q:[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}],
		%q:[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}]}}}`,
		l.host+"/gpg", filepath.Join(l.etc, "key.gpg"), l.host+"/sigstore", filepath.Join(l.etc, "key.pub")))
	l.write("registries.d/lab.yaml", fmt.Sprintf("docker:\n  %s:\n    lookaside: %s\n", l.host, l.lookaside()))
	img := makeImage(t, layerTar("file", "content"))
	digest := l.push("gpg/x:1", img)
	l.signGPG(key, "gpg/x", l.host+"/gpg/x:1", digest)
	got, err := l.pull("gpg/x:1")
	if err != nil || got.Trust.Kind != image.TrustGPG || got.Trust.Signer != fmt.Sprintf("%X", key.PrimaryKey.Fingerprint) {
		t.Error(got, err)
	}
	l.verifyAgain(got)
	l.push("sigstore/x:1", img)
	l.signSigstore("sigstore/x:1", private)
	if _, err := l.pull("sigstore/x:1"); !errors.Is(err, ErrUntrusted) {
		t.Error("without use-sigstore-attachments:", err)
	}
	l.write("registries.d/sigstore.yaml", fmt.Sprintf("docker:\n  %s/sigstore:\n    use-sigstore-attachments: true\n", l.host))
	if got, err = l.pull("sigstore/x:1"); err != nil || got.Trust.Kind != image.TrustSigstore || !strings.HasPrefix(got.Trust.Signer, "sha256:") {
		t.Error(got, err)
	}
	l.verifyAgain(got)
	// A rule of ours for a GPG key finds the signatures where registries.d says.
	os.Remove(filepath.Join(l.etc, "policy.json"))
	l.write("policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	l.trust("/gpg", image.KeyGPG, publicKey(t, gpgKey(t, "Other")), "")
	l.trust("/gpg", image.KeySigstore, string(public), "")
	if _, err = l.pull("gpg/x:1"); !errors.Is(err, ErrUntrusted) {
		t.Error(err)
	}
	l.trust("/gpg", image.KeyGPG, publicKey(t, key), "")
	if got, err = l.pull("gpg/x:1"); err != nil || got.Trust.Signer != fmt.Sprintf("%X", key.PrimaryKey.Fingerprint) {
		t.Error(got, err)
	}
}

func TestParseKeys(t *testing.T) {
	private, public := sigstoreKey(t)
	secret, err := os.ReadFile(private)
	if err != nil {
		t.Fatal(err)
	}
	a, b := gpgKey(t, "A"), gpgKey(t, "B\x1b[31m")
	keys, err := ParseKeys([]byte(publicKey(t, a, b)))
	if err != nil || len(keys) != 2 || keys[0].Fingerprint != fmt.Sprintf("%X", a.PrimaryKey.Fingerprint) || keys[0].Type != image.KeyGPG || len(keys[0].UserIDs) != 1 {
		t.Error(keys, err)
	}
	if alone, err := ParseKeys(keys[1].Data); err != nil || len(alone) != 1 || alone[0].Fingerprint != keys[1].Fingerprint {
		t.Error("the key alone:", alone, err)
	}
	if keys, err = ParseKeys(public); err != nil || len(keys) != 1 || keys[0].Type != image.KeySigstore || len(keys[0].Fingerprint) != 71 {
		t.Error(keys, err)
	}
	var withSecret strings.Builder
	if err := a.SerializePrivate(&withSecret, nil); err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string]string{
		"private key":  withSecret.String(),
		"PRIVATE":      string(secret),
		"neither":      "hello",
		"no key":       "",
		"not a public": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"asn1":         "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
	} {
		if keys, err := ParseKeys([]byte(data)); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("want …%s…, got %v, %v", want, keys, err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := ParseKeys(data)
		if err == nil && len(keys) == 0 {
			t.Error("neither keys nor an error")
		}
		for _, key := range keys {
			if strings.ContainsAny(key.Fingerprint, "/\x00") || len(key.Fingerprint) < 32 {
				t.Errorf("fingerprint %q", key.Fingerprint)
			}
		}
	})
}

// A key that expires while its image is stored: the decision stands until then and no longer.
func TestKeyExpires(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	const lifetime = 5 // seconds
	key, err := openpgp.NewEntity("Short", "", "short@example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA256, KeyLifetimeSecs: lifetime})
	must(t, err)
	l.trust("", image.KeyGPG, publicKey(t, key), l.lookaside())
	l.signGPG(key, "demo/x", l.host+"/demo/x:1", l.push("demo/x:1", makeImage(t, layerTar("file", "content"))))
	if keys, err := ParseKeys([]byte(publicKey(t, key))); err != nil || keys[0].Faults != nil {
		t.Error(keys, err)
	}
	got, err := l.pull("demo/x:1")
	must(t, err)
	expires := key.PrimaryKey.CreationTime.Add(lifetime * time.Second)
	if until := got.Trust.Inputs.Until; !until.Equal(expires) || got.Trust.Inputs.Current(expires.Add(time.Second)) {
		t.Errorf("stands until %v, the key until %v", until, expires)
	}
	time.Sleep(time.Until(expires.Add(time.Second)))
	if _, err := Recheck(context.Background(), l.store, got, l.options()); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	must(t, key.RevokeKey(packet.KeyCompromised, "", nil))
	if keys, err := ParseKeys([]byte(publicKey(t, key))); err != nil || len(keys[0].Faults) != 2 {
		t.Error(keys, err)
	}
}
