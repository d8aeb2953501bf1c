package image

import (
	"bytes"
	"io"
	"path"
	"slices"
	"strings"
)

// Reopens says whether something in an image seems to open its standard output or error again by a name, /dev/stdout say, as the
// stock nginx and httpd are configured to. open(2) of such a name fails (ENXIO) when the stream is a socket, as that to the journal is.
//
// It is a guess, made once when a layer is unpacked: one that is wrong costs a machine a small process, or a line of the log.
type Reopens string

const (
	ReopensYes     Reopens = "yes"
	ReopensNo      Reopens = "no"
	ReopensUnknown Reopens = "" // nobody has looked yet
)

// NamesOutput says whether s has a name of standard output or error in it: /dev/stdout, /dev/fd/2, /proc/self/fd/1, /proc/$$/fd/1.
func NamesOutput(s []byte) bool {
	if bytes.Contains(s, []byte("/dev/stdout")) || bytes.Contains(s, []byte("/dev/stderr")) {
		return true
	}
	for {
		_, rest, found := bytes.Cut(s, []byte("/fd/"))
		if !found {
			return false
		}
		if number := rest[:len(rest)-len(bytes.TrimLeft(rest, "0123456789"))]; string(number) == "1" || string(number) == "2" {
			return true
		}
		s = rest
	}
}

const maxConfiguration = 64 << 10 // bytes of a file that is looked into

var configurations = []string{".conf", ".cnf", ".cfg", ".ini", ".yml", ".yaml", ".toml", ".xml", ".properties", ".sh"}

// distribution is where a distribution's packages have programs and samples: what names /dev/stderr there is seldom what an image is for.
var distribution = []string{"bin", "dev", "lib", "lib32", "lib64", "proc", "sbin", "sys", "usr/bin", "usr/lib", "usr/lib32", "usr/lib64", "usr/sbin",
	"usr/share", "var/lib"}

// mayNameOutput says whether a file is one that could configure where a service writes its log: a configuration, a script, a link.
func mayNameOutput(name string, n *node) bool {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if slices.ContainsFunc(distribution, func(dir string) bool { return strings.HasPrefix(name, dir+"/") }) {
		return false
	}
	return n.isLink() || n.isRegular() && n.size <= maxConfiguration && (n.mode&0o111 != 0 || slices.Contains(configurations, path.Ext(name)))
}

// look looks for a name of standard output in a file or link of the layer: in what the keeper has read of the content, and in the rest.
func (t *tree) look(n *node, read *bytes.Buffer, rest io.Reader) error {
	if n.isLink() {
		t.reopens = NamesOutput([]byte(n.target))
		return nil
	}
	_, err := read.ReadFrom(rest) // to mayNameOutput's size at most
	t.reopens = NamesOutput(read.Bytes()) && (n.mode&0o111 == 0 || bytes.HasPrefix(read.Bytes(), []byte("#!")))
	return err
}

func reopens(yes bool) Reopens {
	if yes {
		return ReopensYes
	}
	return ReopensNo
}
