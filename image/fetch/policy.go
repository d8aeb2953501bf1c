package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	containersimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"nspawnd/image"
)

// ruleSet is what decides over one name. Of several alternatives one is enough; none means that no policy covers the name.
type ruleSet struct {
	alternatives []alternative
	// What a rule of a trust directory needs from registries.d.
	attachments bool   // that sigstore signatures are looked for
	lookaside   string // where GPG signatures are
}

// alternative is a list of requirements that all have to be met.
type alternative struct {
	kind         image.TrustKind
	rule         string // what to show: the file, and the prefix or scope in it
	signer       string // whose signature is required, if it is one key's
	requirements signature.PolicyRequirements
	byName       bool // also for files, which have no name of their own: signatures are for the name that the image gets
}

// rules finds what decides over the image's name.
func (p *pull) rules() (*ruleSet, error) {
	trust, err := image.ReadTrust(p.TrustDirs)
	if err != nil {
		return nil, err
	}
	policy, err := signature.DefaultPolicy(p.System)
	if errors.Is(err, configfile.ErrConfigFileNotFound) {
		policy, err = &signature.Policy{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("policy.json: %w", err)
	}
	return rulesFor(p.ref, p.from, trust, policy)
}

// rulesFor finds what decides over ref: the most specific scope that either the trust directories or policy.json have a rule
// for, and the trust directories' if both do. What policy.json says about everything counts only if it forbids or
// demands something: distributions ship one that accepts everything, and that must not turn verification off. For an image from
// files, trust directories go by the name that it gets and policy.json by where the files are, as for podman.
func rulesFor(ref image.Reference, from Source, trust []image.TrustRule, policy *signature.Policy) (*ruleSet, error) {
	transport, paths := "docker", []string(nil)
	if from != (Source{}) {
		transport, paths = from.transport, from.scopes()
	}
	scopes := policy.Transports[transport]
	for _, scope := range ref.Scopes() {
		if rules := image.TrustFor(trust, scope); rules != nil {
			return trustRules(rules)
		}
		if requirements, ok := scopes[scope]; ok {
			return policyRules(requirements, scope), nil
		}
	}
	for _, path := range paths {
		if requirements, ok := scopes[path]; ok {
			return policyRules(requirements, transport+":"+path), nil
		}
	}
	if rules := image.TrustFor(trust, "*"); rules != nil {
		return trustRules(rules)
	}
	defaults, ok := scopes[""]
	if !ok {
		defaults = policy.Default
	}
	if rules := policyRules(defaults, "default"); len(defaults) > 0 && rules.alternatives[0].kind != image.TrustInsecure {
		return rules, nil
	}
	return &ruleSet{}, nil
}

// trustRules makes an alternative of each key, so that it is known whose signature was accepted.
func trustRules(rules []image.TrustRule) (*ruleSet, error) {
	set := &ruleSet{}
	for _, rule := range rules {
		if rule.Lookaside != "" {
			set.lookaside = rule.Lookaside
		}
		for _, file := range rule.Keys {
			data, err := os.ReadFile(file.File)
			if err != nil {
				return nil, fmt.Errorf("trust rule %s: %w", rule.Path, err)
			}
			keys, err := ParseKeys(data)
			if err == nil && keys[0].Type != file.Type {
				err = fmt.Errorf("is a %s key, not a %s one", keys[0].Type, file.Type)
			}
			if err != nil {
				return nil, fmt.Errorf("trust rule %s: key %s: %w", rule.Path, file.File, err)
			}
			set.attachments = set.attachments || file.Type == image.KeySigstore
			for _, key := range keys {
				requirement, kind, err := key.requirement()
				if err != nil {
					return nil, fmt.Errorf("trust rule %s: key %s: %w", rule.Path, file.File, err)
				}
				set.alternatives = append(set.alternatives, alternative{
					kind:         kind,
					rule:         rule.Path + ": " + rule.Prefix,
					signer:       key.Fingerprint,
					requirements: signature.PolicyRequirements{requirement},
					byName:       true,
				})
			}
		}
	}
	return set, nil
}

// requirement says what a key's signature has to be like. A GPG signature names what it is for with tag or digest, and that
// must be what is pulled. cosign writes the repository alone.
func (k Key) requirement() (signature.PolicyRequirement, image.TrustKind, error) {
	if k.Type == image.KeyGPG {
		r, err := signature.NewPRSignedByKeyData(signature.SBKeyTypeGPGKeys, k.Data, signature.NewPRMMatchRepoDigestOrExact())
		return r, image.TrustGPG, err
	}
	r, err := signature.NewPRSigstoreSignedKeyData(k.Data, signature.NewPRMMatchRepository())
	return r, image.TrustSigstore, err
}

// policyRules is for requirements of policy.json.
func policyRules(requirements signature.PolicyRequirements, scope string) *ruleSet {
	a := alternative{kind: image.TrustPolicy, rule: "policy.json: " + scope, requirements: requirements}
	kinds := map[image.TrustKind]bool{}
	var signers []string
	for _, requirement := range requirements {
		var fields struct {
			Type     string   `json:"type"`
			KeyPath  string   `json:"keyPath"`
			KeyPaths []string `json:"keyPaths"`
			KeyData  []byte   `json:"keyData"`
			KeyDatas [][]byte `json:"keyDatas"`
		}
		if data, err := json.Marshal(requirement); err == nil {
			json.Unmarshal(data, &fields)
		}
		switch fields.Type {
		case "insecureAcceptAnything":
			kinds[image.TrustInsecure] = true
			continue
		case "signedBy":
			kinds[image.TrustGPG] = true
		case "sigstoreSigned":
			kinds[image.TrustSigstore] = true
		default:
			kinds[image.TrustPolicy] = true
		}
		datas := append(fields.KeyDatas, fields.KeyData)
		for _, path := range append(fields.KeyPaths, fields.KeyPath) {
			data, _ := os.ReadFile(path) // whether it can be read, the verification will say
			datas = append(datas, data)
		}
		for _, data := range datas {
			keys, _ := ParseKeys(data)
			for _, key := range keys {
				signers = append(signers, key.Fingerprint)
			}
		}
	}
	if len(kinds) > 1 {
		delete(kinds, image.TrustInsecure) // adds nothing to the others
	}
	if len(kinds) == 1 {
		for a.kind = range kinds {
		}
	}
	if len(signers) == 1 {
		a.signer = signers[0]
	}
	return &ruleSet{alternatives: []alternative{a}}
}

// decide says why the image is accepted and returns the signatures that prove it, or why it is not.
func (p *pull) decide(ctx context.Context, rules *ruleSet, m *chosenManifest) (image.Trust, [][]byte, error) {
	now := time.Now().Truncate(time.Second)
	if trust, ok := p.storedTrust(rules, m); ok {
		return trust, nil, nil
	}
	if p.InsecureImage {
		return image.Trust{Kind: image.TrustInsecure, Time: now, Insecure: []string{"image"}}, nil, nil
	}
	if len(rules.alternatives) == 0 {
		if p.ref.Digest() != "" {
			return image.Trust{Kind: image.TrustDigest, Time: now}, nil, nil
		}
		return image.Trust{}, nil, p.refused(m, errors.New("no policy covers its name"), true)
	}
	// Who signs an index signs the digests in it. cosign signs the index alone unless told otherwise.
	candidates := []*containersimage.UnparsedImage{m.image}
	if m.index != nil {
		candidates = append(candidates, m.index)
	}
	var reasons []string
	for _, candidate := range candidates {
		for _, alternative := range rules.alternatives {
			err := p.ask(ctx, func() error { return alternative.verify(ctx, candidate, p.named) })
			if err == nil {
				trust, signatures, err := alternative.proof(ctx, candidate)
				trust.Time = now
				return trust, signatures, err
			}
			if ctx.Err() != nil {
				return image.Trust{}, nil, err
			}
			if reason := err.Error(); !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
	}
	return image.Trust{}, nil, p.refused(m, fmt.Errorf("%s (rule %s)", strings.Join(reasons, "; "), rules.alternatives[0].rule), false)
}

// storedTrust is why the very image that is stored under the name was accepted, if the rule for it and its keys are still the same:
// then there is nothing to be asked. It is kept also when nothing has to be proved now.
func (p *pull) storedTrust(rules *ruleSet, m *chosenManifest) (image.Trust, bool) {
	stored, err := p.store.Image(p.ref)
	if err != nil || stored.ManifestDigest != m.digest {
		return image.Trust{}, false
	}
	trust := stored.Trust
	if trust.Kind == image.TrustDigest && len(rules.alternatives) == 0 {
		return trust, true
	}
	if trust.Signed != m.digest && (m.list == nil || trust.Signed != image.DigestOf(m.list)) {
		return trust, false
	}
	for _, digest := range trust.Signatures {
		if _, err := p.store.Blob(digest); err != nil {
			return trust, false
		}
	}
	for _, alternative := range rules.alternatives {
		// policy.json's requirements may name files, which may have changed.
		if policy, err := alternative.digest(); err == nil && policy == trust.Policy && alternative.byName {
			return trust, true
		}
	}
	return trust, false
}

// digest is that of the requirements with their keys.
func (a alternative) digest() (image.Digest, error) {
	requirements, err := json.Marshal(a.requirements)
	return image.DigestOf(requirements), err
}

func (a alternative) verify(ctx context.Context, candidate types.UnparsedImage, name types.ImageReference) error {
	if a.byName {
		candidate = containersimage.UnparsedInstanceWithReference(candidate, name)
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: a.requirements})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	_, err = policy.IsRunningImageAllowed(ctx, candidate)
	return err
}

// proof is what to remember of an image that a met.
func (a alternative) proof(ctx context.Context, accepted *containersimage.UnparsedImage) (image.Trust, [][]byte, error) {
	trust := image.Trust{Kind: a.kind, Rule: a.rule, Signer: a.signer}
	if a.kind == image.TrustInsecure {
		return trust, nil, nil
	}
	var err error
	if trust.Policy, err = a.digest(); err != nil {
		return trust, nil, err
	}
	blob, _, err := accepted.Manifest(ctx)
	if err != nil {
		return trust, nil, err
	}
	trust.Signed = image.DigestOf(blob)
	all, err := accepted.UntrustedSignatures(ctx)
	if err != nil {
		return trust, nil, err
	}
	var signatures [][]byte
	for _, s := range all {
		if blob := encodeSignature(s); blob != nil {
			signatures = append(signatures, blob)
			trust.Signatures = append(trust.Signatures, image.DigestOf(blob))
		}
	}
	return trust, signatures, nil
}

// encodeSignature gives a signature as containers/image stores it in "dir:", so that it can be verified again from there. The
// types of signatures are internal to that module, what they have is not.
func encodeSignature(s any) []byte {
	switch s := s.(type) {
	case interface{ UntrustedSignature() []byte }:
		return s.UntrustedSignature()
	case interface {
		UntrustedMIMEType() string
		UntrustedPayload() []byte
		UntrustedAnnotations() map[string]string
	}:
		data, err := json.Marshal(struct {
			MIMEType    string            `json:"mimeType"`
			Payload     []byte            `json:"payload"`
			Annotations map[string]string `json:"annotations"`
		}{s.UntrustedMIMEType(), s.UntrustedPayload(), s.UntrustedAnnotations()})
		if err != nil {
			return nil
		}
		return append([]byte("\x00sigstore-json\n"), data...)
	}
	return nil
}
