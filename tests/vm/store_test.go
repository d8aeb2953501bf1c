package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestStoreVerbs is what users do with stored images, and what they are told.
func TestStoreVerbs(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		const stored = "machinectl-lite list-images --json=short | jq -r .[].name"
		verb := func(words string) string { return "machinectl-lite " + words }
		m.expect(t,
			outcome{verb("pull-oci --quiet "+tiny) + "; " + verb("pull-oci --quiet "+redis), 0, "//", ""},

			// Names.
			outcome{verb("tag " + tiny + " localhost/tool"), 0, "", ""},
			outcome{"nspawnd-run --pull=never localhost/tool echo tagged", 0, "tagged\n", ""},
			outcome{verb("clone --read-only " + tiny + " localhost/kept:1"), 0, "", ""},
			outcome{verb("clone " + tiny + " localhost/tool"), 1, "", "/: the name localhost/tool:latest is taken; to free it: machinectl-lite remove localhost/tool:latest\n$/"},
			outcome{verb("tag " + redis + " localhost/kept:1"), 1, "", "/: localhost/kept:1: is marked read-only; to let it change: machinectl-lite read-only localhost/kept:1 false\n$/"},
			outcome{verb("rename localhost/tool localhost/renamed:1") + " && " + stored, 0, "localhost/kept:1\nlocalhost/renamed:1\n" + redis + ":latest\n" + tiny + ":latest\n", ""},
			outcome{verb("rename localhost/tool localhost/x"), 1, "", "machinectl-lite: image localhost/tool:latest: not in the store; machinectl-lite list-images shows what is there\n"},
			outcome{verb("tag " + tiny + " x@sha256:" + strings.Repeat("0", 64)), 1, "", "/has a digest.*give it a tag\n$/"},
			// The proof stays that of the name it was pulled by.
			outcome{"jq -r '.source, .trust.kind' /var/lib/nspawnd/images/localhost/renamed:1.json", 0, tiny + ":latest\nsigstoreSigned\n", ""},

			// Read-only.
			outcome{verb("read-only " + tiny), 0, "", ""},
			outcome{verb("pull-oci " + tiny), 1, "", "machinectl-lite: image " + tiny + ":latest: is marked read-only; to let it change: machinectl-lite read-only " + tiny + ":latest false\n"},
			outcome{"nspawnd-run --pull=always " + tiny + " true", 125, "", "/^nspawnd-run: image .* is marked read-only; .*\n$/"},
			outcome{verb("remove " + tiny), 1, "", "/is marked read-only; to let it change: machinectl-lite read-only .* false\n$/"},
			outcome{verb("read-only " + tiny + " maybe"), 1, "", "machinectl-lite: \"maybe\" is neither yes nor no\n"},
			outcome{verb("read-only "+tiny+" no; ") + verb("pull-oci "+tiny), 0, "//", ""},

			// Remove: each name is tried.
			outcome{verb("remove localhost/none localhost/renamed:1 Bad"), 1, "/^Removed image 'localhost/renamed:1'\nFreed [0-9.]+K: 1 image\n$/",
				"/^machinectl-lite: image localhost/none:latest: not in the store; .*\nmachinectl-lite: image name \"Bad\": .*\n$/"},
			outcome{"nspawnd-run -d --name web " + redis, 0, "web\n", ""},
			outcome{verb("remove " + redis), 1, "", "machinectl-lite: image " + redis + ":latest: machine web uses it; to end that: machinectl-lite terminate web\n"},

			// Clean: what is in use and what is read-only stays.
			outcome{verb("clean"), 0, "", ""},
			outcome{verb("clean --all"), 0, "/^Removed image '" + tiny + ":latest'\nFreed [0-9.]+K: 1 image\n$/", ""},
			outcome{stored, 0, "localhost/kept:1\n" + redis + ":latest\n", ""},
			outcome{"rm /var/lib/nspawnd/images/" + redis + ":latest.json; " + verb("clean"), 0, "", ""},
			// What a machine had that has just ended goes with it.
			outcome{verb("terminate web") + "; " + verb("clean --json=short"), 0, "/^\\[\\{\"type\":\"blob\",\"name\":\"sha256:.*\"type\":\"layer\",\"name\":\"sha256:.*\",\"size\":[0-9]{7,}\\}\\]\n$/", ""},
			outcome{"for i in 1 2 3 4 5; do nspawnd-run --entrypoint true " + nginx + " >/dev/null && " + verb("remove "+nginx) + " >/dev/null || exit; done", 0, "", ""},
			// The directory of a machine whose unit is gone.
			outcome{"mkdir -p /var/lib/nspawnd/machines/dead.1/upper; cp /var/lib/nspawnd/images/localhost/kept:1.json /var/lib/nspawnd/machines/dead.1/image.json; " + verb("clean"), 0, "/^Freed [0-9.]+K: 1 machine\n$/", ""},
			// Damage.
			outcome{"cp -a /var/lib/nspawnd/images/localhost /tmp/localhost; : > /var/lib/nspawnd/images/localhost/kept:1.json; " + verb("clean"), 1, "",
				"/^machinectl-lite: nothing was freed: .*kept:1.json: .*; to remove it: machinectl-lite remove localhost/kept:1\n$/"},
			outcome{verb("remove localhost/kept:1"), 0, "/^Removed image 'localhost\\/kept:1'\nFreed [0-9.]+M: 1 image, 3 blobs, 2 layers\n$/", ""},
			outcome{"find /var/lib/nspawnd -type f; ls /var/lib/nspawnd/layers /var/lib/nspawnd/images | wc -w", 0, "2\n", ""},

			outcome{verb("__complete remove '' 2>/dev/null | grep -c :"), 0, "1\n", ""}, // only the directive's line
			outcome{verb("pull-oci -q "+tiny) + " >/dev/null; " + verb("__complete remove '' 2>/dev/null"), 0, tiny + ":latest\n:4\n", ""},
			outcome{verb("__complete read-only " + tiny + " '' 2>/dev/null"), 0, "yes\nno\n:4\n", ""},
			outcome{verb("remove"), 1, "", "machinectl-lite: remove: no image named (see machinectl-lite remove --help)\n"},
			outcome{verb("clean x"), 1, "", "machinectl-lite: clean takes no argument (see machinectl-lite clean --help)\n"},
			outcome{verb("--root /no/such clean") + "; " + verb("--root /no/such remove x") + "; ls /no", 2, "", "/: image docker.io/library/x:latest: not in the store; .*\nls: /"},
		)
	})
}

