package vm

import (
	"strings"
	"testing"
)

// TestSignatureAPI is a registry that has GPG signatures itself (X-Registry-Supports-Signatures), as OpenShift's does: skopeo signs through it,
// and both a rule of ours and policy.json find the signatures there.
func TestSignatureAPI(t *testing.T) {
	webserver := buildCommand(t, "./webserver")
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		key := m.SignGPG(nginx + ":latest") // makes the key
		const host = "signatures.test:5001"
		authority, certificate, private, err := makeCertificates(strings.Split(host, ":")[0])
		if err != nil {
			t.Fatal(err)
		}
		m.Copy(webserver, "/usr/local/bin/webserver")
		m.WriteFile("/etc/lab/signatures/certificate.pem", certificate, 0o644)
		m.WriteFile("/etc/lab/signatures/key.pem", private, 0o600)
		m.WriteFile("/etc/containers/certs.d/"+host+"/ca.crt", authority, 0o644)
		m.must(`echo 127.0.0.1 signatures.test >> /etc/hosts
			systemd-run --quiet --unit=lab-signatures --property=Type=exec webserver signatures ` + host + ` https://` + RegistryAddress + ` /etc/lab/signatures/certificate.pem /etc/lab/signatures/key.pem`)
		m.Eventually("the registry answers", func() bool {
			return m.Run("curl", "--silent", "--fail", "--insecure", "https://"+host+"/v2/").Status == 0
		})
		const (
			signed = host + "/demo/tiny:1"
			pull   = "machinectl-lite pull-oci --quiet "
		)
		m.expect(t,
			outcome{"machinectl-lite trust add --yes --prefix " + host + " " + key, 0, "//", "//"},
			outcome{pull + signed, 1, "", "/not trusted: A signature was required, but no signature exists/"},
			outcome{"skopeo --insecure-policy copy --quiet --sign-by lab@registry.test docker://" + signed + " docker://" + signed, 0, "", ""},
			outcome{"curl --silent --insecure https://" + host + "/extensions/v2/demo/tiny/signatures/$(skopeo inspect --format '{{.Digest}}' docker://" + signed + ") | jq '.signatures | length'", 0, "1\n", ""},
			outcome{pull + signed, 0, "//", ""},
			outcome{"nspawnd-run " + signed + " echo signed", 0, "signed\n", ""},
			outcome{"machinectl-lite verify-image " + signed, 0, "/signedBy.*ok\n/", ""},
			// The signature is for a tag, and for that registry's name.
			outcome{"skopeo --insecure-policy copy --quiet docker://" + signed + " docker://" + host + "/demo/tiny:other && " + pull + host + "/demo/tiny:other", 1, "", "/not trusted: Signature for identity .*demo/tiny:1/"},
			// policy.json alone, beside skopeo.
			outcome{"machinectl-lite trust remove " + host + ` && echo '{"default": [{"type": "reject"}], "transports": {"docker": {"` + host + `": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "` + key + `"}]}}}' > /etc/containers/policy.json`, 0, "//", ""},
			outcome{"nspawnd-run " + signed + " echo by policy.json", 0, "by policy.json\n", ""},
			outcome{"machinectl-lite remove " + signed + " && " + pull + signed + " && machinectl-lite show-image -P TrustRule " + signed, 0, "/policy.json: " + host + "\n$/", ""},
			outcome{"skopeo copy --quiet docker://" + signed + " dir:/tmp/signed", 0, "", ""},
			outcome{pull + host + "/demo/nginx:1", 1, "", "/not trusted: A signature was required, but no signature exists/"},
			outcome{"skopeo copy --quiet docker://" + host + "/demo/nginx:1 dir:/tmp/unsigned", 1, "", "//"},
		)
	})
}
