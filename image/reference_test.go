package image

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	oracle "go.podman.io/image/v5/docker/reference"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for _, test := range []struct{ in, full, short string }{
		{"nginx", "docker.io/library/nginx:latest", "nginx"},
		{"nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"},
		{"docker://nginx", "docker.io/library/nginx:latest", "nginx"},
		{"grafana/grafana", "docker.io/grafana/grafana:latest", "grafana/grafana"},
		{"index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx"},
		{"docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx"},
		{"docker.io/foo.bar/x", "docker.io/foo.bar/x:latest", "docker.io/foo.bar/x"},
		{"localhost/x", "localhost/x:latest", "localhost/x"},
		{"registry.test:5000/demo/nginx", "registry.test:5000/demo/nginx:latest", "registry.test:5000/demo/nginx"},
		{"registry.test:5000/a/b/c:v1_2-3.4", "registry.test:5000/a/b/c:v1_2-3.4", "registry.test:5000/a/b/c:v1_2-3.4"},
		{"127.0.0.1/x", "127.0.0.1/x:latest", "127.0.0.1/x"},
		{"quay.io/a__b--c.d/e", "quay.io/a__b--c.d/e:latest", "quay.io/a__b--c.d/e"},
		{"nginx@" + someDigest, "docker.io/library/nginx@" + someDigest, "nginx@" + someDigest},
		{"nginx:1@" + someDigest, "docker.io/library/nginx:1@" + someDigest, "nginx:1@" + someDigest},
		{"EXAMPLE.com/x", "EXAMPLE.com/x:latest", "EXAMPLE.com/x"},
	} {
		ref, err := ParseReference(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if ref.String() != test.full || ref.Familiar() != test.short {
			t.Errorf("%s: got %s and %s, want %s and %s", test.in, ref, ref.Familiar(), test.full, test.short)
		}
	}
}

func TestParseReferenceErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "empty",
		"/x":                            "empty path component",
		"UPPER":                         "upper-case",
		"a/B":                           "upper-case",
		"x:":                            "empty tag",
		"x:-1":                          "not a tag",
		"x:" + strings.Repeat("t", 129): "tag longer",
		strings.Repeat("x", 256):        "longer than 255",
		"host:port/x":                   "not a port",
		"-bad.example/x":                "not a host",
		"bad..example/x":                "not a host",
		"[::1]:5000/x":                  "not a",
		"a//b":                          "empty path component",
		"a/../b":                        "not a path component",
		"a/./b":                         "not a path component",
		"../../etc/passwd":              "not a host name",
		"x@sha256:12":                   "64 lower-case",
		"x@sha512:" + someDigest[7:]:    "not a sha256 digest",
		"x@" + someDigest + "0":         "64 lower-case",
		someDigest[7:]:                  "a digest, not a name",
		"a b":                           "not a path component",
		"a\nb":                          "not a path component",
		"\x1b[31mred":                   "not a path component",
		"a___b":                         "not a path component",
		"a._b":                          "not a path component",
		"a-":                            "not a path component",
		"host.example/" + strings.Repeat("x", 200) + ":" + strings.Repeat("t", 100): "too long for a file name",
	} {
		_, err := ParseReference(in)
		if err == nil || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%q: %v, want …%s…", in, err, want)
		}
	}
}

func TestScopes(t *testing.T) {
	for in, want := range map[string][]string{
		"a.b.test:5000/c/d:1": {"a.b.test:5000/c/d:1", "a.b.test:5000/c/d", "a.b.test:5000/c", "a.b.test:5000", "*.b.test", "*.test"},
		"nginx@" + someDigest: {"docker.io/library/nginx@" + someDigest, "docker.io/library/nginx", "docker.io/library", "docker.io", "*.io"},
		"localhost/x":         {"localhost/x:latest", "localhost/x", "localhost"},
	} {
		ref, err := ParseReference(in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, ref.Scopes()); diff != "" {
			t.Error(in, diff)
		}
	}
}

// Every name that podman's parser takes means the same to us, and one that we take is one to podman. Only digests of other algorithms and
// names too long for a file are ours to refuse.
func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"nginx", "a/b:c", "h:1/p@" + someDigest, "[::1]:5/x", "localhost/x", "a__b", "docker.io/foo.bar/x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		s = strings.TrimPrefix(s, "docker://")
		want, wantErr := oracle.ParseNormalizedNamed(s)
		if err != nil {
			if wantErr == nil && !strings.Contains(err.Error(), "digest") && !strings.Contains(err.Error(), "file name") {
				t.Fatalf("%q: %v, podman takes it as %s", s, err, want)
			}
			return
		}
		if wantErr != nil {
			t.Fatalf("%q: we take it as %s, podman: %v", s, ref, wantErr)
		}
		if got := ref.String(); got != oracle.TagNameOnly(want).String() {
			t.Fatalf("%q: we take it as %s, podman as %s", s, got, want)
		}
		for _, again := range []string{ref.String(), ref.Familiar()} {
			if second, err := ParseReference(again); err != nil || second != ref {
				t.Fatalf("%q: %q is read as %v, %v", s, again, second, err)
			}
		}
		data, err := json.Marshal(ref)
		var second Reference
		if err != nil || json.Unmarshal(data, &second) != nil || second != ref {
			t.Fatalf("%q: JSON %s is read as %v", s, data, second)
		}
	})
}
