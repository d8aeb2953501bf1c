package fetch

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/xi2/xz"
	"go.podman.io/image/v5/signature"
	"go.podman.io/storage/pkg/configfile"

	"nspawnd/image"
	"nspawnd/image/aci"
)

// ACISource says where an App Container Image is.
type ACISource struct {
	file, url string // one of them, or neither
	app       app    // what was asked for by name
}

// app names an image by the words of the appc spec.
type app struct {
	name   string
	labels []aci.Pair
}

func (a app) String() string {
	s := a.name
	for _, label := range a.labels {
		s += "," + label.Name + "=" + label.Value
	}
	return s
}

// ParseACISource reads aci:FILE, a path that begins with "/" or ".", https://…, or NAME[:VERSION][,LABEL=VALUE…].
func ParseACISource(s string) (ACISource, error) {
	if file, ok := strings.CutPrefix(s, "aci:"); ok || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		if file == "" {
			return ACISource{}, fmt.Errorf("source %q: no path", s)
		}
		return ACISource{file: file}, nil
	}
	if strings.Contains(s, "://") {
		_, err := parseHTTPS(s)
		return ACISource{url: s}, err
	}
	a, err := parseApp(s)
	if err != nil {
		return ACISource{}, fmt.Errorf("image %q: %w; to read a file: aci:%s", s, err, s)
	}
	return ACISource{app: a}, nil
}

func parseApp(s string) (a app, err error) {
	words := strings.Split(s, ",")
	a.name, words[0], _ = strings.Cut(words[0], ":")
	if words[0] != "" {
		a.labels = []aci.Pair{{Name: "version", Value: words[0]}}
	}
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		if value == "" || name == "name" || aci.CheckName(name) != nil || aci.Value(a.labels, name) != "" {
			return a, fmt.Errorf("%q is not LABEL=VALUE, or there twice", word)
		}
		a.labels = append(a.labels, aci.Pair{Name: name, Value: value})
	}
	if err := aci.CheckName(a.name); err != nil {
		return a, err
	}
	_, err = aci.Reference(a.name, aci.Value(a.labels, "version"))
	return a, err
}

func (s ACISource) String() string { return cmp.Or(s.file, s.url, s.app.String()) }

const (
	maxACI             = 8 << 30 // bytes of the file
	maxACISignature    = 1 << 20
	maxXZDictionary    = 64 << 20 // that of xz -9
	maxDependencyDepth = 16
)

// PullACI makes store hold the App Container Image of source, with those that it depends on as lower layers, and returns its record. It
// must have the given ID unless that is "". unmapped names what its manifest says that has no place in the record. The error is
// an *[Error].
func PullACI(ctx context.Context, store *image.Store, source ACISource, id string, options Options) (img *image.Image, unmapped []string, err error) {
	p := &aciPull{pull: newPull(store, options), rendered: map[string]*archive{}}
	defer p.close()
	ctx, p.watchdog = withWatchdog(ctx, patience)
	defer p.watchdog.stop()
	img, unmapped, err = p.get(ctx, source, id)
	if known := new(Error); err != nil && !errors.As(err, &known) {
		if ctx.Err() != nil {
			if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
				err = ErrInterrupted
			}
		}
		err = &Error{Err: fmt.Errorf("image %s: %w", source, err)}
	}
	return img, unmapped, err
}

// aciPull is an ACI on its way. Each file is fetched, its signature is verified, and only then is it unpacked, twice: the digest of the
// layer has to be known before it is stored.
type aciPull struct {
	*pull
	writer   *image.Writer
	trust    []image.TrustRule
	rendered map[string]*archive // by app
	files    []*os.File
}

func (p *aciPull) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// archive is one ACI, verified.
type archive struct {
	file      *os.File // without a name
	manifest  *aci.Manifest
	id        string
	layer     image.Digest
	layerSize int64
	proof     image.Trust
	signature []byte
}

