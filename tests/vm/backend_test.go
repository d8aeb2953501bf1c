package vm

import "testing"

// Machines run from layers of either kind, and of both. What a host can't mount is kept as directories unasked.
func TestBackends(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		const pull = "machinectl-lite pull-oci -q --insecure-options=image "
		const kinds = "cd /var/lib/nspawnd/layers && ls -d */layer.erofs */tree 2>/dev/null | sed 's,.*/,,' | sort | uniq -c | xargs"
		m.expect(t,
			outcome{pull + "--backend=other " + tiny, 1, "", "/^machinectl-lite: --backend: no backend \"other\", there are erofs and dirs\n$/"},
			outcome{pull + "--backend=dirs " + nginx, 0, "/nginx/", "/WARNING/"},
			outcome{kinds, 0, "2 tree\n", ""},
			outcome{"nspawnd-run --entrypoint sh " + nginx + " -c 'nginx -v; touch /etc/new; ls -d /etc/new /usr/bin/env'", 0, "/etc/new\n/usr/bin/env\n", "/nginx version/"},
			// Redis has the same base.
			outcome{pull + redis, 0, "/redis/", "/WARNING/"},
			outcome{kinds, 0, "1 layer.erofs 2 tree\n", ""},
			outcome{"nspawnd-run --entrypoint sh " + redis + " -c 'cat /data/README; redis-server --version'", 0, "/^from the image\nRedis/", ""},
			outcome{"nspawnd-run -u 1234 --read-only --entrypoint sh " + nginx + " -c 'id -u; touch /x'", 1, "1234\n", "/Read-only file system/"},
			// A tmpfs has no files that EROFS can be mounted from.
			outcome{"mkdir /tmp/s; machinectl-lite --root=/tmp/s pull-oci -q --insecure-options=image " + tiny + "; cd /tmp/s/layers; ls -d */layer.erofs; ls -d */tree | wc -l", 0, "/\n2\n$/", "/WARNING.*\n.*cannot access.*layer.erofs/"},
			outcome{"machinectl-lite --root=/tmp/s pull-oci -q --insecure-options=image --backend=erofs " + nginx, 1, "", "/layer sha256:.*: erofs: /"},
		)
		m.nothingLeft(t)
	})
}
