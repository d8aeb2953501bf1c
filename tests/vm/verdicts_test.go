package vm

import (
	"fmt"
	"strings"
	"testing"
)

// TestVerdicts holds every kind of signature against every way in which it can be wrong, wherever an image may come from. In each cell is our
// verdict and then, behind a slash, that of skopeo with a policy.json that demands the same: + accepted, - refused.
//
// What differs from skopeo: it does not look for the bundles of cosign 3. What is accepted though it may surprise: sigstore says for which repository a
// signature is, cosign's bundles not even that, so these can be shown for another tag or under another name. Layouts of OCI have no
// signatures, for skopeo too.
//
// "expired" is a key that is no longer good or, of keyless ones, a certificate that no longer was when the log saw the signature; "wrong-key" a
// key, or a root of trust, that is not the rule's.
func TestVerdicts(t *testing.T) {
	const where = "registry dir oci oci-archive"
	kinds := []string{"gpg", "sigstore", "cosign", "keyless", "keyless-bundle"}
	const (
		never  = "-/- -/- -/- -/-" // accepted
		files  = "+/+ +/+ -/- -/-" // wherever there are signatures
		neverB = "-/  -/  -/  -/ "
		bundle = "+/  -/  -/  -/ "
	)
	verdicts := []struct {
		row  string
		want [5]string
	}{
		// prepare            GPG    sigstore cosign 3, a key  keyless, cosign 2 and 3
		{"unsigned", [5]string{never, never, neverB, never, neverB}},
		{"right", [5]string{files, files, bundle, files, bundle}},
		{"wrong-key", [5]string{never, never, neverB, never, neverB}},
		{"wrong-identity", [5]string{"", "", "", never, neverB}},
		{"wrong-issuer", [5]string{"", "", "", never, neverB}},
		{"expired", [5]string{never, "", "", never, neverB}},
		{"revoked", [5]string{never, "", "", "", ""}},
		{"subkey", [5]string{files, "", "", "", ""}},
		{"expired-subkey", [5]string{never, "", "", "", ""}},
		{"revoked-subkey", [5]string{never, "", "", "", ""}},
		{"other-name", [5]string{never, never, bundle, never, bundle}},
		{"other-digest", [5]string{never, never, neverB, never, neverB}},
		{"tampered-manifest", [5]string{never, never, neverB, never, neverB}},
		{"tampered-config", [5]string{never, never, neverB, never, neverB}},
		{"tampered-layer", [5]string{never, never, neverB, never, neverB}},
		{"old-for-other-tag", [5]string{never, files, bundle, files, bundle}},
	}
	signer := buildCommand(t, "./signer")
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		m.SignGPG(RegistryAddress + "/demo/tiny:1")
		m.SignSigstore(RegistryAddress + "/demo/tiny:1")
		m.SignCosign(RegistryAddress + "/demo/tiny:1")
		m.Copy(signer, "/usr/local/bin/signer")
		m.WriteFile("/m/prepare", []byte(prepareVerdicts), 0o755)
		m.WriteFile("/m/judge", []byte(judgeVerdicts), 0o755)
		got := m.must("/m/prepare " + RegistryAddress + " " + m.Images() + " || { tail -n 20 /m/log /m/*/log >&2; exit 1; }; /m/judge " + RegistryAddress)
		cells := map[string]string{}
		for line := range strings.Lines(got) {
			name, verdict, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			cells[name] = verdict
		}
		defer func() {
			if t.Failed() {
				t.Log(m.must("cat /m/*/said"))
			}
		}()
		t.Logf("%-18s %-18s %-18s %-18s %-18s %s (%s)", "ours/skopeo's", kinds[0], kinds[1], kinds[2], kinds[3], kinds[4], where)
		for _, v := range verdicts {
			line := fmt.Sprintf("%-18s", v.row)
			for i, kind := range kinds {
				verdict, want := cells[kind+"/"+v.row], v.want[i]
				if kind == "cosign" && m.Suite == Trixie { // its cosign 2 makes attachments, which go into dir: and which skopeo knows
					want = strings.NewReplacer("/+", "/ ", "/-", "/ ").Replace(v.want[1])
				}
				if v.row == "subkey" && m.Suite == Trixie { // its skopeo (1.18) takes the signing key for the whole key
					want = strings.ReplaceAll(want, "/+", "/-")
				}
				line += fmt.Sprintf(" %-18s", verdict)
				if verdict != want {
					t.Errorf("%s, %s: got %q, want %q", v.row, kind, verdict, want)
				}
				delete(cells, kind+"/"+v.row)
			}
			t.Log(line)
		}
		if len(cells) > 0 {
			t.Errorf("more cells than are wanted: %q", cells)
		}
		// What the signer makes is what cosign takes for its own.
		m.expect(t, outcome{"/m/ask-cosign " + RegistryAddress, 0, "//", "//"})
	})
}

