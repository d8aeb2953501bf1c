package fetch

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nspawnd/image"
)

// cut ends a connection without an answer, or in the middle of one.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// misbehave has a registry answer the first requests for what has path in it, one after the other, by these.
func (l *lab) misbehave(path string, answers ...http.HandlerFunc) (asked *atomic.Int32) {
	asked = new(atomic.Int32)
	honest := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, path) {
			honest.ServeHTTP(w, r)
			return
		}
		n := int(asked.Add(1)) - 1
		if n < len(answers) {
			answers[n](w, r)
			return
		}
		honest.ServeHTTP(w, r)
	})
	l.t.Cleanup(func() { l.handler = honest })
	return asked
}

func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		http.Error(w, "no", code)
	}
}

func TestRetry(t *testing.T) {
	needMounts(t)
	for _, test := range []struct {
		name, path string
		answers    []http.HandlerFunc
		asked      int32 // 0: it is refused for good
	}{
		{"503", "/manifests/1", []http.HandlerFunc{status(503), status(502), status(500)}, 4},
		{"no answer", "/manifests/1", []http.HandlerFunc{cut, cut}, 3},
		{"no answer at all", "/v2/", []http.HandlerFunc{cut}, 5}, // the greeting twice, the manifest, the configuration and the layer
		{"429", "/manifests/1", []http.HandlerFunc{status(429, "Retry-After", "1")}, 2},
		{"blob", "/blobs/", []http.HandlerFunc{cut, status(503), cut}, 5},
		{"for ever", "/manifests/1", []http.HandlerFunc{status(500), status(500), status(500), status(500)}, 0},
		{"not found", "/manifests/1", []http.HandlerFunc{status(404)}, 0},
		{"forbidden", "/manifests/1", []http.HandlerFunc{status(403)}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			l.push("demo/x:1", makeImage(t, layerTar("file", "content")))
			asked := l.misbehave(test.path, test.answers...)
			_, err := l.pullWith("demo/x:1", l.insecure())
			want := test.asked
			if want == 0 {
				want = int32(len(test.answers))
			}
			if (err == nil) != (test.asked > 0) || asked.Load() != want {
				t.Errorf("%v, asked %d times, not %d", err, asked.Load(), want)
			}
		})
	}
}

// A blob that breaks off goes on where it was, by a range if the registry knows that.
func TestResume(t *testing.T) {
	needMounts(t)
	tar := layerTar("random", randomText(6<<20))
	blob := gzipped(tar)
	for _, test := range []struct {
		name   string
		ranges bool
		cuts   int
		ok     bool
	}{{"ranges", true, 3, true}, {"no ranges", false, 3, true}, {"too often", false, 100, false}} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			l.push("demo/x:1", rawImage(t, "application/vnd.oci.image.layer.v1.tar+gzip", []string{string(image.DigestOf(tar))}, blob))
			var sent, cuts atomic.Int64
			honest := l.handler
			l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "/blobs/"+hashOf(blob).String()) {
					honest.ServeHTTP(w, r)
					return
				}
				rest := blob
				if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && test.ranges {
					start, _ := strconv.Atoi(strings.TrimSuffix(from, "-"))
					rest = blob[start:]
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(blob)-1, len(blob)))
					w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
				}
				if cuts.Add(1) <= int64(test.cuts) {
					// Further each time without ranges, or nothing would ever change.
					n, _ := w.Write(rest[:min(len(rest), (3<<19)*int(1+cuts.Load()*b2i(!test.ranges && test.ok)))])
					sent.Add(int64(n))
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				n, _ := w.Write(rest)
				sent.Add(int64(n))
			})
			_, err := l.pullWith("demo/x:1", l.insecure())
			if (err == nil) != test.ok {
				t.Fatal(err)
			}
			if test.ranges && sent.Load() != int64(len(blob)) {
				t.Errorf("%d bytes were sent of a blob of %d", sent.Load(), len(blob))
			}
			t.Logf("%d bytes sent of %d, %d requests", sent.Load(), len(blob), cuts.Load())
		})
	}
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// A registry that sends a byte now and then is given up as one that says nothing is.
func TestTrickle(t *testing.T) {
	needMounts(t)
	defer func(before time.Duration) { patience = before }(patience)
	patience = 300 * time.Millisecond
	l := newLab(t)
	l.push("demo/x:1", makeImage(t, layerTar("file", strings.Repeat("content", 10000))))
	honest := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			honest.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Length", "100000")
		for r.Context().Err() == nil {
			w.Write([]byte{0x1f})
			w.(http.Flusher).Flush()
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
	})
	_, err := l.pullWith("demo/x:1", l.insecure())
	if err == nil || !strings.Contains(err.Error(), "the registry sent only ") {
		t.Error(err)
	}
}