func (p *aciPull) get(ctx context.Context, source ACISource, id string) (*image.Image, []string, error) {
	if id != "" {
		if err := aci.CheckID(id); err != nil {
			return nil, nil, err
		}
	}
	var err error
	if p.trust, err = image.ReadTrust(p.TrustDirs); err != nil {
		return nil, nil, err
	}
	if p.writer, err = p.store.Writer(); err != nil {
		return nil, nil, err
	}
	defer p.writer.Close()
	top, err := p.archive(ctx, source, id)
	if err != nil {
		return nil, nil, err
	}
	layers, err := p.layers(ctx, top, nil)
	if err != nil {
		return nil, nil, err
	}
	// Asked for without a version, it is found again under the name without one.
	version := aci.Value(source.app.labels, "version")
	if source.app.name == "" {
		version = top.manifest.Label("version")
	}
	ref, err := aci.Reference(top.manifest.Name, version)
	if err != nil {
		return nil, nil, err
	}
	files, unmapped, err := newACIFiles(ctx, layers, p.Platform)
	if err != nil {
		return nil, nil, err
	}
	p.source = &fileSource{files: files, manifest: files.manifest, mimeType: v1.MediaTypeImageManifest,
		blob: func(d image.Digest) string { return string(d) }}
	p.verified = &verified{trust: top.proof}
	for _, a := range layers {
		p.verified.ids = append(p.verified.ids, a.id)
	}
	if top.proof.Kind == image.TrustGPG {
		p.verified.signatures = [][]byte{top.signature}
		p.verified.trust.Signatures = []image.Digest{image.DigestOf(top.signature)}
	}
	img, err := p.pull.get(ctx, ref)
	return img, unmapped, err
}

// verified is what was found out about an ACI before it was made a manifest.
type verified struct {
	trust      image.Trust
	signatures [][]byte
	ids        []string
}

// layers gives the archives that an image's files come from, the lowest first (ace.md, "Filesystem Setup"). above are the
// images that depend on it.
func (p *aciPull) layers(ctx context.Context, a *archive, above []string) ([]*archive, error) {
	name := a.manifest.Name
	if slices.Contains(above, name) {
		return nil, fmt.Errorf("%s depends on itself", name)
	}
	if len(above) == maxDependencyDepth {
		return nil, fmt.Errorf("more than %d dependencies deep", maxDependencyDepth)
	}
	above = append(slices.Clone(above), name)
	var all []*archive
	for _, d := range a.manifest.Dependencies {
		source := ACISource{app: app{d.Name, d.Labels}}
		lower := p.rendered[source.String()]
		if lower == nil {
			if len(p.rendered) == aci.MaxDependencies {
				return nil, fmt.Errorf("more than %d dependencies", aci.MaxDependencies)
			}
			var err error
			if lower, err = p.archive(ctx, source, d.ID); err != nil {
				return nil, fmt.Errorf("dependency %s: %w", source, err)
			}
			p.rendered[source.String()] = lower
		}
		if d.ID != "" && lower.id != d.ID {
			return nil, fmt.Errorf("dependency %s: has ID %s, not %s", source, lower.id, d.ID)
		}
		layers, err := p.layers(ctx, lower, above)
		if err != nil {
			return nil, err
		}
		if all = append(all, layers...); len(all) >= image.MaxLayers {
			return nil, fmt.Errorf("more than %d layers", image.MaxLayers)
		}
	}
	return append(all, a), nil
}

// archive fetches and verifies one ACI.
func (p *aciPull) archive(ctx context.Context, source ACISource, id string) (*archive, error) {
	a := &archive{}
	var keysAt string
	var err error
	if a.file, err = p.writer.TempFile(); err != nil {
		return nil, err
	}
	p.files = append(p.files, a.file)
	if source.file != "" {
		a.signature, err = p.readFile(ctx, source.file, a.file)
	} else {
		a.signature, keysAt, err = p.download(ctx, source, a.file)
	}
	if err != nil {
		return nil, err
	}
	// Whose name the image has is in it. Before that is read, somebody who is trusted for something has to vouch for it, or the user.
	known := p.InsecureImage
	for _, rule := range p.trust {
		if !known {
			_, err := a.signer(rule)
			known = err == nil
		}
	}
	if !known && id == "" {
		return nil, p.refuse(source, source.app.name, keysAt, a.unproved())
	}
	if id != "" {
		if err := a.checkID(ctx, id); err != nil {
			return nil, err
		}
	}
	if err := a.scan(ctx); err != nil {
		return nil, err
	}
	if err := a.isFor(source.app); err != nil {
		return nil, err
	}
	return a, p.decideACI(a, source, id, keysAt)
}

func (p *aciPull) readFile(ctx context.Context, name string, to *os.File) (signature []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s: not a regular file", name))
	}
	// A copy: the file could change between being verified and being read.
	if err := copyLimited(to, readerContext{ctx, f}, maxACI); err != nil {
		return nil, err
	}
	s, err := os.Open(name + ".asc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var out bytes.Buffer
	err = copyLimited(&out, s, maxACISignature)
	return out.Bytes(), err
}

