package vm

import (
	"bytes"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// TestTrustAsks is trust add on a terminal: it shows whom it is about and asks, and nothing but a yes changes something.
func TestTrustAsks(t *testing.T) {
	signer := buildCommand(t, "./signer")
	Suites(t, func(t *testing.T, m *Machine) {
		m.Copy(signer, "/usr/local/bin/signer")
		m.must(`cd /tmp
			: > passphrase; skopeo generate-sigstore-key --output-prefix sigstore --passphrase-file passphrase
			gpg --quiet --batch --passphrase "" --quick-generate-key "The team <team@registry.test>" rsa2048 sign never
			gpg --quiet --batch --armor --export > team.asc
			signer /tmp < /dev/null`)
		fingerprint := strings.TrimSpace(m.must(`gpg --with-colons --list-keys | awk -F: '$1 == "fpr" { print $10; exit }'`))
		hash := strings.Fields(m.must("openssl pkey -pubin -in /tmp/sigstore.pub -outform DER | sha256sum"))[0]
		authority := strings.Fields(m.must("openssl x509 -in /tmp/authority.pem -outform DER | sha256sum"))[0]
		const add = "machinectl-lite trust add --prefix registry.test/team "
		for _, test := range []struct {
			arguments string
			shown     []string
		}{
			{"/tmp/team.asc", []string{"gpg key " + fingerprint, "calls itself The team <team@registry.test>"}},
			{"/tmp/sigstore.pub", []string{"sigstore key sha256:" + hash}},
			{"--issuer https://accounts.example --identity ci@team.example --root-of-trust /tmp/trusted_root.json",
				[]string{"identity ci@team.example", "for issuer https://accounts.example", "sha256:" + authority}},
		} {
			m.expect(t, outcome{add + test.arguments + " < /dev/null", 1, "", "/\nmachinectl-lite: trust add: .*say --yes: there is no terminal to ask on\n$/"})
			for _, answer := range []string{"n\n", "\n", "x\n", "\x04", "\x03", "y\n", "YES\n"} {
				cmd := m.Command("bash", "-c", add+test.arguments)
				terminal, err := pty.Start(cmd)
				if err != nil {
					t.Fatal(err)
				}
				var output bytes.Buffer
				for buf := make([]byte, 1024); !strings.HasSuffix(output.String(), "[y/N] "); {
					n, err := terminal.Read(buf)
					if err != nil {
						t.Fatalf("%v: %q", err, &output)
					}
					output.Write(buf[:n])
				}
				for _, shown := range append(test.shown, "Trust this for images whose names begin with registry.test/team? ") {
					if !strings.Contains(output.String(), shown) {
						t.Errorf("%s: no %q in %q", test.arguments, shown, &output)
					}
				}
				terminal.WriteString(answer)
				output.ReadFrom(terminal) // to EIO, when the other side is closed
				terminal.Close()
				err = cmd.Wait()
				yes := strings.HasPrefix(strings.ToLower(answer), "y")
				if rules := m.Run("sh", "-c", "ls -A /etc/nspawnd/trust.d 2>/dev/null | grep -c ."); (err == nil) != yes || (rules.Stdout != "0\n") != yes {
					t.Errorf("%s, answer %q: %v, files: %s%s", test.arguments, answer, err, rules.Stdout, &output)
				}
				if yes {
					m.Must("machinectl-lite", "trust", "remove", "registry.test/team")
				}
			}
		}
	})
}