// sharedImages pushes n images, shared/0 and so on, that are demo/tiny with three layers of random bytes on top: the first is in all of them, the second in those
// of the same parity, the third in one. Nobody signs them. It gives their names.
func (m *Machine) sharedImages(n int) (names []string) {
	m.helper()()
	for i := range n {
		names = append(names, fmt.Sprintf("%s/shared/%d:1", RegistryAddress, i))
	}
	m.must(`mkdir /tmp/shared; cd /tmp/shared
		skopeo --insecure-policy copy --quiet oci:` + m.Images() + `:tiny oci:oci:tiny
		layer() { [ -e $1.tar ] || { head -c $2 /dev/urandom > $1; tar --mtime=@0 -cf $1.tar $1; }; umoci raw add-layer --image oci:image $1.tar; }
		for i in $(seq 0 ` + strconv.Itoa(n-1) + `); do
			umoci tag --image oci:tiny image
			layer all 3M; layer parity$((i % 2)) 2M; layer own$i 1M
			skopeo --insecure-policy copy --quiet oci:oci:image docker://` + RegistryAddress + `/shared/$i:1
		done
		rm -rf /tmp/shared`)
	return names
}

// blobRequests restarts the registry, so that it logs requests, and returns a function that counts those for each blob since then.
func (m *Machine) blobRequests() func() map[string]int {
	m.helper()()
	m.must(`systemctl stop lab-registry; sed -i 's/disabled: true/disabled: false/' /etc/lab/registry/config.yml
		systemd-run --quiet --unit=lab-registry --property=Type=exec --setenv=OTEL_TRACES_EXPORTER=none docker-registry serve /etc/lab/registry/config.yml`)
	m.Eventually("the registry answers", func() bool {
		return m.Run("curl", "--silent", "--fail", "https://"+RegistryAddress+"/v2/").Status == 0
	})
	request := regexp.MustCompile(`"GET /v2/\S+/blobs/(sha256:[0-9a-f]+) \S+" 200 `)
	return func() map[string]int {
		m.helper()()
		counts := map[string]int{}
		for _, match := range request.FindAllStringSubmatch(m.must("journalctl --sync; journalctl --output=cat --unit=lab-registry"), -1) {
			counts[match[1]]++
		}
		return counts
	}
}

