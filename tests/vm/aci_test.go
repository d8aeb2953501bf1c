package vm

import (
	"strings"
	"testing"
)

// TestPullACI is rkt's own images, from a publisher's site with discovery tags and from files.
func TestPullACI(t *testing.T) {
	server := buildCommand(t, "./webserver")
	Suites(t, func(t *testing.T, m *Machine) {
		authority, certificate, key, err := makeCertificates("app.test")
		if err != nil {
			t.Fatal(err)
		}
		m.WriteFile("/etc/lab/web/authority.pem", authority, 0o644)
		m.WriteFile("/etc/lab/web/certificate.pem", certificate, 0o644)
		m.WriteFile("/etc/lab/web/key.pem", key, 0o600)
		m.Copy(server, "/usr/local/bin/webserver")
		m.must(`
			cat /etc/lab/web/authority.pem >> /etc/ssl/certs/ca-certificates.crt
			echo 127.0.0.1 app.test >> /etc/hosts
			mkdir -p /srv/web /var/tmp/aci
			cd /var/tmp/aci
			umoci unpack --image ` + m.Images() + `:tiny tiny
			for who in publisher stranger; do
				gpg --quiet --batch --passphrase "" --quick-generate-key "$who@app.test" rsa2048 sign never
				gpg --quiet --batch --armor --export $who@app.test > $who.asc
			done
			labels='"labels": [{"name": "version", "value": "1.0"}, {"name": "os", "value": "linux"}, {"name": "arch", "value": "amd64"}]'
			pack() { # FILE SIGNER MANIFEST ROOTFS [PROGRAM THAT COMPRESSES]
				mkdir pack; cp -a $4 pack/rootfs
				echo "{\"acKind\": \"ImageManifest\", \"acVersion\": \"0.8.11\", $3}" > pack/manifest
				tar -C pack -c manifest rootfs | ${5:-cat} > $1
				[ $2 = nobody ] || gpg --quiet --batch --yes --local-user $2@app.test --armor --output $1.asc --detach-sign $1
				rm -r pack
			}
			app() { echo "\"app\": {\"exec\": [\"/bin/tiny\"], \"user\": \"1234\", \"group\": \"5678\", \"workingDirectory\": \"/bin\",
				\"environment\": [{\"name\": \"GREETING\", \"value\": \"hello from rkt\"}], \"eventHandlers\": [{\"name\": \"pre-start\", \"exec\": [\"/x\"]}]}"; }
			web=/srv/web/
			pack ${web}tiny-1.0-linux-amd64.aci publisher "\"name\": \"app.test/tiny\", $labels, $(app)" tiny/rootfs gzip
			pack ${web}strange-1.0-linux-amd64.aci stranger "\"name\": \"app.test/strange\", $labels" tiny/rootfs
			pack ${web}other-1.0-linux-amd64.aci publisher "\"name\": \"app.test/tiny\", $labels" tiny/rootfs
			mkdir -p files/etc && echo from above > files/etc/file
			pack ${web}above-1.0-linux-amd64.aci publisher "\"name\": \"app.test/above\", $labels, $(app), \"dependencies\": [{\"imageName\": \"app.test/tiny\", \"labels\": [{\"name\": \"version\", \"value\": \"1.0\"}]}]" files xz
			pack ${web}loop-latest-linux-amd64.aci publisher "\"name\": \"app.test/loop\", \"dependencies\": [{\"imageName\": \"app.test/loop\"}]" files
			pack unsigned.aci nobody "\"name\": \"app.test/unsigned\", $(app)" tiny/rootfs
			pack evil.aci publisher "\"name\": \"app.test/tiny\"" tiny/rootfs
			echo x >> evil.aci
			echo '<html><head><meta name="ac-discovery" content="app.test http://app.test/no"><meta name="ac-discovery" content="app.test https://app.test/plain.aci?{nothing}">
				<meta name="ac-discovery" content="app.test https://{name}-{version}-{os}-{arch}.{ext}"><meta name="ac-discovery-pubkeys" content="app.test https://app.test/keys.asc">' > ${web}index.html
			systemd-run --quiet --unit=lab-web --property=Type=exec webserver site /srv/web /etc/lab/web/certificate.pem /etc/lab/web/key.pem
		`)
		m.Eventually("the site answers", func() bool {
			return m.Run("curl", "--silent", "--fail", "https://app.test/").Status == 0
		})
		id := "sha512-" + strings.Fields(m.must("sha512sum /var/tmp/aci/unsigned.aci"))[0]
		const (
			pull  = "cd /var/tmp/aci; machinectl-lite pull-aci --quiet "
			trust = "cd /var/tmp/aci; machinectl-lite trust add --yes --prefix "
		)
		m.expect(t,
			// Refused, with three ways out; nothing is kept.
			outcome{pull + "app.test/tiny:1.0", 1, "", "/^machinectl-lite: image app.test/tiny,version=1.0: not trusted: its signature is by no trusted key\n" +
				"  trust who signs it: .*--prefix app.test/tiny KEYFILE .*https://app.test/keys.asc.*\n  pin .*--image-id=.*\n  take it .*--insecure-options=image\n$/"},
			outcome{pull + "aci:unsigned.aci", 1, "", "/not trusted: it has no signature/"},
			outcome{"ls /var/lib/nspawnd/layers /var/lib/nspawnd/tmp | grep -v :", 0, "\n", ""},
			// A key for another name.
			outcome{trust + "app.test/other publisher.asc", 0, "//", "//"},
			outcome{pull + "app.test/tiny:1.0", 1, "", "/not trusted: no policy covers its name/"},
			outcome{pull + "aci:evil.aci", 1, "", "/not trusted: its signature is by no trusted key/"},
			outcome{trust + "app.test/tiny publisher.asc", 0, "//", "//"},
			outcome{pull + "app.test/tiny:1.0", 0, "/^app.test/tiny:1.0@sha256:[0-9a-f]{64}\n$/", "machinectl-lite: image app.test/tiny:1.0: left out, since it has no meaning here: app.eventHandlers pre-start\n"},
			outcome{"nspawnd-run --pull=never app.test/tiny:1.0 env | grep GREETING; nspawnd-run app.test/tiny:1.0 id", 0, "GREETING=hello from rkt\nuid=1234 gid=5678 groups=5678\n", ""},
			outcome{"machinectl-lite show-image -P TrustKind,TrustRule,ACI app.test/tiny:1.0", 0, "/^signedBy\n.*: app.test/tiny\nsha512-[0-9a-f]{128}\n$|^sha512-.*\nsignedBy\n.*: app.test/tiny\n$/", ""},
			outcome{pull + "https://app.test/tiny-1.0-linux-amd64.aci", 0, "/^app.test/tiny:1.0@/", "/left out/"},
			outcome{pull + "aci:evil.aci", 1, "", "/not trusted: its signature is by no trusted key/"},
			// The wrong key; another image than was asked for.
			outcome{trust + "app.test/strange publisher.asc", 0, "//", "//"},
			outcome{pull + "app.test/strange:1.0", 1, "", "/not trusted: its signature is by no trusted key/"},
			outcome{pull + "app.test/other:1.0", 1, "", "/is called \"app.test/tiny\"\n/"},
			outcome{pull + "app.test/tiny:1.0,channel=beta", 1, "", "/its label channel is \"\", not \"beta\"\n/"},
			outcome{pull + "app.test/tiny:2.0", 1, "", "/tiny-2.0-linux-amd64.aci: .*404/"},
			// Dependencies.
			outcome{trust + "app.test publisher.asc", 0, "//", "//"},
			outcome{pull + "app.test/above:1.0", 0, "//", "/left out/"},
			outcome{"nspawnd-run app.test/above:1.0 cat /etc/file", 0, "from above\n", ""},
			outcome{pull + "app.test/loop", 1, "", "/app.test/loop depends on itself\n/"},
			// The record is held against the rules that hold now.
			outcome{"machinectl-lite verify-image app.test/tiny:1.0 && machinectl-lite trust remove app.test/tiny", 0, "//", "//"},
			outcome{"nspawnd-run --pull=never app.test/tiny:1.0 echo by app.test", 0, "by app.test\n", ""},
			outcome{"machinectl-lite trust remove app.test && nspawnd-run --pull=never app.test/tiny:1.0 true", 125, "//", "/not trusted: the rules for it have changed\n  verify .*pull-aci app.test/tiny:1.0\n/"},
			// No proof but the ID, or none at all. A rule is not got round by an ID.
			outcome{pull + "--image-id=" + id[:100] + " aci:unsigned.aci", 1, "", "/not sha512- and 128/"},
			outcome{pull + "--image-id=sha512-" + strings.Repeat("0", 128) + " aci:unsigned.aci", 1, "", "/has ID sha512-[0-9a-f]*, not sha512-0/"},
			outcome{pull + "--image-id=" + id + " ./unsigned.aci && machinectl-lite show-image -P TrustKind app.test/unsigned", 0, "/digest-pin\n$/", "/left out/"},
			outcome{pull + "--insecure-options=image ./unsigned.aci && nspawnd-run app.test/unsigned echo ran", 0, "/\nran\n$/", "/WARNING/"},
			outcome{trust + "app.test/unsigned stranger.asc; " + pull + "--image-id=" + id + " ./unsigned.aci", 1, "//", "/not trusted: it has no signature .rule /"},
			// TLS only.
			outcome{pull + "http://app.test/x.aci", 1, "", "machinectl-lite: \"http://app.test/x.aci\": not a https:// address\n"},
			outcome{pull + "https://app.test/plain.aci", 1, "", "/app.test redirects from TLS to plain text\n/"},
			outcome{pull + "app.test/us~er", 1, "", "/can't be an image's name here/"},
			outcome{"ls /var/lib/nspawnd/tmp", 0, "", ""},
		)
	})
}
