package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.podman.io/image/v5/docker"
)

// What containers/image does itself: it waits and asks again five times when a registry says 429 (Retry-After, at most a minute),
// and when a connection breaks in the middle of a blob it goes on from there with Range, the first time and after each MiB. The
// rest is here: a request that was not answered or with 5xx, and a blob that breaks off often or comes from a registry that
// knows no Range.

const maxTries = 4

// firstDelay is what is waited before the second try; it doubles.
var firstDelay = time.Second

// again calls do until it succeeds, or fails in a way that asking again does not change, or has failed too often.
func again(ctx context.Context, do func() error) error {
	delay := firstDelay
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == maxTries || !isTransient(err) {
			return err
		}
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		delay *= 2
	}
}

// sleep adds up to a tenth, so that many who failed together don't come back together.
func sleep(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay + rand.N(delay/10+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// isTransient says whether the same request may succeed when it is made again. "Connection refused" and unknown names are not:
// who mistypes a host should not have to wait.
func isTransient(err error) bool {
	var status docker.UnexpectedHTTPStatusError
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &status):
		return status.StatusCode >= 500 && status.StatusCode != http.StatusNotImplemented
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.As(err, &timeout) && timeout.Timeout()
}

// resumedBlob asks for a blob again when the connection breaks, and skips what has been read.
type resumedBlob struct {
	ctx      context.Context
	open     func(from int64) (blob io.ReadCloser, at int64, err error) // what is sent may begin before what was asked for
	blob     io.ReadCloser
	done     int64 // bytes
	failures int   // without a MiB between them
	failedAt int64 // of done
}

func (r *resumedBlob) Read(p []byte) (int, error) {
	n, err := r.blob.Read(p)
	r.done += int64(n)
	if err == nil || err == io.EOF || !isTransient(err) {
		return n, err
	}
	if r.done-r.failedAt >= 1<<20 {
		r.failures = 0
	}
	r.failedAt = r.done
	if r.failures++; r.failures == maxTries {
		return n, err
	}
	if err := sleep(r.ctx, firstDelay<<(r.failures-1)); err != nil {
		return n, err
	}
	blob, at, err := r.open(r.done)
	if err != nil {
		return n, err
	}
	r.blob.Close()
	r.blob = blob
	if _, err = io.CopyN(io.Discard, blob, r.done-at); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *resumedBlob) Close() error { return r.blob.Close() }

// gate sees every request before it is made, redirects too.
type gate struct {
	watchdog *watchdog
	mu       sync.Mutex
	secure   map[string]bool // hosts that were spoken to by TLS
	blobs    int             // how many more may be asked for; negative for any number
}

// limitBlobs says how many blobs may be asked for from now on, in signatures; any number if n is negative.
func (g *gate) limitBlobs(n int) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blobs = n
}

// proxy gives the proxy for a request, as the environment says, unless the request must not be made: a redirect of a host's from
// TLS to plain text would take the credentials with it, as net/http drops them only when the host is another one.
func (g *gate) proxy(u *url.URL) (*url.URL, error) {
	g.watchdog.begin()
	defer g.watchdog.end()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.blobs >= 0 && strings.Contains(u.Path, "/blobs/") {
		if g.blobs == 0 {
			return nil, fmt.Errorf("more than %d signatures", maxSignatures)
		}
		g.blobs--
	}
	switch {
	case u.Scheme == "https" && u.Path == "/v2/":
		// The greeting, without credentials: a registry that is marked insecure is greeted again without TLS.
	case u.Scheme == "https":
		g.secure[u.Hostname()] = true
	default:
		for host := range g.secure {
			if u.Hostname() == host || strings.HasSuffix(u.Hostname(), "."+host) {
				return nil, fmt.Errorf("%s redirects from TLS to plain text", host)
			}
		}
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}