// Pulls at the same time, of images that share layers and of the same image: what one fetches the others don't.
func TestParallelPulls(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		names := m.sharedImages(8)
		requests := m.blobRequests()
		pulls := append(names, names[0], names[0]) // two more of one
		m.must("pids=; for name in " + strings.Join(pulls, " ") + `; do machinectl-lite pull-oci --quiet --insecure-options=image $name 2>/dev/null & pids="$pids $!"; done
			for pid in $pids; do wait $pid; done`)
		counts := requests()
		t.Log(counts)
		blobs := 8 + 2 + 1 + 2 + 8 // configurations, tiny's own layers, and the layers of sharedImages
		if len(counts) != blobs {
			t.Errorf("%d blobs were fetched, want %d", len(counts), blobs)
		}
		for blob, n := range counts {
			if n != 1 {
				t.Errorf("%s was fetched %d times", blob, n)
			}
		}
		for _, name := range names {
			m.Must("nspawnd-run", "--pull=never", name, "true")
		}
		m.expect(t, outcome{"ls /var/lib/nspawnd/layers | wc -l; ls /var/lib/nspawnd/tmp", 0, "13\n", ""})
	})
}

// Whatever clean and remove do meanwhile, what is pulled runs, and what runs has its files.
func TestCleanDuringPullsAndRuns(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		names := m.sharedImages(3)
		result := m.Script(`
			kept=` + names[0] + ` replaced=` + names[1] + ` removed=` + names[2] + `
			machinectl-lite pull-oci --quiet --insecure-options=image $kept > /dev/null 2>&1
			nspawnd-run --name all-along -d $kept trap > /dev/null
			touch /tmp/go
			while [ -e /tmp/go ]; do machinectl-lite clean; done > /tmp/clean 2>&1 & cleaning=$!
			while [ -e /tmp/go ]; do machinectl-lite clean --all; machinectl-lite remove $removed || true; done > /tmp/remove 2>&1 & removing=$!
			# Each start finds its image, or pulls it, whoever removes it meanwhile.
			for i in $(seq 15); do
				[ "$(nspawnd-run --insecure-options=image $removed echo $i 2>/tmp/err)" = $i ] || { echo "start $i:"; cat /tmp/err; }
				[ "$(nspawnd-run --insecure-options=image --pull=always $replaced echo $i 2>/tmp/err)" = $i ] || { echo "start of a new pull $i:"; cat /tmp/err; }
				[ "$(nspawnd-run --pull=never $kept echo $i 2>/tmp/err)" = $i ] || { echo "start of what runs $i:"; cat /tmp/err; }
			done
			rm /tmp/go; wait $cleaning $removing || true
			grep -v -e ^Removed -e ^Freed -e ' in the store; ' -e 'machinectl-lite terminate ' /tmp/clean /tmp/remove || true
			grep -q "^Removed image '$removed'" /tmp/remove || echo "nothing was removed meanwhile"
			systemctl stop nspawnd-all\\x2dalong
		`)
		if result.Status != 0 || result.Stdout != "" {
			t.Errorf("status %d\n%s%s", result.Status, result.Stdout, result.Stderr)
		}
		m.nothingLeft(t)
		m.must("machinectl-lite clean --all")
		m.expect(t, outcome{"find /var/lib/nspawnd -type f; ls -A /var/lib/nspawnd/*/ | grep -v -e : -e sha256$ | xargs", 0, "\n", ""})
	})
}

