package aci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nspawnd/image"
)

var update = flag.Bool("update", false, "write the golden files")

const minimal = `{"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/app"}`

func TestConfig(t *testing.T) {
	data, err := os.ReadFile("testdata/full.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	config, left := m.Config()
	got, err := json.MarshalIndent(map[string]any{
		"config": config, "leftOut": left, "platform": m.Platform(image.Platform{OS: "linux", Architecture: "amd64"}),
	}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/full.golden", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/full.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	app := func(fields string) string { return `"app": {"user": "0", "group": "0", ` + fields + `}` }
	for _, test := range []struct{ fields, want string }{
		{`"acKind": "PodManifest"`, "acKind"},
		{`"acVersion": "2.0.0"`, "acVersion"},
		{`"name": "Example.com/app"`, "name"},
		{`"name": "../etc"`, "name"},
		{`"labels": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]`, "there twice"},
		{`"labels": [{"name": "name", "value": "1"}]`, "not a name"},
		{`"pathWhitelist": ["/bin"]`, "pathWhitelist"},
		{`"dependencies": [{"imageName": "x", "imageID": "sha512-1"}]`, "image ID"},
		{`"dependencies": [` + strings.Repeat(`{"imageName": "x"},`, MaxDependencies) + `{"imageName": "x"}]`, "dependencies"},
		{`"app": {"exec": ["/x"]}`, "no user"},
		{`"app": {"user": "/bin/x", "group": "0"}`, "owner of a file"},
		{`"app": {"user": "0:0", "group": "0"}`, "not a name"},
		{app(`"workingDirectory": "x"`), "not absolute"},
		{app(`"mountPoints": [{"name": "x", "path": "x"}]`), "not absolute"},
		{app(`"environment": [{"name": "A=B", "value": ""}]`), "not a name"},
		{app(`"ports": [{"name": "x", "port": 0, "protocol": "tcp"}]`), "out of range"},
		{app(`"ports": [{"name": "x", "port": 65535, "count": 2, "protocol": "tcp"}]`), "out of range"},
		{app(`"ports": [{"name": "x", "port": 1, "count": 0, "protocol": "tcp"}]`), "out of range"},
		{`"annotations": ` + strings.Repeat("[", 20000), "manifest"},
		{`"annotations": "` + strings.Repeat("x", MaxManifest) + `"`, "bytes, more than"},
	} {
		_, err := ParseManifest([]byte(strings.TrimSuffix(minimal, "}") + ", " + test.fields + "}"))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.80s: %v, want %q", test.fields, err, test.want)
		}
	}
}

func TestReference(t *testing.T) {
	for _, test := range []struct{ name, version, want string }{
		{"example.com/app", "", "example.com/app:latest"},
		{"example.com/a/b", "1.0", "example.com/a/b:1.0"},
		{"example.com/app", "1.0+git", ""},
		{"example.com/~user/app", "", ""},
		{"example.com", "", ""},
		{"app", "", ""},
	} {
		ref, err := Reference(test.name, test.version)
		if got := ref.String(); (err == nil) != (test.want != "") || err == nil && got != test.want {
			t.Errorf("%s %s: %s, %v, want %q", test.name, test.version, got, err, test.want)
		}
	}
}

func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Gname // carried there for the tests
			h.Gname, h.Size = "", int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	return buf.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Gname: content}
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

func TestRead(t *testing.T) {
	attributes := file("./rootfs/bin/x", "program")
	attributes.Mode, attributes.Uid, attributes.ModTime = 0o4755, 1<<22, time.Unix(1, 5)
	attributes.Format = tar.FormatPAX
	attributes.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\xff"}
	long := strings.Repeat("long/", 60)
	in := archive(t, dir("./"), dir("./rootfs/"), attributes,
		tar.Header{Name: "rootfs/y", Typeflag: tar.TypeLink, Linkname: "rootfs/bin/x"},
		tar.Header{Name: "rootfs/z", Typeflag: tar.TypeSymlink, Linkname: "/rootfs/../y"},
		file("rootfs/"+long+"ü", "a"), file("manifest", minimal)) // the manifest at the end
	var layer, again bytes.Buffer
	manifest, id, err := Read(bytes.NewReader(append(in, "rest"...)), &layer)
	if err != nil {
		t.Fatal(err)
	}
	if wantID, _ := ID(bytes.NewReader(append(in, "rest"...))); id != wantID || CheckID(id) != nil || string(manifest) != minimal {
		t.Errorf("ID %s, want %s; manifest %s", id, wantID, manifest)
	}
	Read(bytes.NewReader(in), &again)
	if !bytes.Equal(layer.Bytes(), again.Bytes()) {
		t.Error("two layers of one archive")
	}
	var got []string
	for r := tar.NewReader(&layer); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+" "+h.Linkname)
		if h.Name == "bin/x" && (h.Mode != 0o4755 || h.Uid != 1<<22 || !h.ModTime.Equal(time.Unix(1, 5)) ||
			h.PAXRecords["SCHILY.xattr.security.capability"] != "\x01\x00\xff") {
			t.Errorf("%+v", h)
		}
	}
	want := []string{"./ ", "bin/x ", "y bin/x", "z /rootfs/../y", long + "ü "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadRefuses(t *testing.T) {
	manifest := file("manifest", minimal)
	for want, in := range map[string][]byte{
		"no manifest":          archive(t, dir("rootfs")),
		"no rootfs":            archive(t, manifest),
		"there twice":          archive(t, manifest, dir("rootfs"), file("rootfs/a", ""), file("./rootfs//a", "")),
		`"manifest": is there`: archive(t, manifest, manifest),
		"only manifest":        archive(t, manifest, file("rootfsx", "")),
		"may be in an ACI":     archive(t, manifest, file("etc/passwd", "")),
		`".." is not`:          archive(t, manifest, file("rootfs/../x", "")),
		"not a directory":      archive(t, manifest, file("rootfs", "")),
		"not a regular file":   archive(t, tar.Header{Name: "manifest", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}),
		"bytes":                archive(t, file("manifest", strings.Repeat(" ", MaxManifest+1))),
		"not in rootfs":        archive(t, manifest, dir("rootfs"), tar.Header{Name: "rootfs/x", Typeflag: tar.TypeLink, Linkname: "manifest"}),
		".wh.":                 archive(t, manifest, file("rootfs/.wh.bin", "")),
		"reading tar":          []byte(strings.Repeat("x", 1024)),
		"unexpected EOF":       archive(t, manifest, dir("rootfs"), file("rootfs/a", "aaaa"))[:2600],
	} {
		_, _, err := Read(bytes.NewReader(in), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	full, err := os.ReadFile("testdata/full.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte(minimal))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := ParseManifest(data); err == nil {
			m.Config()
			m.Platform(image.Platform{})
			Reference(m.Name, m.Label("version"))
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add(archive(f, dir("rootfs"), file("manifest", minimal), file("rootfs/a", "b"), tar.Header{Name: "rootfs/b", Typeflag: tar.TypeLink, Linkname: "rootfs/a"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		// A sparse file is large out of nothing.
		layer := &limited{left: 1 << 20}
		if _, _, err := Read(bytes.NewReader(data), layer); err != nil {
			return
		}
		r := tar.NewReader(&layer.Buffer)
		for {
			h, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("the layer can't be read: %v", err)
			}
			if strings.HasPrefix(h.Name, "/") || strings.Contains("/"+h.Name+"/", "/../") {
				t.Fatalf("%q", h.Name)
			}
		}
	})
}

type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.Buffer.Write(p)
}
