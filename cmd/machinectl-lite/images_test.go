package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.podman.io/image/v5/signature/sigstore"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

// testImage is an image in a store of its own.
func testImage(t *testing.T) (*image.Store, *image.Image) {
	defer func(local *time.Location) { t.Cleanup(func() { time.Local = local }) }(time.Local)
	time.Local = time.UTC
	storeRoot = t.TempDir()
	t.Cleanup(func() { storeRoot = image.DefaultRoot })
	store, err := image.Open(storeRoot)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := image.ParseReference("registry.test:5000/demo/x:1")
	if err != nil {
		t.Fatal(err)
	}
	writer, err := store.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	config, err := writer.AddBlob([]byte(`{"created": "2001-01-01T00:00:00Z", "history": [{"comment": "\u202ex\u009b"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	img := &image.Image{
		Reference: ref, ManifestDigest: image.DigestOf(nil), ConfigDigest: config, Pulled: time.Unix(1e9, 0),
		Platform: image.Platform{OS: "linux", Architecture: "arm", Variant: "v7"},
		Config: image.Config{
			Entrypoint: []string{"/run me"}, Cmd: []string{"a", ""}, Env: []string{"A=\x1b[31m", "B=2"},
			Labels: map[string]string{"z": "1", "a": "2"}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
		},
		Trust: image.Trust{Kind: image.TrustGPG, Signer: "0123456789ABCDEF0123456789ABCDEF01234567", Time: time.Unix(1e9, 0)},
	}
	if err := writer.AddImage(img); err != nil {
		t.Fatal(err)
	}
	return store, img
}

func TestImageTable(t *testing.T) {
	store, img := testImage(t)
	img.Size = 80 << 20
	people := []string{
		"registry.test:5000/demo/x:1", "oci", "no", "80M", "Mon 2001-01-01 00:00:00 UTC", "Sun 2001-09-09 01:46:40 UTC", "signedBy 89ABCDEF01234567", "e3b0c44298fc",
	}
	if diff := cmp.Diff([][]string{people}, imageTable(store, []*image.Image{img}, nil, false).rows); diff != "" {
		t.Error(diff)
	}
	programs := []string{
		"registry.test:5000/demo/x:1", "oci", "false", "83886080", "978307200000000", "1000000000000000",
		"signedBy 0123456789ABCDEF0123456789ABCDEF01234567", string(image.DigestOf(nil)),
	}
	if diff := cmp.Diff([][]string{programs}, imageTable(store, []*image.Image{img}, nil, true).rows); diff != "" {
		t.Error(diff)
	}
}

func TestImageStatus(t *testing.T) {
	store, img := testImage(t)
	want := `registry.test:5000/demo/x:1
	    Type: oci
	    Path: ` + storeRoot + `/images/registry.test:5000/demo/x:1.json
	Platform: linux/arm/v7
	  Digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
	      ID: ` + img.ConfigDigest.Hex() + `
	      RO: writable
	 Created: Mon 2001-01-01 00:00:00 UTC; 8 months 7 days ago
	Modified: Sun 2001-09-09 01:46:40 UTC; 1min 0s ago
	   Usage: 0B (exclusive: 0B)
	   Trust: signedBy
	  Signer: 0123456789ABCDEF0123456789ABCDEF01234567
	Verified: Sun 2001-09-09 01:46:40 UTC; 1min 0s ago
	 Command: "/run me" a ""
	     Env: A=\x1b[31m
	          B=2
	   Ports: 80/tcp
	  Labels: a=2
	          z=1
`
	d := newImageDetails(store, img)
	d.os = ""
	got := d.format(time.Unix(1e9+60, 0))
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestShowImage(t *testing.T) {
	store, img := testImage(t)
	properties := newImageDetails(store, img).properties()
	for _, test := range []struct {
		flags propertyFlags
		want  string
	}{
		{propertyFlags{names: []string{"Signer", "Name"}}, "Name=registry.test:5000/demo/x:1\nSigner=0123456789ABCDEF0123456789ABCDEF01234567\n"},
		{propertyFlags{values: []string{"Platform", "Insecure"}}, "linux/arm/v7\n"},
	} {
		test.flags.join()
		if got := test.flags.format(properties); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestInspectImage(t *testing.T) {
	store, img := testImage(t)
	text, err := jsonOf(inspect(store, img))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"RepoTags":["registry.test:5000/demo/x:1"]`, `"Created":"2001-01-01T00:00:00Z"`, `"comment":"\u202ex\u009b"`, `"Env":["A=\u001b[31m","B=2"]`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestFindImage(t *testing.T) {
	store, img := testImage(t)
	for _, name := range []string{"registry.test:5000/demo/x:1", "demo/x:1", "x:1", img.ConfigDigest.Hex()[:4], "e3b0c44298fc", "sha256:e3b0c442"} {
		if got, err := findImage(store, name); err != nil || got.Reference != img.Reference {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"x": "image docker.io/library/x:latest: not in the store", "e3b": "not in", "o/x:1": "not in", "X:1": "",
	} {
		if got, err := findImage(store, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestBytesWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1K", 1064: "1K", 1536: "1.5K", 1 << 30: "1G", 1<<63 - 1: "7.9E"} {
		if got := bytesWords(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestWithAdvice(t *testing.T) {
	err := withAdvice(&fetch.Error{Err: errors.New("not so"), Advice: []string{"do this", "or that"}})
	if err.Error() != "not so\n  do this\n  or that" {
		t.Error(err)
	}
	plain := errors.New("plain")
	if withAdvice(plain) != plain {
		t.Error("advice out of nothing")
	}
}

func TestPullOptions(t *testing.T) {
	for platform, want := range map[string]image.Platform{"": {}, "linux/arm64": {OS: "linux", Architecture: "arm64"}, "linux/arm/v7": {OS: "linux", Architecture: "arm", Variant: "v7"}} {
		options, err := pullFlags{platform: platform}.options()
		if err != nil || options.Platform != want {
			t.Errorf("%s: %+v, %v", platform, options.Platform, err)
		}
	}
	for _, flags := range []pullFlags{{platform: "linux"}, {platform: "linux/"}, {platform: "a/b/c/d"}, {insecure: []string{"image", "tls"}}} {
		if _, err := flags.options(); err == nil {
			t.Errorf("%+v was taken", flags)
		}
	}
}

func TestTrustAdd(t *testing.T) {
	defer func(dirs []string) { image.TrustDirs = dirs }(image.TrustDirs)
	image.TrustDirs = []string{t.TempDir(), t.TempDir()}
	pair, err := sigstore.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "cosign.pub")
	if err := os.WriteFile(key, pair.PublicKey, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		flags trustFlags
		file  string
		want  string
	}{
		{trustFlags{yes: true}, key, "which images is it for"},
		{trustFlags{prefix: "a.test", keyType: "gpg", yes: true}, key, "is a sigstore key"},
		{trustFlags{prefix: "a.test", keyType: "x509", yes: true}, key, "must be gpg or sigstore"},
		{trustFlags{prefix: "team", yes: true}, key, "write names in full"},
		{trustFlags{prefix: "a.test"}, key, "say --yes"}, // go test has no terminal
		{trustFlags{prefix: "a.test", yes: true}, "/none", "no such file"},
		{trustFlags{prefix: "a.test", yes: true}, "/dev/null", "no key in it"},
		{trustFlags{prefix: "a.test/team", yes: true}, key, ""},
	} {
		err := test.flags.add(t.Context(), []string{test.file})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.flags, err)
		}
	}
	rules, err := image.ReadTrust(image.TrustDirs)
	if err != nil || len(rules) != 1 || rules[0].Prefix != "a.test/team" {
		t.Error(rules, err)
	}
}
