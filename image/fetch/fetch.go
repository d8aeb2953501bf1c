package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"go.podman.io/image/v5/docker"
	containersimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"nspawnd/image"
)

// Options say how to pull. The zero value is right for users.
type Options struct {
	InsecureImage bool           // accept the image without any proof
	Platform      image.Platform // this host's if zero
	// Progress is told how far a layer's blob is; calls come from several goroutines.
	Progress func(layer image.Digest, done, total int64)
	// TrustDirs are image.TrustDirs if nil.
	TrustDirs []string
	// System is where containers/image looks for its configuration, credentials and certificates; the host's if nil.
	System *types.SystemContext
}

const (
	parallelLayers = 3
	// Limits on an image; those on a layer are in package image.
	maxObjects = 10_000 // JSON objects in a manifest or index
)

// maxImageSize is how many bytes an image's layers may have, uncompressed. Tests lower it.
var maxImageSize int64 = 64 << 30

// patience is how long a registry that says nothing is waited for. It is longer than the minute that one may ask for with
// Retry-After. A blob has to come with minRate bytes a second, over that time.
var patience = 90 * time.Second

const minRate = 1 << 10

// Pull makes store hold the image ref and returns its record. What the store has already is not fetched again. The
// error is an *[Error].
func Pull(ctx context.Context, store *image.Store, ref image.Reference, options Options) (*image.Image, error) {
	return newPull(store, options).get(ctx, ref)
}

// Import makes store hold the image of source under the given name, or under that which the image has for itself if ref is the zero
// value, and returns its record. What decides whether it is trusted is what does for that name, and policy.json for
// the source's transport. The error is an *[Error].
func Import(ctx context.Context, store *image.Store, source Source, ref image.Reference, options Options) (*image.Image, error) {
	p := newPull(store, options)
	p.from = source
	var names []string
	var err error
	if p.source, names, err = source.open(ctx); err != nil {
		return nil, &Error{Err: err}
	}
	defer p.source.Close()
	for _, name := range names {
		if ref == (image.Reference{}) {
			ref, _ = image.ParseReference(name)
		}
	}
	if ref == (image.Reference{}) {
		return nil, &Error{fmt.Errorf("%s: it does not say what it is called", source), []string{"name it: machinectl-lite import-oci " + source.String() + " localhost/NAME"}}
	}
	return p.get(ctx, ref)
}

