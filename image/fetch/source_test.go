package fetch

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"nspawnd/image"
)

func TestParseSource(t *testing.T) {
	for s, want := range map[string]Source{
		"oci:a":                                {"oci", "a", ""},
		"oci:/a:b:c":                           {"oci", "/a", "b:c"},
		"oci-archive:a.tar:registry.test/x:1":  {"oci-archive", "a.tar", "registry.test/x:1"},
		"docker-archive:a.tar:registry.test/x": {"docker-archive", "a.tar", "registry.test/x"},
		"dir:a:b":                              {"dir", "a:b", ""},
	} {
		if got, ok, err := ParseSource(s); got != want || !ok || err != nil || got.String() != s {
			t.Errorf("%s: %+v %v %v", s, got, ok, err)
		}
	}
	for _, s := range []string{"oci:", "dir:", "oci::x"} {
		if _, ok, err := ParseSource(s); !ok || err == nil {
			t.Errorf("%s: %v %v", s, ok, err)
		}
	}
	for _, s := range []string{"nginx", "oci", "docker://x", "localhost:5000/oci:1"} {
		if _, ok, err := ParseSource(s); ok || err != nil {
			t.Errorf("%s: %v %v", s, ok, err)
		}
	}
}

// copyTo has containers/image write what the registry has as ref to a destination in files.
func (l *lab) copyTo(ref, destination string) {
	l.t.Helper()
	from, err := docker.ParseReference("//" + l.host + "/" + ref)
	if err != nil {
		l.t.Fatal(err)
	}
	transport, path, _ := strings.Cut(destination, ":")
	to, err := map[string]func(string) (types.ImageReference, error){
		"oci": layout.ParseReference, "oci-archive": ociarchive.ParseReference,
		"docker-archive": dockerarchive.ParseReference, "dir": directory.NewReference,
	}[transport](path)
	if err != nil {
		l.t.Fatal(err)
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		l.t.Fatal(err)
	}
	system := *l.system
	system.RegistriesDirPath = l.etc + "/signatures.d"
	_, err = copy.Image(context.Background(), policy, to, from, &copy.Options{SourceCtx: &system, RemoveSignatures: !strings.HasPrefix(destination, "dir:")})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) importFrom(source, name string, options Options) (*image.Image, error) {
	l.t.Helper()
	from, _, err := ParseSource(source)
	if err != nil {
		l.t.Fatal(err)
	}
	ref := image.Reference{}
	if name != "" {
		if ref, err = image.ParseReference(name); err != nil {
			l.t.Fatal(err)
		}
	}
	return Import(context.Background(), l.store, from, ref, options)
}