func copyLimited(to io.Writer, from io.Reader, limit int64) error {
	n, err := io.Copy(to, io.LimitReader(from, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("larger than %d bytes", limit)
	}
	return err
}

// signer gives the fingerprint of the key of a rule that has signed the file.
func (a *archive) signer(rule image.TrustRule) (string, error) {
	reason := a.unproved()
	for _, file := range rule.Keys {
		if file.Type != image.KeyGPG {
			continue
		}
		data, err := os.ReadFile(file.File)
		var keys []Key
		if err == nil {
			keys, err = ParseKeys(data)
		}
		if err != nil {
			return "", fmt.Errorf("trust rule %s: key %s: %w", rule.Path, file.File, err)
		}
		for _, key := range keys {
			ring, err := openpgp.ReadKeyRing(bytes.NewReader(key.Data))
			if err == nil {
				_, err = openpgp.CheckArmoredDetachedSignature(ring, io.NewSectionReader(a.file, 0, maxACI), bytes.NewReader(a.signature), nil)
			}
			if err == nil {
				return key.Fingerprint, nil
			}
			if a.signature != nil {
				reason = fmt.Errorf("signature: %w", err)
			}
		}
	}
	return "", reason
}

// unproved is what to say when no signature fits.
func (a *archive) unproved() error {
	if a.signature == nil {
		return errors.New("it has no signature")
	}
	return errors.New("its signature is by no trusted key")
}

// open starts to decompress the file.
func (a *archive) open(ctx context.Context) (io.Reader, error) {
	r := bufio.NewReaderSize(readerContext{ctx, io.NewSectionReader(a.file, 0, maxACI)}, pieceSize)
	magic, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var plain io.Reader
	switch {
	case bytes.Equal(magic, []byte("\xfd7zXZ\x00")):
		plain, err = xz.NewReader(r, maxXZDictionary)
	case bytes.HasPrefix(magic, []byte("BZh")):
		plain = bzip2.NewReader(r)
	default:
		plain, err = decompressor(r)
	}
	if err != nil {
		return nil, err
	}
	return (&budget{}).limit(io.NopCloser(plain)), nil
}

// checkID reads the image ID from the archive's bytes alone.
func (a *archive) checkID(ctx context.Context, want string) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	got, err := aci.ID(r)
	if err == nil && got != want {
		err = fmt.Errorf("has ID %s, not %s", got, want)
	}
	return err
}

// scan reads the archive for the first time.
func (a *archive) scan(ctx context.Context) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	hash := sha256.New()
	size := &countingWriter{}
	manifest, id, err := aci.Read(r, io.MultiWriter(hash, size))
	if err != nil {
		return err
	}
	a.id, a.layer, a.layerSize = id, image.Digest("sha256:"+hex.EncodeToString(hash.Sum(nil))), size.n
	a.manifest, err = aci.ParseManifest(manifest)
	return err
}

type countingWriter struct{ n int64 }

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// isFor holds the manifest against what was asked for (discovery.md, "Validation").
func (a *archive) isFor(asked app) error {
	if asked.name == "" {
		return nil
	}
	if a.manifest.Name != asked.name {
		return fmt.Errorf("is called %q", a.manifest.Name)
	}
	for _, label := range asked.labels {
		if got := a.manifest.Label(label.Name); got != label.Value {
			return fmt.Errorf("its label %s is %q, not %q", label.Name, got, label.Value)
		}
	}
	return nil
}

// decideACI says why the archive is accepted, or why not, by the name in its manifest; the rules are those of pull.decide.
func (p *aciPull) decideACI(a *archive, source ACISource, id, keysAt string) error {
	a.proof = image.Trust{Time: time.Now().Truncate(time.Second)}
	if p.InsecureImage {
		a.proof.Kind, a.proof.Insecure = image.TrustInsecure, []string{"image"}
		return nil
	}
	ref, err := aci.Reference(a.manifest.Name, a.manifest.Label("version"))
	if err != nil {
		return err
	}
	var rules []image.TrustRule
	for _, scope := range append(ref.Scopes(), "*") {
		if rules = image.TrustFor(p.trust, scope); rules != nil {
			break
		}
	}
	if rules == nil {
		err := p.checkDefaultPolicy()
		if err == nil && id != "" {
			a.proof.Kind = image.TrustDigest
			return nil
		}
		return p.refuse(source, a.manifest.Name, keysAt, cmp.Or(err, errors.New("no policy covers its name")))
	}
	for _, rule := range rules {
		var signer string
		if signer, err = a.signer(rule); err != nil {
			continue
		}
		hash := sha256.New()
		if _, err := io.Copy(hash, io.NewSectionReader(a.file, 0, maxACI)); err != nil {
			return err
		}
		a.proof.Kind, a.proof.Rule, a.proof.Signer = image.TrustGPG, rule.Path+": "+rule.Prefix, signer
		a.proof.Signed = image.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil)))
		return nil
	}
	return p.refuse(source, a.manifest.Name, keysAt, fmt.Errorf("%w (rule %s: %s)", err, rules[0].Path, rules[0].Prefix))
}

