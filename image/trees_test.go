package image

import (
	"archive/tar"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"nspawnd/image/internal/imagetest"
)

// TestTreesBesidePeers compares the trees of images that machinectl-lite pulled with those that podman and umoci give. It
// runs in the lab, which has them and a registry (tests/vm/trees_test.go); TREES_REGISTRY is its name.
func TestTreesBesidePeers(t *testing.T) {
	registry := os.Getenv("TREES_REGISTRY")
	if registry == "" {
		t.Skip("needs the lab")
	}
	scratch := t.TempDir()
	made := map[string][][]byte{
		"nasty": nastyLayers(t), "both": bothLayers(t), "many": manyLayers(t),
		"linked":  {makeTar(t, file("file", "x")), makeTar(t, hardlink("link", "file"))},
		"unnamed": {makeTar(t, dir("d/", 0o700).with(func(h *tar.Header) { h.Uid = 5 }), file("d/a", "x")), makeTar(t, file("d/b", "x"), file("e/f", "x"))},
	}
	for name, layers := range made {
		oci, err := layout.Write(filepath.Join(scratch, name), empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		img := imagetest.AppendLayers(t, ociImage(empty.Image), layers)
		if err := oci.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "it"})); err != nil {
			t.Fatal(err)
		}
		must(t, "skopeo", "--insecure-policy", "copy", "--quiet", "oci:"+string(oci)+":it", "docker://"+registry+"/trees/"+name+":1")
	}
	for _, test := range []struct {
		name         string
		podman, ours string              // why one refuses the image
		differ       map[string][]string // who has other files than the other and we
	}{
		// Podman takes no layer that has an entry twice, or a whiteout behind what it would hide. We take both, as umoci does.
		{"trees/nasty", "duplicates of file paths not supported", "", nil},
		// A hard link to a file of another layer: umoci unpacks all layers into one directory and finds it. We refuse it, as podman does.
		{"trees/linked", "no such file or directory", "which this layer does not have before it", nil},
		// A directory that a layer has something in without naming it: umoci leaves it as lower layers have it. With a layer for itself in
		// an overlay it is a new one, root's and 0755, as podman's.
		{"trees/unnamed", "", "", map[string][]string{"umoci": {"d"}}},
		// Podman has no times before 1970.
		{"trees/both", "", "", map[string][]string{"podman": {"data/before 1970"}}},
		{"trees/many", "", "", nil}, {"demo/nginx", "", "", nil}, {"demo/redis", "", "", nil}, {"demo/python", "", "", nil},
	} {
		t.Run(path.Base(test.name), func(t *testing.T) {
			full := registry + "/" + test.name + ":1"
			start := time.Now()
			peers := map[string]map[string]string{}

			out, err := exec.Command("podman", "pull", "--quiet", full).CombinedOutput()
			switch {
			case test.podman != "":
				if err == nil || !strings.Contains(string(out), test.podman) {
					t.Errorf("podman is said to refuse it (%s): %v\n%s", test.podman, err, out)
				}
			case err != nil:
				t.Fatalf("podman: %v\n%s", err, out)
			default:
				peers["podman"] = describe(t, must(t, "podman", "image", "mount", full))
				must(t, "podman", "image", "unmount", full)
			}
			oci, rootfs := filepath.Join(t.TempDir(), "oci"), filepath.Join(t.TempDir(), "rootfs")
			must(t, "skopeo", "--insecure-policy", "copy", "--quiet", "docker://"+full, "oci:"+oci+":it")
			must(t, "umoci", "raw", "unpack", "--image", oci+":it", rootfs)
			peers["umoci"] = describe(t, rootfs)

			for backend := range backends {
				dir, err := os.MkdirTemp(DefaultRoot, "trees-")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
				out, err := exec.Command("machinectl-lite", "--root="+dir, "pull-oci", "--quiet", "--insecure-options=image", "--backend="+backend, full).CombinedOutput()
				if test.ours != "" {
					if err == nil || !strings.Contains(string(out), test.ours) {
						t.Errorf("our %s backend: %v\n%s", backend, err, out)
					}
					continue
				}
				if err != nil {
					t.Fatalf("our %s backend: %v\n%s", backend, err, out)
				}
				s, err := Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				ref, err := ParseReference(full)
				if err != nil {
					t.Fatal(err)
				}
				img, err := s.Image(ref)
				if err != nil {
					t.Fatal(err)
				}
				mount, mounted := mountImage(t, s, img, "")
				ours := describe(t, mounted)
				mount.Close()
				if _, err := exec.LookPath("systemd-mstack"); err == nil {
					stack, on := filepath.Join(dir, "it.mstack"), t.TempDir()
					must(t, "machinectl-lite", "--root="+dir, "export-mstack", full, stack)
					must(t, "systemd-mstack", "--mount", stack, on)
					theirs := describe(t, on)
					must(t, "systemd-mstack", "--umount", on)
					if diff := cmp.Diff(ours, theirs); diff != "" {
						t.Errorf("our %s backend has -, systemd's mount of the exported stack +:\n%s", backend, diff)
					}
				}
				for _, diffID := range img.Layers {
					if err := s.VerifyLayer(diffID); err != nil {
						t.Error(err)
					}
				}
				for peer, want := range peers {
					got, want := comparable(ours, want, start, peer)
					for _, name := range test.differ[peer] {
						if got[name] == want[name] {
							t.Errorf("%s is said to differ in %s: %s", peer, name, got[name])
						}
						delete(got, name)
						delete(want, name)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s has -, our %s backend +:\n%s", peer, backend, diff)
					}
					t.Logf("%s beside %s: %d files", backend, peer, len(got))
				}
			}
		})
	}
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// comparable leaves out what is not for the image to say, and where we know why we differ.
func comparable(ours, theirs map[string]string, start time.Time, peer string) (got, want map[string]string) {
	got, want = maps.Clone(ours), map[string]string{}
	for name, line := range theirs {
		// What an unpacker made unasked, or changed after it had set the time, has the time of now. Ours has the entry's; if the
		// uppermost layer has none, it is 0, where umoci has that of lower layers.
		fields, mine := strings.SplitN(line, " ", 4), strings.SplitN(got[name], " ", 4)
		if len(mine) > 2 && (fields[2] >= fmt.Sprint(start.Unix()) || mine[2] == "0.000000000") {
			fields[2], mine[2] = "any", "any"
			line, got[name] = strings.Join(fields, " "), strings.Join(mine, " ")
		}
		want[name] = line
	}
	if peer == "podman" {
		// Podman's image mounts have a root directory of their own.
		delete(got, ".")
		delete(want, ".")
	}
	return got, want
}

