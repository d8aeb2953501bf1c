package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Reference is the name of an image in full: HOST[:PORT]/PATH with a tag, a digest or both. The zero value is not a
// name; only [ParseReference] makes them, so a Reference holds no character that could surprise a path or a terminal.
type Reference struct {
	domain string // "docker.io", "registry.test:5000"
	path   string // "library/nginx"
	tag    string
	digest Digest
}

const (
	defaultDomain = "docker.io"
	officialPath  = "library/" // where Docker Hub keeps names of one component
	defaultTag    = "latest"

	maxRepository = 255 // HOST/PATH, as registries have it (distribution-spec)
	maxTag        = 128
)

// ParseReference reads the name of an image as podman and docker do: "nginx" is docker.io/library/nginx:latest, and a
// first component is a host if it has a dot or a port, or is "localhost". A leading "docker://" is accepted.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(strings.TrimPrefix(s, "docker://"))
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w", s, err)
	}
	return ref, nil
}

func parseReference(s string) (ref Reference, err error) {
	if s == "" {
		return ref, errors.New("empty")
	}
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if ref.digest, err = ParseDigest(digest); err != nil {
			return ref, err
		}
	}
	if isHex(name, 64) {
		return ref, errors.New("64 hexadecimal digits are a digest, not a name: write NAME@sha256:DIGEST")
	}
	ref.domain, name = splitDomain(name)
	ref.path, ref.tag, _ = strings.Cut(name, ":")
	if strings.HasSuffix(name, ":") {
		return ref, errors.New("empty tag")
	}
	if ref.domain == defaultDomain && !strings.Contains(ref.path, "/") {
		ref.path = officialPath + ref.path
	}
	if ref.tag == "" && !hasDigest {
		ref.tag = defaultTag
	}
	return ref, ref.check()
}

func (r Reference) check() error {
	if err := checkDomain(r.domain); err != nil {
		return err
	}
	if err := checkPath(r.path); err != nil {
		return err
	}
	if len(r.Repository()) > maxRepository {
		return fmt.Errorf("longer than %d characters", maxRepository)
	}
	if r.tag != "" {
		if err := checkTag(r.tag); err != nil {
			return err
		}
	}
	if file := filepath.Base(r.recordPath()); len(file) > unix.NAME_MAX {
		return errors.New("too long for a file name")
	}
	return nil
}

// splitDomain separates the host from the path. A first component without a dot or a port that is not "localhost"
// belongs to a path on docker.io.
func splitDomain(name string) (domain, path string) {
	first, rest, found := strings.Cut(name, "/")
	if !found || !strings.ContainsAny(first, ".:") && first != "localhost" {
		return defaultDomain, name
	}
	if first == "index."+defaultDomain {
		first = defaultDomain
	}
	return first, rest
}

// checkDomain wants a host name or an IPv4 address and, if a colon follows, a port. podman takes no IPv6 addresses.
func checkDomain(domain string) error {
	host, port, hasPort := strings.Cut(domain, ":")
	if hasPort && (port == "" || !all(port, isDigit)) {
		return fmt.Errorf("%q is not a port", port)
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || strings.Trim(label, "-") != label || !all(label, func(c byte) bool { return isAlnum(c) || c == '-' }) {
			return fmt.Errorf("%q is not a host name", host)
		}
	}
	return nil
}

// checkPath wants components of lower-case letters and digits, joined by ".", "_", "__" or any number of "-".
func checkPath(path string) error {
	for component := range strings.SplitSeq(path, "/") {
		switch {
		case component == "":
			return errors.New("empty path component")
		case strings.ToLower(component) != component:
			return fmt.Errorf("%q: upper-case letters are not allowed in a path", component)
		}
		for rest := component; ; {
			n := countWhile(rest, isLowerAlnum)
			if n == 0 {
				return fmt.Errorf("%q is not a path component", component)
			}
			if rest = rest[n:]; rest == "" {
				break
			}
			sep := rest[:countWhile(rest, func(c byte) bool { return c == '.' || c == '_' || c == '-' })]
			if sep != "." && sep != "_" && sep != "__" && (sep == "" || strings.Trim(sep, "-") != "") {
				return fmt.Errorf("%q is not a path component", component)
			}
			rest = rest[len(sep):]
		}
	}
	return nil
}

func checkTag(tag string) error {
	word := func(c byte) bool { return isAlnum(c) || c == '_' }
	if len(tag) > maxTag {
		return fmt.Errorf("tag longer than %d characters", maxTag)
	}
	if !word(tag[0]) || !all(tag, func(c byte) bool { return word(c) || c == '.' || c == '-' }) {
		return fmt.Errorf("%q is not a tag", tag)
	}
	return nil
}

// Domain returns the registry's host and port.
func (r Reference) Domain() string { return r.domain }

// Path returns the path on the registry.
func (r Reference) Path() string { return r.path }

// Repository returns HOST/PATH, the name without tag and digest.
func (r Reference) Repository() string { return r.domain + "/" + r.path }

// Tag returns the tag, "" if the reference has only a digest.
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest, "" if the reference has only a tag.
func (r Reference) Digest() Digest { return r.digest }

// WithDigest returns the reference that pins r's repository to digest.
func (r Reference) WithDigest(digest Digest) Reference {
	return Reference{domain: r.domain, path: r.path, digest: digest}
}

// String returns the name in full.
func (r Reference) String() string { return r.Repository() + r.suffix() }

// Familiar returns the shortest form that [ParseReference] reads as the same name: "nginx" for
// docker.io/library/nginx:latest.
func (r Reference) Familiar() string {
	suffix := r.suffix()
	if suffix == ":"+defaultTag {
		suffix = ""
	}
	for _, short := range []string{strings.TrimPrefix(r.path, officialPath), r.path, r.Repository()} {
		if ref, err := ParseReference(short + suffix); err == nil && ref == r {
			return short + suffix
		}
	}
	return r.String()
}

func (r Reference) suffix() string {
	var s string
	if r.tag != "" {
		s = ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + string(r.digest)
	}
	return s
}

// MarshalText gives the full name.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a name in full.
func (r *Reference) UnmarshalText(text []byte) (err error) {
	*r, err = ParseReference(string(text))
	return err
}

func isDigit(c byte) bool      { return c >= '0' && c <= '9' }
func isHexDigit(c byte) bool   { return isDigit(c) || c >= 'a' && c <= 'f' }
func isLowerAlnum(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'z' }
func isAlnum(c byte) bool      { return isLowerAlnum(c) || c >= 'A' && c <= 'Z' }

func isHex(s string, n int) bool { return len(s) == n && all(s, isHexDigit) }

func all(s string, is func(byte) bool) bool { return countWhile(s, is) == len(s) }

func countWhile(s string, is func(byte) bool) int {
	for i := range len(s) {
		if !is(s[i]) {
			return i
		}
	}
	return len(s)
}
