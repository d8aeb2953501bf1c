package vm

import (
	"strings"
	"testing"
)

// TestTrustAgain is what becomes of images that are stored when the rules change, or when they do.
func TestTrustAgain(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		sigstore := m.SignSigstore(tiny + ":latest")
		gpg := m.SignGPG(nginx + ":latest")
		bundle := m.SignCosign(redis + ":latest") // cosign 3: a bundle; 2: beside the image
		const unsigned = RegistryAddress + "/unsigned/tiny"
		digest := strings.TrimSpace(m.Must("skopeo", "inspect", "--format", "{{.Digest}}", "docker://"+unsigned))
		trust := func(image, key string) outcome {
			return outcome{"machinectl-lite trust add --yes --prefix " + image + " " + key, 0, "//", "//"}
		}
		m.expect(t,
			trust(tiny, sigstore), trust(nginx, gpg), trust(redis, bundle),
			outcome{"machinectl-lite pull-oci --quiet " + tiny, 0, "//", ""},
			outcome{"machinectl-lite pull-oci --quiet " + nginx, 0, "//", ""},
			outcome{"machinectl-lite pull-oci --quiet " + redis, 0, "//", ""},
			outcome{"machinectl-lite pull-oci --quiet " + unsigned + "@" + digest, 0, "//", ""},
			outcome{"machinectl-lite pull-oci --insecure-options=image " + unsigned, 0, "//", "/WARNING/"},
			outcome{"machinectl-lite verify-image " + strings.Join([]string{tiny, nginx, redis, unsigned, unsigned + "@" + digest}, " "), 0,
				"/(?s)demo/tiny:latest +sigstoreSigned +sha256:.*trust.d.*ok\n.*nginx.*signedBy.*ok\n.*redis.*ok\n.*insecure.*ok\n.*digest-pin.*ok\n/", ""},
			outcome{"machinectl-lite verify-image --json=short " + tiny, 0, `/"result":"ok"/`, ""},
			outcome{"machinectl-lite verify-image no/such", 1, "No images.\n", "/image docker.io.no.such:latest: not in the store/"},
		)

		// Nothing is asked of the registry any more.
		m.must("systemctl stop lab-registry")
		m.expect(t,
			// A rule that goes, one for another key, one that comes back.
			outcome{"nspawnd-run " + tiny + " echo runs", 0, "runs\n", ""},
			outcome{"machinectl-lite trust remove " + tiny, 0, "//", ""},
			outcome{"nspawnd-run " + tiny + " true", 125, "", "/(?s)^nspawnd-run: image .*not trusted.*pull-oci " + tiny + ".*trust add --prefix.*--insecure-options=image\n$/"},
			outcome{"nspawnd-run --dry-run " + tiny + " true", 125, "", "/not trusted/"},
			outcome{"machinectl-lite verify-image " + tiny, 1, "/FAILED/", "/not trusted/"},
			outcome{"nspawnd-run --insecure-options=image " + tiny + " echo runs", 0, "runs\n", "/WARNING/"},
			trust(tiny, gpg),
			outcome{"nspawnd-run " + tiny + " true", 125, "", "/not trusted: .*rule /etc/nspawnd/trust.d/"},
			trust(tiny, sigstore),
			outcome{"nspawnd-run " + tiny + " echo again", 0, "again\n", ""},
			outcome{"nspawnd-run --entrypoint nginx " + nginx + " -v", 0, "", "/nginx version/"},
			// Bundles are verified again, too.
			outcome{"machinectl-lite trust remove " + redis + " && nspawnd-run " + redis + " true", 125, "//", "/not trusted/"},
			trust(redis, bundle),
			outcome{"nspawnd-run --entrypoint sh " + redis + " -c 'echo bundle'", 0, "bundle\n", ""},
			// What was accepted without a rule, when there is one; and policy.json.
			outcome{"nspawnd-run " + unsigned + " echo insecure", 0, "insecure\n", ""},
			outcome{"nspawnd-run " + unsigned + "@" + digest + " echo pinned", 0, "pinned\n", ""},
			trust(RegistryAddress+"/unsigned", sigstore),
			outcome{"nspawnd-run " + unsigned + " true", 125, "", "/not trusted/"},
			outcome{"nspawnd-run " + unsigned + "@" + digest + " true", 125, "", "/not trusted/"},
			outcome{"machinectl-lite trust remove " + RegistryAddress + "/unsigned", 0, "//", ""},
			outcome{"nspawnd-run " + unsigned + " echo insecure", 0, "insecure\n", ""},
			outcome{`echo '{"default": [{"type": "reject"}]}' > /etc/containers/policy.json; nspawnd-run ` + unsigned + " true", 125, "", "/not trusted/"},
			outcome{"nspawnd-run " + tiny + " echo narrower", 0, "narrower\n", ""},
			outcome{"rm /etc/containers/policy.json; nspawnd-run " + unsigned + " echo insecure", 0, "insecure\n", ""},
		)

		// A key that has been revoked since, and one that expires while its image is stored.
		m.must(startRegistry + `
			gpg --quiet --batch --passphrase "" --quick-generate-key "revoked <revoked@registry.test>" rsa2048 sign never
			gpg --quiet --batch --passphrase "" --quick-generate-key "short <short@registry.test>" rsa2048 sign seconds=60
			for who in revoked short; do
				gpg --quiet --batch --armor --export "<$who@registry.test>" > /tmp/$who.asc
				skopeo --insecure-policy copy --quiet --sign-by $who@registry.test docker://` + tiny + `:1 docker://` + RegistryAddress + `/keys/$who:1
				machinectl-lite trust add --yes --prefix ` + RegistryAddress + `/keys/$who /tmp/$who.asc
				machinectl-lite pull-oci --quiet ` + RegistryAddress + `/keys/$who:1
				nspawnd-run ` + RegistryAddress + `/keys/$who:1 true
			done
			sed 's/^:---/---/' ~/.gnupg/openpgp-revocs.d/$(gpg --with-colons --list-keys "<revoked@registry.test>" | awk -F: '$1 == "fpr" { print $10; exit }').rev | gpg --quiet --batch --import
			gpg --quiet --batch --armor --export "<revoked@registry.test>" > /tmp/revoked.asc
			systemctl stop lab-registry`)
		m.expect(t,
			outcome{"machinectl-lite trust add --yes --prefix " + RegistryAddress + "/keys/revoked /tmp/revoked.asc", 0, "//", "/is revoked\n/"},
			outcome{"nspawnd-run " + RegistryAddress + "/keys/revoked:1 true", 125, "", "/not trusted: .*revoked/"},
			outcome{"machinectl-lite verify-image keys/revoked:1", 1, "/FAILED/", "/not trusted/"},
			outcome{`until [ $(date +%s) -gt $(gpg --with-colons --list-keys "<short@registry.test>" | awk -F: '$1 == "pub" { print $7 }') ]; do sleep 1; done; nspawnd-run ` + RegistryAddress + "/keys/short:1 true", 125, "", "/not trusted: .*expired/"},
		)

		// When no rule has changed, no other process is started: the second start has the stamp of the first.
		m.expect(t,
			outcome{"nspawnd-run " + tiny + " true", 0, "", ""},
			outcome{"mv /usr/local/bin/machinectl-lite /usr/local/bin/moved; nspawnd-run " + tiny + " echo warm", 0, "warm\n", ""},
			outcome{"touch /etc/nspawnd/trust.d; nspawnd-run " + tiny + " true", 125, "", "/machinectl-lite/"},
			outcome{"mv /usr/local/bin/moved /usr/local/bin/machinectl-lite", 0, "", ""},
		)

		// A byte that is another, in each thing that is stored.
		for _, file := range []string{
			"$(ls /var/lib/nspawnd/layers/*/layer.tar | head -n 1)",
			"$(ls /var/lib/nspawnd/layers/*/layer.erofs | head -n 1)",
			"/var/lib/nspawnd/blobs/sha256/$(jq -r .manifestDigest $record | cut -d: -f2)",
			"/var/lib/nspawnd/blobs/sha256/$(jq -r .configDigest $record | cut -d: -f2)",
			"/var/lib/nspawnd/blobs/sha256/$(jq -r '.trust.signatures[0]' $record | cut -d: -f2)",
		} {
			m.must(`record=/var/lib/nspawnd/images/` + tiny + `:latest.json
				layer=/var/lib/nspawnd/layers/sha256-$(jq -r '.layers[0]' $record | cut -d: -f2)
				file=` + strings.ReplaceAll(file, "$(ls /var/lib/nspawnd/layers/*", "$(ls $layer") + `
				cp -a "$file" /tmp/good; printf '\377' | dd of="$file" bs=1 seek=200 conv=notrunc status=none
				cmp -s "$file" /tmp/good && exit 1
				machinectl-lite verify-image ` + tiny + ` 2> /tmp/said && exit 1
				grep -E 'damaged|differs|digest' /tmp/said
				cp -a /tmp/good "$file"; machinectl-lite verify-image ` + tiny)
		}
		// A layer that two images share: what is advised repairs both, also while a machine runs on it.
		m.must(startRegistry)
		m.expect(t,
			outcome{"nspawnd-run --detach --name damaged " + tiny + " sleep 1000", 0, "//", ""},
			outcome{"layer=/var/lib/nspawnd/layers/sha256-$(jq -r '.layers[0]' /var/lib/nspawnd/images/" + tiny + ":latest.json | cut -d: -f2); " +
				"printf X | dd of=$layer/layer.tar bs=1 seek=600 conv=notrunc status=none; machinectl-lite verify-image " + tiny + " " + unsigned, 1, "/FAILED\n.*FAILED\n/",
				"/(?s)layer .*damaged.*; to repair it: machinectl-lite verify-image --repair " + tiny + ":latest\n.*--repair " + unsigned + ":latest\n$/"},
			outcome{"machinectl-lite verify-image --repair " + tiny, 0, "/ok\n/", ""},
			outcome{"machinectl-lite verify-image " + tiny + " " + unsigned, 0, "/ok\n.*ok\n/", ""},
			outcome{"systemctl is-active nspawnd-damaged; machinectl-lite terminate damaged", 0, "active\n", ""},
			outcome{"nspawnd-run " + unsigned + " echo repaired; ls /var/lib/nspawnd/tmp", 0, "repaired\n", ""},
		)
		m.expect(t, outcome{"record=/var/lib/nspawnd/images/" + tiny + ":latest.json; sed -i 's/\"PATH=[^\"]*\"/\"PATH=.evil\"/' $record; " +
			"machinectl-lite verify-image " + tiny, 1, "/FAILED/", "/record: differs from the configuration/"})
	})
}
