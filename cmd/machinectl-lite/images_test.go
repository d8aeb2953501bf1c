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

func TestImageTable(t *testing.T) {
	defer func(local *time.Location) { time.Local = local }(time.Local)
	time.Local = time.UTC
	ref, err := image.ParseReference("registry.test:5000/demo/x:1")
	if err != nil {
		t.Fatal(err)
	}
	img := &image.Image{
		Reference: ref, ManifestDigest: image.DigestOf(nil), Size: 80 << 20, Pulled: time.Unix(1e9, 0),
		Trust: image.Trust{Kind: image.TrustGPG, Signer: "0123456789ABCDEF0123456789ABCDEF01234567"},
	}
	people := []string{"registry.test:5000/demo/x:1", "e3b0c44298fc", "80.0M", "signedBy 89ABCDEF01234567", "Sun 2001-09-09 01:46:40 UTC"}
	if diff := cmp.Diff([][]string{people}, imageTable([]*image.Image{img}, false).rows); diff != "" {
		t.Error(diff)
	}
	programs := []string{"registry.test:5000/demo/x:1", string(image.DigestOf(nil)), "83886080", "signedBy 0123456789ABCDEF0123456789ABCDEF01234567", "2001-09-09T01:46:40Z"}
	if diff := cmp.Diff([][]string{programs}, imageTable([]*image.Image{img}, true).rows); diff != "" {
		t.Error(diff)
	}
}

func TestBytesWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.0K", 1536: "1.5K", 1 << 30: "1.0G", 1<<63 - 1: "8.0E"} {
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
		{trustFlags{yes: true}, key, "which images is the key for"},
		{trustFlags{prefix: "a.test", keyType: "gpg", yes: true}, key, "is a sigstore key"},
		{trustFlags{prefix: "a.test", keyType: "x509", yes: true}, key, "must be gpg or sigstore"},
		{trustFlags{prefix: "team", yes: true}, key, "write names in full"},
		{trustFlags{prefix: "a.test"}, key, "say --yes"}, // go test has no terminal
		{trustFlags{prefix: "a.test", yes: true}, "/none", "no such file"},
		{trustFlags{prefix: "a.test", yes: true}, "/dev/null", "no key in it"},
		{trustFlags{prefix: "a.test/team", yes: true}, key, ""},
	} {
		err := test.flags.add(test.file)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.flags, err)
		}
	}
	rules, err := image.ReadTrust(image.TrustDirs)
	if err != nil || len(rules) != 1 || rules[0].Prefix != "a.test/team" {
		t.Error(rules, err)
	}
}
