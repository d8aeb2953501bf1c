package vm

import "testing"

// TestSources is where images come from besides a registry, and what a name without a host stands for.
func TestSources(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		m.must(`mkdir -p /var/tmp/sources; cd /var/tmp/sources
			copy() { skopeo --insecure-policy copy --quiet docker://` + tiny + `:latest "$@"; }
			copy oci:layout:tiny
			copy oci-archive:o.tar:registry.test/from/archive:2
			copy docker-archive:d.tar:registry.test/from/docker:3
			gzip -k d.tar
			copy dir:dir
			copy --dest-decompress dir:plain
			compress() { skopeo --insecure-policy copy --quiet --format oci dir:plain --dest-compress-format "$@"; }
			compress zstd oci:zstd:tiny
			compress zstd:chunked oci:chunked:tiny
			grep -q tar+zstd zstd/blobs/sha256/* && grep -q zstd-chunked chunked/blobs/sha256/*`)

		const insecure = "machinectl-lite import-oci --insecure-options=image "
		m.expect(t,
			outcome{"cd /var/tmp/sources; machinectl-lite import-oci oci:layout localhost/x", 1, "", "/not trusted: no policy covers its name/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci:layout", 1, "", "/localhost\\/NAME/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci:layout x", 1, "", "/must be in full, such as localhost\\/x/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci:layout localhost/oci && nspawnd-run localhost/oci echo oci", 0, "/oci\n$/", "/WARNING/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci:zstd localhost/zstd && nspawnd-run localhost/zstd echo zstd", 0, "/zstd\n$/", "/WARNING/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci-archive:o.tar && nspawnd-run registry.test/from/archive:2 echo archive", 0, "/archive\n$/", "/WARNING/"},
			outcome{"cd /var/tmp/sources; " + insecure + "docker-archive:d.tar.gz && nspawnd-run registry.test/from/docker:3 echo docker", 0, "/docker\n$/", "/WARNING/"},
			outcome{"cd /var/tmp/sources; " + insecure + "dir:dir localhost/dir && nspawnd-run localhost/dir echo dir", 0, "/dir\n$/", "/WARNING/"},
			outcome{"nspawnd-run oci:/var/tmp/sources/layout true", 125, "", "/./"},
			outcome{"machinectl-lite pull-oci oci:/var/tmp/sources/layout", 1, "", "/import-oci/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci:chunked localhost/chunked && nspawnd-run localhost/chunked echo chunked", 0, "/chunked\n$/", "/WARNING/"},
			// Out again: podman and skopeo read it, and it is the same image.
			outcome{`cd /var/tmp/sources; for to in oci:out:x oci-archive:out.tar:x docker-archive:out-docker.tar:registry.test/out:1 dir:out-dir; do
					machinectl-lite export-oci localhost/oci $to || exit
					skopeo --insecure-policy copy --quiet $to dir:check && skopeo inspect --config --raw dir:check | sha256sum
					rm -r check
				done | sort -u | wc -l; machinectl-lite export-oci --compression=zstd localhost/oci oci:out-zstd:x && grep -q tar+zstd out-zstd/blobs/sha256/* && echo zstd
				podman run --rm --quiet --network=none --cgroups=disabled --runtime=crun oci:out:x echo podman`, 0, "1\nzstd\npodman\n", "//"},
			outcome{"cd /var/tmp/sources; machinectl-lite export-oci localhost/oci oci:out", 1, "", "/is there already/"},
			outcome{"cd /var/tmp/sources; " + insecure + "oci-archive:out.tar localhost/again && nspawnd-run localhost/again echo again", 0, "/again\n$/", "/WARNING/"},
			// The files are gone; nothing of a source is needed or left.
			outcome{"rm -r /var/tmp/sources; ls /var/tmp | grep -v -e registry -e systemd-private", 1, "", ""},
		)

		// A bare name: by alias, by search registries, and what it was stays.
		m.must(`cat > /etc/containers/registries.conf.d/lab.conf <<-END
			unqualified-search-registries = ["` + RegistryAddress + `"]
			[aliases]
			"mine" = "` + tiny + `"
			END`)
		m.expect(t,
			outcome{"nspawnd-run --insecure-options=image mine echo alias", 0, "alias\n", "/image " + tiny + ":latest/"},
			outcome{"nspawnd-run --insecure-options=image demo/redis sh -c pwd", 0, "/data\n", "/image " + redis + ":latest/"},
			outcome{"rm /etc/containers/registries.conf.d/lab.conf; nspawnd-run --pull=never mine echo still", 0, "still\n", ""},
			outcome{"nspawnd-run --pull=never other true", 125, "", "/machinectl-lite pull-oci other/"},
			outcome{`printf 'short-name-mode = "enforcing"\nunqualified-search-registries = ["a.invalid", "b.invalid"]\n' > /etc/containers/registries.conf.d/lab.conf
				nspawnd-run new true`, 125, "", "/a.invalid\\/new:latest\n.*b.invalid\\/new:latest/"},
			outcome{`cat > /etc/containers/registries.conf.d/lab.conf <<-END
				[[registry]]
				location = "blocked.invalid"
				blocked = true
				[[registry]]
				prefix = "mirrored.invalid"
				location = "upstream.invalid"
				[[registry.mirror]]
				location = "` + RegistryAddress + `"
				END
				machinectl-lite pull-oci blocked.invalid/x`, 1, "", "/blocked/"},
			outcome{"nspawnd-run --insecure-options=image mirrored.invalid/demo/tiny echo mirror", 0, "mirror\n", "/WARNING/"},
		)
	})
}