// Every transport gives the image that a registry gives.
func TestImport(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	digest := l.push("demo/x:1", makeImage(t, layerTar("bin/hello", "hello"), layerTar("etc/motd", "welcome")))
	dir := t.TempDir()
	want, err := l.pullWith("demo/x:1", l.insecure())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ destination, source, name, stored string }{
		{"oci:" + dir + "/oci:x", "oci:" + dir + "/oci", "localhost/oci:1", "localhost/oci:1"},
		{"oci-archive:" + dir + "/o.tar:registry.test/x/y:2", "oci-archive:" + dir + "/o.tar", "", "registry.test/x/y:2"},
		{"docker-archive:" + dir + "/d.tar:registry.test/z:3", "docker-archive:" + dir + "/d.tar", "", "registry.test/z:3"},
		{"dir:" + dir + "/dir", "dir:" + dir + "/dir", "localhost/dir", "localhost/dir:latest"},
		{"oci:" + dir + "/oci:y", "oci:" + dir + "/oci:y", "localhost/pinned@" + digest, "localhost/pinned@" + digest},
	} {
		l.copyTo("demo/x:1", test.destination)
		options := l.insecure()
		if strings.Contains(test.name, "@") {
			options = l.options()
		}
		got, err := l.importFrom(test.source, test.name, options)
		if err != nil {
			t.Errorf("%s: %v", test.source, err)
			continue
		}
		if got.Reference.String() != test.stored || !slices.Equal(got.Layers, want.Layers) || got.ConfigDigest != want.ConfigDigest {
			t.Errorf("%s: %+v", test.source, got)
		}
		if !strings.HasPrefix(test.source, "docker-archive") && got.ManifestDigest != want.ManifestDigest {
			t.Errorf("%s: manifest %s", test.source, got.ManifestDigest)
		}
	}

	// Compressed as a whole, and with its layers compressed.
	data, err := os.ReadFile(dir + "/d.tar")
	if err != nil {
		t.Fatal(err)
	}
	for name, blob := range map[string][]byte{"gz": gzipped(data), "zst": zstdCompressed(t, data), "layers": compressLayers(t, data)} {
		path := l.write(name, string(blob))
		if got, err := l.importFrom("docker-archive:"+path, "localhost/"+name, l.insecure()); err != nil || !slices.Equal(got.Layers, want.Layers) {
			t.Errorf("%s: %v", name, err)
		}
	}

	for _, test := range []struct{ source, name, want string }{
		{"oci:" + dir + "/oci", "localhost/x", "2 images in it, of which one has to be named behind a colon; it has: x, y"},
		{"oci:" + dir + "/oci:z", "localhost/x", "no image of that name in it; it has: x, y"},
		{"oci:" + dir + "/oci:x", "", "it does not say what it is called"},
		{"oci:" + dir, "localhost/x", "not an OCI layout"},
		{"oci:" + dir + "/none", "localhost/x", "no such file"},
		{"docker-archive:" + dir + "/o.tar", "localhost/x", "not a docker-archive"},
		{"docker-archive:" + dir + "/d.tar:registry.test/z:4", "", "it has: registry.test/z:3"},
		{"oci-archive:" + dir + "/oci/index.json", "localhost/x", "reading tar"},
		{"oci-archive:" + dir, "localhost/x", "not a regular file"},
		{"oci:" + dir + "/oci:x", "localhost/x@sha256:" + strings.Repeat("0", 64), "does not match provided manifest digest"},
	} {
		_, err := l.importFrom(test.source, test.name, l.insecure())
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: want …%s…, got %v", test.source, test.want, err)
		}
	}
}

// compressLayers gives a docker-archive whose layers are compressed.
func compressLayers(t *testing.T, archive []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, r := tar.NewWriter(&out), tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := r.Next()
		if err != nil {
			break
		}
		var content bytes.Buffer
		content.ReadFrom(r)
		if strings.HasSuffix(header.Name, ".tar") && header.Typeflag == tar.TypeReg {
			content = *bytes.NewBuffer(gzipped(content.Bytes()))
		}
		header.Size = int64(content.Len())
		w.WriteHeader(header)
		w.Write(content.Bytes())
	}
	w.Close()
	return out.Bytes()
}

