package vm

import (
	"strings"
	"testing"
)

// TestTrust is what a user meets on the way to the first trusted image, and what stops untrusted ones.
func TestTrust(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		const unsigned = RegistryAddress + "/unsigned/tiny"
		digest := strings.TrimSpace(m.Must("skopeo", "inspect", "--format", "{{.Digest}}", "docker://"+unsigned))

		// Nothing is trusted at first, and nothing of a refused image is kept.
		m.expect(t,
			outcome{"nspawnd-run " + unsigned + " true", 125, "", "/(?s)trust add --prefix.*" + unsigned + "@" + digest + ".*--insecure-options=image/"},
			outcome{"machinectl-lite list-images --no-legend; find /var/lib/nspawnd/layers -mindepth 1 2>/dev/null", 1, "", "/^(find: .*\n)?$/"},
			outcome{"nspawnd-run " + unsigned + "@" + digest + " echo pinned", 0, "pinned\n", ""},
			outcome{"nspawnd-run --insecure-options=image " + unsigned + " echo insecure", 0, "insecure\n", "/WARNING.*insecure-options/"},
			outcome{"machinectl-lite list-images --no-legend", 0, "/insecure/", ""},
			outcome{"nspawnd-run " + unsigned + "@sha256:" + strings.Repeat("0", 64) + " true", 125, "", "/not found|unknown/"},
		)

		// sigstore with a key, GPG with a key: only after the key is trusted, and only for its prefix.
		sigstore := m.SignSigstore(tiny + ":latest")
		gpg := m.SignGPG(nginx + ":latest")
		m.expect(t,
			outcome{"nspawnd-run " + tiny + " true", 125, "", "/trust add/"},
			outcome{"machinectl-lite trust add --prefix " + tiny + " " + sigstore + " < /dev/null", 1, "", "/--yes/"},
			outcome{"machinectl-lite trust add --yes --prefix " + tiny + " " + sigstore, 0, "//", "//"},
			outcome{"nspawnd-run " + tiny + " echo sigstore", 0, "sigstore\n", ""},
			outcome{"nspawnd-run " + nginx + " nginx -v", 125, "", "/trust add/"},
			outcome{"machinectl-lite trust add --yes --prefix " + nginx + " " + gpg, 0, "//", "//"},
			outcome{"nspawnd-run --entrypoint nginx " + nginx + " -v", 0, "", "/nginx version/"},
			outcome{"machinectl-lite trust list", 0, "/(?s)demo/nginx.*demo/tiny/", ""},
			outcome{"machinectl-lite list-images", 0, "/(?s)demo/nginx:latest.*demo/tiny:latest/", ""},
		)

		// A wrong key, and no signature under a rule: even a pinned digest does not get round a rule.
		m.expect(t,
			outcome{"machinectl-lite trust add --yes --prefix " + RegistryAddress + "/unsigned " + sigstore, 0, "//", "//"},
			outcome{"machinectl-lite pull-oci " + unsigned, 1, "", "/signature/"},
			outcome{"machinectl-lite pull-oci " + unsigned + "@" + digest, 1, "", "/signature/"},
			outcome{"machinectl-lite trust remove " + nginx, 0, "//", ""},
			outcome{"machinectl-lite trust add --yes --prefix " + nginx + " " + sigstore, 0, "//", "//"},
			outcome{"machinectl-lite pull-oci " + nginx, 1, "", "/signature/"},
			// Removing all rules refuses again.
			outcome{"machinectl-lite trust remove " + tiny + " && machinectl-lite pull-oci " + tiny, 1, "//", "/trust add/"},
		)

		// Registries that are not there, names that are not there, content that is not what it says.
		m.expect(t,
			outcome{"machinectl-lite pull-oci " + RegistryAddress + "/no/such", 1, "", "/^machinectl-lite: image .*no/such:latest: .*\n/"},
			outcome{"machinectl-lite pull-oci localhost:1/x", 1, "", "/^machinectl-lite: image localhost:1/x:latest: .*refused.*\n/"},
			outcome{"machinectl-lite pull-oci nowhere.invalid/x", 1, "", "/^machinectl-lite: image nowhere.invalid/x:latest: .*\n/"},
			outcome{"machinectl-lite trust add --yes --prefix x /etc/hostname", 1, "", "/^machinectl-lite: .*\n$/"},
		)
		layer := strings.TrimSpace(m.Must("sh", "-c", "skopeo inspect docker://"+RegistryAddress+"/demo/redis | jq -r '.Layers[-1]' | cut -d: -f2"))
		m.must("f=/var/tmp/registry/docker/registry/v2/blobs/sha256/" + layer[:2] + "/" + layer + "/data; printf X | dd of=$f bs=1 seek=100 conv=notrunc status=none")
		m.expect(t,
			outcome{"machinectl-lite pull-oci --insecure-options=image " + redis, 1, "", "/digest|sha256/"},
			outcome{"machinectl-lite list-images --no-legend | grep redis; ls /var/lib/nspawnd/tmp", 0, "", ""},
		)
	})
}
