package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	sigstore "github.com/sigstore/sigstore/pkg/signature"
	"go.podman.io/image/v5/docker/reference"
	containersimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/pkg/tlsclientconfig"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"nspawnd/image"
)

const (
	bundleType = "application/vnd.dev.sigstore.bundle"
	// What cosign says of a subject by signing it. Other statements, such as of what an image was built from, approve of nothing.
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
	maxBundles    = 32 // of an image
)

// isBundle tells a bundle from the signatures that containers/image knows.
func isBundle(signature []byte) bool { return bytes.HasPrefix(signature, []byte("{")) }

// bundleVerifier verifies sigstore bundles, as cosign 3 makes them. They name what they are for by its digest alone.
type bundleVerifier struct {
	verifier *verify.Verifier
	signer   verify.PolicyOption
}

// newKeyBundleVerifier accepts bundles by a key. No log is asked for: who has a key needs none.
func newKeyBundleVerifier(key Key) (*bundleVerifier, error) {
	block, _ := pem.Decode(key.Data)
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	loaded, err := sigstore.LoadDefaultVerifier(public)
	if err != nil {
		return nil, err
	}
	expiring := root.NewExpiringKey(loaded, time.Time{}, time.Time{})
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return expiring, nil })
	verifier, err := verify.NewVerifier(material, verify.WithNoObserverTimestamps())
	return &bundleVerifier{verifier, verify.WithKey()}, err
}

// keylessAlternative accepts signatures by a certified identity: data is sigstore's trusted_root.json. A signature must be in one of the
// root's logs, which says when it was made: the certificate was good then.
func keylessAlternative(key image.TrustKey, data []byte) (alternative, error) {
	a := alternative{kind: image.TrustKeyless, signer: key.Identity()}
	trusted, err := parseRoot(data)
	if err != nil {
		return a, err
	}
	identity, err := verify.NewShortCertificateIdentity(key.Issuer, "", key.Subject, "")
	if err != nil {
		return a, err
	}
	options := []verify.VerifierOption{verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1)}
	if len(trusted.CTLogs()) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	verifier, err := verify.NewVerifier(trusted, options...)
	if err != nil {
		return a, err
	}
	a.bundle = &bundleVerifier{verifier, verify.WithCertificateIdentity(identity)}
	return a, nil
}

// parseRoot reads a trusted_root.json that can vouch for identities.
func parseRoot(data []byte) (*root.TrustedRoot, error) {
	trusted, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, fmt.Errorf("not a trusted_root.json: %w", err)
	}
	if len(trusted.FulcioCertificateAuthorities()) == 0 || len(trusted.RekorLogs()) == 0 {
		return nil, errors.New("has no certificate authority or no transparency log")
	}
	return trusted, nil
}

// ParseRoot reads a trusted_root.json and returns what its certificate authorities are called, with the SHA-256 of their certificates.
func ParseRoot(data []byte) (authorities []string, err error) {
	trusted, err := parseRoot(data)
	if err != nil {
		return nil, err
	}
	for _, authority := range trusted.FulcioCertificateAuthorities() {
		if fulcio, ok := authority.(*root.FulcioCertificateAuthority); ok {
			authorities = append(authorities, fulcio.Root.Subject.String()+", "+string(image.DigestOf(fulcio.Root.Raw)))
		}
	}
	return authorities, nil
}

// verify says whether the bundle is a signature for the manifest with this digest by whom b accepts.
func (b *bundleVerifier) verify(data []byte, signed image.Digest) error {
	var entity bundle.Bundle
	if err := entity.UnmarshalJSON(data); err != nil {
		return err
	}
	sum, err := hex.DecodeString(signed.Hex())
	if err != nil {
		return err
	}
	result, err := b.verifier.Verify(&entity, verify.NewPolicy(verify.WithArtifactDigest("sha256", sum), b.signer))
	if err != nil {
		return err
	}
	if result.Statement != nil && result.Statement.PredicateType != signPredicate {
		return fmt.Errorf("is a statement of type %q, not a signature", result.Statement.PredicateType)
	}
	return nil
}

// attachment is a signature as cosign made them before 3, a layer of an image beside the signed one. The type is internal to containers/image.
type attachment interface {
	UntrustedMIMEType() string
	UntrustedPayload() []byte
	UntrustedAnnotations() map[string]string
}

const attachmentType = "application/vnd.dev.cosign.simplesigning.v1+json"