// A name that a rule covers needs a signature, wherever the image is from; only dir: can have one.
func TestImportTrust(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	private, public := sigstoreKey(t)
	digest := l.push("signed/x:1", makeImage(t, layerTar("file", "content")))
	l.signSigstore("signed/x:1", private)
	gpg := gpgKey(t, "Right")
	l.signGPG(gpg, "signed/x", l.host+"/signed/x:1", digest)
	l.trust("/signed", image.KeySigstore, string(public), "")
	l.trust("/other", image.KeySigstore, string(public), "")
	l.trust("/signed/x", image.KeyGPG, publicKey(t, gpg), l.lookaside())
	if err := os.Mkdir(l.etc+"/signatures.d", 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("signatures.d/all.yaml", fmt.Sprintf(`{"docker": {%q: {"use-sigstore-attachments": true, "lookaside": %q}}}`, l.host, l.lookaside()))
	dir := t.TempDir()
	for _, transport := range []string{"dir", "oci", "oci-archive", "docker-archive"} {
		source := transport + ":" + dir + "/" + transport
		l.copyTo("signed/x:1", source)
		os.RemoveAll(l.storeDir) // what is stored under a name is proof for the same image
		for name, ok := range map[string]bool{
			"/signed/x:1":          transport == "dir",
			"/signed/x@" + digest:  transport == "dir",
			"/signed/x:2":          false, // GPG's is for :1
			"/signed/y:1":          false,
			"/other/x:1":           false,
			"/nobodys/x:1":         false,
			"/nobodys/x@" + digest: transport != "docker-archive", // which has no manifest of its own
		} {
			got, err := l.importFrom(source, l.host+name, l.options())
			if (err == nil) != ok || err != nil && !errors.Is(err, ErrUntrusted) && !strings.Contains(err.Error(), "digest") {
				t.Errorf("%s as %s: %v", transport, name, err)
			}
			if err == nil && strings.HasPrefix(name, "/signed/") {
				if got.Trust.Kind != image.TrustGPG || len(got.Trust.Signatures) == 0 {
					t.Errorf("%s as %s: %+v", transport, name, got.Trust)
				}
				l.verifyAgain(got)
			}
		}
	}
	// What policy.json says of where it is, as podman reads it.
	l.write("policy.json", fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"oci": {%q: [{"type": "insecureAcceptAnything"}]}}}`, dir))
	for transport, ok := range map[string]bool{"oci": true, "docker-archive": false, "oci-archive": false, "dir": false} {
		if _, err := l.importFrom(transport+":"+dir+"/"+transport, "localhost/x", l.options()); (err == nil) != ok {
			t.Errorf("%s by policy.json: %v", transport, err)
		}
	}
}

// What a stranger's files may try.
func TestHostileFiles(t *testing.T) {
	l := newLab(t)
	secret := l.write("secret", "secret")
	layout := func(change func(dir, manifest string)) string {
		dir := t.TempDir()
		config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`)
		manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, image.DigestOf(config), len(config))
		blobs := filepath.Join(dir, "blobs/sha256")
		os.MkdirAll(blobs, 0o755)
		for _, blob := range [][]byte{config, manifest} {
			os.WriteFile(filepath.Join(blobs, image.DigestOf(blob).Hex()), blob, 0o644)
		}
		index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d}]}`, image.DigestOf(manifest), len(manifest))
		os.WriteFile(filepath.Join(dir, "index.json"), []byte(index), 0o644)
		change(dir, filepath.Join(blobs, image.DigestOf(manifest).Hex()))
		return "oci:" + dir
	}
	replace := func(path string, with func() error) {
		os.Remove(path)
		if err := with(); err != nil {
			t.Fatal(err)
		}
	}
	archives := 0
	archive := func(headers ...tar.Header) string {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, header := range headers {
			content := header.Uname
			header.Uname, header.Size, header.Mode = "", int64(len(content)), 0o644
			if err := w.WriteHeader(&header); err != nil {
				t.Fatal(err)
			}
			w.Write([]byte(content))
		}
		w.Close()
		archives++
		return l.write(fmt.Sprint(archives, ".tar"), buf.String())
	}
	sub := t.TempDir()
	bomb := t.TempDir()
	unix.Mkfifo(filepath.Join(bomb, "manifest.json"), 0o600)
	unix.Mkfifo(filepath.Join(sub, "fifo"), 0o600)
	for _, test := range []struct{ source, want string }{
		{layout(func(dir, manifest string) { replace(manifest, func() error { return os.Symlink(secret, manifest) }) }), "path escapes"},
		{layout(func(dir, manifest string) { replace(manifest, func() error { return unix.Mkfifo(manifest, 0o600) }) }), "not a regular file"},
		{layout(func(dir, manifest string) { replace(manifest, func() error { return os.Mkdir(manifest, 0o700) }) }), "not a regular file"},
		{layout(func(dir, manifest string) { os.WriteFile(manifest, []byte("{}"), 0o600) }), "another digest"},
		{layout(func(dir, manifest string) { os.Truncate(manifest, 1<<40) }), "more than 4194304"},
		{layout(func(dir, manifest string) { os.Truncate(dir+"/index.json", 1<<40) }), "index.json: 1099511627776 bytes, more than 4194304"},
		{layout(func(dir, manifest string) {
			os.WriteFile(dir+"/index.json", []byte(`{"manifests":[{"digest":"sha512:`+strings.Repeat("0", 128)+`"}]}`), 0o600)
		}), "not a sha256 digest"},
		{layout(func(dir, manifest string) {
			os.WriteFile(dir+"/index.json", []byte(strings.Repeat("[", 1<<20)), 0o600)
		}), "index.json: "},
		{layout(func(dir, manifest string) {
			os.WriteFile(dir+"/index.json", []byte(`{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"\u001b[31m"}},{}]}`), 0o600)
		}), "2 images in it"},
		{"oci-archive:" + filepath.Join(sub, "fifo"), "not a regular file"},
		{"dir:" + bomb, "manifest.json: not a regular file"},
		{"docker-archive:" + archive(tar.Header{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: secret}), "not a docker-archive"},
		{"docker-archive:" + archive(tar.Header{Name: "manifest.json", Typeflag: tar.TypeLink, Linkname: "manifest.json"}), "not a docker-archive"},
		{"docker-archive:" + archive(tar.Header{Name: "manifest.json", Uname: `[{"Config":"../../` + secret + `","Layers":[]}]`}), "image configuration: "},
		{"docker-archive:" + archive(tar.Header{Name: "manifest.json", Uname: `[{"Config":"manifest.json","Layers":["x"]}]`}), "image configuration: "},
		{"docker-archive:" + archive(tar.Header{Name: "manifest.json", Uname: "[" + strings.Repeat(`{},`, 3) + "{}]"}), "4 images in it"},
		{"oci-archive:" + l.write("bomb.gz", string(gzipped(make([]byte, 1<<20)))), "not an OCI layout"},
	} {
		source, _, err := ParseSource(test.source)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Import(context.Background(), l.store, source, l.reference("x"), l.insecure())
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%s: want …%s…, got %v", test.source, test.want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(l.storeDir, "images")); err == nil {
		t.Error("something was stored")
	}
}

// An image that has not changed is asked for by its manifest alone, and is proven by what is stored.
func TestUnchanged(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	private, public := sigstoreKey(t)
	l.push("signed/x:1", makeImage(t, layerTar("file", "content")))
	l.signSigstore("signed/x:1", private)
	rule := l.trust("/signed", image.KeySigstore, string(public), "")
	first, err := l.pull("signed/x:1")
	if err != nil {
		t.Fatal(err)
	}
	trustOf := func(img *image.Image) string {
		trust := img.Trust
		trust.Inputs, trust.Time = image.Inputs{}, time.Time{} // of when it was decided
		data, err := json.Marshal(trust)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, options := range []Options{l.options(), l.insecure()} {
		again, err := l.pullWith("signed/x:1", options)
		if err != nil || trustOf(again) != trustOf(first) {
			t.Fatalf("%v, trust %s instead of %s", err, trustOf(again), trustOf(first))
		}
		if want := []string{"GET /v2/", "GET /v2/signed/x/manifests/1"}; !slices.Equal(l.requests, want) {
			t.Errorf("requests: %s", l.requests)
		}
	}
	// What another name was given is no proof for that name.
	w, err := l.store.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l.push("signed/tagged:1", makeImage(t, layerTar("file", "content")))
	if err := w.Tag(context.Background(), l.reference("signed/x:1"), l.reference("signed/tagged:1")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.pull("signed/tagged:1"); !errors.Is(err, ErrUntrusted) {
		t.Error("a tag is proven by another name's signature:", err)
	}
	// Another key: it has to be proven again, and can't.
	_, other := sigstoreKey(t)
	if err := os.RemoveAll(rule.Path); err != nil {
		t.Fatal(err)
	}
	l.trust("/signed", image.KeySigstore, string(other), "")
	if _, err := l.pull("signed/x:1"); !errors.Is(err, ErrUntrusted) {
		t.Error(err)
	}
	if again, err := l.pullWith("signed/x:1", l.insecure()); err != nil || again.Trust.Kind != image.TrustInsecure {
		t.Error(err, again)
	}
}
