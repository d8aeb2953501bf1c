package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"nspawnd/cmd/internal/printable"
	"nspawnd/image"

	"golang.org/x/term"
)

// findImage gives the image from the store, and fetches it before where --pull asks for that. Fetching is done by
// machinectl-lite: what it links costs every start several milliseconds.
func findImage(ctx context.Context, o *options) (*image.Image, *image.Store, error) {
	dir := o.source.root
	store, err := image.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	if o.lifecycle.startKept != "" {
		img, err := keptImage(ctx, o, store)
		return img, store, err
	}
	ref, err := store.Name(o.image)
	if transport, _, _ := strings.Cut(o.image, ":"); err != nil && slices.Contains([]string{"oci", "oci-archive", "docker-archive", "dir", "aci"}, transport) {
		err = fmt.Errorf("image %q: images in files are stored before they are run; see machinectl-lite import-oci --help", o.image)
	}
	if err != nil {
		return nil, nil, err
	}
	if o.source.pull != "always" || o.unit.dryRun {
		img, err := store.Image(ref)
		switch {
		case err == nil && !o.source.accepts(img.Platform):
			if o.source.pull == "never" || o.unit.dryRun {
				want := platformName(o.source.wanted)
				return nil, nil, fmt.Errorf("image %s: the stored one is for %s, not %s; to fetch that: machinectl-lite pull-oci --platform=%s %s",
					ref, platformName(img.Platform), want, want, o.image)
			}
		case err == nil:
			warnOfPlatform(o, img)
			return img, store, checkTrust(ctx, dir, img, o.source.insecure)
		case !errors.Is(err, image.ErrNotFound):
			return nil, nil, err
		case o.source.pull == "never" || o.unit.dryRun:
			return nil, nil, fmt.Errorf("image %s: not in the store; to fetch it: machinectl-lite pull-oci %s", ref, o.image)
		}
	}
	if _, _, err := o.manager(); err != nil { // no fetching in vain
		return nil, nil, err
	}
	if err := fetch(ctx, o); err != nil {
		return nil, nil, err
	}
	if ref, err = store.Name(o.image); err != nil { // what a name without a host stands for is known now
		return nil, nil, err
	}
	img, err := store.Image(ref)
	if errors.Is(err, image.ErrNotFound) { // removed again
		err = image.ErrChanged
	}
	return img, store, err
}

// keptImage gives the image that a kept machine runs on, if it is trusted still. Its name may be another's by now.
func keptImage(ctx context.Context, o *options, store *image.Store) (*image.Image, error) {
	_, img, err := store.KeptMachine(o.lifecycle.startKept)
	if err != nil || img.Trust.Inputs.Current(time.Now()) || slices.Contains(o.source.insecure, "image") {
		return img, err
	}
	named, err := store.Image(img.Reference)
	if err != nil || named.ManifestDigest != img.ManifestDigest {
		return nil, fmt.Errorf("image %s: the rules have changed since it was accepted, and what is stored under its name is another; to verify it again: machinectl-lite pull-oci %s@%s, then tag it",
			img.Reference, img.Reference.Repository(), img.ManifestDigest)
	}
	return img, checkTrust(ctx, o.source.root, named, o.source.insecure)
}

// warnOfPlatform says that an image is for another architecture, which works where the kernel knows an emulator (binfmt_misc).
func warnOfPlatform(o *options, img *image.Image) {
	if o.source.wanted == (image.Platform{}) && img.Platform.Architecture != "" && img.Platform.Architecture != runtime.GOARCH {
		fmt.Fprintf(os.Stderr, "nspawnd-run: WARNING: image %s is for %s, and this host is linux/%s\n",
			img.Reference, printable.Line(platformName(img.Platform)), runtime.GOARCH)
	}
}

// fetch runs machinectl-lite pull-oci.
func fetch(ctx context.Context, o *options) error {
	args := []string{"pull-oci", "--root", o.source.root}
	if o.source.quiet || !term.IsTerminal(2) { // progress is for somebody who watches
		args = append(args, "--quiet")
	}
	for _, what := range o.source.insecure {
		args = append(args, "--insecure-options="+what)
	}
	if o.source.authFile != "" {
		args = append(args, "--authfile="+o.source.authFile)
	}
	if o.source.certDir != "" {
		args = append(args, "--cert-dir="+o.source.certDir)
	}
	if o.source.wanted != (image.Platform{}) {
		args = append(args, "--platform="+platformName(o.source.wanted))
	}
	return runTool(ctx, append(args, o.image)...)
}

// checkTrust wants a stored image to be one that the rules accept. As long as none of their files has changed since that was last decided, it
// is; otherwise machinectl-lite decides again, from what is stored.
func checkTrust(ctx context.Context, root string, img *image.Image, insecure []string) error {
	switch {
	case img.Trust.Inputs.Current(time.Now()):
		return nil
	case slices.Contains(insecure, "image"):
		fmt.Fprintf(os.Stderr, "nspawnd-run: WARNING: whether image %s is trusted is not checked (--insecure-options=image)\n", img.Reference)
		return nil
	}
	return runTool(ctx, "verify-image", "--policy-only", "--root", root, img.Reference.String())
}

// runTool runs machinectl-lite, which has said what is wrong when it fails.
func runTool(ctx context.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// A signal ends it and then us, so that it has cleaned up when we are gone.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	interrupted := make(chan int, 1)
	go func() {
		select {
		case s := <-signals:
			interrupted <- 128 + int(s.(syscall.Signal))
			cancel()
		case <-ctx.Done():
		}
	}()
	c := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "machinectl-lite"), args...)
	c.Args[0] = "nspawnd-run"
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	c.Stdin, c.Stderr = os.Stdin, os.Stderr // it may have to ask what a name without a host stands for
	err = c.Run()
	var exited *exec.ExitError
	select {
	case status := <-interrupted:
		return &statusError{status, errReported}
	default:
	}
	if errors.As(err, &exited) {
		return errReported
	}
	return err
}

// errReported says that the user has been told already.
var errReported = errors.New("reported")
