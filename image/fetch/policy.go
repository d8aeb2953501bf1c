package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	openpgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
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
	files       []string
	inputs      image.Inputs // files, as they were before they were read
}

// alternative is a list of requirements that all have to be met.
type alternative struct {
	kind         image.TrustKind
	rule         string // what to show: the file, and the prefix or scope in it
	signer       string // whose signature is required, if it is one key's
	requirements signature.PolicyRequirements
	bundle       *bundleVerifier // whose sigstore bundles do as well
	until        time.Time       // the first of the keys expires
	byName       bool            // also for files, which have no name of their own: signatures are for the name that the image gets
}

// rules finds what decides over the image's name, and stamps the files that say so: before it reads them, so that a change on the way is
// one that comes after.
func (p *pull) rules() (*ruleSet, error) {
	var inputs image.Inputs
	for {
		set, err := p.readRules()
		if err != nil {
			return nil, err
		}
		if set.inputs = inputs; inputs.Paths != nil && slices.Equal(inputs.Paths, set.files) {
			return set, nil
		}
		inputs = image.StampInputs(set.files)
	}
}

func (p *pull) readRules() (*ruleSet, error) {
	files, err := image.TrustInputs(p.TrustDirs)
	if err != nil {
		return nil, err
	}
	policies, err := policyFiles(p.System)
	if err != nil {
		return nil, err
	}
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
	set, err := rulesFor(p.ref, p.from, trust, policy)
	if err != nil {
		return nil, err
	}
	set.files = slices.Concat(files, policies, set.files)
	return set, nil
}

// policyFiles are the places of policy.json, the first of which that is there holds.
func policyFiles(sys *types.SystemContext) ([]string, error) {
	file := configfile.File{Name: "policy", Extension: "json", EnvironmentName: "CONTAINERS_POLICY_JSON", DoNotLoadDropInFiles: true}
	if sys != nil {
		file.CustomConfigFilePath, file.RootForImplicitAbsolutePaths = sys.SignaturePolicyPath, sys.RootForImplicitAbsolutePaths
	}
	paths, err := configfile.GetSearchPaths(&file)
	return paths.MainFiles, err
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
			set.files = append(set.files, file.File)
			alternatives, err := keyAlternatives(file)
			if err != nil {
				return nil, fmt.Errorf("trust rule %s: key %s: %w", rule.Path, file.File, err)
			}
			set.attachments = set.attachments || file.Type != image.KeyGPG
			for _, a := range alternatives {
				a.rule, a.byName = rule.Path+": "+rule.Prefix, true
				set.alternatives = append(set.alternatives, a)
			}
		}
	}
	return set, nil
}

// keyAlternatives makes an alternative of each key in a file.
func keyAlternatives(file image.TrustKey) ([]alternative, error) {
	data, err := os.ReadFile(file.File)
	if err != nil {
		return nil, err
	}
	if file.Type == image.KeyKeyless {
		a, err := keylessAlternative(file, data)
		return []alternative{a}, err
	}
	keys, err := ParseKeys(data)
	if err == nil && keys[0].Type != file.Type {
		err = fmt.Errorf("is a %s key, not a %s one", keys[0].Type, file.Type)
	}
	if err != nil {
		return nil, err
	}
	var alternatives []alternative
	for _, key := range keys {
		a := alternative{signer: key.Fingerprint, until: key.Expires}
		requirement, err := key.requirement()
		if err == nil && key.Type == image.KeySigstore {
			a.kind = image.TrustSigstore
			a.bundle, err = newKeyBundleVerifier(key)
		} else {
			a.kind = image.TrustGPG
		}
		if err != nil {
			return nil, err
		}
		a.requirements = signature.PolicyRequirements{requirement}
		alternatives = append(alternatives, a)
	}
	return alternatives, nil
}

// requirement says what a key's signature has to be like. A GPG signature names what it is for with tag or digest, and that
// must be what is pulled. cosign writes the repository alone.
func (k Key) requirement() (signature.PolicyRequirement, error) {
	if k.Type == image.KeyGPG {
		return signature.NewPRSignedByKeyData(signature.SBKeyTypeGPGKeys, k.Data, signature.NewPRMMatchRepoDigestOrExact())
	}
	return signature.NewPRSigstoreSignedKeyData(k.Data, signature.NewPRMMatchRepository())
}

