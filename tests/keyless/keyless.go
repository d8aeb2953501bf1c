// Package keyless signs images for tests as cosign does without keys: by a certificate authority and a transparency log of its own.
// What it signs is as real as sigstore's; only the servers are left out.
package keyless

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"
)

// SignPredicate is what cosign says of an image by signing it.
const SignPredicate = "https://sigstore.dev/cosign/sign/v1"

// World is an authority that certifies identities, and a log that says when.
type World struct {
	Root      []byte // trusted_root.json
	Authority []byte // the authority's own certificate, PEM
	LogKey    []byte // the log's public key, PEM

	intermediate *x509.Certificate
	key          *ecdsa.PrivateKey // the intermediate's
	log          *ca.VirtualSigstore
	logID        []byte
}

// Signing is how something is signed.
type Signing struct {
	Subject   string // an e-mail address, or a URI
	Issuer    string
	Predicate string
	After     time.Duration // how long after the certificate was made the log saw the signature; certificates are good for ten minutes
}

// New makes a world that nobody knows.
func New() (*World, error) {
	w := &World{}
	authority, key, err := ca.GenerateRootCa()
	if err != nil {
		return nil, err
	}
	if w.intermediate, w.key, err = ca.GenerateFulcioIntermediate(authority, key); err != nil {
		return nil, err
	}
	w.Authority = encodePEM("CERTIFICATE", authority.Raw)
	if w.log, err = ca.NewVirtualSigstore(); err != nil {
		return nil, err
	}
	logs := map[string]*root.TransparencyLog{}
	for id, log := range w.log.RekorLogs() {
		same := *log
		if w.logID, err = hex.DecodeString(id); err != nil {
			return nil, err
		}
		same.ID = w.logID
		logs[id] = &same
		der, err := x509.MarshalPKIXPublicKey(log.PublicKey)
		if err != nil {
			return nil, err
		}
		w.LogKey = encodePEM("PUBLIC KEY", der)
	}
	fulcio := &root.FulcioCertificateAuthority{
		Root: authority, Intermediates: []*x509.Certificate{w.intermediate}, URI: "https://fulcio.example",
		ValidityPeriodStart: time.Now().Add(-time.Hour), ValidityPeriodEnd: time.Now().Add(24 * time.Hour),
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{fulcio}, nil, nil, logs)
	if err != nil {
		return nil, err
	}
	w.Root, err = trusted.MarshalJSON()
	return w, err
}

// Bundle makes what cosign 3 does by default: a statement about a manifest's digest, with what proves it.
func (w *World) Bundle(s Signing, digest string) ([]byte, error) {
	statement := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(digest, "sha256:"), s.Predicate)
	const kind = "application/vnd.in-toto+json"
	certificate, signature, err := w.sign(s, dsse.PAE(kind, statement))
	if err != nil {
		return nil, err
	}
	logged, err := w.log.GenerateTlogEntry(certificate, &dsse.Envelope{
		PayloadType: kind, Payload: base64.StdEncoding.EncodeToString(statement),
		Signatures: []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(signature)}},
	}, signature, time.Now().Add(s.After).Unix(), true)
	if err != nil {
		return nil, err
	}
	entry := logged.TransparencyLogEntry()
	entry.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	if entry.InclusionPromise, err = w.promise(entry.CanonicalizedBody, entry.IntegratedTime, entry.LogIndex); err != nil { // the library leaves it out
		return nil, err
	}
	return protojson.Marshal(&protobundle.Bundle{
		MediaType: BundleType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: certificate.Raw}},
			TlogEntries: []*protorekor.TransparencyLogEntry{entry},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: statement, PayloadType: kind, Signatures: []*protodsse.Signature{{Sig: signature}},
		}},
	})
}

// BundleType is the media type of bundles, in registries too.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Referrer makes the manifest by which a registry knows that a bundle is about subject.
func Referrer(bundle []byte, subject v1.Descriptor) (v1.Image, error) {
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), BundleType), static.NewLayer(bundle, BundleType))
	if err != nil {
		return nil, err
	}
	return mutate.Subject(image, subject).(v1.Image), nil
}

// Attachment makes what cosign did before 3: an image, to be put beside the signed one, whose layer says that in the repository name is a
// manifest with this digest.
func (w *World) Attachment(s Signing, name, digest string) (v1.Image, error) {
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, digest)
	certificate, signature, err := w.sign(s, payload)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(payload)
	body, err := json.Marshal(map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord",
		"spec": map[string]any{
			"data":      map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(hash[:])}},
			"signature": map[string]any{"content": signature, "publicKey": map[string]any{"content": encodePEM("CERTIFICATE", certificate.Raw)}},
		},
	})
	if err != nil {
		return nil, err
	}
	const index = 7
	logged := time.Now().Add(s.After).Unix()
	promise, err := w.promise(body, logged, index)
	if err != nil {
		return nil, err
	}
	bundle, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": promise.SignedEntryTimestamp,
		"Payload":              map[string]any{"body": body, "integratedTime": logged, "logIndex": index, "logID": hex.EncodeToString(w.logID)},
	})
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	return mutate.Append(image, mutate.Addendum{
		Layer: static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature),
			"dev.sigstore.cosign/certificate":    string(encodePEM("CERTIFICATE", certificate.Raw)),
			"dev.sigstore.cosign/chain":          string(encodePEM("CERTIFICATE", w.intermediate.Raw)) + string(w.Authority),
			"dev.sigstore.cosign/bundle":         string(bundle),
		},
	})
}

// sign signs data with a key of its own that s.Subject is certified to have now.
func (w *World) sign(s Signing, data []byte) (*x509.Certificate, []byte, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now(), NotAfter: time.Now().Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(s.Issuer)}},
	}
	if strings.Contains(s.Subject, "://") {
		uri, err := url.Parse(s.Subject)
		if err != nil {
			return nil, nil, err
		}
		template.URIs = []*url.URL{uri}
	} else {
		template.EmailAddresses = []string{s.Subject}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, w.intermediate, key.Public(), w.key)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.Sum256(data)
	signature, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	return certificate, signature, err
}

// promise is the log's that it has an entry.
func (w *World) promise(body []byte, logged, index int64) (*protorekor.InclusionPromise, error) {
	set, err := w.log.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(body), IntegratedTime: logged, LogIndex: index, LogID: hex.EncodeToString(w.logID),
	})
	return &protorekor.InclusionPromise{SignedEntryTimestamp: set}, err
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
