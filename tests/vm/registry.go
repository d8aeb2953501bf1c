package vm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"
)

// RegistryAddress is the registry's name and port in the lab. The name is in the root's /etc/hosts.
const RegistryAddress = "registry.test:5000"

// Registry starts Debian's docker-registry in the lab, with a certificate that the lab trusts, and pushes the test images: demo/NAME for each of
// ImageNames, and unsigned/tiny, each as :1 and :latest. Signatures are looked for in both ways, as attachments and in a lookaside directory
// (containers-registries.d(5)); none is there before SignGPG or SignSigstore. It gives RegistryAddress.
func (m *Machine) Registry() string {
	m.helper()()
	layout := m.Images()
	authority, certificate, key, err := makeCertificates(strings.Split(RegistryAddress, ":")[0])
	if err != nil {
		m.fatalf("%w", err)
	}
	m.WriteFile("/etc/lab/registry/certificate.pem", certificate, 0o644)
	m.WriteFile("/etc/lab/registry/key.pem", key, 0o600)
	m.WriteFile("/usr/local/share/ca-certificates/lab.crt", authority, 0o644)
	m.WriteFile("/etc/lab/registry/config.yml", []byte(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: /var/tmp/registry}
  delete: {enabled: true}
http:
  addr: 127.0.0.1:5000
  tls: {certificate: /etc/lab/registry/certificate.pem, key: /etc/lab/registry/key.pem}
`), 0o644)
	m.WriteFile("/etc/containers/registries.d/lab.yaml", []byte(`docker:
  `+RegistryAddress+`:
    use-sigstore-attachments: true
    lookaside: file:///var/lib/lab/lookaside
    lookaside-staging: file:///var/lib/lab/lookaside
`), 0o644)
	// What update-ca-certificates does, in a hundredth of the time.
	m.must("cat /usr/local/share/ca-certificates/lab.crt >> /etc/ssl/certs/ca-certificates.crt")
	m.must(startRegistry)
	m.Eventually("the registry answers", func() bool {
		return m.Run("curl", "--silent", "--fail", "https://"+RegistryAddress+"/v2/").Status == 0
	})

	// Side by side. Blobs that two images share are uploaded once or twice, as it comes.
	push := `copy() { skopeo --insecure-policy copy --quiet "oci:` + layout + `:$1" "docker://` + RegistryAddress + `/$2"; }
		both() { copy "$1" "$2:1"; copy "$1" "$2:latest"; }
		pids=`
	for _, name := range ImageNames {
		push += fmt.Sprintf("\n(set -e; both %s demo/%s) & pids=\"$pids $!\"", name, name)
	}
	push += "\n(set -e; both tiny unsigned/tiny) & pids=\"$pids $!\"\nfor pid in $pids; do wait $pid; done"
	m.must(push)
	return RegistryAddress
}

// startRegistry starts the registry, also again.
const startRegistry = `systemd-run --quiet --unit=lab-registry --property=Type=exec --description="The test images' registry" \
	--setenv=OTEL_TRACES_EXPORTER=none docker-registry serve /etc/lab/registry/config.yml
	for _ in $(seq 600); do curl --silent --fail --output /dev/null https://registry.test:5000/v2/ && break; sleep 0.1; done
`

// must runs a shell script in the lab and fails the test if that fails.
func (m *Machine) must(script string) string {
	m.helper()()
	result := m.Script(script)
	if result.Status != 0 {
		m.fatalf("%s\nstatus %d\n%s%s", script, result.Status, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

// SignGPG signs an image in the registry, such as registry.test:5000/demo/tiny:1, by GPG's simple signing into the lookaside directory, with a key of the
// lab that is made by the first call. It gives the path of the public key, armored.
func (m *Machine) SignGPG(reference string) (publicKey string) {
	m.helper()()
	m.must(`mkdir -p /var/lib/lab/lookaside
		if ! [ -e /var/lib/lab/gpg.asc ]; then
			gpg --quiet --batch --passphrase "" --quick-generate-key "The lab <lab@registry.test>" rsa2048 sign never
			gpg --quiet --batch --armor --export lab@registry.test > /var/lib/lab/gpg.asc
		fi`)
	m.Must("skopeo", "--insecure-policy", "copy", "--quiet", "--sign-by", "lab@registry.test", "docker://"+reference, "docker://"+reference)
	return "/var/lib/lab/gpg.asc"
}

// SignSigstore signs an image in the registry by a sigstore key, as an attachment beside it, with a key of the lab that is made by the first call. It gives
// the path of the public key.
func (m *Machine) SignSigstore(reference string) (publicKey string) {
	m.helper()()
	m.must(`mkdir -p /var/lib/lab
		if ! [ -e /var/lib/lab/sigstore.pub ]; then
			: > /var/lib/lab/passphrase
			skopeo generate-sigstore-key --output-prefix /var/lib/lab/sigstore --passphrase-file /var/lib/lab/passphrase
		fi`)
	m.Must("skopeo", "--insecure-policy", "copy", "--quiet", "--sign-by-sigstore-private-key", "/var/lib/lab/sigstore.private",
		"--sign-passphrase-file", "/var/lib/lab/passphrase", "docker://"+reference, "docker://"+reference)
	return "/var/lib/lab/sigstore.pub"
}

// SignCosign signs an image in the registry as the lab's cosign does by default, without a transparency log: its version 2 by an attachment, its version 3 by
// a bundle that refers to the image. The key is the lab's, made by the first call. It gives the path of the public key.
func (m *Machine) SignCosign(reference string) (publicKey string) {
	m.helper()()
	m.must(`mkdir -p /var/lib/lab; cd /var/lib/lab
		[ -e cosign.pub ] || COSIGN_PASSWORD= cosign generate-key-pair 2> /dev/null
		options=--tlog-upload=false
		if cosign sign --help | grep -q -e --signing-config; then
			# Version 3 says where to log by a file: nowhere.
			echo '{"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}' > signing-config.json
			options=--signing-config=signing-config.json
		fi
		COSIGN_PASSWORD= cosign sign --yes $options --key cosign.key "$(
			skopeo inspect --format '{{.Name}}@{{.Digest}}' "docker://` + reference + `")"`)
	return "/var/lib/lab/cosign.pub"
}

// makeCertificates gives a new authority's certificate, and one with its key for a host, all in PEM.
func makeCertificates(host string) (authority, certificate, key []byte, err error) {
	now := time.Now()
	authorityTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "The lab's authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authorityTemplate, authorityTemplate, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, nil, nil, err
	}
	hostTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	hostKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	hostDER, err := x509.CreateCertificate(rand.Reader, hostTemplate, authorityTemplate, hostKey.Public(), authorityKey)
	if err != nil {
		return nil, nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(hostKey)
	if err != nil {
		return nil, nil, nil, err
	}
	encode := func(kind string, der []byte) []byte {
		var out bytes.Buffer
		pem.Encode(&out, &pem.Block{Type: kind, Bytes: der})
		return out.Bytes()
	}
	return encode("CERTIFICATE", authorityDER), encode("CERTIFICATE", hostDER), encode("PRIVATE KEY", keyDER), nil
}
