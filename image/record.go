package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Image is the record of one stored image: what a start needs to know, in one small file.
type Image struct {
	Reference      Reference `json:"reference"`
	Source         Reference `json:"source,omitzero"`    // the name that it was verified under, if another
	ReadOnly       bool      `json:"readOnly,omitempty"` // must not be replaced, renamed or removed
	ManifestDigest Digest    `json:"manifestDigest"`     // of the image's own manifest, not of an index
	ConfigDigest   Digest    `json:"configDigest"`       // podman's image ID
	Platform       Platform  `json:"platform"`
	Layers         []Digest  `json:"layers"`              // DiffIDs, base first
	BaseLayer      int       `json:"baseLayer,omitempty"` // index of the lowest layer that shows; one above it may hide all below it
	RootLayer      int       `json:"rootLayer"`           // index of the layer that says how the root directory is; -1 if none does
	Reopens        Reopens   `json:"reopens,omitempty"`   // its standard output
	Config         Config    `json:"config"`
	Size           int64     `json:"size"` // bytes that its layers take on disk
	Pulled         time.Time `json:"pulled"`
	Trust          Trust     `json:"trust"`
	// ACI has, of an image that was one of rkt's, the image ID (sha512-…) of what each layer was made of. Its signature is for a
	// file that is not kept, whose digest is Trust.Signed: to verify it again, the file is needed again.
	ACI []string `json:"aci,omitempty"`
}

// Trust is why an image was accepted.
type Trust struct {
	Kind TrustKind `json:"kind"`
	Rule string    `json:"rule,omitempty"` // the file and the prefix or scope in it that decided
	// Signer is the fingerprint of the key that signed, or the identity, as "machinectl-lite trust list" shows it.
	Signer string `json:"signer,omitempty"`
	// Signed is the digest that the signatures are for, an index's or the image's own, and Signatures the blobs that hold
	// them, each a sigstore bundle or as containers/image's "dir:" has it: with them and the manifest the decision can be repeated
	// without the registry.
	Signed     Digest    `json:"signed,omitempty"`
	Signatures []Digest  `json:"signatures,omitempty"`
	Time       time.Time `json:"time"`
	Insecure   []string  `json:"insecure,omitempty"` // checks that the user turned off, by the names of --insecure-options=
	From       string    `json:"from,omitempty"`     // the files that the image was imported from; "" for a registry
	Machine    string    `json:"machine,omitempty"`  // that the image was made of on this host, and by its side what that ran on
	Inputs     Inputs    `json:"inputs,omitzero"`    // when these change, the decision has to be made again
}

// TrustKind is the kind of proof that an image was accepted by.
type TrustKind string

const (
	TrustGPG      TrustKind = "signedBy"       // an OpenPGP "simple signing" signature
	TrustSigstore TrustKind = "sigstoreSigned" // a sigstore signature by a key
	TrustKeyless  TrustKind = "keyless"        // a sigstore signature by an identity
	TrustPolicy   TrustKind = "policy"         // requirements of policy.json that are more than one of these
	TrustDigest   TrustKind = "digest-pin"     // the user named the digest
	TrustInsecure TrustKind = "insecure"       // nothing: a rule or --insecure-options=image accepts anything
	TrustCommit   TrustKind = "committed"      // nothing: it was made of a machine on this host
)

// VerifiedAs returns the name that the image was verified under: signatures and rules are for that.
func (img *Image) VerifiedAs() Reference {
	if img.Source != (Reference{}) {
		return img.Source
	}
	return img.Reference
}

// under returns the same image with another name.
func (img *Image) under(ref Reference) *Image {
	named := *img
	named.Reference, named.Source, named.ReadOnly = ref, img.VerifiedAs(), false
	if named.Source == ref {
		named.Source = Reference{}
	}
	return &named
}

// digests returns all that has to be in the store for the image to run and to be verified again.
func (img *Image) digests() []Digest {
	needed := append([]Digest{img.ManifestDigest, img.ConfigDigest, img.Trust.Signed, img.Reference.digest, img.Source.digest}, img.Layers...)
	return append(needed, img.Trust.Signatures...)
}

// parseImage reads a record.
func parseImage(data []byte) (*Image, error) {
	img := &Image{}
	if err := json.Unmarshal(data, img); err != nil {
		return nil, err
	}
	return img, img.check()
}

func (img *Image) check() error {
	switch {
	case img.Reference == Reference{}:
		return errors.New("no reference")
	case img.ManifestDigest == "" || img.ConfigDigest == "":
		return errors.New("no digest")
	case len(img.Layers) > MaxLayers:
		return fmt.Errorf("%d layers, more than %d", len(img.Layers), MaxLayers)
	case img.BaseLayer < 0 || img.BaseLayer > max(0, len(img.Layers)-1) || img.RootLayer < -1 || img.RootLayer >= len(img.Layers):
		return errors.New("layer out of range")
	}
	return nil
}

// recordPath is where the record of an image with this name is, below images/. A component of the path has no ":" or "@" and
// none is "..", so no two names have one place and none is outside.
func (r Reference) recordPath() string {
	suffix := ":" + r.tag
	if r.digest != "" {
		suffix = "@" + string(r.digest)
	}
	return r.Repository() + suffix + ".json"
}