// prepareVerdicts makes the images: on the registry as matrix/KIND/ROW:1, and in files /m/KIND/TRANSPORT/ROW.
const prepareVerdicts = `#!/bin/bash
set -eux
registry=$1 layout=$2
cd /m
exec > log 2>&1
: > passphrase
export COSIGN_PASSWORD=
mkdir bad gpg gpg/keys
skopeo generate-sigstore-key --output-prefix bad/sigstore --passphrase-file passphrase
(cd bad; cosign generate-key-pair)
cosign_options=--tlog-upload=false
[ -e /var/lib/lab/signing-config.json ] && cosign_options=--signing-config=/var/lib/lab/signing-config.json

# Keys that only one row has.
key() { # ROW USAGE EXPIRY [OPTION...]
	gpg --quiet --batch --passphrase '' "${@:4}" --quick-generate-key "$1 <$1@registry.test>" rsa2048 $2 $3
}
subkey() { # ROW EXPIRY [OPTION...]
	key $1 cert never "${@:3}"
	gpg --quiet --batch --passphrase '' "${@:3}" --quick-add-key $(fingerprint $1) rsa2048 sign $2
}
fingerprint() { gpg --batch --with-colons --list-keys "<$1@registry.test>" | awk -F: '$1 == "fpr" { print $10; exit }'; }
key bad sign never
key expired sign 1d --faked-system-time 20250101T000000
key revoked sign never
subkey subkey never
subkey expired-subkey 1d --faked-system-time 20250101T000000
subkey revoked-subkey never
gpg_sign() { # ROW DIGEST REFERENCE [OPTION...]
	to=/var/lib/lab/lookaside/matrix/gpg/$1@sha256=${2#sha256:}
	mkdir -p $to
	printf '{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":"%s"},"identity":{"docker-reference":"%s"}},"optional":{}}' $2 $3 |
		gpg --quiet --batch "${@:4}" --local-user "<$1@registry.test>" --sign > $to/signature-1
}

sign() { # KIND good|bad REFERENCE
	case $1-$2 in
	gpg-good) skopeo --insecure-policy copy --quiet --sign-by lab@registry.test docker://$3 docker://$3;;
	gpg-bad) skopeo --insecure-policy copy --quiet --sign-by bad@registry.test docker://$3 docker://$3;;
	sigstore-*)
		key=/var/lib/lab/sigstore.private; [ $2 = good ] || key=/m/bad/sigstore.private
		skopeo --insecure-policy copy --quiet --sign-by-sigstore-private-key $key --sign-passphrase-file /m/passphrase docker://$3 docker://$3;;
	cosign-*)
		key=/var/lib/lab/cosign.key; [ $2 = good ] || key=/m/bad/cosign.key
		cosign sign --yes $cosign_options --key $key ${3%:*}@$(digest $3);;
	keyless*)
		how=$2; [ $how = good ] && how=right; [ $how = bad ] && how=wrong-root
		form=attachment; [ $1 = keyless-bundle ] && form=bundle
		echo $form $how ${3%:*} $(digest $3) >&${signer[1]}
		read -r answer <&${signer[0]}
		[ "$answer" = ok ];;
	esac
}
digest() { skopeo inspect --raw docker://$1 | sha256sum | sed 's/^/sha256:/; s/ .*//'; }
image() { # ROW REFERENCE: an image that no other row has
	echo $2 > content
	umoci insert --image base:tiny --tag row content /row
	skopeo --insecure-policy copy --quiet oci:base:row docker://$2
}
# The signatures for one digest in one repository are made those for another: in the lookaside directory, beside the image and as referrers.
move() { # KIND FROM-REPOSITORY DIGEST TO-REPOSITORY DIGEST
	case $1 in
	gpg)
		mkdir -p /var/lib/lab/lookaside/$4
		cp -r /var/lib/lab/lookaside/$2@sha256=${3#sha256:} /var/lib/lab/lookaside/$4@sha256=${5#sha256:};;
	*)
		for suffix in .sig ''; do
			skopeo inspect --raw docker://$registry/$2:sha256-${3#sha256:}$suffix > /dev/null || continue
			skopeo --insecure-policy copy --quiet --all --preserve-digests docker://$registry/$2:sha256-${3#sha256:}$suffix docker://$registry/$4:sha256-${5#sha256:}$suffix || move_index $2 $3 $4 $5
		done;;
	esac
}
move_index() { # what skopeo does not take for an image: the index, the manifests in it and their blobs
	url=https://$registry/v2
	from=$(curl -sSf -H 'Accept: application/vnd.oci.image.index.v1+json' $url/$1/manifests/sha256-${2#sha256:})
	for manifest in $(jq -r '.manifests[].digest' <<< "$from"); do
		curl -sSf -H 'Accept: application/vnd.oci.image.manifest.v1+json' $url/$1/manifests/$manifest > moved
		for blob in $(jq -r '.config.digest, .layers[].digest' moved); do
			curl -sSf -X POST -o /dev/null "$url/$3/blobs/uploads/?mount=$blob&from=$1"
		done
		curl -sSf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @moved $url/$3/manifests/$manifest
	done
	curl -sSf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary "$from" $url/$3/manifests/sha256-${4#sha256:}
}
blob() { echo /var/tmp/registry/docker/registry/v2/blobs/sha256/${1:7:2}/${1#sha256:}/data; }
spoil() { printf X | dd of=$1 bs=1 seek=20 conv=notrunc status=none; }

rows() { # KIND
	echo unsigned right wrong-key other-name other-digest tampered-manifest tampered-config tampered-layer old-for-other-tag
	case $1 in
	gpg) echo expired revoked subkey expired-subkey revoked-subkey;;
	keyless*) echo wrong-identity wrong-issuer expired;;
	esac
}
prepare() { # KIND
	kind=$1
	cd /m/$kind
	mkdir dir oci oci-archive
	skopeo --insecure-policy copy --quiet oci:$layout:tiny oci:base:tiny
	case $kind in keyless*)
		coproc signer { signer /m/$kind; }
		read -r answer <&${signer[0]};;
	esac
	for row in $(rows $kind); do
		repo=matrix/$kind/$row
		name=$registry/$repo:1
		image $row $name
		d=$(digest $name)
		case $kind/$row in
		*/unsigned) ;;
		*/wrong-key) sign $kind bad $name;;
		gpg/expired*) gpg_sign $row $d $name --faked-system-time 20250101T010000;;
		gpg/revoked* | gpg/subkey) gpg_sign $row $d $name;;
		keyless*/wrong-* | keyless*/expired) sign $kind $row $name;;
		*/other-name)
			skopeo --insecure-policy copy --quiet docker://$name docker://$registry/$repo-other:1
			sign $kind good $registry/$repo-other:1
			move $kind $repo-other $d $repo $d;;
		*/other-digest)
			image $row $registry/$repo:other
			echo another > content
			umoci insert --image base:row --tag another content /another
			skopeo --insecure-policy copy --quiet oci:base:another docker://$registry/$repo:other
			o=$(digest $registry/$repo:other)
			if [ $kind = gpg ]; then
				# For the same name, so that the digest alone is wrong.
				skopeo --insecure-policy copy --quiet --sign-by lab@registry.test --sign-identity $name docker://$registry/$repo:other docker://$registry/$repo:other
			else
				sign $kind good $registry/$repo:other
			fi
			move $kind $repo $o $repo $d;;
		*/old-for-other-tag)
			skopeo --insecure-policy copy --quiet docker://$name docker://$registry/$repo:old
			sign $kind good $registry/$repo:old;;
		*) sign $kind good $name;;
		esac
		skopeo --insecure-policy copy --quiet docker://$name dir:dir/$row
		skopeo --insecure-policy copy --quiet --remove-signatures docker://$name oci:oci/$row:1
		skopeo --insecure-policy copy --quiet --remove-signatures docker://$name oci-archive:oci-archive/$row.tar:1
		config=$(jq -r .config.digest dir/$row/manifest.json) layer=$(jq -r '.layers[-1].digest' dir/$row/manifest.json)
		case $row in
		tampered-manifest)
			echo >> dir/$row/manifest.json
			echo >> $(blob $d);;
		tampered-config) spoil dir/$row/${config#sha256:}; spoil $(blob $config);;
		tampered-layer) spoil dir/$row/${layer#sha256:}; spoil $(blob $layer);;
		esac
	done
}
pids=
for kind in gpg sigstore cosign keyless keyless-bundle; do
	mkdir -p $kind
	prepare $kind > $kind/log 2>&1 &
	pids="$pids $!"
done
for pid in $pids; do wait $pid; done

# What becomes of keys that have signed.
sed 's/^:---/---/' ~/.gnupg/openpgp-revocs.d/$(fingerprint revoked).rev | gpg --quiet --batch --import
printf '%s\n' 'key 1' revkey y 0 '' y save | gpg --quiet --no-tty --command-fd 0 --edit-key "<revoked-subkey@registry.test>"
for row in expired revoked subkey expired-subkey revoked-subkey; do
	gpg --quiet --batch --armor --export "<$row@registry.test>" > gpg/keys/$row.asc
done

# The same rules for both.
rule() { machinectl-lite trust add --yes --prefix $registry/matrix/$1 "${@:2}"; }
rule gpg /var/lib/lab/gpg.asc
for file in gpg/keys/*; do
	row=${file##*/}
	rule gpg/${row%.asc} $file
done
rule sigstore /var/lib/lab/sigstore.pub
rule cosign /var/lib/lab/cosign.pub
for kind in keyless keyless-bundle; do
	rule $kind --issuer https://accounts.example --identity ci@team.example --root-of-trust /m/$kind/trusted_root.json
done
requirement() { # KIND/ROW IDENTITY
	key=/m/gpg/keys/${1#*/}.asc; [ -e $key ] || key=/var/lib/lab/gpg.asc
	case $1 in
	gpg/*) echo "{\"type\": \"signedBy\", \"keyType\": \"GPGKeys\", \"keyPath\": \"$key\", \"signedIdentity\": $2}";;
	sigstore/*) echo "{\"type\": \"sigstoreSigned\", \"keyPath\": \"/var/lib/lab/sigstore.pub\", \"signedIdentity\": $2}";;
	keyless/*) echo "{\"type\": \"sigstoreSigned\", \"fulcio\": {\"caPath\": \"/m/keyless/authority.pem\", \"oidcIssuer\": \"https://accounts.example\",
		\"subjectEmail\": \"ci@team.example\"}, \"rekorPublicKeyPath\": \"/m/keyless/log.pem\", \"signedIdentity\": $2}";;
	esac
}
{
	echo '{"default": [{"type": "reject"}], "transports": {'
	for transport in docker dir oci; do
		[ $transport = docker ] || echo ,
		echo "\"$transport\": {\"\": [{\"type\": \"reject\"}]"
		for kind in gpg sigstore keyless; do
			for row in $(rows $kind); do
				name=$registry/matrix/$kind/$row
				case $transport-$kind in
				docker-gpg) echo ", \"$name\": [$(requirement $kind/$row '{"type": "matchRepoDigestOrExact"}')]";;
				docker-*) echo ", \"$name\": [$(requirement $kind/$row '{"type": "matchRepository"}')]";;
				*-gpg) echo ", \"/m/$kind/$transport/$row\": [$(requirement $kind/$row "{\"type\": \"exactReference\", \"dockerReference\": \"$name:1\"}")]";;
				*) echo ", \"/m/$kind/$transport/$row\": [$(requirement $kind/$row "{\"type\": \"exactRepository\", \"dockerRepository\": \"$name\"}")]";;
				esac
			done
		done
		echo '}'
	done
	echo '}}'
} > policy.json
cat > ask-cosign <<'EOF'
#!/bin/bash
set -eux
identity="--certificate-identity ci@team.example --certificate-oidc-issuer https://accounts.example --insecure-ignore-sct"
cd /m/keyless
version=2
cosign sign --help | grep -q -e --signing-config && version=3
old=; [ $version = 3 ] && old=--new-bundle-format=false
SIGSTORE_ROOT_FILE=authority.pem SIGSTORE_REKOR_PUBLIC_KEY=log.pem cosign verify $identity --offline $old $1/matrix/keyless/right:1
cd /m/keyless-bundle
[ $version = 2 ] || cosign verify $identity --trusted-root trusted_root.json $1/matrix/keyless-bundle/right:1
EOF
chmod +x ask-cosign
`