// defaultKills is how often TestKilled kills each command, unless $NSPAWND_KILLS says it.
const defaultKills = 12

// TestKilled kills pulls, clean and remove at random points, and says the same again. After the first, each image that is there is whole; after
// the second, all is as if there had been no first, down to the last file.
func TestKilled(t *testing.T) {
	kills := defaultKills
	if n, err := strconv.Atoi(os.Getenv("NSPAWND_KILLS")); err == nil {
		kills = n
	}
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		names := m.sharedImages(2)
		m.WriteFile("/tmp/killed", []byte(killed), 0o755)
		m.must(`cd /var/lib/nspawnd
			for name in ` + strings.Join(names, " ") + `; do machinectl-lite --root=full pull-oci -q --insecure-options=image $name; done 2>/dev/null
			machinectl-lite --root=full read-only ` + names[0] + `
			umoci unpack --image ` + m.Images() + `:tiny aci; head -c 5M /dev/urandom > aci/rootfs/random
			echo '{"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "app.test/x"}' > aci/manifest; tar -C aci -czf x.aci manifest rootfs
			mkdir -p empty full/tmp/sha256-x full/machines/gone.1/upper; head -c 1M /dev/zero > full/tmp/sha256-x/layer.tar`)
		for _, c := range []struct{ verb, before, image, command string }{
			{"pull", "empty", names[0], "pull-oci --quiet --insecure-options=image " + names[0]},
			{"pull-aci", "empty", "app.test/x", "pull-aci --quiet --insecure-options=image ./x.aci"},
			{"clean", "full", names[0], "clean --all"},
			{"remove", "full", names[0], "remove " + names[1]},
		} {
			t.Run(c.verb, func(t *testing.T) {
				m := m.With(t)
				result := m.Run("/tmp/killed", strconv.Itoa(kills), c.before, c.image, "machinectl-lite --root=store "+c.command)
				t.Logf("%s in %s", strings.TrimSpace(result.Stdout), result.Duration.Round(time.Second))
				if result.Status != 0 {
					t.Errorf("status %d\n%s", result.Status, result.Stderr)
				}
			})
		}
	})
}

// killed is a script: KILLS BEFORE IMAGE COMMAND.
const killed = `#!/bin/bash
# Kills COMMAND, which works on store/, KILLS times at random points, each time with store/ as BEFORE is, and says it again. IMAGE is there in the end.
cd /var/lib/nspawnd
kills=$1 before=$2 image=$3 command=($4) point=0
exec {never}<> <(:)
nap() { read -r -t "$(printf '%d.%06d' $(($1 / 1000000)) $(($1 % 1000000)))" -u $never; } # of microseconds, without a process
fail() { echo "kill $point, after $delay of $took µs: $*" >&2; cat /tmp/first /tmp/second >&2; find store -type f >&2; exit 1; }
prepare() { rm -rf store; cp -al $before store; }
listing() { find store -printf '%y %P\n' | grep -v -e '^d machines/' -e 'tmp/writer-' | sort; }
# An image that has a name has all its layers and blobs, each with the right content.
whole() {
	{
		echo e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 /dev/null
		[ ! -d store/images ] || find store/images -name '*.json' -exec jq -r '(.layers[][7:] | . + " store/layers/sha256-" + . + "/layer.tar"),
			((.manifestDigest, .configDigest)[7:] | . + " store/blobs/sha256/" + .)' {} +
	} | sort -u | sed 's/ /  /' | sha256sum --check --quiet >&2 || fail "an image is damaged"
}
took=0 delay=0
for i in 1 2 3; do
	prepare
	started=${EPOCHREALTIME/./}
	"${command[@]}" > /tmp/first 2>&1 || fail "undisturbed"
	took=$((took + (${EPOCHREALTIME/./} - started) / 3))
done
listing > /tmp/want
hits=0
while [ $hits -lt $kills ]; do
	[ $((point += 1)) -le $((kills * 5)) ] || fail "it had ended too often"
	prepare
	"${command[@]}" > /tmp/first 2>&1 & pid=$!
	delay=$((SRANDOM % took))
	nap $delay
	kill -KILL $pid 2>/dev/null
	wait $pid 2>/dev/null
	[ $? != 137 ] || hits=$((hits + 1))
	whole
	# What is removed is not there a second time.
	"${command[@]}" > /tmp/second 2>&1 || grep -q ' in the store; ' /tmp/second || fail "it fails when said again"
	listing > /tmp/got
	diff /tmp/want /tmp/got >&2 || fail "something is different"
	whole
	[ $((point % 10)) != 0 ] || nspawnd-run --root=store --pull=never $image true || fail "it does not run"
done
echo "killed $hits times, of $point, within $((took / 1000)) ms"
`