// verifyAttachment says whether s is a signature for the manifest with this digest in a repository, by an identity that b accepts.
// containers/image, which could do it, knows no identities but e-mail addresses and asks for no proof of the certificate's log.
func (b *bundleVerifier) verifyAttachment(s attachment, repository string, signed image.Digest) error {
	payload := s.UntrustedPayload()
	entity, err := attachmentBundle(payload, s.UntrustedAnnotations())
	if err != nil {
		return err
	}
	if _, err := b.verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(payload)), b.signer)); err != nil {
		return err
	}
	// From here on it is what the identity has written.
	var says struct {
		Critical struct {
			Type  string
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			}
			Identity struct {
				Reference string `json:"docker-reference"`
			}
		}
	}
	if err := json.Unmarshal(payload, &says); err != nil {
		return err
	}
	critical := says.Critical
	if critical.Type != "cosign container image signature" {
		return fmt.Errorf("is of type %q, not a signature of an image", critical.Type)
	}
	if critical.Image.Digest != string(signed) {
		return fmt.Errorf("is for digest %s", critical.Image.Digest)
	}
	named, err := reference.ParseNormalizedNamed(critical.Identity.Reference)
	if err == nil && named.Name() != repository {
		err = fmt.Errorf("is for %s", named.Name())
	}
	return err
}

// attachmentBundle gives the bundle that says what the annotations of a signature of payload say.
func attachmentBundle(payload []byte, annotations map[string]string) (*bundle.Bundle, error) {
	const prefix = "dev.sigstore.cosign/"
	sig, err := base64.StdEncoding.DecodeString(annotations["dev.cosignproject.cosign/signature"])
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	certificate, _ := pem.Decode([]byte(annotations[prefix+"certificate"]))
	if certificate == nil {
		return nil, errors.New("has no certificate")
	}
	if annotations[prefix+"bundle"] == "" {
		return nil, errors.New("is in no transparency log")
	}
	var logged struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte
			IntegratedTime int64
			LogIndex       int64
			LogID          string
		}
	}
	if err := json.Unmarshal([]byte(annotations[prefix+"bundle"]), &logged); err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	entry := logged.Payload
	id, err := hex.DecodeString(entry.LogID)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	sum := sha256.Sum256(payload)
	return bundle.NewBundle(&protobundle.Bundle{
		MediaType: bundleType + "+json;version=0.1", // the last one that has no proof of inclusion
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
				Certificates: []*protocommon.X509Certificate{{RawBytes: certificate.Bytes}},
			}},
			TlogEntries: []*protorekor.TransparencyLogEntry{{
				LogIndex: entry.LogIndex, LogId: &protocommon.LogId{KeyId: id}, IntegratedTime: entry.IntegratedTime,
				KindVersion:      &protorekor.KindVersion{Kind: "hashedrekord", Version: "0.0.1"},
				InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: logged.SignedEntryTimestamp}, CanonicalizedBody: entry.Body,
			}},
		},
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]}, Signature: sig,
		}},
	})
}

// bundlesOf gives a function that fetches the bundles for a manifest, once.
func (p *pull) bundlesOf(ctx context.Context, subject image.Digest) func() ([][]byte, error) {
	return sync.OnceValues(func() (bundles [][]byte, err error) {
		if p.from != (Source{}) {
			return nil, nil // no transport of files has referrers that we look for
		}
		err = p.ask(ctx, func() error {
			bundles, err = p.fetchBundles(ctx, subject)
			return err
		})
		return bundles, err
	})
}

// fetchBundles asks for what refers to subject: by the API for that, and if the registry has none by the tag that stands in for it
// (distribution-spec, "Referrers Tag Schema"). containers/image does neither; what is found is fetched through it.
func (p *pull) fetchBundles(ctx context.Context, subject image.Digest) ([][]byte, error) {
	referrers, err := p.referrers(ctx, subject)
	if err != nil {
		return nil, err
	}
	var bundles [][]byte
	for _, referrer := range referrers {
		blob, err := p.fetchBundle(ctx, referrer)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", referrer, err)
		}
		if blob != nil {
			bundles = append(bundles, blob)
		}
	}
	return bundles, nil
}

