package vm

import "testing"

// What systemd's own importctl pull-oci (262) does not do, beside what we do with the same image of the same registry. When a row's first half fails, systemd has
// learnt something, and docs/architecture.md has to say so.
func TestBesideImportctl(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		if m.Suite != Forky {
			t.Skip("importctl has pull-oci since systemd 260")
		}
		m.Registry()
		m.must(`
			mkdir -p /var/tmp/images
			cd /var/tmp/images
			skopeo --insecure-policy copy --quiet --format v2s2 docker://` + tiny + `:1 docker://` + RegistryAddress + `/odd/docker:1
			# A layer of a type that nobody knows; the registry takes any manifest whose blobs it has.
			for name in unknown encrypted; do skopeo --insecure-policy copy --quiet docker://` + tiny + `:1 docker://` + RegistryAddress + `/odd/$name:1; done
			skopeo inspect --raw docker://` + tiny + `:1 > manifest
			put() { curl --silent --show-error --fail -X PUT -H "Content-Type: application/vnd.oci.image.manifest.v1+json" --data-binary @$1 https://` + RegistryAddress + `/v2/odd/$1/manifests/1; }
			jq '.layers[-1].mediaType = "application/vnd.example.layer"' manifest > unknown
			jq '.layers[-1].mediaType += "+encrypted"' manifest > encrypted
			put unknown
			put encrypted
		`)
		const (
			importctl = "importctl --quiet --class=machine pull-oci "
			pull      = "machinectl-lite pull-oci --quiet --insecure-options=image "
			odd       = RegistryAddress + "/odd/"
		)
		mstack := func(name string) string {
			return "dir=$(mktemp -d); systemd-mstack --mount /var/lib/machines/" + name + ".mstack $dir && ls -a $dir/usr/share $dir/etc | grep -x 'issue\\|common-licenses\\|.wh.*' | sort; umount -R $dir"
		}
		m.expect(t,
			// 1: no signature is asked for.
			outcome{importctl + "--verify=signature " + RegistryAddress + "/unsigned/tiny:1 unsigned", 0, "", "//"},
			outcome{"machinectl-lite pull-oci --quiet " + RegistryAddress + "/unsigned/tiny:1", 1, "", "/not trusted/"},
			// 2: what an upper layer removes stays, with the marks of the removal beside it. nginx's layer removes a file and a directory.
			outcome{importctl + RegistryAddress + "/demo/nginx:1 nginx && " + mstack("nginx"), 0, "/(?m)^.wh.issue$/", "//"},
			outcome{pull + RegistryAddress + "/demo/nginx:1 && nspawnd-run --entrypoint sh " + RegistryAddress + "/demo/nginx:1 -c 'ls -a /usr/share /etc | grep -x \"issue\\|common-licenses\\|.wh.*\"'", 1, "//", "//"},
			// 3: Docker's manifests.
			outcome{importctl + odd + "docker:1 docker", 1, "//", "//"},
			outcome{pull + odd + "docker:1 && nspawnd-run " + odd + "docker:1 echo docker", 0, "/\ndocker\n$/", "//"},
			// 4: a layer of an unknown or encrypted type is left out, and the pull succeeds.
			outcome{importctl + odd + "unknown:1 unknown && " + importctl + odd + "encrypted:1 encrypted", 0, "", "//"},
			outcome{pull + odd + "unknown:1", 1, "", "/application/vnd.example.layer.* is not supported/"},
			outcome{pull + odd + "encrypted:1", 1, "", "/encrypted.* is not supported/"},
			// 5: a numeric user, after which half an image is left.
			outcome{importctl + RegistryAddress + "/demo/python:1 python", 1, "//", "//"},
			outcome{"ls -d /var/lib/machines/python*", 0, "/python.mstack/", ""},
			outcome{pull + RegistryAddress + "/demo/python:1 && nspawnd-run " + RegistryAddress + "/demo/python:1 id -u", 0, "/\n1234\n$/", "//"},
			// 6: references by digest.
			outcome{importctl + odd + "docker@$(skopeo inspect --format '{{.Digest}}' docker://" + odd + "docker:1) pinned", 1, "//", "//"},
			outcome{"machinectl-lite pull-oci --quiet " + odd + "docker@$(skopeo inspect --format '{{.Digest}}' docker://" + odd + "docker:1)", 0, "//", ""},
			// 12: which manifest it was, can't be told.
			outcome{"find /var/lib/machines -maxdepth 1 -type f -exec grep --files-with-matches manifest {} +", 1, "", ""},
			outcome{"machinectl-lite inspect-image --raw odd/docker:1 | jq --raw-output .mediaType", 0, "application/vnd.docker.distribution.manifest.v2+json\n", ""},
		)
	})
}