// judgeVerdicts prints a line for each kind and row: its name, and the verdicts for each place.
const judgeVerdicts = `#!/bin/bash
registry=$1
judge() { # KIND
	cd /m/$1
	verdict() { "$@" > /dev/null 2>> said && printf + || printf -- -; }
	for row in $(ls dir); do
		name=$registry/matrix/$1/$row:1
		line=
		for source in docker://$name dir:/m/$1/dir/$row oci:/m/$1/oci/$row:1 oci-archive:/m/$1/oci-archive/$row.tar:1; do
			rm -rf /var/lib/nspawnd/verdicts-$1 copy
			case $source in
			docker:*) ours=$(verdict machinectl-lite --root /var/lib/nspawnd/verdicts-$1 pull-oci $name);;
			*) ours=$(verdict machinectl-lite --root /var/lib/nspawnd/verdicts-$1 import-oci $source $name);;
			esac
			case $1 in
			cosign | keyless-bundle) theirs=' ';;
			*) theirs=$(verdict skopeo --policy /m/policy.json copy --quiet $source dir:/m/$1/copy);;
			esac
			line="$line $ours/$theirs"
		done
		echo "$1/$row$line"
	done
}
for kind in gpg sigstore cosign keyless keyless-bundle; do
	judge $kind > /m/$kind/verdicts &
done
wait
cat /m/*/verdicts
`