// bothLayers are the nasty ones as far as podman takes them, and more.
func bothLayers(t testing.TB) (layers [][]byte) {
	for _, entries := range nastyEntries() {
		layers = append(layers, makeTar(t, forPodman(entries)...))
	}
	// Neither podman nor umoci takes those of GNU's own format. We do.
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		data, _ := sparseTar(t, "--format=posix", "--sparse-version="+version)
		layers = append(layers, data)
	}
	// As long as a path can be that podman and umoci put one of their own before. What is longer TestHostileLayers has.
	var long []entry
	name := ""
	for len(name) < 3800 {
		name += strings.Repeat("p", 99) + "/"
		long = append(long, dir(name, 0o755))
	}
	long = append(long, file(name+strings.Repeat("q", 80), "x"))
	layers = append(layers, makeTar(t, long...), makeTar(t), makeTar(t))
	layers = append(layers, makeTar(t,
		file("types/old", "x").with(func(h *tar.Header) { h.Format = tar.FormatUSTAR }),
		file("types/gnu "+strings.Repeat("g", 200), "x").with(func(h *tar.Header) { h.Format = tar.FormatGNU; h.Uid = 1 << 30 }),
		symlink("types/gnu link", strings.Repeat("g", 200)).with(func(h *tar.Header) { h.Format = tar.FormatGNU }),
		file("types/pax "+strings.Repeat("ü", 100), "x").with(func(h *tar.Header) { h.Format = tar.FormatPAX; h.ModTime = time.Unix(1e9, 123456789) }),
	))
	return layers
}

// forPodman leaves out entries that a later one is for again, and whiteouts of what is there.
func forPodman(entries []entry) (out []entry) {
	clean := func(name string) string { return path.Clean("/" + name) }
	for i, e := range entries {
		hides := strings.Replace(e.Name, whiteoutPrefix, "", 1)
		again := slices.ContainsFunc(entries[i+1:], func(later entry) bool { return clean(later.Name) == clean(e.Name) })
		there := hides != e.Name && slices.ContainsFunc(entries[:i], func(earlier entry) bool { return clean(earlier.Name) == clean(hides) })
		if !again && !there {
			out = append(out, e)
		}
	}
	return out
}

// manyLayers are 200: each changes a file, adds one, and hides the one before.
func manyLayers(t testing.TB) (layers [][]byte) {
	for i := range 200 {
		entries := []entry{dir("./", 0o755), file("all", fmt.Sprint(i)), file(fmt.Sprintf("file %d", i), "x")}
		if i%2 == 1 {
			entries = append(entries, whiteout(fmt.Sprintf(".wh.file %d", i-1)))
		}
		layers = append(layers, makeTar(t, entries...))
	}
	return slices.Clip(layers)
}
