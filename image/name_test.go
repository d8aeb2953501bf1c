package image

import "testing"

func TestShortName(t *testing.T) {
	for s, want := range map[string]string{
		"nginx": "nginx", "nginx:1": "nginx", "a/b/c:1": "a/b/c", "library/nginx": "library/nginx",
		"nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": "nginx",
		"docker.io/nginx": "", "index.docker.io/nginx": "", "docker://nginx": "", "localhost/x": "", "a.b/c": "", "host:5000/x:1": "", "UPPER": "", "": "",
	} {
		if got := ShortName(s); got != want {
			t.Errorf("%s: %q", s, got)
		}
	}
}

func TestName(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	check := func(text, want string) {
		t.Helper()
		if ref, err := s.Name(text); err != nil || ref.String() != want {
			t.Errorf("%s: %s %v", text, ref, err)
		}
	}
	check("nginx:1", "docker.io/library/nginx:1")
	w, err := s.Writer()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	quay, err := ParseReference("quay.io/nginx/nginx:2")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nginx", "team/web:1"} {
		if err := w.AddName(name, quay); err != nil {
			t.Fatal(err)
		}
	}
	check("nginx:1", "quay.io/nginx/nginx:1")
	check("nginx", "quay.io/nginx/nginx:latest")
	check("team/web", "quay.io/nginx/nginx:latest")
	check("docker.io/nginx", "docker.io/library/nginx:latest")
	check("web", "docker.io/library/web:latest")
	if _, err := s.Name("../x"); err == nil {
		t.Error("not a name")
	}
}