func newPull(store *image.Store, options Options) *pull {
	logrus.SetLevel(logrus.PanicLevel) // containers/image returns its errors; what it logs repeats them
	p := &pull{store: store, Options: options}
	if p.TrustDirs == nil {
		p.TrustDirs = image.TrustDirs
	}
	if p.Platform == (image.Platform{}) {
		p.Platform = image.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	return p
}

func (p *pull) get(ctx context.Context, ref image.Reference) (*image.Image, error) {
	p.ref = ref
	ctx, p.watchdog = withWatchdog(ctx, patience)
	defer p.watchdog.stop()
	img, err := p.run(ctx)
	if err != nil {
		return nil, p.explain(ctx, err)
	}
	return img, nil
}

// pull is one image on its way.
type pull struct {
	Options
	store    *image.Store
	ref      image.Reference
	named    types.ImageReference // ref for containers/image
	from     Source               // the zero value for a registry
	source   types.ImageSource
	system   *types.SystemContext
	stored   *image.Image // that is verified again; nil when one is fetched
	watchdog *watchdog
	gate     *gate
	budget   budget
	verified *verified // of ACIs, which are verified before
}

func (p *pull) run(ctx context.Context) (*image.Image, error) {
	if err := p.store.CheckWritable(p.ref); err != nil {
		return nil, err
	}
	rules, err := p.rules()
	if err != nil {
		return nil, err
	}
	sys, cleanup, err := p.systemContext(rules)
	if err != nil {
		return nil, err
	}
	defer cleanup()
	p.system = sys

	if p.named, err = named(p.ref); err != nil {
		return nil, err
	}
	if files, ok := p.source.(*fileSource); ok {
		files.name = p.named
	}
	if p.source == nil {
		if p.source, err = p.newSource(ctx, sys); err != nil {
			return nil, err
		}
		defer p.source.Close()
	}
	m, err := p.chooseManifest(ctx, sys)
	if err != nil {
		return nil, err
	}
	trust, signatures, err := p.decide(ctx, rules, m)
	if err != nil {
		return nil, err
	}

	if trust.From, err = p.from.absolute(); err != nil {
		return nil, err
	}
	img := &image.Image{Reference: p.ref, ManifestDigest: m.digest, Trust: trust}
	if p.verified != nil {
		img.ACI = p.verified.ids
	}
	config, layers, err := p.parts(m)
	if err != nil {
		return nil, err
	}
	writer, err := p.store.Writer()
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	configBlob, err := p.config(ctx, writer, config)
	if err != nil {
		return nil, err
	}
	if err := checkUnambiguous(configBlob); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	img.ConfigDigest = image.DigestOf(configBlob)
	if img.Platform, img.Config, img.Layers, err = image.ParseConfig(configBlob); err != nil {
		return nil, err
	}
	if err := p.checkPlatform(img.Platform); err != nil {
		return nil, err
	}
	if len(img.Layers) != len(layers) {
		return nil, fmt.Errorf("manifest has %d layers, configuration %d", len(layers), len(img.Layers))
	}

	blobs := append(signatures, configBlob, m.blob)
	if m.list != nil {
		blobs = append(blobs, m.list)
	}
	group, layerCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	group.Go(func() error { // each waits for the disk several times
		for _, blob := range blobs {
			if _, err := writer.AddBlob(blob); err != nil {
				return err
			}
		}
		return nil
	})
	for i, layer := range layers {
		group.Go(func() error {
			return writer.AddLayer(layerCtx, img.Layers[i], func() (io.ReadCloser, error) {
				return p.openLayer(layerCtx, layer)
			})
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	img.Pulled = time.Now().Truncate(time.Second)
	return img, writer.AddImage(img)
}

// named gives ref to containers/image, which takes a tag or a digest.
func named(ref image.Reference) (types.ImageReference, error) {
	if ref.Digest() != "" {
		ref = ref.WithDigest(ref.Digest())
	}
	return docker.ParseReference("//" + ref.String())
}

// newSource asks the registry for the manifest of the name.
func (p *pull) newSource(ctx context.Context, sys *types.SystemContext) (types.ImageSource, error) {
	var source types.ImageSource
	err := p.ask(ctx, func() (err error) {
		source, err = p.named.NewImageSource(ctx, sys)
		return err
	})
	return source, err
}

// ask makes requests that are answered in one piece.
func (p *pull) ask(ctx context.Context, do func() error) error {
	return again(ctx, func() error {
		p.watchdog.begin()
		defer p.watchdog.end()
		return do()
	})
}

// chosenManifest is an image's manifest, and the index that it was chosen from if there was one.
type chosenManifest struct {
	image    *containersimage.UnparsedImage
	blob     []byte
	mimeType string
	digest   image.Digest

	index *containersimage.UnparsedImage
	list  []byte
}

// chooseManifest gives the manifest for the platform. Its digest, and that which the user named, have been checked.
func (p *pull) chooseManifest(ctx context.Context, sys *types.SystemContext) (*chosenManifest, error) {
	m := &chosenManifest{image: containersimage.UnparsedInstance(p.source, nil)}
	if err := p.readManifest(ctx, m); err != nil {
		return nil, err
	}
	if want := p.ref.Digest(); want != "" && image.DigestOf(m.blob) != want { // of a registry's containers/image has said so
		return nil, fmt.Errorf("its manifest has digest %s", image.DigestOf(m.blob))
	}
	if manifest.MIMETypeIsMultiImage(m.mimeType) {
		list, err := manifest.ListFromBlob(m.blob, m.mimeType)
		if err != nil {
			return nil, err
		}
		digest, err := list.ChooseInstance(sys)
		if err != nil {
			return nil, err
		}
		instance, err := list.Instance(digest)
		if err != nil {
			return nil, err
		}
		if _, err := image.ParseDigest(digest.String()); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		m.index, m.list = m.image, m.blob
		m.image = containersimage.UnparsedInstance(p.source, &digest)
		if m.blob, err = p.store.Blob(image.Digest(digest)); err == nil {
			m.mimeType = instance.MediaType
		} else if err := p.readManifest(ctx, m); err != nil {
			return nil, err
		}
	}
	m.digest = image.DigestOf(m.blob)
	return m, nil
}

func (p *pull) readManifest(ctx context.Context, m *chosenManifest) error {
	err := p.ask(ctx, func() (err error) {
		m.blob, m.mimeType, err = m.image.Manifest(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := checkObjects(m.blob); err != nil {
		return err
	}
	if err := checkUnambiguous(m.blob); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return nil
}

// checkObjects refuses a manifest or index that would take hundreds of times its size in memory.
func checkObjects(manifest []byte) error {
	if n := bytes.Count(manifest, []byte("{")); n > maxObjects {
		return fmt.Errorf("manifest with %d objects, more than %d", n, maxObjects)
	}
	return nil
}

// Media types of layers that are plain tars in the end. Compression is recognised by content, as podman does it.
var layerTypes = []string{
	v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd,
	manifest.DockerV2SchemaLayerMediaTypeUncompressed, manifest.DockerV2Schema2LayerMediaType, manifest.DockerV2SchemaLayerMediaTypeZstd,
}

// parts reads the manifest: where the configuration and the layers are.
func (p *pull) parts(m *chosenManifest) (config types.BlobInfo, layers []types.BlobInfo, err error) {
	if m.mimeType != v1.MediaTypeImageManifest && m.mimeType != manifest.DockerV2Schema2MediaType {
		return config, nil, fmt.Errorf("manifest of type %q is not supported", m.mimeType)
	}
	parsed, err := manifest.FromBlob(m.blob, m.mimeType)
	if err != nil {
		return config, nil, err
	}
	// What is stored goes by what it says itself.
	var says struct{ MediaType string }
	if err := json.Unmarshal(m.blob, &says); err != nil {
		return config, nil, err
	}
	if says.MediaType != "" && says.MediaType != m.mimeType {
		return config, nil, fmt.Errorf("manifest of type %q says that it is %q", m.mimeType, says.MediaType)
	}
	config = parsed.ConfigInfo()
	if config.MediaType != v1.MediaTypeImageConfig && config.MediaType != manifest.DockerV2Schema2ConfigMediaType {
		return config, nil, fmt.Errorf("not an image of a file system but %q", config.MediaType)
	}
	infos := parsed.LayerInfos()
	if len(infos) > image.MaxLayers {
		return config, nil, fmt.Errorf("%d layers, more than %d", len(infos), image.MaxLayers)
	}
	for _, info := range infos {
		if !slices.Contains(layerTypes, info.MediaType) {
			return config, nil, fmt.Errorf("layer %s: its type %q is not supported", info.Digest, info.MediaType)
		}
		layers = append(layers, types.BlobInfo{Digest: info.Digest, Size: info.Size}) // without URLs on other hosts
	}
	for _, blob := range append(slices.Clone(layers), config) {
		if _, err := image.ParseDigest(blob.Digest.String()); err != nil {
			return config, nil, err
		}
		if blob.Size < 0 {
			return config, nil, fmt.Errorf("blob %s: no size", blob.Digest)
		}
	}
	return types.BlobInfo{Digest: config.Digest, Size: config.Size}, layers, nil
}

// config gives the image's configuration, from the store if it is there.
func (p *pull) config(ctx context.Context, writer *image.Writer, info types.BlobInfo) ([]byte, error) {
	if info.Size > image.MaxBlob {
		return nil, fmt.Errorf("image configuration of %d bytes, more than %d", info.Size, image.MaxBlob)
	}
	return writer.FetchBlob(ctx, image.Digest(info.Digest), func() ([]byte, error) {
		blob, err := p.openBlob(ctx, info)
		if err != nil {
			return nil, err
		}
		defer blob.Close()
		return io.ReadAll(blob)
	})
}

func (p *pull) checkPlatform(got image.Platform) error {
	want := p.Platform
	if got.OS == "" && got.Architecture == "" || got.OS == want.OS && got.Architecture == want.Architecture {
		return nil
	}
	return &Error{
		Err:    fmt.Errorf("is for %s/%s, not for %s/%s", got.OS, got.Architecture, want.OS, want.Architecture),
		Advice: []string{fmt.Sprintf("to pull it all the same: --platform=%s/%s", got.OS, got.Architecture)},
	}
}

// openBlob starts to fetch a blob. Reading it fails at the end if its size or digest is another.
func (p *pull) openBlob(ctx context.Context, info types.BlobInfo) (io.ReadCloser, error) {
	open := func(int64) (blob io.ReadCloser, at int64, err error) {
		err = p.ask(ctx, func() error {
			blob, _, err = p.source.GetBlob(ctx, info, none.NoCache)
			return err
		})
		return blob, 0, err
	}
	blob, _, err := open(0)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", info.Digest, err)
	}
	resumed := &resumedBlob{ctx: ctx, open: open, blob: blob}
	return &verifier{ctx: ctx, blob: resumed, info: info, hash: sha256.New(), watchdog: p.watchdog}, nil
}

// openLayer starts to fetch a layer and gives its uncompressed tar.
func (p *pull) openLayer(ctx context.Context, info types.BlobInfo) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	blob, err := p.openBlob(ctx, info)
	if err != nil {
		cancel()
		return nil, err
	}
	if p.Progress != nil {
		blob = &progressReader{blob, p.Progress, image.Digest(info.Digest), info.Size, 0}
	}
	return p.budget.limit(uncompress(blob, cancel)), nil
}

// systemContext is the caller's, with what the deciding rules add to registries.d.
func (p *pull) systemContext(rules *ruleSet) (*types.SystemContext, func(), error) {
	sys := types.SystemContext{}
	if p.System != nil {
		sys = *p.System
	}
	sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = p.Platform.OS, p.Platform.Architecture, p.Platform.Variant
	if sys.DockerRegistryUserAgent == "" {
		sys.DockerRegistryUserAgent = "nspawnd"
	}
	if sys.AuthFilePath == "" {
		sys.AuthFilePath = os.Getenv("REGISTRY_AUTH_FILE") // containers-auth.json(5); podman and skopeo read it themselves too
	}
	if sys.DockerProxy == nil && sys.DockerProxyURL == nil {
		p.gate = &gate{watchdog: p.watchdog, secure: map[string]bool{}, blobs: -1}
		sys.DockerProxy = p.gate.proxy
	}
	if p.InsecureImage || !rules.attachments && rules.lookaside == "" {
		return &sys, func() {}, nil
	}
	dir, err := registriesDir(&sys, p.ref, rules)
	if err != nil {
		return nil, nil, fmt.Errorf("configuring signature storage: %w", err)
	}
	sys.RegistriesDirPath = dir
	return &sys, func() { os.RemoveAll(dir) }, nil
}
