package main

import (
	"strings"
	"testing"

	"nspawnd/importd"
)

func TestNameOfImage(t *testing.T) {
	for url, want := range map[string]string{
		"http://h/x":               "x",
		"https://h/a/b.tar.xz":     "b.tar.xz",
		"https://h/a/b/":           "b",
		"https://h/x.tar?y=/z":     "x.tar",
		"https://h/x.tar#/frag?":   "x.tar",
		"https://h/a%20b;c":        "a%20b;c",
		"https://h":                "",
		"https://h/":               "",
		"http:///x":                "x",
		"file:///srv/x.raw":        "x.raw",
		"":                         "",
		"https://u:p@h:8080//x.gz": "x.gz",
	} {
		if got := nameOfURL(url); got != want {
			t.Errorf("%s: got %q, want %q", url, got, want)
		}
	}
	for _, c := range []struct {
		format     importd.Format
		name, want string
	}{
		{importd.Tar, "x.tar", "x"}, {importd.Tar, "x.tar.xz", "x"}, {importd.Tar, "x.tgz", "x"}, {importd.Tar, "x.tar.tar", "x.tar"}, {importd.Tar, "x.xz", "x.xz"},
		{importd.Tar, "x.raw", "x.raw"}, {importd.Tar, ".tar", ""}, {importd.Tar, "x", "x"},
		{importd.Raw, "x.raw", "x"}, {importd.Raw, "x.img.raw.xz.gz", "x"}, {importd.Raw, "x.tar", "x.tar"}, {importd.Raw, "x.confext.raw", "x"}, {importd.Raw, "x.zst", "x"}, {importd.Raw, "x.raw.v", "x.raw.v"},
		{importd.FileSystem, "x.tar", "x.tar"},
	} {
		if got := imageName(c.format, c.name); got != c.want {
			t.Errorf("%s %s: got %q, want %q", c.format, c.name, got, c.want)
		}
	}
}

func TestCompressionOf(t *testing.T) {
	for _, c := range []struct{ format, path, want string }{
		{"", "", "uncompressed"}, {"", "x.tar", "uncompressed"}, {"", "x.tgz", "uncompressed"}, {"", "x.tar.gz", "gzip"}, {"", "x.xz", "xz"}, {"", "x.bz2", "bzip2"}, {"", "x.zst", "zstd"},
		{"gzip", "x.xz", "gzip"}, {"uncompressed", "x.xz", "uncompressed"}, {"zstd", "", "zstd"}, {"gz", "x", ""},
	} {
		if got, err := compressionOf(c.format, c.path); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s %s: got %q, %v", c.format, c.path, got, err)
		}
	}
}

func TestTransferDisplay(t *testing.T) {
	var b strings.Builder
	d := transferDisplay{terminal: terminal{tty: true, color: true, columns: 24}, Writer: &b, names: strings.NewReplacer("/t/.#x", "/t/y")}
	shows := func(want string) {
		t.Helper()
		if b.String() != want {
			t.Errorf("got %q, want %q", b.String(), want)
		}
		b.Reset()
	}
	const bar0 = "\rTotal: \x1b[0;1;32m=\x1b[0m \x1b[0;38:5:245m---------\x1b[0m \x1b[0;1;39m  0%\x1b[0m\x1b[K\r"
	d.said(priorityInfo, "to '/t/.#x' \x1b[2J")
	shows("\r\x1b[K" + `to '/t/y' \x1b[2J` + "\n" + bar0)
	d.progress(0.5)
	shows("\rTotal: \x1b[0;1;32m=====\x1b[0m \x1b[0;38:5:245m-----\x1b[0m \x1b[0;1;39m 50%\x1b[0m\x1b[K\r")
	for _, odd := range []float64{-1, 1.5, 1e300} {
		d.progress(odd)
	}
	shows("")
	d.progress(1)
	shows("\rTotal: \x1b[0;1;32m==========\x1b[0m \x1b[0;38:5:245m\x1b[0m \x1b[0;1;39m100%\x1b[0m\x1b[K\r")
	d.columns = 3 // no bar fits
	d.progress(0.4)
	shows("")
	d.end()
	b.Reset()
	d.said(priorityError, "no")
	shows("\x1b[0;1;31mno\x1b[0m\n")
	if !d.saidWhy {
		t.Error("an error was said")
	}
	d = transferDisplay{Writer: &b, names: strings.NewReplacer(), quiet: true}
	d.said(priorityInfo, "hush")
	d.progress(0.2)
	d.said(5, "notice")
	d.end()
	shows("notice\n")
}

func TestTransferTable(t *testing.T) {
	table := transferTable([]importd.Summary{
		{ID: 126, Type: "pull-raw", Remote: "http://h/x\x1b", Local: "x", Class: "machine", Progress: 0.169},
		{ID: 27, Type: "import-tar", Local: "a", Class: "machine", Progress: -1},
	})
	var b strings.Builder
	out := &output{Writer: &b, wide: true, close: func() error { return nil }}
	check := func(want string) {
		t.Helper()
		if b.String() != want {
			t.Errorf("got\n%s\nwant\n%s", b.String(), want)
		}
		b.Reset()
	}
	_ = table.print(out, true, true)
	check(" ID PROGRESS TYPE       CLASS   LOCAL REMOTE\n" +
		" 27        - import-tar machine a     \n" +
		"126      16% pull-raw   machine x     http://h/x\\x1b\n")
	_ = table.printJSON(out, "short")
	check(`[{"id":27,"progress":null,"type":"import-tar","class":"machine","local":"a","remote":""},{"id":126,"progress":16,"type":"pull-raw","class":"machine","local":"x","remote":"http://h/x\u001b"}]` + "\n")
}