// policyRules is for requirements of policy.json.
func policyRules(requirements signature.PolicyRequirements, scope string) *ruleSet {
	a := alternative{kind: image.TrustPolicy, rule: "policy.json: " + scope, requirements: requirements}
	set := &ruleSet{}
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
			set.files = append(set.files, absolutePaths(data)...)
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
				a.until = earlier(a.until, key.Expires)
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
	set.alternatives = []alternative{a}
	return set
}

// absolutePaths gives the absolute paths in a JSON value. What is none of a file but looks so does no harm.
func absolutePaths(data []byte) (paths []string) {
	for decoder := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := decoder.Token()
		if err != nil {
			return paths
		}
		if s, ok := token.(string); ok && strings.HasPrefix(s, "/") {
			paths = append(paths, s)
		}
	}
}

// decide says why the image is accepted and returns the signatures that prove it, or why it is not.
func (p *pull) decide(ctx context.Context, rules *ruleSet, m *chosenManifest) (image.Trust, [][]byte, error) {
	if p.verified != nil {
		return p.verified.trust, p.verified.signatures, nil
	}
	if trust, ok := p.storedTrust(ctx, rules, m); ok {
		return trust, nil, nil
	}
	now := time.Now().Truncate(time.Second)
	covered := len(rules.alternatives) > 0
	pin := m.digest
	if m.list != nil {
		pin = image.DigestOf(m.list)
	}
	switch {
	case p.InsecureImage && covered:
		// A start without the option must not go by this: it asks the rules.
		return image.Trust{Kind: image.TrustInsecure, Time: now, Insecure: []string{"image"}}, nil, nil
	case p.InsecureImage:
		return image.Trust{Kind: image.TrustInsecure, Time: now, Insecure: []string{"image"}, Inputs: rules.inputs}, nil, nil
	case !covered && p.ref.Digest() != "":
		return image.Trust{Kind: image.TrustDigest, Time: now, Inputs: rules.inputs}, nil, nil
	case !covered:
		return image.Trust{}, nil, p.refused(errUncovered, pin)
	}
	// Who signs an index signs the digests in it. cosign signs the index alone unless told otherwise.
	candidates := []candidate{{m.image, p.bundlesOf(ctx, m.digest)}}
	if m.index != nil {
		candidates = append(candidates, candidate{m.index, p.bundlesOf(ctx, pin)})
	}
	return p.judge(ctx, rules, candidates...)
}

var errUncovered = errors.New("no policy covers its name")

// storedTrust is why the very image that is stored under the name is accepted by what is stored of it: then there is nothing to be
// asked. That the user had this check left out once is no proof.
func (p *pull) storedTrust(ctx context.Context, rules *ruleSet, m *chosenManifest) (image.Trust, bool) {
	stored, err := p.store.Image(p.ref)
	if err != nil || stored.ManifestDigest != m.digest || stored.Trust.Insecure != nil || stored.VerifiedAs() != p.ref { // a tag was proven under another name
		return image.Trust{}, false
	}
	trust, err := p.recheck(ctx, rules, stored)
	return trust, err == nil
}

// candidate is a manifest that may be signed.
type candidate struct {
	*containersimage.UnparsedImage                          // with its signatures of the kinds that containers/image knows
	bundles                        func() ([][]byte, error) // sigstore bundles for it
}

