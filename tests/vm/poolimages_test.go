package vm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPoolImages: images of systemd-nspawn, which are machined's, beside machinectl.
func TestPoolImages(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Script(`mkdir -p /var/lib/machines/tree/usr/lib /var/lib/machines/empty /var/lib/machines/.hidden
			printf 'ID=foo\nPRETTY_NAME="Foo OS 1"\n' > /var/lib/machines/tree/usr/lib/os-release
			truncate -s 10M /var/lib/machines/disk.raw; touch -d 2020-02-02 /var/lib/machines/disk.raw
			machinectl-lite pull-oci -q ` + tiny)
		for _, verb := range []string{"image-status tree", "image-status disk tree", "image-status .hidden", "show-image tree", "show-image disk empty", "show-image --value -p Name disk tree"} {
			const age = " | sed 's/; .* ago$//'"
			theirs, ours := m.Script("machinectl --no-pager "+verb+age), m.Script("machinectl-lite "+verb+age)
			if theirs.Stdout != ours.Stdout || theirs.Stdout == "" || ours.Stderr != "" {
				t.Errorf("%s: machinectl's\n%s, ours\n%s%s", verb, theirs.Stdout, ours.Stdout, ours.Stderr)
			}
		}
		const stored = "registry.test:5000/demo/tiny:latest"
		exists := func(names string) string { return "; cd /var/lib/machines; ls -dA " + names }
		m.expect(t,
			outcome{"words() { tr -s ' ' '\\n' | grep -vx -e -; }; machinectl-lite list-images --no-legend | grep -v ' oci ' | words > /tmp/ours; machinectl list-images --no-legend | words | diff - /tmp/ours && grep -c ^no < /tmp/ours", 0, "3\n", ""},
			outcome{"machinectl-lite list-images --json=short | jq -r '.[] | .name + \" \" + .type'; machinectl-lite list-images -a --no-legend | cut -d' ' -f1", 0,
				"disk raw\nempty directory\n" + stored + " oci\ntree directory\n.hidden\n.host\ndisk\nempty\n" + stored + "\ntree\n", ""},
			outcome{"machinectl-lite __complete remove '' 2> /dev/null | head -n -1 | sort", 0, "disk\nempty\n" + stored + "\ntree\n", ""},

			outcome{"machinectl-lite clone tree copy; machinectl-lite -q --read-only clone tree ro; machinectl show-image -P ReadOnly copy ro | grep ." + exists("copy/usr ro/usr"), 0, "no\nyes\ncopy/usr\nro/usr\n", ""},
			outcome{"machinectl-lite clone tree copy", 1, "", "machinectl-lite: image tree: File exists\n"},
			outcome{"machinectl-lite rename copy moved" + exists("copy moved"), 2, "moved\n", "/cannot access 'copy'/"},
			outcome{"machinectl-lite rename moved tree", 1, "", "/^machinectl-lite: image moved: .*File exists\n$/"},
			outcome{"for arg in '' no yes off; do machinectl-lite read-only moved $arg; machinectl show-image -P ReadOnly moved; done", 0, "yes\nno\nyes\nno\n", ""},
			outcome{"machinectl-lite tag tree localhost/tree", 1, "", "/^machinectl-lite: image /"},
			outcome{"machinectl-lite remove ro nosuch moved" + exists("ro moved empty"), 2, "Removed image 'ro'\nRemoved image 'moved'\nFreed 0B: 2 images\nempty\n", "/^machinectl-lite: image .*nosuch.*: not in the store.*\n/"},
			outcome{"machinectl-lite clean --all" + exists("tree"), 0, "/^Removed image '" + stored + "'\nRemoved image '.hidden'\nFreed .*: 2 images, .*\ntree\n$/", ""},
			outcome{"machinectl-lite clean; machinectl-lite image-status nosuch", 1, "", "/^machinectl-lite: image .*nosuch.*: not in the store/"},

			outcome{"machinectl-lite list-images -o json | jq -c 'map(select(.name == \"tree\"))[0] | [(.ro, .created, .usage | type)], keys' | head -1", 0, "/^\\[\"boolean\",\"number\",\"(number|null)\"\\]\n$/", ""},
			// Without machined there is the store.
			outcome{"machinectl-lite pull-oci -q " + tiny + " > /dev/null; systemctl mask --runtime --now -q systemd-machined; machinectl-lite list-images --no-legend | cut -d' ' -f1; machinectl-lite clean; machinectl-lite list --no-legend; nspawnd-run -d --name unlisted " + tiny + " trap; machinectl-lite list --no-legend; machinectl-lite pause unlisted; machinectl-lite resume unlisted; machinectl-lite terminate unlisted; await sh -c '! systemctl -q is-active nspawnd-unlisted'; machinectl-lite remove tree; systemctl unmask --runtime -q systemd-machined", 0,
				"/^" + stored + "\nunlisted\nunlisted +container nspawnd .*\n$/", "/^machinectl-lite: image .*tree.*: not in the store/"},
		)
	})
}

// makeImages makes images in machined's directory.
const makeImages = `mkdir -p tree/usr/lib empty .hidden; printf 'ID=foo\nPRETTY_NAME="Foo OS 1"\n' > tree/usr/lib/os-release; truncate -s 10M disk.raw; touch -d 2020-02-02 disk.raw; head -c 50000 /dev/zero > .rest.raw`

// imagesBeside compares the verbs of images with machinectl's where the option leads to. In is a command that runs another in machined's directory there; user is one that runs one as who calls.
func imagesBeside(t *testing.T, option string, in, user func(command string) Result) {
	t.Helper()
	t.Run("images", func(t *testing.T) {
		in(makeImages)
		for _, command := range []string{
			"list-images", "list-images --all --no-legend", "list-images --output=json", "list-images --output=json-pretty -a", "image-status tree", "image-status disk tree nosuch", "image-status", "show-image tree", "show-image disk empty", "show-image",
			"show-image -P Name -P ReadOnly disk", "show-image --value -p Type tree nosuch", "clone tree X", "clone tree X", "clone nosuch X", "clone --read-only tree X-ro", "show-image -P ReadOnly X-ro", "rename X X-moved", "rename X-moved tree", "read-only X-moved",
			"show-image -P ReadOnly X-moved", "read-only X-moved no", "show-image -P ReadOnly X-moved", "read-only X-moved maybe", "remove X-moved X-ro", "remove nosuch", "remove a/b", "clean", "-q clean", "set-limit X 1G",
		} {
			var shown, stderr []string
			for _, program := range []string{"machinectl", "machinectl-lite"} {
				if command == "clean" {
					in(makeImages)
				}
				r := user("timeout 30 " + program + " " + option + " " + strings.ReplaceAll(command, "X", program))
				if strings.HasSuffix(command, "clean") { // which says there what it has done, in any order
					lines := strings.SplitAfter(r.Stderr, "\n")
					slices.Sort(lines)
					r.Stdout += strings.Join(lines, "")
				}
				shown = append(shown, fmt.Sprintf("status %d\n%s", r.Status, regexp.MustCompile(`; .* ago`).ReplaceAllString(r.Stdout, "; some time ago")))
				stderr = append(stderr, r.Stderr)
			}
			if diff := cmp.Diff(shown[0], shown[1]); diff != "" || stderr[0] == "" != (stderr[1] == "") {
				t.Errorf("%s %s: %s\nours: %s\nmachinectl: %s", option, command, diff, stderr[1], stderr[0])
			}
		}
		if left := in("ls -A").Stdout; left != "disk.raw\nempty\ntree\n" {
			t.Errorf("left: %s", left)
		}
	})
}
