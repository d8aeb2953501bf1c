package vm

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestImagesRun(t *testing.T) {
	m := Lab(t, Trixie)
	layout := m.Images()
	// Podman as the oracle that these are images. The lab has no limits to set and no network to give.
	podman := func(options, image string, arguments ...string) Result {
		return m.Script("podman run --rm --quiet --network=none --cgroups=disabled --runtime=crun " + options + " oci:" + layout + ":" + image + " " +
			strings.Join(arguments, " "))
	}
	for _, test := range []struct {
		options, image string
		arguments      []string
		status         int
		stdout         string
	}{
		{"", "tiny", []string{"exit", "7"}, 7, ""},
		{"", "tiny", []string{"args", "a", "'b c'"}, 0, "\"a\"\n\"b c\"\n"},
		{"--user=1234:5678", "tiny", []string{"id"}, 0, "uid=1234 gid=5678 groups=5678\n"},
		{"--entrypoint=/bin/echo", "tiny", []string{"by", "link"}, 0, "by link\n"},
		{"", "tiny", []string{"ls", "/bin"}, 0, "*"},
		{"", "nginx", []string{"nginx", "-t"}, 0, "docker-entrypoint.sh: starting nginx\n"},
		{"", "redis", []string{"sh", "-c", "'pwd; id -un; cat README'"}, 0, "/data\nredis\nfrom the image\n"},
		{"", "python", []string{"python3", "-c", "'import os; print(os.getuid(), os.environ[\"GREETING\"])'"}, 0, "1234 hello, 100% $HOME\n"},
	} {
		got := podman(test.options, test.image, test.arguments...)
		if got.Status != test.status || test.stdout != "*" && got.Stdout != test.stdout {
			t.Errorf("%s %s %q: status %d, want %d\n%s%s", test.options, test.image, test.arguments, got.Status, test.status, got.Stdout, got.Stderr)
		}
	}
}

func TestRegistry(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		started := time.Now()
		address := m.Registry()
		t.Logf("the registry is up and has its images: %s", time.Since(started).Round(time.Millisecond))
		for _, name := range append([]string{"unsigned/tiny"}, "demo/tiny", "demo/nginx", "demo/redis", "demo/python") {
			m.Must("skopeo", "inspect", "docker://"+address+"/"+name+":1")
		}

		tiny := address + "/demo/tiny:1"
		requirement := map[string]string{
			"GPG":      `{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "` + m.SignGPG(tiny) + `"}`,
			"sigstore": `{"type": "sigstoreSigned", "keyPath": "` + m.SignSigstore(tiny) + `", "signedIdentity": {"type": "matchRepository"}}`,
		}
		for kind, requirement := range requirement {
			m.WriteFile("/etc/lab/policy.json", fmt.Appendf(nil, `{"default": [{"type": "reject"}],
				"transports": {"docker": {"%s": [%s]}}}`, address, requirement), 0o644)
			if got := m.Run("skopeo", "--policy=/etc/lab/policy.json", "copy", "--quiet", "docker://"+tiny, "dir:/tmp/signed"); got.Status != 0 {
				t.Errorf("%s: the signed image was refused: %s", kind, got.Stderr)
			}
			if got := m.Run("skopeo", "--policy=/etc/lab/policy.json", "copy", "--quiet", "docker://"+address+"/unsigned/tiny:1", "dir:/tmp/unsigned"); got.Status == 0 {
				t.Errorf("%s: the unsigned image was accepted", kind)
			}
		}
		key := m.SignCosign(address + "/demo/nginx:1")
		m.Must("cosign", "verify", "--key", key, "--insecure-ignore-tlog=true", address+"/demo/nginx:1")
	})
}
