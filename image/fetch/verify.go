package fetch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.podman.io/image/v5/directory"
	containersimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"

	"nspawnd/image"
)

// Recheck says why a stored image is accepted by the rules that hold now, from what is stored of it: nothing is fetched. The
// error is an *[Error], [ErrUntrusted] if the image is refused.
func Recheck(ctx context.Context, store *image.Store, img *image.Image, options Options) (image.Trust, error) {
	p := newPull(store, options)
	p.ref, p.stored = img.VerifiedAs(), img
	ctx, p.watchdog = withWatchdog(ctx, patience)
	defer p.watchdog.stop()
	trust, err := p.recheckNamed(ctx, img)
	if err != nil {
		return trust, p.explain(ctx, err)
	}
	return trust, nil
}

func (p *pull) recheckNamed(ctx context.Context, img *image.Image) (trust image.Trust, err error) {
	if img.Trust.From != "" {
		if p.from, _, err = ParseSource(img.Trust.From); err != nil {
			return trust, err
		}
	}
	if len(img.ACI) > 0 {
		p.from = aciTransport
	}
	rules, err := p.rules()
	if err != nil {
		return trust, err
	}
	if len(img.ACI) > 0 {
		return p.recheckACI(rules, img.Trust)
	}
	if p.named, err = named(p.ref); err != nil {
		return trust, err
	}
	return p.recheck(ctx, rules, img)
}

func (p *pull) recheck(ctx context.Context, rules *ruleSet, img *image.Image) (image.Trust, error) {
	if len(rules.alternatives) > 0 {
		stored, cleanup, err := p.storedCandidate(ctx, img)
		if err != nil {
			return image.Trust{}, err
		}
		defer cleanup()
		trust, _, err := p.judge(ctx, rules, stored)
		trust.From = img.Trust.From
		return trust, err
	}
	trust := img.Trust
	trust.Inputs = rules.inputs
	switch {
	case trust.Insecure != nil:
		return trust, nil
	case p.ref.Digest() != "":
		// The name says what the image is; whatever rule there was is gone.
		return image.Trust{Kind: image.TrustDigest, Time: trust.Time, From: trust.From, Inputs: rules.inputs}, nil
	}
	return image.Trust{}, p.refused(errUncovered, cmp.Or(trust.Signed, img.ManifestDigest))
}