// Where credentials go: to the registry, and to nobody that it redirects to.
func TestCredentials(t *testing.T) {
	needMounts(t)
	const authorization = "Basic dXNlcjpwYXNzd29yZA==" // user:password
	l := newLab(t)
	l.push("demo/x:1", makeImage(t, layerTar("file", "content")))
	honest := l.handler
	var leaked atomic.Value
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if auth := r.Header.Get("Authorization"); auth != "" && !strings.HasPrefix(r.URL.Path, "/none") { // there its address says one
			leaked.Store(r.Header)
		}
		if strings.HasPrefix(r.URL.Path, "/none") {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		honest.ServeHTTP(w, r)
	}))
	t.Cleanup(storage.Close)
	elsewhere := strings.Replace(storage.URL, "127.0.0.1", "localhost", 1)
	redirect, bearer := "", false
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := authorization
		if bearer && r.URL.Path != "/token" {
			want = "Bearer t0ken"
		}
		if r.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			if bearer {
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+l.host+`/token",service="x"`)
			}
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`, http.StatusUnauthorized)
			return
		}
		switch {
		case r.URL.Path == "/token":
			io.WriteString(w, `{"token": "t0ken"}`)
		case redirect != "" && strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, redirect+r.URL.Path+"?signature=s3cret", http.StatusTemporaryRedirect)
		default:
			honest.ServeHTTP(w, r)
		}
	})
	pull := func(what string) error {
		t.Helper()
		os.RemoveAll(l.storeDir)
		_, err := l.pullWith("demo/x:1", l.insecure())
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "t0ken")) {
			t.Errorf("%s: a secret in %q", what, err)
		}
		return err
	}
	auths := fmt.Sprintf(`{"auths": {%q: {"auth": "dXNlcjpwYXNzd29yZA=="}}}`, l.host)

	if err := pull("none"); !errors.Is(err, ErrDenied) {
		t.Error("without credentials:", err)
	}
	l.write("auth.json", fmt.Sprintf(`{"auths": {%q: {"auth": "dXNlcjp3cm9uZw=="}}}`, l.host))
	if err := pull("wrong"); !errors.Is(err, ErrDenied) {
		t.Error("with wrong credentials:", err)
	}
	l.write("auth.json", auths)
	for _, bearer = range []bool{false, true} {
		for _, redirect = range []string{"", elsewhere} {
			if err := pull("auth.json"); err != nil {
				t.Errorf("token %v, storage %q: %v", bearer, redirect, err)
			}
		}
		redirect = storage.URL // our host, without TLS
		if err := pull("plain text"); err == nil || !strings.Contains(err.Error(), "redirects from TLS to plain text") {
			t.Error(err)
		}
		redirect = strings.Replace(elsewhere, "http://", "http://other:s3cret@", 1) + "/none"
		if err := pull("storage"); err == nil {
			t.Error("storage that does not have it")
		}
		redirect = "http://other:s3cret@localhost:1"
		if err := pull("storage"); err == nil || !errors.Is(err, ErrUnreachable) {
			t.Error("storage that is not there", err)
		}
	}
	if leaked := leaked.Load(); leaked != nil {
		t.Errorf("the storage got %v", leaked)
	}

	// The places where podman and docker look.
	bearer, redirect = false, ""
	l.system.AuthFilePath = ""
	home := t.TempDir()
	for name, file := range map[string]string{"HOME": ".docker/config.json", "XDG_RUNTIME_DIR": "containers/auth.json", "REGISTRY_AUTH_FILE": "auth", "DOCKER_CONFIG": "config.json"} {
		t.Run(name, func(t *testing.T) {
			for _, other := range []string{"HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
				t.Setenv(other, filepath.Join(home))
			}
			dir := filepath.Join(t.TempDir())
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(auths), 0o600); err != nil {
				t.Fatal(err)
			}
			if name == "REGISTRY_AUTH_FILE" {
				dir = path
			}
			t.Setenv(name, dir)
			if err := pull(name); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("helper", func(t *testing.T) {
		bin := t.TempDir()
		helper := "#!/bin/sh\nread host\n[ \"$1\" = get ] && [ \"$host\" = " + l.host + " ] && [ $# = 1 ] && echo '{\"Username\": \"user\", \"Secret\": \"password\"}'\n"
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		l.system.AuthFilePath = l.write("auth.json", fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, l.host))
		if err := pull("helper"); err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutSecrets(t *testing.T) {
	for s, want := range map[string]string{
		`Get "https://user:secret@storage.example/x?X-Amz-Signature=secret&b=c#secret": EOF`: `Get "https://…@storage.example/x?…": EOF`,
		`https://plain.example/v2/ and http://b/?token=secret`:                               `https://plain.example/v2/ and http://b/?…`,
		`https://user:secret@bad%zz/?secret`:                                                 `https://…`,
		"no address":                                                                         "no address",
	} {
		if got := withoutSecrets(s); got != want {
			t.Errorf("%s: %s", s, got)
		}
	}
}
