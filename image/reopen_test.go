package image

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

func TestNamesOutput(t *testing.T) {
	for text, want := range map[string]bool{
		"ErrorLog /proc/self/fd/2":    true,
		"access.log = /dev/stdout\n":  true,
		"--logpath /proc/$$/fd/1":     true,
		"echo > /dev/fd/2; true":      true,
		"cat /dev/stdin < /dev/fd/0":  false,
		"/dev/fd/10 /proc/self/fd/21": false,
		"/fd/":                        false,
		"":                            false,
	} {
		if got := NamesOutput([]byte(text)); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

func TestReopens(t *testing.T) {
	type file struct {
		name, content, link string
		mode                int64
	}
	for _, c := range []struct {
		file file
		want bool
	}{
		{file{name: "var/log/nginx/access.log", link: "/dev/stdout"}, true},
		{file{name: "dev/stdout", link: "/proc/self/fd/1"}, false},
		{file{name: "usr/local/apache2/conf/httpd.conf", content: "CustomLog /proc/self/fd/1 common"}, true},
		{file{name: "./docker-entrypoint.sh", content: "#!/bin/sh\necho >/dev/stderr", mode: 0o755}, true},
		{file{name: "usr/local/bin/start", content: "#!/bin/sh\necho >/dev/stderr", mode: 0o755}, true},
		{file{name: "usr/local/bin/program", content: "\x7fELF /dev/stderr", mode: 0o755}, false},
		{file{name: "usr/bin/wcurl", content: "#!/bin/sh\necho >/dev/stderr", mode: 0o755}, false},
		{file{name: "usr/share/doc/x/x.conf", content: "/dev/stdout"}, false},
		{file{name: "srv/notes.txt", content: "/dev/stdout"}, false},
		{file{name: "etc/big.conf", content: strings.Repeat(" ", maxConfiguration) + "/dev/stdout"}, false},
		{file{name: "etc/empty.conf"}, false},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := &tar.Header{Name: c.file.name, Mode: 0o644 | c.file.mode, Size: int64(len(c.file.content)), Typeflag: tar.TypeReg}
		if c.file.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, c.file.link
		}
		w.WriteHeader(h)
		w.Write([]byte(c.file.content))
		w.Close()
		tree, err := readTar(&b, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tree.reopens != c.want {
			t.Errorf("%s: %t", c.file.name, tree.reopens)
		}
	}
}
