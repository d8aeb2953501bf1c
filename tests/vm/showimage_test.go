package vm

import (
	"encoding/json"
	"strings"
	"testing"
)

// What is stored is shown as machinectl, podman and skopeo show theirs.
func TestShowImages(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		key := m.SignSigstore(redis + ":latest")
		digest := strings.TrimSpace(m.Must("skopeo", "inspect", "--format", "{{.Digest}}", "docker://"+redis))
		m.Must("machinectl-lite", "trust", "add", "--yes", "--prefix", redis, key)
		m.Must("machinectl-lite", "pull-oci", "--quiet", redis)
		m.Must("machinectl-lite", "pull-oci", "--quiet", "--insecure-options=image", RegistryAddress+"/demo/nginx")
		m.expect(t,
			outcome{"machinectl-lite list-images", 0, "/^NAME +TYPE RO USAGE +CREATED +MODIFIED +TRUST +DIGEST *\n(?s).*demo/nginx:latest oci  no +[0-9.]+M .*insecure.*\n\n2 images listed.\n$/", ""},
			outcome{"machinectl-lite image-status redis", 0, "/(?s)^" + redis + ":latest\n\t    Type: oci\n.*OS: Debian.*Digest: " + digest + "\n.*exclusive: .*Layers: sha256:.*sigstoreSigned.*trust.d.*User: redis\n.*Volumes: /data\n/", ""},
			outcome{"machinectl-lite image-status", 0, "/(?s)Path: /var/lib/nspawnd.*Images: 2\n$/", ""},
			outcome{"machinectl-lite show-image -P ManifestDigest -P Type redis", 0, "oci\n" + digest + "\n", ""},
			outcome{"machinectl-lite show-image -p Usage,TrustKind nginx redis", 0, "/^Usage=[0-9]+\nTrustKind=insecure\n\nUsage=[0-9]+\nTrustKind=sigstoreSigned\n$/", ""},
			outcome{"machinectl-lite show-image", 0, "/PoolPath=/var/lib/nspawnd\n/", ""},
			outcome{"machinectl-lite inspect-image --raw redis | sha256sum | cut -d' ' -f1", 0, strings.TrimPrefix(digest, "sha256:") + "\n", ""},
			outcome{"machinectl-lite inspect-image --format '{{.Digest}} {{json .Config.Cmd}}' redis nginx | head -n 1", 0, digest + " [\"redis-server\"]\n", ""},
			outcome{"machinectl-lite inspect-image --format '{{.Nothing}}' redis", 1, "", "/Nothing/"},
			outcome{"machinectl-lite image-status nothing redis", 1, "/demo/redis/", "/^machinectl-lite: image docker.io/library/nothing:latest: not in the store; .*list-images.*\n$/"},
			outcome{"machinectl-lite inspect-image", 1, "", "/no image named/"},
			outcome{"machinectl-lite __complete image-status '' 2>/dev/null | grep demo/", 0, RegistryAddress + "/demo/nginx:latest\n" + RegistryAddress + "/demo/redis:latest\n", ""},
		)

		// The same as podman says, where podman says something.
		m.must("podman pull --quiet " + redis)
		type inspection struct {
			ID           string `json:"Id"`
			Digest       string
			Created      string
			Os           string
			Architecture string
			Config       map[string]any
			RootFS       struct{ Layers []string }
			History      []any
		}
		var ours, theirs []inspection
		for out, argv := range map[*[]inspection][]string{&ours: {"machinectl-lite", "inspect-image", redis}, &theirs: {"podman", "image", "inspect", redis}} {
			if err := json.Unmarshal([]byte(m.Must(argv[0], argv[1:]...)), out); err != nil {
				t.Fatal(err)
			}
		}
		a, _ := json.Marshal(ours)
		b, _ := json.Marshal(theirs)
		if string(a) != string(b) {
			t.Errorf("ours\n%s\npodman's\n%s", a, b)
		}
	})
}