// checkDefaultPolicy asks policy.json: it knows no ACIs, so that they fall under its default. One that demands something can't be met.
func (p *aciPull) checkDefaultPolicy() error {
	policy, err := signature.DefaultPolicy(p.System)
	if errors.Is(err, configfile.ErrConfigFileNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("policy.json: %w", err)
	}
	if policyRules(policy.Default, "default").alternatives[0].kind != image.TrustInsecure {
		return errors.New("the default of policy.json does not accept it")
	}
	return nil
}

// refuse is the error for an ACI that is not trusted, with the ways out. name is "" if it may not even be read.
func (p *aciPull) refuse(source ACISource, name, keysAt string, reason error) error {
	prefix, keyFile := "HOST/PATH", "KEYFILE"
	if name != "" {
		prefix = name
	}
	if keysAt != "" {
		keyFile += "   (its publisher has " + keysAt + ")"
	}
	return &Error{Err: fmt.Errorf("image %s: %w: %w", source, ErrUntrusted, reason), Advice: []string{
		printable("trust who signs it:      machinectl-lite trust add --prefix " + prefix + " " + keyFile),
		printable("pin what it has to be:   machinectl-lite pull-aci --image-id=sha512-… " + source.String()),
		"take it without a proof: --insecure-options=image",
	}}
}

// aciFiles is an image made of ACIs as an OCI image has it: layers that are not compressed, a configuration and a manifest.
type aciFiles struct {
	ctx              context.Context
	layers           map[string]*archive // by digest
	config, manifest []byte
}

// newACIFiles makes an image of layers, the lowest first. The last is the image itself: of the others only the files count.
func newACIFiles(ctx context.Context, layers []*archive, host image.Platform) (f *aciFiles, unmapped []string, err error) {
	f = &aciFiles{ctx: ctx, layers: map[string]*archive{}}
	top := layers[len(layers)-1].manifest
	var config struct {
		Created *time.Time `json:"created,omitempty"`
		image.Platform
		Config image.Config `json:"config"`
		RootFS v1.RootFS    `json:"rootfs"`
	}
	config.Platform = top.Platform(host)
	config.Config, unmapped = top.Config()
	if created, err := time.Parse(time.RFC3339Nano, config.Config.Labels[v1.AnnotationCreated]); err == nil {
		config.Created = &created
	}
	config.RootFS.Type = "layers"
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, a := range layers {
		f.layers[string(a.layer)] = a
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(a.layer))
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.Digest(a.layer), Size: a.layerSize,
			Annotations: map[string]string{"appc.io/image-id": a.id, "appc.io/name": a.manifest.Name}})
	}
	if f.config, err = json.Marshal(config); err != nil {
		return nil, nil, err
	}
	manifest.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(f.config), Size: int64(len(f.config))}
	f.manifest, err = json.Marshal(manifest)
	return f, unmapped, err
}

func (f *aciFiles) open(name string) (io.ReadCloser, int64, error) {
	a := f.layers[name]
	if a == nil {
		return io.NopCloser(bytes.NewReader(f.config)), int64(len(f.config)), nil
	}
	r, err := a.open(f.ctx)
	if err != nil {
		return nil, 0, err
	}
	pipe, w := io.Pipe()
	go func() {
		_, _, err := aci.Read(r, w)
		w.CloseWithError(err)
	}()
	return pipe, a.layerSize, nil
}

func (f *aciFiles) Close() error { return nil } // PullACI closes the files

// aciTransport is what policy.json has no word for but its default.
var aciTransport = Source{transport: "aci"}

// recheckACI decides again by the record: what was signed is the file, which is not kept. So the key that it was signed by has to be
// trusted still.
func (p *pull) recheckACI(rules *ruleSet, trust image.Trust) (image.Trust, error) {
	trust.Inputs = rules.inputs
	for _, a := range rules.alternatives {
		if trust.Kind == image.TrustGPG && a.kind == image.TrustGPG && a.byName && a.signer == trust.Signer {
			trust.Rule = a.rule
			return trust, nil
		}
	}
	if len(rules.alternatives) == 0 && trust.Kind != image.TrustGPG {
		return trust, nil
	}
	return image.Trust{}, &Error{Err: fmt.Errorf("%w: the rules for it have changed", ErrUntrusted), Advice: []string{
		"verify the file again: machinectl-lite pull-aci " + p.ref.String()}}
}