// A store on a disk that is full: a pull leaves what was there before, says why in one line, and works when there is space; clean and remove need none.
func TestDiskFull(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		names := m.sharedImages(2)
		// A file system of 40 MiB, made here for Debian's e2fsprogs are not in the lab.
		disk := filepath.Join(t.TempDir(), "disk")
		if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-m", "0", disk, "40M").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		m.Copy(disk, "/var/lib/nspawnd/disk")
		result := m.Script(`
			one=` + names[0] + ` other=` + names[1] + `
			mkdir /mnt/disk; ` + mountDisk + `; cd /mnt/disk
			lite() { machinectl-lite --root=/mnt/disk/store "$@"; }
			pull() { lite pull-oci --quiet --insecure-options=image $1 > /tmp/out 2> /tmp/err; }
			listing() { find store -printf '%y %P\n' | sort; }
			space() { rm -f filler; fallocate -l $(($(df --output=avail -B1024 . | tail -n1) - $1))K filler 2>/dev/null || cat /dev/zero > filler 2>/dev/null || true; } # leaves so many KiB
			pull $one; lite read-only $one
			listing > /tmp/before
			failed=0
			for size in $(seq 0 16 160) $(seq 200 150 8000); do
				space $size
				if pull $other; then
					lite remove $other > /dev/null
				else
					failed=$((failed + 1))
					[ $(wc -l < /tmp/err) = 1 ] && grep -q '^machinectl-lite: .*: no space left on device$' /tmp/err || { echo "with $size KiB it says:"; cat /tmp/err; }
				fi
				listing | diff /tmp/before - || echo "with $size KiB something is left"
			done
			rm filler
			pull $other || { echo "with space:"; cat /tmp/err; }
			nspawnd-run --root=/mnt/disk/store --pull=never $other true
			[ $failed -ge 20 ] || echo "the disk was full only $failed times"

			# Nothing at all is free.
			space 0; cat /dev/zero > rest 2>/dev/null || true
			lite remove $other | grep -q '^Freed [3-9].*M: 1 image, ' || echo "remove freed nothing"
			listing | diff /tmp/before - || echo "after remove something is left"
			lite read-only $one no
			space 0; cat /dev/zero > rest 2>/dev/null || true
			lite clean --all | grep -q '^Freed [3-9].*M: 1 image, ' || echo "clean freed nothing"
			[ -z "$(find store -type f)" ] || echo "after clean something is left"
			cd /; umount /mnt/disk; rm /var/lib/nspawnd/disk
		`)
		if result.Status != 0 || result.Stdout != "" {
			t.Errorf("status %d\n%s%s", result.Status, result.Stdout, result.Stderr)
		}
	})
}

// mountDisk tries again: between finding a free loop device and taking it, another lab may take it.
const mountDisk = `for try in 1 2 3 4 5; do ! mount -o loop /var/lib/nspawnd/disk /mnt/disk || break; sleep 0.2; done; mountpoint -q /mnt/disk`

