package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"go.podman.io/image/v5/docker"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"nspawnd/image"
	"nspawnd/image/aci"
)

// Discovery of ACIs by name (discovery.md): a page at the name has meta tags with templates of addresses. Everything goes by TLS,
// redirects too, and nothing is sent that could be a credential.

const maxPage = 1 << 20

// webTransport is replaced by tests.
var webTransport http.RoundTripper = http.DefaultTransport

var webClient = &http.Client{
	Transport: roundTripper(func(r *http.Request) (*http.Response, error) { return webTransport.RoundTrip(r) }),
	CheckRedirect: func(r *http.Request, via []*http.Request) error {
		r.Header.Del("Referer")
		if r.URL.Scheme != "https" {
			return fmt.Errorf("%s redirects from TLS to plain text", via[0].URL.Host)
		}
		if r.URL.User != nil {
			return errors.New("redirects to an address with a password")
		}
		if len(via) >= 10 {
			return errors.New("too many redirects")
		}
		return nil
	},
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func parseHTTPS(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("%q: not a https:// address", s)
	case u.User != nil:
		return nil, errors.New("an address must not have a password")
	}
	return u, nil
}

// request asks for an address. The error has the status if it is none of success.
func (p *aciPull) request(ctx context.Context, address string, header http.Header) (response *http.Response, err error) {
	if _, err := parseHTTPS(address); err != nil {
		return nil, err
	}
	err = p.ask(ctx, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		request.Header = header.Clone()
		request.Header.Set("User-Agent", "nspawnd")
		request.Header.Set("Accept-Encoding", "identity") // what is signed is what is sent
		if response, err = webClient.Do(request); err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusPartialContent {
			response.Body.Close()
			return &statusError{address, response.Status, docker.UnexpectedHTTPStatusError{StatusCode: response.StatusCode}}
		}
		return nil
	})
	return response, err
}

// statusError is an answer other than 200. It wraps what retries and isStatus go by, whose own text lacks the status.
type statusError struct {
	address, status string
	err             error
}

func (e *statusError) Error() string { return e.address + ": " + e.status }
func (e *statusError) Unwrap() error { return e.err }

// fetch copies what is at an address. After a break it goes on where it was, if the server can and still has the same.
func (p *aciPull) fetch(ctx context.Context, address string, to io.Writer, limit int64, progress bool) error {
	var total int64
	var tag string
	open := func(from int64) (io.ReadCloser, int64, error) {
		header := http.Header{}
		if from > 0 && tag != "" {
			header.Set("Range", fmt.Sprintf("bytes=%d-", from))
			header.Set("If-Range", tag)
		}
		response, err := p.request(ctx, address, header)
		if err != nil {
			return nil, 0, err
		}
		if response.StatusCode == http.StatusPartialContent {
			if !strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from)) {
				response.Body.Close()
				return nil, 0, fmt.Errorf("%s: another part than was asked for", address)
			}
			return response.Body, from, nil
		}
		before := tag
		if tag = response.Header.Get("ETag"); tag == "" || strings.HasPrefix(tag, "W/") { // which other bytes may have too
			tag = response.Header.Get("Last-Modified")
		}
		if from > 0 && tag != before {
			response.Body.Close()
			return nil, 0, fmt.Errorf("%s: has changed meanwhile", address)
		}
		total = response.ContentLength
		return response.Body, 0, nil
	}
	body, _, err := open(0)
	if err != nil {
		return err
	}
	var r io.ReadCloser = &resumedBlob{ctx: ctx, open: open, blob: body}
	r = &pacedReader{ReadCloser: r, pull: p.pull}
	if progress && p.Progress != nil && total > 0 {
		r = &progressReader{r, p.Progress, image.DigestOf([]byte(address)), total, 0}
	}
	defer r.Close()
	if err := copyLimited(to, r, limit); err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	return nil
}

// pacedReader gives up a server that sends nothing or hardly anything.
type pacedReader struct {
	io.ReadCloser
	pull *pull
	pace verifier
}

