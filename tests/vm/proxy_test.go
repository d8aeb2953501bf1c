package vm

import (
	"testing"
)

// registryAt starts one more registry with what is in that of Registry, under a name of its own, with more in its configuration. It gives the certificate
// of the authority that vouches for it, which the lab does not trust.
func (m *Machine) registryAt(host, port, more string) (authority []byte) {
	m.helper()()
	authority, certificate, key, err := makeCertificates(host)
	if err != nil {
		m.fatalf("%w", err)
	}
	dir := "/etc/lab/" + host
	m.WriteFile(dir+"/certificate.pem", certificate, 0o644)
	m.WriteFile(dir+"/key.pem", key, 0o600)
	m.WriteFile(dir+"/config.yml", []byte(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /var/tmp/registry}}
http:
  addr: 127.0.0.1:`+port+`
  tls:
    certificate: `+dir+`/certificate.pem
    key: `+dir+`/key.pem
`+more), 0o644)
	m.must(`systemd-run --quiet --unit=lab-` + host + ` --property=Type=exec --setenv=OTEL_TRACES_EXPORTER=none docker-registry serve ` + dir + `/config.yml`)
	m.Eventually("the registry answers", func() bool {
		return m.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port).Status == 0
	})
	return authority
}

// TestProxy is hosts that only a proxy knows, which wants a password.
func TestProxy(t *testing.T) {
	webserver := buildCommand(t, "./webserver")
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		m.Copy(webserver, "/usr/local/bin/webserver")
		m.WriteFile("/etc/containers/certs.d/behind.test:5002/ca.crt", m.registryAt("behind.test", "5002", ""), 0o644)
		authority, certificate, key, err := makeCertificates("app.test")
		if err != nil {
			t.Fatal(err)
		}
		m.WriteFile("/etc/lab/web/certificate.pem", certificate, 0o644)
		m.WriteFile("/etc/lab/web/key.pem", key, 0o600)
		m.WriteFile("/etc/lab/web/authority.pem", authority, 0o644)
		m.must(`cat /etc/lab/web/authority.pem /etc/containers/certs.d/behind.test:5002/ca.crt >> /etc/ssl/certs/ca-certificates.crt
			echo 127.0.0.1 behind.test >> /etc/hosts`)
		cosignKey := m.SignCosign("behind.test:5002/demo/tiny:latest")
		m.must(`sed -i /behind.test/d /etc/hosts
			machinectl-lite trust add --yes --prefix behind.test:5002/demo ` + cosignKey + `
			mkdir -p /srv/web pack/rootfs; cd pack; echo '{"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "app.test/x"}' > manifest; tar -cf /srv/web/x.aci manifest rootfs
			printf '[[registry]]\nlocation = "plain.test:5003"\ninsecure = true\n' > /etc/containers/registries.conf.d/lab.conf
			echo '{version: 0.1, storage: {filesystem: {rootdirectory: /var/tmp/registry}}, http: {addr: "127.0.0.1:5003"}}' > /etc/lab/plain.yml
			systemd-run --quiet --unit=lab-plain --property=Type=exec --setenv=OTEL_TRACES_EXPORTER=none docker-registry serve /etc/lab/plain.yml
			systemd-run --quiet --unit=lab-web --property=Type=exec webserver site /srv/web /etc/lab/web/certificate.pem /etc/lab/web/key.pem
			systemd-run --quiet --unit=lab-proxy --property=Type=exec webserver proxy user:s3cret 0`)
		m.Eventually("the proxy answers", func() bool {
			return m.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/3128 4<>/dev/tcp/127.0.0.1/443 5<>/dev/tcp/127.0.0.1/5003").Status == 0
		})
		const (
			pull    = "machinectl-lite pull-oci --quiet "
			behind  = "behind.test:5002/demo/tiny"
			proxied = "HTTPS_PROXY=http://user:s3cret@127.0.0.1:3128 "
		)
		m.expect(t,
			outcome{pull + behind, 1, "", "/^machinectl-lite: image " + behind + ":latest: registry not reachable: lookup behind.test.*\n$/"},
			// Manifest, signature (an attachment or a bundle that refers to it) and blobs.
			outcome{proxied + pull + behind, 0, "/^" + behind + ":latest@sha256:/", ""},
			outcome{"machinectl-lite show-image -P TrustKind " + behind, 0, "sigstoreSigned\n", ""},
			outcome{"journalctl --sync; journalctl -q -o cat -u lab-proxy | grep ^CONNECT | sort -u", 0, "CONNECT behind.test:5002\n", ""},
			outcome{"https_proxy=http://user:s3cret@127.0.0.1:3128 nspawnd-run --pull=always " + behind + " echo proxied", 0, "proxied\n", ""},
			outcome{proxied + "NO_PROXY=behind.test " + pull + behind, 1, "", "/lookup behind.test/"},
			outcome{proxied + "NO_PROXY=.test,10.0.0.0/8 " + pull + behind, 1, "", "/lookup behind.test/"},
			// A registry without TLS, by the other variable.
			outcome{proxied + pull + "--insecure-options=image plain.test:5003/demo/tiny", 1, "", "/lookup plain.test/"},
			outcome{"HTTP_PROXY=http://user:s3cret@127.0.0.1:3128 " + pull + "--insecure-options=image plain.test:5003/demo/tiny", 0, "/^plain.test:5003/", "/WARNING/"},
			// ACIs.
			outcome{proxied + "machinectl-lite pull-aci --quiet --insecure-options=image https://app.test/x.aci", 0, "/^app.test/", "/WARNING/"},
			outcome{"machinectl-lite pull-aci --quiet --insecure-options=image https://app.test/x.aci", 1, "", "/^machinectl-lite: image https:\\/\\/app.test\\/x.aci: .*lookup app.test.*\n$/"},
			// The password is wrong, or the proxy is not there: nobody sees what it is.
			outcome{"HTTPS_PROXY=http://user:wr0ng@127.0.0.1:3128 " + pull + behind + " 2>&1 | tee /tmp/said; grep -c wr0ng /tmp/said", 1, "/Proxy Authentication Required.*\n0\n$/", ""},
			outcome{"HTTPS_PROXY=http://user:wr0ng@127.0.0.1:3128 machinectl-lite pull-aci --insecure-options=image https://app.test/x.aci 2>&1 | tee /tmp/said; grep -c wr0ng /tmp/said", 1, "/Proxy Authentication Required.*\n0\n$/", ""},
			outcome{"HTTPS_PROXY=http://user:wr0ng@127.0.0.1:1 " + pull + behind + " 2>&1 | tee /tmp/said; grep -c wr0ng /tmp/said", 1, "/proxyconnect.*connection refused\n0\n$/", ""},
			outcome{"HTTPS_PROXY=socks5://user:wr0ng@127.0.0.1:1 " + pull + behind + " 2>&1 | tee /tmp/said; grep -c wr0ng /tmp/said", 1, "/connection refused\n0\n$/", ""},
		)
	})
}

// TestRegistryCertificates is registries with certificates of their own that want one of the client's, or a password, as mirrors too.
func TestRegistryCertificates(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		clients, certificate, key, err := makeCertificates("a client")
		if err != nil {
			t.Fatal(err)
		}
		_, otherCertificate, otherKey, err := makeCertificates("another")
		if err != nil {
			t.Fatal(err)
		}
		m.WriteFile("/etc/lab/clients.pem", clients, 0o644)
		m.WriteFile("/etc/lab/client.cert", certificate, 0o644)
		m.WriteFile("/etc/lab/client.key", key, 0o600)
		m.WriteFile("/etc/lab/other/client.cert", otherCertificate, 0o644)
		m.WriteFile("/etc/lab/other/client.key", otherKey, 0o600)
		ca := m.registryAt("private.test", "5002", "    clientcas: [/etc/lab/clients.pem]\n")
		m.WriteFile("/etc/lab/private.crt", ca, 0o644)
		m.WriteFile("/etc/lab/other/ca.crt", ca, 0o644)
		// The password is s3cret.
		m.WriteFile("/etc/lab/htpasswd", []byte("user:$2a$04$dp9EMF.c2OaPVVBFgSGKseqQIoYKZ5bphD9YknSmjSCJa42Q3szc.\n"), 0o644)
		m.WriteFile("/etc/containers/certs.d/mirror.test:5003/ca.crt", m.registryAt("mirror.test", "5003", "auth: {htpasswd: {realm: lab, path: /etc/lab/htpasswd}}\n"), 0o644)
		m.must(`echo 127.0.0.1 private.test mirror.test plain.test >> /etc/hosts
			echo '{version: 0.1, storage: {filesystem: {rootdirectory: /var/tmp/registry}}, http: {addr: "127.0.0.1:5004"}}' > /etc/lab/plain.yml
			systemd-run --quiet --unit=lab-plain --property=Type=exec --setenv=OTEL_TRACES_EXPORTER=none docker-registry serve /etc/lab/plain.yml`)
		m.Eventually("the registry answers", func() bool {
			return m.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5004").Status == 0
		})
		const (
			pull    = "machinectl-lite pull-oci --quiet --insecure-options=image "
			private = "private.test:5002/demo/tiny"
			certs   = "/etc/containers/certs.d/private.test:5002"
			mirror  = `printf '[[registry]]\nlocation = "upstream.invalid"\n[[registry.mirror]]\nlocation = "mirror.test:5003"\n' > /etc/containers/registries.conf.d/lab.conf; `
		)
		m.expect(t,
			outcome{pull + private, 1, "", "/^machinectl-lite: image " + private + ":latest: registry not reachable: .*unknown authority.*\n  .*" + certs + "\\/ca.crt\n$/"},
			outcome{"mkdir -p " + certs + "; cp /etc/lab/private.crt " + certs + "/ca.crt; " + pull + private, 1, "",
				"/: registry not reachable: .*certificate required\n  if it wants a certificate of yours: .*" + certs + "\\/client.cert .*client.key\n$/"},
			outcome{"cp /etc/lab/client.cert " + certs + "; " + pull + private, 1, "", "/missing key client.key for client certificate client.cert/"},
			outcome{"cp /etc/lab/client.key " + certs + "; " + pull + private, 0, "/^" + private + ":latest@/", "/WARNING/"},
			outcome{"nspawnd-run " + private + " echo runs", 0, "runs\n", ""},
			outcome{pull + "--cert-dir=/etc/lab/other " + private, 1, "", "/registry not reachable: .*tls: .*\n  if it wants a certificate of yours: /"},
			outcome{"rm " + certs + "/client.*; " + pull + "--cert-dir=/etc/lab/other " + private + "; cp /etc/lab/private.crt /etc/lab/ca.crt; " + pull + "--cert-dir=/etc/lab " + private, 0, "/^" + private + "/", "/tls: /"},
			outcome{"nspawnd-run --pull=always --insecure-options=image --cert-dir=/etc/lab " + private + " echo runs", 0, "runs\n", "/WARNING/"},

			// A mirror that wants a password: its own, whatever the name is that was asked for.
			outcome{mirror + pull + "upstream.invalid/demo/tiny", 1, "", "/^machinectl-lite: image upstream.invalid\\/demo\\/tiny:latest: .*\n/"},
			outcome{"echo '{\"auths\": {\"mirror.test:5003\": {\"auth\": \"'$(printf user:s3cret | base64)'\"}}}' > /tmp/auth.json; " + pull + "--authfile=/tmp/auth.json upstream.invalid/demo/tiny", 0, "/^upstream.invalid\\/demo\\/tiny:latest@/", "/WARNING/"},
			outcome{"nspawnd-run --pull=always --insecure-options=image --authfile=/tmp/auth.json upstream.invalid/demo/tiny echo runs", 0, "runs\n", "/WARNING/"},
			outcome{"echo '{\"auths\": {\"upstream.invalid\": {\"auth\": \"'$(printf user:s3cret | base64)'\"}}}' > /tmp/auth.json; " + pull + "--authfile=/tmp/auth.json upstream.invalid/demo/redis", 1, "", "/^machinectl-lite: image upstream.invalid\\/demo\\/redis:latest: .*\n/"},

			// Without TLS, only if that is said.
			outcome{pull + "plain.test:5004/demo/tiny", 1, "", "/: registry not reachable: it does not speak TLS\n  if that is meant to be: .*insecure/"},
			outcome{`printf '[[registry]]\nlocation = "plain.test:5004"\ninsecure = true\n' > /etc/containers/registries.conf.d/lab.conf; ` + pull + "plain.test:5004/demo/tiny", 0, "/^plain.test/", "/WARNING/"},
			// A certificate that nobody vouches for, too.
			outcome{"rm -r /etc/containers/certs.d/mirror.test:5003; cp /tmp/auth.json /tmp/mirror.json; sed -i s/upstream.invalid/mirror.test:5003/ /tmp/mirror.json; " + pull + "--authfile=/tmp/mirror.json mirror.test:5003/demo/tiny", 1, "", "/unknown authority/"},
			outcome{`printf '[[registry]]\nlocation = "mirror.test:5003"\ninsecure = true\n' > /etc/containers/registries.conf.d/lab.conf; ` + pull + "--authfile=/tmp/mirror.json mirror.test:5003/demo/tiny", 0, "/^mirror.test/", "/WARNING/"},
			outcome{"ls /var/lib/nspawnd/tmp", 0, "", ""},
		)
	})
}