// The same where something else than blocks runs out, and with the other backend and an ACI.
func TestDiskFullOtherwise(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		disk := filepath.Join(t.TempDir(), "disk")
		if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-m", "0", "-N", "128", disk, "40M").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		m.Copy(disk, "/var/lib/nspawnd/disk")
		result := m.Script(`
			umoci unpack --image ` + m.Images() + `:tiny /tmp/aci; head -c 5M /dev/urandom > /tmp/aci/rootfs/random
			echo '{"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "app.test/x"}' > /tmp/aci/manifest; tar -C /tmp/aci -czf /tmp/x.aci manifest rootfs
			mkdir /mnt/disk; ` + mountDisk + `; cd /mnt/disk; mkdir filler
			lite() { machinectl-lite --root=/mnt/disk/store "$@"; }
			listing() { find store -printf '%y %P\n' | sort; }
			inodes() { # leaves so many
				find filler -type f -delete; rm -f blocks
				for i in $(seq $(($(df --output=iavail . | tail -n1) - $1))); do : > filler/$i; done
			}
			blocks() { # leaves so many KiB
				find filler -type f -delete; rm -f blocks
				fallocate -l $(($(df --output=avail -B1024 . | tail -n1) - $1))K blocks 2>/dev/null || cat /dev/zero > blocks 2>/dev/null || true
			}
			each() { # WHAT "AMOUNTS" NAME COMMAND...
				local what=$1 amounts=$2 name=$3 failed=0; shift 3
				for n in $amounts; do
					$what $n
					if lite "$@" > /dev/null 2> /tmp/err; then
						lite remove $name > /dev/null
					else
						failed=$((failed + 1))
						[ $(wc -l < /tmp/err) = 1 ] && grep -q '^machinectl-lite: .*: no space left on device$' /tmp/err || { echo "with $n $what it says:"; cat /tmp/err; }
					fi
					listing | diff /tmp/before - || echo "with $n $what something is left"
				done
				$what 100
				[ $failed -ge 5 ] || echo "$*: the disk was full only $failed times"
			}
			lite pull-oci -q --insecure-options=image ` + tiny + ` > /dev/null 2>&1
			listing > /tmp/before
			for backend in erofs dirs; do
				each inodes "$(seq 0 2 24)" ` + nginx + ` pull-oci -q --backend=$backend --insecure-options=image ` + nginx + `
				each blocks "$(seq 0 100 500) $(seq 1000 2000 25000)" app.test/x pull-aci -q --backend=$backend --insecure-options=image /tmp/x.aci
			done
			find filler -type f -delete; rm -f blocks
			lite pull-aci -q --insecure-options=image /tmp/x.aci > /dev/null 2>&1
			nspawnd-run --root=/mnt/disk/store --pull=never app.test/x true
			cd /; for _ in $(seq 600); do umount /mnt/disk 2>/dev/null && break; sleep 0.05; done # the companion may be at it still
			rm /var/lib/nspawnd/disk
		`)
		if result.Status != 0 || result.Stdout != "" {
			t.Errorf("status %d\n%s%s", result.Status, result.Stdout, result.Stderr)
		}
	})
}