// referrers gives the manifests that refer to subject and are, or don't say that they are not, bundles.
func (p *pull) referrers(ctx context.Context, subject image.Digest) ([]digest.Digest, error) {
	registry, err := sysregistriesv2.FindRegistry(p.system, p.ref.Repository())
	if err != nil {
		return nil, err
	}
	if registry == nil {
		registry = &sysregistriesv2.Registry{Prefix: p.ref.Domain(), Endpoint: sysregistriesv2.Endpoint{Location: p.ref.Domain()}}
	}
	sources, err := registry.PullSourcesFromReference(p.named.DockerReference())
	if err != nil {
		return nil, err
	}
	var index *ggcr.IndexManifest
	for _, source := range sources { // mirrors before the registry itself
		if index, err = p.referrersOn(ctx, source, subject); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	var found []digest.Digest
	for _, m := range index.Manifests {
		if _, err := image.ParseDigest(m.Digest.String()); err != nil {
			return nil, err
		}
		// cosign 3 gives the type of its empty configuration where it keeps the list itself, under the tag.
		if m.ArtifactType != "" && m.ArtifactType != v1.MediaTypeEmptyJSON && !strings.HasPrefix(m.ArtifactType, bundleType) {
			continue
		}
		if found = append(found, digest.Digest(m.Digest.String())); len(found) > maxBundles {
			return nil, fmt.Errorf("more than %d bundles", maxBundles)
		}
	}
	return found, nil
}

func (p *pull) referrersOn(ctx context.Context, source sysregistriesv2.PullSource, subject image.Digest) (*ggcr.IndexManifest, error) {
	var options []name.Option
	if source.Endpoint.Insecure {
		options = append(options, name.Insecure)
	}
	ref, err := name.NewDigest(source.Reference.Name()+"@"+string(subject), options...)
	if err != nil {
		return nil, err
	}
	host := reference.Domain(source.Reference)
	transport := tlsclientconfig.NewTransport()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: source.Endpoint.Insecure}
	transport.Proxy = func(r *http.Request) (*url.URL, error) { return p.system.DockerProxy(r.URL) }
	dir, err := certificates(p.system, host)
	if err != nil {
		return nil, err
	}
	if dir != "" {
		if err := tlsclientconfig.SetupCertificates(dir, transport.TLSClientConfig); err != nil {
			return nil, err
		}
	}
	defer transport.CloseIdleConnections()
	login, err := config.GetCredentialsForRef(p.system, source.Reference)
	if err != nil {
		return nil, err
	}
	auth := authn.Anonymous
	if login != (types.DockerAuthConfig{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: login.Username, Password: login.Password, IdentityToken: login.IdentityToken})
	}
	index, err := remote.Referrers(ref, remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuth(auth))
	if err != nil {
		return nil, err
	}
	return index.IndexManifest()
}

// certificates gives the directory of containers-certs.d(5) for a host, "" if there is none.
func certificates(sys *types.SystemContext, host string) (string, error) {
	if sys.DockerCertPath != "" {
		return sys.DockerCertPath, nil
	}
	paths, err := configfile.GetSearchPaths(&configfile.File{
		Name: "certs", Extension: "d", DoNotUseExtensionForConfigName: true, RootForImplicitAbsolutePaths: sys.RootForImplicitAbsolutePaths,
	})
	if err != nil {
		return "", err
	}
	dirs := append(paths.DropInDirectories, filepath.Join("/", sys.RootForImplicitAbsolutePaths, "etc/docker/certs.d"))
	if sys.DockerPerHostCertDirPath != "" {
		dirs = []string{sys.DockerPerHostCertDirPath}
	}
	for _, dir := range dirs {
		if dir = filepath.Join(dir, host); exists(dir) {
			return dir, nil
		}
	}
	return "", nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fetchBundle gives the bundle in a manifest that refers to an image, nil if it has something else.
func (p *pull) fetchBundle(ctx context.Context, referrer digest.Digest) ([]byte, error) {
	blob, _, err := containersimage.UnparsedInstance(p.source, &referrer).Manifest(ctx)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(blob, &m); err != nil {
		return nil, err
	}
	if len(m.Layers) != 1 || !strings.HasPrefix(m.Layers[0].MediaType, bundleType) {
		return nil, nil
	}
	info := types.BlobInfo{Digest: m.Layers[0].Digest, Size: m.Layers[0].Size}
	if _, err := image.ParseDigest(info.Digest.String()); err != nil {
		return nil, err
	}
	if info.Size < 0 || info.Size > image.MaxBlob {
		return nil, fmt.Errorf("bundle of %d bytes, more than %d", info.Size, image.MaxBlob)
	}
	content, err := p.openBlob(ctx, info)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	return io.ReadAll(content)
}
