package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"go.podman.io/image/v5/types"
	"golang.org/x/term"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

// pullFlags are pull-oci's own.
type pullFlags struct {
	insecure []string
	platform string
	authFile string
	certDir  string
	backend  string
	quiet    bool
}

func pullOCICommand() *cobra.Command {
	var flags pullFlags
	cmd := &cobra.Command{
		Use:   "pull-oci REFERENCE",
		Short: "Fetch an image from a registry, verify it and store it",
		Long: `Fetch an image from a registry, verify it and store it, so that nspawnd-run can start it.

REFERENCE is a name as podman and docker take it: [HOST[:PORT]/]PATH[:TAG][@DIGEST]. Without a host it is an alias or on one of the
unqualified-search-registries, as registries.conf says (containers-registries.conf(5)), and on Docker Hub if that says neither; what it was when it was
pulled, it is for all commands until it is pulled again. What is stored already is not fetched again; the digest of everything that is fetched is
checked. Proxies are those of $HTTPS_PROXY, $HTTP_PROXY and $NO_PROXY.

The image is accepted if it has a signature by a key that is trusted for its name (see trust), if policy.json says so
(containers-policy.json(5)), or if REFERENCE has a digest and no policy is about its name. When it is stored, its name with the digest
is printed.`,
		Example: `  machinectl-lite pull-oci registry.example/team/web:1
  machinectl-lite pull-oci docker.io/library/nginx@sha256:…`,
		Args: oneArgument("image name"),
		RunE: func(cmd *cobra.Command, args []string) error { return runPull(cmd, args[0], flags) },
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&flags.authFile, "authfile", "", "Credentials for registries are in `file` (containers-auth.json(5))")
	cmd.Flags().StringVar(&flags.certDir, "cert-dir", "", "Certificates for the registry are in `directory` (containers-certs.d(5))")
	return cmd
}

// register adds the flags that images from everywhere have.
func (f *pullFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.insecure, "insecure-options", nil, "Checks to leave out, by `name`: image accepts it without a proof of where it comes from")
	cmd.Flags().StringVar(&f.platform, "platform", "", "Take the image for `OS/ARCH[/VARIANT]` instead of this host's")
	cmd.Flags().StringVar(&f.backend, "backend", "", "Keep new layers as `erofs` or dirs (default: erofs if this host can mount it from files)")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Do not show progress")
}

// oneArgument wants one argument, which is a thing.
func oneArgument(thing string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return fmt.Errorf("%s takes one %s (see %s --help)", cmd.Name(), thing, cmd.CommandPath())
		}
		return nil
	}
}

func runPull(cmd *cobra.Command, name string, flags pullFlags) error {
	if _, isFile, _ := fetch.ParseSource(name); isFile {
		return fmt.Errorf("%s: is not on a registry; to store an image that is in files: machinectl-lite import-oci %s", name, name)
	}
	return flags.run(func(store *image.Store, options fetch.Options) (*image.Image, error) {
		if _, err := image.ParseReference(name); err != nil {
			return nil, err
		}
		refs, err := chooseNames(cmd.Context(), store, options.System, name)
		if err != nil {
			return nil, err
		}
		for i, ref := range refs {
			img, err := fetch.Pull(cmd.Context(), store, ref, options)
			if i+1 < len(refs) && (errors.Is(err, fetch.ErrNoSuchImage) || errors.Is(err, fetch.ErrDenied)) {
				continue // Docker Hub denies what it does not have
			}
			if err == nil && image.ShortName(name) != "" {
				err = remember(store, name, ref)
			}
			return img, err
		}
		return nil, nil // there is one at least
	})
}

// chooseNames says what a name may stand for, and asks where it has to.
func chooseNames(ctx context.Context, store *image.Store, sys *types.SystemContext, name string) ([]image.Reference, error) {
	found, err := fetch.ResolveName(sys, name)
	if err != nil {
		return nil, err
	}
	before, err := store.Name(name)
	if err != nil {
		return nil, err
	}
	refs := found.References
	switch terminal := term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd())); {
	case slices.Contains(refs, before) && store.HasName(name): // chosen before
		return []image.Reference{before}, nil
	case found.Ask && terminal:
		return ask(ctx, name, refs)
	case found.Enforce:
		err := fmt.Errorf("image name %q: stands for several images, and there is no terminal to ask which; it may be", name)
		for _, ref := range refs {
			err = fmt.Errorf("%w\n  %s", err, ref)
		}
		return nil, err
	}
	return refs, nil
}

// ask has the user choose one of refs.
func ask(ctx context.Context, name string, refs []image.Reference) ([]image.Reference, error) {
	fmt.Fprintf(os.Stderr, "%s may be:\n", name)
	for i, ref := range refs {
		fmt.Fprintf(os.Stderr, "  %d  %s\n", i+1, ref)
	}
	fmt.Fprintf(os.Stderr, "Which one? [1-%d] ", len(refs))
	line, err := readAnswer(ctx)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", name, err)
	}
	if n, err := strconv.Atoi(line); err == nil && n >= 1 && n <= len(refs) {
		return refs[n-1 : n], nil
	}
	return nil, fmt.Errorf("image name %q: none was chosen", name)
}