// storedCandidate gives what was accepted of img when it was fetched: its manifest, or the index that lists it, and the signatures. It lays
// them out as a "dir:", from which alone containers/image takes signatures of all its kinds.
func (p *pull) storedCandidate(ctx context.Context, img *image.Image) (c candidate, cleanup func(), err error) {
	signed := cmp.Or(img.Trust.Signed, img.ManifestDigest)
	blob, err := p.store.Blob(signed)
	if err == nil {
		err = checkInstance(signed, blob, img.ManifestDigest)
	}
	if err != nil {
		return c, nil, err
	}
	dir, err := os.MkdirTemp("", "nspawnd-verify-")
	if err != nil {
		return c, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	files := map[string][]byte{"version": []byte("Directory Transport Version: 1.1\n"), "manifest.json": blob}
	var bundles [][]byte
	for _, digest := range img.Trust.Signatures {
		signature, err := p.store.Blob(digest)
		if err != nil {
			return c, nil, err
		}
		if isBundle(signature) {
			bundles = append(bundles, signature)
		} else {
			files[fmt.Sprintf("signature-%d", len(files)-1)] = signature
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return c, nil, err
		}
	}
	ref, err := directory.NewReference(dir)
	if err != nil {
		return c, nil, err
	}
	source, err := ref.NewImageSource(ctx, nil)
	if err != nil {
		return c, nil, err
	}
	c.UnparsedImage = containersimage.UnparsedInstance(source, nil)
	c.bundles = func() ([][]byte, error) { return bundles, nil }
	return c, func() { os.RemoveAll(dir) }, nil
}

// checkInstance wants blob, which has the digest signed, to be the manifest with the given digest or an index that lists it.
func checkInstance(signed image.Digest, blob []byte, digest image.Digest) error {
	if signed == digest {
		return nil
	}
	list, err := manifest.ListFromBlob(blob, manifest.GuessMIMEType(blob))
	if err != nil {
		return fmt.Errorf("index %s: %w", signed, err)
	}
	for _, instance := range list.Instances() {
		if instance.String() == string(digest) {
			return nil
		}
	}
	return fmt.Errorf("index %s: does not list the manifest %s", signed, digest)
}

// VerifyContent re-checks every stored byte of an image against the digest that it goes by: manifest, configuration, index, signatures and layers,
// and the record against the configuration. It returns all faults.
func VerifyContent(store *image.Store, img *image.Image) (faults []error) {
	fault := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	for _, digest := range img.Trust.Signatures {
		_, err := store.Blob(digest)
		fault(err)
	}
	blob, err := store.Blob(img.ManifestDigest)
	if err == nil {
		err = checkManifest(blob, img)
	}
	fault(err)
	indexes := []image.Digest{img.Trust.Signed, img.VerifiedAs().Digest()}
	if len(img.ACI) > 0 {
		indexes = nil // what is signed is the file
	}
	slices.Sort(indexes)
	for _, digest := range slices.Compact(indexes) {
		if digest == "" || digest == img.ManifestDigest {
			continue
		}
		blob, err := store.Blob(digest)
		if err == nil {
			err = checkInstance(digest, blob, img.ManifestDigest)
		}
		fault(err)
	}
	blob, err = store.Blob(img.ConfigDigest)
	if err == nil {
		err = checkRecord(blob, img)
	}
	fault(err)
	layers := slices.Clone(img.Layers)
	slices.Sort(layers)
	for _, layer := range slices.Compact(layers) {
		fault(store.VerifyLayer(layer))
	}
	return faults
}

// Repair fetches what is damaged of an image again, from where it came: its layers, manifest and configuration. They have to be the very same, so
// no rule is asked and the record stays as it is. Other images that have such a layer are repaired with it. The error is an *[Error].
func Repair(ctx context.Context, store *image.Store, img *image.Image, options Options) error {
	options.Platform = img.Platform
	p := newPull(store, options)
	p.ref = img.VerifiedAs()
	ctx, p.watchdog = withWatchdog(ctx, patience)
	defer p.watchdog.stop()
	if err := p.repair(ctx, img); err != nil {
		return p.explain(ctx, err)
	}
	return nil
}

func (p *pull) repair(ctx context.Context, img *image.Image) (err error) {
	if len(img.ACI) > 0 {
		return errors.New("an ACI can't be repaired, since its file is not kept; remove it and pull it again")
	}
	sys, cleanup, err := p.systemContext(&ruleSet{})
	if err != nil {
		return err
	}
	defer cleanup()
	p.system = sys
	if img.Trust.From == "" {
		p.ref = p.ref.WithDigest(img.ManifestDigest) // whatever has that name now
	}
	if p.named, err = named(p.ref); err != nil {
		return err
	}
	if img.Trust.From == "" {
		p.source, err = p.newSource(ctx, sys)
	} else if p.from, _, err = ParseSource(img.Trust.From); err == nil {
		p.source, _, err = p.from.open(ctx)
	}
	if err != nil {
		return err
	}
	defer p.source.Close()
	if files, ok := p.source.(*fileSource); ok {
		files.name = p.named
	}
	m, err := p.chooseManifest(ctx, sys)
	if err == nil && m.digest != img.ManifestDigest {
		err = fmt.Errorf("is another one now, %s", m.digest)
	}
	if err != nil {
		return err
	}
	config, layers, err := p.parts(m)
	if err != nil {
		return err
	}
	if len(layers) != len(img.Layers) {
		return fmt.Errorf("manifest has %d layers, the record %d", len(layers), len(img.Layers))
	}
	writer, err := p.store.Writer()
	if err != nil {
		return err
	}
	defer writer.Close()
	writer.Repair = true
	if _, err := writer.AddBlob(m.blob); err != nil {
		return err
	}
	if _, err := p.config(ctx, writer, config); err != nil {
		return err
	}
	for i, layer := range layers {
		if err := writer.AddLayer(ctx, img.Layers[i], func() (io.ReadCloser, error) { return p.openLayer(ctx, layer) }); err != nil {
			return err
		}
	}
	return nil
}

func checkManifest(blob []byte, img *image.Image) error {
	parsed, err := manifest.FromBlob(blob, manifest.GuessMIMEType(blob))
	if err != nil {
		return fmt.Errorf("manifest %s: %w", img.ManifestDigest, err)
	}
	if config := parsed.ConfigInfo().Digest.String(); config != string(img.ConfigDigest) {
		return fmt.Errorf("record: its configuration is not the manifest's, %s", printable(config))
	}
	return nil
}

// checkRecord wants the record to say what the configuration says.
func checkRecord(blob []byte, img *image.Image) error {
	platform, config, layers, err := image.ParseConfig(blob)
	if err != nil {
		return fmt.Errorf("configuration %s: %w", img.ConfigDigest, err)
	}
	want, err := json.Marshal([]any{platform, config, layers})
	if err != nil {
		return err
	}
	have, err := json.Marshal([]any{img.Platform, img.Config, img.Layers})
	if err == nil && !bytes.Equal(want, have) {
		err = errors.New("record: differs from the configuration that it was made of")
	}
	return err
}
