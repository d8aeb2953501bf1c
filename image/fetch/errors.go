package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"go.podman.io/image/v5/docker"

	"nspawnd/image"
)

// Error is why an image could not be had, in one line that is fit for a terminal whatever the registry sent.
type Error struct {
	Err    error
	Advice []string // what to do now, a line each
}

func (e *Error) Error() string { return printable(withoutSecrets(e.Err.Error())) }

// withoutSecrets leaves out of URLs what may let somebody in: a password, or the query that signs an address of a storage.
func withoutSecrets(s string) string {
	return urls.ReplaceAllStringFunc(s, func(text string) string {
		u, err := url.Parse(text)
		if err != nil {
			return text[:strings.Index(text, ":")] + "://…"
		}
		if u.User != nil {
			u.User = url.User("…")
		}
		if u.RawQuery != "" {
			u.RawQuery = "…"
		}
		u.Fragment = ""
		text, err = url.PathUnescape(u.String())
		if err != nil {
			return u.String()
		}
		return text
	})
}

var urls = regexp.MustCompile(`https?://[^\s"<>]+`)

func (e *Error) Unwrap() error { return e.Err }

// Kinds of errors, for [errors.Is].
var (
	ErrUntrusted   = errors.New("not trusted")
	ErrNoSuchImage = errors.New("not found on the registry")
	ErrDenied      = errors.New("access denied by the registry")
	ErrUnreachable = errors.New("registry not reachable")
	ErrInterrupted = errors.New("interrupted")
)

// explain makes an *Error of whatever went wrong on the way.
func (p *pull) explain(ctx context.Context, err error) error {
	e := &Error{}
	host := p.ref.Domain()
	var known *Error
	var opError *net.OpError
	var dnsError *net.DNSError
	var certificateError *tls.CertificateVerificationError
	var recordError tls.RecordHeaderError
	switch {
	case errors.As(err, &known):
		for _, line := range known.Advice {
			e.Advice = append(e.Advice, printable(line))
		}
		err = known.Err
	case ctx.Err() != nil: // whatever came of it
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
			err = ErrInterrupted
		}
	case isStatus(err, http.StatusNotFound), isPlain(err, http.StatusNotFound), errors.Is(err, v2.ErrorCodeManifestUnknown), errors.Is(err, v2.ErrorCodeNameUnknown), hasCode(err, v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown):
		err = ErrNoSuchImage
	case isDenied(err):
		err = fmt.Errorf("%w: %w", ErrDenied, err)
		e.Advice = []string{"if it needs an account: podman login " + host}
	case errors.As(err, &certificateError), errors.As(err, new(x509.UnknownAuthorityError)):
		err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		e.Advice = []string{"if the registry has a certificate of your own: copy its CA to /etc/containers/certs.d/" + host + "/ca.crt"}
	case isCertificateAlert(err):
		err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		e.Advice = []string{"if it wants a certificate of yours: copy it to /etc/containers/certs.d/" + host + "/client.cert and its key to client.key"}
	case errors.As(err, &recordError), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		err = fmt.Errorf("%w: it does not speak TLS", ErrUnreachable)
		e.Advice = []string{"if that is meant to be: see \"insecure\" in containers-registries.conf(5)"}
	case errors.As(err, &dnsError):
		err = fmt.Errorf("%w: %w", ErrUnreachable, dnsError)
	case errors.As(err, &opError):
		err = fmt.Errorf("%w: %w", ErrUnreachable, opError)
	}
	e.Err = fmt.Errorf("image %s: %w", p.ref, err)
	return e
}

// isCertificateAlert says whether the other side refused our certificate, or that we have none; crypto/tls has no type for that
// which others can see.
func isCertificateAlert(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" && strings.Contains(remote.Err.Error(), "certificate")
}

func isStatus(err error, codes ...int) bool {
	var status docker.UnexpectedHTTPStatusError
	if !errors.As(err, &status) {
		return false
	}
	for _, code := range codes {
		if status.StatusCode == code {
			return true
		}
	}
	return false
}

// isPlain says whether a registry gave the status with something else than the JSON that it should give; containers/image has no
// type for that which others can see.
func isPlain(err error, code int) bool {
	return strings.Contains(err.Error(), fmt.Sprintf("StatusCode: %d, ", code))
}

func hasCode(err error, codes ...errcode.ErrorCode) bool {
	var coder errcode.ErrorCoder
	if !errors.As(err, &coder) {
		return false
	}
	for _, code := range codes {
		if coder.ErrorCode() == code {
			return true
		}
	}
	return false
}

func isDenied(err error) bool {
	return errors.As(err, new(docker.ErrUnauthorizedForCredentials)) ||
		isStatus(err, http.StatusUnauthorized, http.StatusForbidden) || isPlain(err, http.StatusForbidden) ||
		hasCode(err, errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied)
}

// refused is the error for an image that is not trusted, with the ways out. The digest pin is one if it is not "".
func (p *pull) refused(reason error, pin image.Digest) error {
	var advice []string
	if p.stored != nil {
		advice = append(advice, "fetch it as it is now:   machinectl-lite "+PullCommand(p.stored))
	}
	if p.from.hasSignatures() {
		advice = append(advice, "trust who signs it:      machinectl-lite trust add --prefix "+path.Dir(p.ref.Repository())+" KEYFILE")
	}
	if pin != "" {
		advice = append(advice, "pin what it is now:      "+p.ref.WithDigest(pin).String())
	}
	advice = append(advice, "take it without a proof: --insecure-options=image")
	return &Error{Err: fmt.Errorf("%w: %w", ErrUntrusted, reason), Advice: advice}
}

// PullCommand gives the arguments of machinectl-lite that fetch a stored image again.
func PullCommand(img *image.Image) string {
	name := img.VerifiedAs().String()
	if img.Trust.From != "" {
		return "import-oci " + img.Trust.From + " " + name
	}
	return "pull-oci " + name
}

// maxLine is how many bytes of an error are shown. A stranger's word in it may have millions.
const maxLine = 2 << 10

// printable makes one line of s that does nothing to a terminal.
func printable(s string) string {
	if len(s) > maxLine { // the end says why
		s = s[:maxLine/2] + " … " + s[len(s)-maxLine/2:]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.TrimSpace(s))
}
