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
func TestVerdicts(t *testing.T) {
	const where = "registry dir oci oci-archive"
	kinds := []string{"gpg", "sigstore", "cosign"}
	verdicts := map[string][3]string{
		// prepare                       GPG                 sigstore            cosign 3, a key
		"unsigned":          {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"right":             {"+/+ +/+ -/- -/-", "+/+ +/+ -/- -/-", "+/  -/  -/  -/ "},
		"wrong-key":         {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"expired-key":       {"-/- -/- -/- -/-", "", ""},
		"other-name":        {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "+/  -/  -/  -/ "},
		"other-digest":      {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"tampered-manifest": {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"tampered-config":   {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"tampered-layer":    {"-/- -/- -/- -/-", "-/- -/- -/- -/-", "-/  -/  -/  -/ "},
		"old-for-other-tag": {"-/- -/- -/- -/-", "+/+ +/+ -/- -/-", "+/  -/  -/  -/ "},
	}
	rows := []string{"unsigned", "right", "wrong-key", "expired-key", "other-name", "other-digest", "tampered-manifest", "tampered-config", "tampered-layer", "old-for-other-tag"}
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		m.SignGPG(RegistryAddress + "/demo/tiny:1")
		m.SignSigstore(RegistryAddress + "/demo/tiny:1")
		m.SignCosign(RegistryAddress + "/demo/tiny:1")
		m.WriteFile("/m/prepare", []byte(prepareVerdicts), 0o755)
		m.WriteFile("/m/judge", []byte(judgeVerdicts), 0o755)
		got := m.must("/m/prepare " + RegistryAddress + " " + m.Images() + " >&2 2> /m/log || { tail -n 20 /m/log >&2; exit 1; }; /m/judge " + RegistryAddress)
		cells := map[string]string{}
		for line := range strings.Lines(got) {
			name, verdict, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			cells[name] = verdict
		}
		defer func() {
			if t.Failed() {
				t.Log(m.must("cat /m/said"))
			}
		}()
		t.Logf("%-18s %-18s %-18s %s (%s)", "ours/skopeo's", kinds[0], kinds[1], kinds[2], where)
		for _, row := range rows {
			line := fmt.Sprintf("%-18s", row)
			for i, kind := range kinds {
				verdict, want := cells[kind+"/"+row], verdicts[row][i]
				if kind == "cosign" && m.Suite == Trixie { // its cosign 2 makes attachments, which go into dir: and which skopeo knows
					want = strings.ReplaceAll(verdicts[row][1], "/+", "/ ")
					want = strings.ReplaceAll(want, "/-", "/ ")
				}
				line += fmt.Sprintf(" %-18s", verdict)
				if verdict != want {
					t.Errorf("%s, %s: got %q, want %q", row, kind, verdict, want)
				}
			}
			t.Log(line)
		}
	})
}

// prepareVerdicts makes the images: on the registry as matrix/KIND/ROW:1, and in files /m/TRANSPORT/KIND/ROW.
const prepareVerdicts = `#!/bin/bash
set -eux
registry=$1 layout=$2
cd /m
mkdir dir oci-archive bad
skopeo --insecure-policy copy --quiet oci:$layout:tiny oci:/m/base:tiny
: > passphrase
export COSIGN_PASSWORD=
gpg --quiet --batch --passphrase '' --quick-generate-key 'Bad <bad@registry.test>' rsa2048 sign never
gpg --quiet --batch --passphrase '' --faked-system-time 20250101T000000 --quick-generate-key 'Old <old@registry.test>' rsa2048 sign 1d
gpg --quiet --batch --armor --export old@registry.test > old.asc
skopeo generate-sigstore-key --output-prefix bad/sigstore --passphrase-file passphrase
(cd bad; cosign generate-key-pair)
cosign_options=--tlog-upload=false
[ -e /var/lib/lab/signing-config.json ] && cosign_options=--signing-config=/var/lib/lab/signing-config.json

sign() { # KIND good|bad REFERENCE
	case $1-$2 in
	gpg-good) skopeo --insecure-policy copy --quiet --sign-by lab@registry.test docker://$3 docker://$3;;
	gpg-bad) skopeo --insecure-policy copy --quiet --sign-by bad@registry.test docker://$3 docker://$3;;
	sigstore-*)
		key=/var/lib/lab/sigstore.private; [ $2 = good ] || key=bad/sigstore.private
		skopeo --insecure-policy copy --quiet --sign-by-sigstore-private-key $key --sign-passphrase-file passphrase docker://$3 docker://$3;;
	cosign-*)
		key=/var/lib/lab/cosign.key; [ $2 = good ] || key=bad/cosign.key
		cosign sign --yes $cosign_options --key $key ${3%:*}@$(digest $3);;
	esac
}
digest() { skopeo inspect --raw docker://$1 | sha256sum | sed 's/^/sha256:/; s/ .*//'; }
image() { # ROW REFERENCE: an image that no other row has
	echo $2 > content
	umoci insert --image /m/base:tiny --tag row content /row
	skopeo --insecure-policy copy --quiet oci:/m/base:row docker://$2
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

for kind in gpg sigstore cosign; do
	for row in unsigned right wrong-key expired-key other-name other-digest tampered-manifest tampered-config tampered-layer old-for-other-tag; do
		repo=matrix/$kind/$row
		name=$registry/$repo:1
		image $row $name
		d=$(digest $name)
		case $row in
		unsigned) ;;
		wrong-key) sign $kind bad $name;;
		expired-key)
			[ $kind = gpg ] || continue
			mkdir -p /var/lib/lab/lookaside/$repo@sha256=${d#sha256:}
			printf '{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":"%s"},"identity":{"docker-reference":"%s"}},"optional":{}}' $d $name |
				gpg --quiet --batch --faked-system-time 20250101T010000 --local-user old@registry.test --sign > /var/lib/lab/lookaside/$repo@sha256=${d#sha256:}/signature-1;;
		other-name)
			skopeo --insecure-policy copy --quiet docker://$name docker://$registry/$repo-other:1
			sign $kind good $registry/$repo-other:1
			move $kind $repo-other $d $repo $d;;
		other-digest)
			image $row $registry/$repo:other
			echo another > content
			umoci insert --image /m/base:row --tag another content /another
			skopeo --insecure-policy copy --quiet oci:/m/base:another docker://$registry/$repo:other
			o=$(digest $registry/$repo:other)
			if [ $kind = gpg ]; then
				# For the same name, so that the digest alone is wrong.
				skopeo --insecure-policy copy --quiet --sign-by lab@registry.test --sign-identity $name docker://$registry/$repo:other docker://$registry/$repo:other
			else
				sign $kind good $registry/$repo:other
			fi
			move $kind $repo $o $repo $d;;
		old-for-other-tag)
			skopeo --insecure-policy copy --quiet docker://$name docker://$registry/$repo:old
			sign $kind good $registry/$repo:old;;
		*) sign $kind good $name;;
		esac
		mkdir -p dir/$kind oci-archive/$kind oci/$kind
		skopeo --insecure-policy copy --quiet docker://$name dir:/m/dir/$kind/$row
		skopeo --insecure-policy copy --quiet --remove-signatures docker://$name oci:/m/oci/$kind/$row:1
		skopeo --insecure-policy copy --quiet --remove-signatures docker://$name oci-archive:/m/oci-archive/$kind/$row.tar:1
		config=$(jq -r .config.digest dir/$kind/$row/manifest.json) layer=$(jq -r '.layers[-1].digest' dir/$kind/$row/manifest.json)
		case $row in
		tampered-manifest)
			echo >> dir/$kind/$row/manifest.json
			echo >> $(blob $d);;
		tampered-config) spoil dir/$kind/$row/${config#sha256:}; spoil $(blob $config);;
		tampered-layer) spoil dir/$kind/$row/${layer#sha256:}; spoil $(blob $layer);;
		esac
	done
done

# The same rules for both.
rule() { machinectl-lite trust add --yes --prefix $registry/matrix/$1 $2; }
rule gpg /var/lib/lab/gpg.asc
rule gpg/expired-key old.asc
rule sigstore /var/lib/lab/sigstore.pub
rule cosign /var/lib/lab/cosign.pub
gpg='"type": "signedBy", "keyType": "GPGKeys"' sigstore='"type": "sigstoreSigned", "keyPath": "/var/lib/lab/sigstore.pub"'
{
	echo '{"default": [{"type": "reject"}], "transports": {"docker": {'
	echo "\"$registry/matrix/gpg\": [{$gpg, \"keyPath\": \"/var/lib/lab/gpg.asc\"}], \"$registry/matrix/gpg/expired-key\": [{$gpg, \"keyPath\": \"/m/old.asc\"}],"
	echo "\"$registry/matrix/sigstore\": [{$sigstore, \"signedIdentity\": {\"type\": \"matchRepository\"}}]"
	for transport in dir oci; do
		echo "}, \"$transport\": {\"\": [{\"type\": \"reject\"}]"
		for path in $(cd $transport; echo */*); do
			name=$registry/matrix/$path
			key=/var/lib/lab/gpg.asc; [ $path = gpg/expired-key ] && key=/m/old.asc
			case $path in
			gpg/*) echo ", \"/m/$transport/$path\": [{$gpg, \"keyPath\": \"$key\", \"signedIdentity\": {\"type\": \"exactReference\", \"dockerReference\": \"$name:1\"}}]";;
			sigstore/*) echo ", \"/m/$transport/$path\": [{$sigstore, \"signedIdentity\": {\"type\": \"exactRepository\", \"dockerRepository\": \"$name\"}}]";;
			esac
		done
	done
	echo '}}}'
} > policy.json
`

// judgeVerdicts prints a line for each kind and row: its name, and the verdicts for each place.
const judgeVerdicts = `#!/bin/bash
registry=$1
verdict() { "$@" > /dev/null 2>> /m/said && printf + || printf -- -; }
for kind in gpg sigstore cosign; do
	for row in unsigned right wrong-key expired-key other-name other-digest tampered-manifest tampered-config tampered-layer old-for-other-tag; do
		[ -e /m/dir/$kind/$row ] || continue
		name=$registry/matrix/$kind/$row:1
		line=
		for source in docker://$name dir:/m/dir/$kind/$row oci:/m/oci/$kind/$row:1 oci-archive:/m/oci-archive/$kind/$row.tar:1; do
			rm -rf /var/lib/nspawnd/verdicts /m/copy
			case $source in
			docker:*) ours=$(verdict machinectl-lite --root /var/lib/nspawnd/verdicts pull-oci $name);;
			*) ours=$(verdict machinectl-lite --root /var/lib/nspawnd/verdicts import-oci $source $name);;
			esac
			case $kind in
			cosign) theirs=' ';;
			*) theirs=$(verdict skopeo --policy /m/policy.json copy --quiet $source dir:/m/copy);;
			esac
			line="$line $ours/$theirs"
		done
		echo "$kind/$row${line}"
	done
done
`