// readAnswer reads the line that answers a question on standard error; "" if the input ends. The error is [fetch.ErrInterrupted].
func readAnswer(ctx context.Context) (string, error) {
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			fmt.Fprintln(os.Stderr)
		}
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		return line, nil
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr)
		return "", fetch.ErrInterrupted
	}
}

// remember makes a short name stand for ref, and says so where it stood for something else.
func remember(store *image.Store, name string, ref image.Reference) error {
	before, err := store.Name(name)
	if err != nil || before == ref && store.HasName(name) {
		return err
	}
	if _, err := store.Image(before); err == nil && before != ref {
		fmt.Fprintf(os.Stderr, "%s: %s now stands for %s, not for %s\n", program, name, ref, before)
	}
	writer, err := store.Writer()
	if err != nil {
		return err
	}
	defer writer.Close()
	return writer.AddName(name, ref)
}

// run has get bring an image into the store and says which it is.
func (f pullFlags) run(get func(*image.Store, fetch.Options) (*image.Image, error)) error {
	pull, err := f.options()
	if err != nil {
		return err
	}
	store, err := image.Open(storeRoot)
	if err != nil {
		return err
	}
	if err := store.SetBackend(f.backend); err != nil {
		return fmt.Errorf("--backend: %w", err)
	}
	if !f.quiet && term.IsTerminal(int(os.Stderr.Fd())) {
		bars := newProgressBars()
		defer bars.close()
		pull.Progress = bars.tell
	} else if !f.quiet {
		pull.Progress = newProgressLines(os.Stderr)
	}
	img, err := get(store, pull)
	if err != nil {
		return withAdvice(err)
	}
	if len(img.Trust.Insecure) > 0 {
		fmt.Fprintf(os.Stderr, "%s: WARNING: nothing proves where image %s comes from (--insecure-options=image)\n", program, img.Reference)
	}
	fmt.Println(strings.TrimSuffix(img.Reference.String(), "@"+string(img.Reference.Digest())) + "@" + string(img.ManifestDigest))
	return nil
}

func (f pullFlags) options() (fetch.Options, error) {
	pull := fetch.Options{System: &types.SystemContext{AuthFilePath: f.authFile, DockerCertPath: f.certDir}}
	// containers/image takes what is not there for empty.
	for flag, path := range map[string]string{"authfile": f.authFile, "cert-dir": f.certDir} {
		if _, err := os.Stat(path); path != "" && err != nil {
			return pull, fmt.Errorf("--%s: %w", flag, err)
		}
	}
	for _, check := range f.insecure {
		if check != "image" {
			return pull, fmt.Errorf("--insecure-options=%s: the only check that can be left out is image", check)
		}
		pull.InsecureImage = true
	}
	if f.platform != "" {
		parts := strings.Split(f.platform, "/")
		if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
			return pull, fmt.Errorf("--platform=%s: must be OS/ARCH or OS/ARCH/VARIANT", f.platform)
		}
		pull.Platform = image.Platform{OS: parts[0], Architecture: parts[1], Variant: strings.Join(parts[2:], "")}
	}
	return pull, nil
}

// withAdvice puts what an error advises on lines below it.
func withAdvice(err error) error {
	var e *fetch.Error
	if errors.As(err, &e) && len(e.Advice) > 0 {
		return fmt.Errorf("%w\n  %s", err, strings.Join(e.Advice, "\n  "))
	}
	return err
}

// newProgressLines tells on a line for each layer that it has been fetched.
func newProgressLines(w io.Writer) func(image.Digest, int64, int64) {
	var mu sync.Mutex
	told := map[image.Digest]bool{}
	return func(layer image.Digest, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if done == total && !told[layer] {
			told[layer] = true
			fmt.Fprintf(w, "layer %s: %s\n", layer.Short(), bytesWords(total))
		}
	}
}

// progressBars show on a terminal how far the layers are, when that takes longer than one cares to wait in the dark.
type progressBars struct {
	mu      sync.Mutex
	started time.Time
	bars    map[image.Digest]*mpb.Bar
	screen  *mpb.Progress
}

const patience = time.Second

func newProgressBars() *progressBars {
	return &progressBars{started: time.Now(), bars: map[image.Digest]*mpb.Bar{}}
}

func (p *progressBars) tell(layer image.Digest, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.screen == nil {
		if time.Since(p.started) < patience {
			return
		}
		p.screen = mpb.New(mpb.WithOutput(os.Stderr), mpb.WithWidth(40))
	}
	bar := p.bars[layer]
	if bar == nil {
		bar = p.screen.AddBar(total,
			mpb.PrependDecorators(decor.Name("layer "+layer.Short()+" ")),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1024(0), "  % .1f")))
		p.bars[layer] = bar
	}
	bar.SetCurrent(done)
}

// close leaves the terminal to what is printed next.
func (p *progressBars) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.screen == nil {
		return
	}
	for _, bar := range p.bars {
		bar.Abort(false)
	}
	p.screen.Wait()
}