// judge says by which rule one of the candidates is accepted, with the signatures that prove it, or why none is.
func (p *pull) judge(ctx context.Context, rules *ruleSet, candidates ...candidate) (image.Trust, [][]byte, error) {
	var reasons []string
	for _, c := range candidates {
		for _, a := range rules.alternatives {
			signatures, err := p.verify(ctx, a, c)
			if err == nil {
				trust, err := a.proof(ctx, c, signatures)
				trust.Inputs = rules.inputs
				trust.Inputs.Until = a.until
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
	return image.Trust{}, nil, p.refused(fmt.Errorf("%s (rule %s)", strings.Join(reasons, "; "), rules.alternatives[0].rule), "")
}

// verify returns the signatures by which c meets a.
func (p *pull) verify(ctx context.Context, a alternative, c candidate) (signatures [][]byte, err error) {
	if a.kind != image.TrustInsecure {
		if err := p.fetchSignatures(ctx, c); err != nil {
			return nil, err
		}
	}
	err = errors.New("no signature that this rule can go by")
	if a.requirements != nil {
		var unparsed types.UnparsedImage = c
		if a.byName || p.from == (Source{}) { // what is stored has no name of its own either
			unparsed = containersimage.UnparsedInstanceWithReference(c.UnparsedImage, p.named)
		}
		err = a.verify(ctx, unparsed)
	}
	if err == nil && a.kind == image.TrustInsecure {
		return nil, nil
	}
	if err == nil {
		all, err := c.UntrustedSignatures(ctx)
		for _, s := range all {
			if blob := encodeSignature(s); blob != nil {
				signatures = append(signatures, blob)
			}
		}
		return signatures, err
	}
	if a.bundle == nil {
		return nil, err
	}
	blob, _, manifestErr := c.Manifest(ctx)
	if manifestErr != nil {
		return nil, manifestErr
	}
	signed := image.DigestOf(blob)
	if a.kind == image.TrustKeyless {
		signature, attachmentErr := p.verifyAttachments(ctx, a.bundle, c, signed)
		if attachmentErr == nil && signature != nil {
			return [][]byte{signature}, nil
		}
		if attachmentErr != nil {
			err = attachmentErr
		}
	}
	bundles, bundlesErr := c.bundles()
	if bundlesErr != nil {
		return nil, fmt.Errorf("%w; bundles: %w", err, bundlesErr)
	}
	for _, b := range bundles {
		bundleErr := a.bundle.verify(b, signed)
		if bundleErr == nil {
			return [][]byte{b}, nil
		}
		err = fmt.Errorf("bundle: %w", bundleErr)
	}
	return nil, err
}

// fetchSignatures makes c have its signatures of the kinds that containers/image knows, and refuses what would take memory without end: that
// module bounds each one, but not how many are beside an image nor what an OpenPGP message is when it is uncompressed.
func (p *pull) fetchSignatures(ctx context.Context, c candidate) error {
	return p.ask(ctx, func() error {
		p.gate.limitBlobs(maxSignatures)
		defer p.gate.limitBlobs(-1)
		all, err := c.UntrustedSignatures(ctx)
		for _, s := range all {
			if simple, ok := any(s).(interface{ UntrustedSignature() []byte }); ok && isBomb(simple.UntrustedSignature()) {
				return fmt.Errorf("signature: %w", openpgperrors.ErrMessageTooLarge)
			}
		}
		return err
	})
}

// isBomb says whether an OpenPGP message is larger than what it may be once it is uncompressed. What is wrong with it otherwise, the
// verification will say.
func isBomb(message []byte) bool {
	limit := int64(image.MaxBlob)
	m, err := openpgp.ReadMessage(bytes.NewReader(message), openpgp.EntityList{}, nil, &packet.Config{MaxDecompressedMessageSize: &limit})
	if err == nil {
		_, err = io.Copy(io.Discard, m.UnverifiedBody)
	}
	return errors.Is(err, openpgperrors.ErrMessageTooLarge)
}

// verifyAttachments returns the attached signature of c by an identity that b accepts, nil if none is attached at all.
func (p *pull) verifyAttachments(ctx context.Context, b *bundleVerifier, c candidate, signed image.Digest) ([]byte, error) {
	all, err := c.UntrustedSignatures(ctx)
	for _, s := range all {
		s, ok := any(s).(attachment)
		if !ok || s.UntrustedMIMEType() != attachmentType {
			continue
		}
		if err = b.verifyAttachment(s, p.ref.Repository(), signed); err == nil {
			return encodeSignature(s), nil
		}
		err = fmt.Errorf("signature: %w", err)
	}
	return nil, err
}

func (a alternative) verify(ctx context.Context, c types.UnparsedImage) error {
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: a.requirements})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	_, err = policy.IsRunningImageAllowed(ctx, c)
	return err
}

// proof is what to remember of a candidate that a accepts by signatures.
func (a alternative) proof(ctx context.Context, c candidate, signatures [][]byte) (image.Trust, error) {
	trust := image.Trust{Kind: a.kind, Rule: a.rule, Signer: a.signer, Time: time.Now().Truncate(time.Second)}
	if a.kind == image.TrustInsecure {
		return trust, nil
	}
	blob, _, err := c.Manifest(ctx)
	trust.Signed = image.DigestOf(blob)
	for _, signature := range signatures {
		trust.Signatures = append(trust.Signatures, image.DigestOf(signature))
	}
	return trust, err
}

// encodeSignature gives a signature as containers/image stores it in "dir:", so that it can be verified again from there. The
// types of signatures are internal to that module, what they have is not.
func encodeSignature(s any) []byte {
	switch s := s.(type) {
	case interface{ UntrustedSignature() []byte }:
		return s.UntrustedSignature()
	case attachment:
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