func (r *pacedReader) Read(b []byte) (int, error) {
	start := time.Now()
	r.pull.watchdog.begin()
	n, err := r.ReadCloser.Read(b)
	r.pull.watchdog.end()
	if err == nil {
		err = r.pace.checkRate(int64(n), time.Since(start))
	}
	return n, err
}

// download fetches an ACI and its signature, nil if there is none. keysAt is where its publisher says that the keys are.
func (p *aciPull) download(ctx context.Context, source ACISource, to *os.File) (signature []byte, keysAt string, err error) {
	archive, asc := source.url, ""
	if archive == "" {
		if archive, asc, keysAt, err = p.discover(ctx, source.app); err != nil {
			return nil, "", err
		}
	} else {
		u, err := parseHTTPS(archive)
		if err != nil {
			return nil, "", err
		}
		u.Path += ".asc"
		u.RawPath = ""
		asc = u.String()
	}
	if err := p.fetch(ctx, archive, to, maxACI, true); err != nil {
		return nil, "", err
	}
	if p.InsecureImage {
		return nil, keysAt, nil
	}
	var out bytes.Buffer
	err = p.fetch(ctx, asc, &out, maxACISignature, false)
	if isStatus(err, http.StatusNotFound, http.StatusGone, http.StatusForbidden) { // a storage may say that it forbids what is not there
		return nil, keysAt, nil
	}
	return out.Bytes(), keysAt, err
}

// discover finds the addresses of an image, its signature and, "" if nothing is said of them, its publisher's keys: at its name, or
// where there are no tags, at the name without its last component, and so on.
func (p *aciPull) discover(ctx context.Context, a app) (archive, asc, keysAt string, err error) {
	for at := a.name; at != "."; at = path.Dir(at) {
		var page bytes.Buffer
		err := p.fetch(ctx, "https://"+at+"?ac-discovery=1", &page, maxPage, false)
		var status docker.UnexpectedHTTPStatusError
		if errors.As(err, &status) && status.StatusCode/100 == 4 {
			continue
		}
		if err != nil {
			return "", "", "", err
		}
		if archive, asc, keysAt = findTags(&page, a, p.Platform); archive != "" {
			return archive, asc, keysAt, nil
		}
	}
	return "", "", "", fmt.Errorf("no page at https://%s or above it says by an ac-discovery tag where it is", a.name)
}

// findTags gives the first addresses on a page that are for the image and go by TLS.
func findTags(page io.Reader, a app, host image.Platform) (archive, asc, keysAt string) {
	for z := html.NewTokenizer(page); ; {
		switch z.Next() {
		case html.ErrorToken: // the end too
			return archive, asc, keysAt
		case html.StartTagToken, html.SelfClosingTagToken:
		default:
			continue
		}
		token := z.Token()
		if token.DataAtom != atom.Meta {
			continue
		}
		attributes := map[string]string{}
		for _, attribute := range token.Attr {
			attributes[attribute.Key] = attribute.Val
		}
		prefix, template, _ := strings.Cut(strings.TrimSpace(attributes["content"]), " ")
		template = strings.TrimSpace(template)
		if prefix == "" || !strings.HasPrefix(a.name, prefix) || !strings.HasPrefix(template, "https://") {
			continue
		}
		switch {
		case attributes["name"] == "ac-discovery" && archive == "":
			archive, asc = expand(template, a, host, "aci"), expand(template, a, host, "aci.asc")
		case attributes["name"] == "ac-discovery-pubkeys" && keysAt == "":
			keysAt = template
		}
	}
}

// expand fills a template in; it gives "" if that asks for more than is known.
func expand(template string, a app, host image.Platform, extension string) string {
	words := []string{"{name}", a.name, "{ext}", extension}
	for _, label := range a.labels {
		words = append(words, "{"+label.Name+"}", url.PathEscape(label.Value))
	}
	// Of two with one name the first counts.
	words = append(words, "{version}", "latest", "{os}", host.OS, "{arch}", aci.Architecture(host))
	address := strings.NewReplacer(words...).Replace(template)
	if strings.ContainsAny(address, "{}") {
		return ""
	}
	return address
}