// Who may not, or can't, is told in one line what stands in the way, and nothing changes.
func TestImageErrors(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.must(`machinectl-lite import-oci -q --insecure-options=image oci:` + m.Images() + `:tiny localhost/tiny 2>/dev/null
			cp -a /var/lib/nspawnd /srv/theirs; chown -R 1234 /srv/theirs
			cp -a /var/lib/nspawnd /srv/open; chmod 777 /srv/open`)
		reading := []string{"image-status localhost/tiny", "show-image localhost/tiny", "export-oci localhost/tiny oci:/tmp/out", "export-mstack localhost/tiny /tmp/out.mstack"}
		changing := []string{
			"import-oci --insecure-options=image oci:" + m.Images() + ":redis localhost/r", "tag localhost/tiny localhost/t", "clone localhost/tiny localhost/t",
			"rename localhost/tiny localhost/t", "read-only localhost/tiny", "remove localhost/tiny", "clean --all",
		}
		list := []string{"list-images"}
		for _, c := range []struct {
			as, root, want string
			verbs          [][]string
		}{
			{"setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all ", "/var/lib/nspawnd", "permission denied; try: sudo machinectl-lite …", [][]string{reading[:3], changing[1:], list}},
			{"", "/srv/theirs", "belongs to user 1234, who can change the images in it; to take it over, with all that is in it now: chown -R root /srv/theirs", [][]string{reading, changing, list}},
			{"", "/srv/open", "others can change the images in it; to end that: chmod go-w /srv/open", [][]string{reading, changing, list}},
			{"", "/etc/passwd", "store /etc/passwd: not a directory", [][]string{reading, changing, list}},
			{"unshare -m sh -c 'mount --bind -o ro $1 $1; shift; exec \"$@\"' - /var/lib/nspawnd ", "/var/lib/nspawnd", ": read-only file system", [][]string{changing}},
		} {
			for _, verbs := range c.verbs {
				for _, verb := range verbs {
					command := c.as + "machinectl-lite --root=" + c.root + " " + verb
					r := m.Run("bash", "-c", command)
					if r.Status != 1 || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.HasPrefix(r.Stderr, "machinectl-lite: ") || !strings.Contains(r.Stderr, c.want) {
						t.Errorf("%s\nstatus %d\nstdout %q\nstderr %q, want …%s…", command, r.Status, r.Stdout, r.Stderr, c.want)
					}
				}
			}
		}
		lite := func(words string) string { return "machinectl-lite " + words }
		m.expect(t,
			outcome{"nspawnd-run --root=/srv/theirs localhost/tiny true", 125, "", "/^nspawnd-run: store .srv.theirs: belongs to user 1234, .*\n$/"},
			// What was there is there, and can be read.
			outcome{"unshare -m sh -c 'mount --bind -o ro /var/lib/nspawnd /var/lib/nspawnd; machinectl-lite list-images --json=short' | jq -r .[].name; ls /tmp/out* 2>&1 | wc -l", 0, "localhost/tiny:latest\n1\n", ""},
			outcome{"unshare -m sh -c 'mount --bind -o ro /var/lib/nspawnd /var/lib/nspawnd; machinectl-lite verify-image --json=short localhost/tiny && machinectl-lite verify-image --policy-only localhost/tiny'", 1,
				`/"result":"ok"/`, "/^(machinectl-lite: image localhost.tiny:latest: the rules accept it, but that could not be noted: store: .*: read-only file system\n){2}$/"},
			outcome{lite("tag localhost/tiny"), 1, "", "machinectl-lite: tag takes a name and a new one (see machinectl-lite tag --help)\n"},
			outcome{lite("pull-oci --authfile=/no/such a.invalid/x"), 1, "", "machinectl-lite: --authfile: stat /no/such: no such file or directory\n"},
			outcome{lite("pull-oci --cert-dir=/no/such a.invalid/x"), 1, "", "machinectl-lite: --cert-dir: stat /no/such: no such file or directory\n"},
			outcome{lite("pull-oci a.invalid/x"), 1, "", "/^machinectl-lite: image a.invalid.x:latest: registry not reachable: lookup a.invalid.*\n$/"},
			outcome{lite("pull-aci a.invalid/x"), 1, "", "/^machinectl-lite: image a.invalid.x: .*lookup a.invalid.*\n$/"},
			outcome{lite("pull-aci aci:"), 1, "", "machinectl-lite: source \"aci:\": no path\n"},
			outcome{lite("pull-aci /none.aci"), 1, "", "machinectl-lite: image /none.aci: open /none.aci: no such file or directory\n"},
			outcome{lite("import-oci oci:" + m.Images() + " localhost/x"), 1, "", "/: [0-9]+ images in it, of which one has to be named behind a colon; it has: base, .*, tiny\n$/"},
			outcome{lite("import-oci oci-archive:/none localhost/x"), 1, "", "machinectl-lite: oci-archive:/none: open /none: no such file or directory\n"},
			outcome{lite("trust remove localhost"), 1, "", "machinectl-lite: no trust rule for the prefix \"localhost\"; machinectl-lite trust list shows which there are\n"},
		)
	})
}
