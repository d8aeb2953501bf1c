package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMount(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		img := addImage(t, w, "x", makeTar(t, dir("./", 0o711), file("a", "lower"), device("null", tar.TypeChar, 1, 3)))
		before, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		writable := t.TempDir()
		_, path := mountImage(t, s, img, writable)

		if after, _ := os.ReadFile("/proc/self/mountinfo"); !bytes.Equal(before, after) {
			t.Error("the mount shows on the host")
		}
		if _, err := os.ReadFile(path + "/null"); err == nil {
			t.Error("a device of the image can be opened")
		}
		if err := os.WriteFile(path+"/a", []byte("upper"), 0o644); err != nil {
			t.Error(err)
		}
		if data, _ := os.ReadFile(filepath.Join(writable, "upper", "a")); string(data) != "upper" {
			t.Errorf("the upper directory has %q", data)
		}
		if _, err := s.Mount(img, writable); err == nil {
			t.Error("two machines have one writable directory")
		}
		_, readOnly := mountImage(t, s, img, "")
		if err := os.WriteFile(readOnly+"/a", nil, 0o644); err == nil {
			t.Error("a read-only mount was written to")
		}
		if data, _ := os.ReadFile(readOnly + "/a"); string(data) != "lower" {
			t.Errorf("read-only, it has %q", data)
		}
		var stat unix.Stat_t
		for _, root := range []string{path, readOnly} {
			if err := unix.Stat(root+"/", &stat); err != nil || stat.Mode&0o7777 != 0o711 {
				t.Errorf("the root has mode %o, %v", stat.Mode, err)
			}
		}
	})
}

func TestMountOfNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		img := addImage(t, w, "scratch")
		for _, writable := range []string{"", t.TempDir()} {
			_, path := mountImage(t, s, img, writable)
			if tree := describe(t, path); len(tree) != 1 || !strings.HasPrefix(tree["."], "0040755 0:0 ") {
				t.Error(tree)
			}
		}
	})
}

func TestMountManyLayers(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		var layers [][]byte
		for i := range 200 {
			layers = append(layers, makeTar(t, dir("./", 0o700+int64(i%8)), file(fmt.Sprint(i), ""), file("all", fmt.Sprint(i))))
		}
		_, path := mountImage(t, s, addImage(t, w, "many", layers...), t.TempDir())
		if entries, err := os.ReadDir(path + "/"); err != nil || len(entries) != 201 {
			t.Error(len(entries), err)
		}
		if data, err := os.ReadFile(path + "/all"); string(data) != "199" {
			t.Error(string(data), err)
		}
	})
}

// An image may have a layer several times.
func TestMountLayerTwice(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		layer, hide := makeTar(t, dir("./", 0o711), file("a", "")), makeTar(t, whiteout(".wh.a"), file("b", ""))
		_, path := mountImage(t, s, addImage(t, w, "x", makeTar(t), layer, makeTar(t), hide, layer, makeTar(t)), "")
		if tree := describe(t, path); tree["a"] == "" || tree["b"] == "" || !strings.HasPrefix(tree["."], "0040711 ") {
			t.Error(tree)
		}
		_, path = mountImage(t, s, addImage(t, w, "y", layer, hide, layer, hide), "")
		if tree := describe(t, path); tree["a"] != "" || tree["b"] == "" {
			t.Error(tree)
		}
	})
}

// A whiteout of everything at the top hides the layers below, whatever they are.
func TestMountOpaqueRoot(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		img := addImage(t, w, "x", makeTar(t, file("below", "")), makeTar(t, file("a", ""), whiteout(".wh..wh..opq")), makeTar(t, file("b", "")))
		_, path := mountImage(t, s, img, "")
		if tree := describe(t, path); tree["below"] != "" || tree["a"] == "" || tree["b"] == "" {
			t.Error(tree)
		}
	})
}

// The way for kernels before 6.15 gives the same, and leaves nothing.
func TestMountAttached(t *testing.T) {
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		img := addImage(t, w, "x", makeTar(t, file("a", "1")), makeTar(t, file("b", "2")))
		before, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		mount, err := s.mountAttached(img, "", t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer mount.Close()
		if tree := describe(t, fdPath(mount)); len(tree) != 3 {
			t.Error(tree)
		}
		if after, _ := os.ReadFile("/proc/self/mountinfo"); !bytes.Equal(before, after) {
			t.Error("a layer shows on the host")
		}
		target := t.TempDir()
		if err := Attach(mount, target); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(target, unix.MNT_DETACH)
		if _, err := os.Stat(filepath.Join(target, "a")); err != nil {
			t.Error(err)
		}
	})
}

func TestMountErrors(t *testing.T) {
	needMounts(t)
	s, w := newStore(t)
	img := addImage(t, w, "x", makeTar(t, file("a", "1")))
	target := t.TempDir()
	mount, _ := mountImage(t, s, img, t.TempDir())
	if err := Attach(mount, target); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if _, err := s.Mount(img, target); err == nil || !strings.Contains(err.Error(), "is on an overlay") {
		t.Error(err)
	}
	if _, err := s.Mount(img, target+"/none"); err == nil {
		t.Error("a writable directory that is not there")
	}
	if err := os.Truncate(filepath.Join(s.layerDir(img.Layers[0]), indexFile), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(img, ""); err == nil || !strings.Contains(err.Error(), string(img.Layers[0])) {
		t.Error(err)
	}
}

// Setuid programs of an image work: whether a machine may use them is its unit's to say.
func TestMountSetuid(t *testing.T) {
	needMounts(t)
	id, err := exec.LookPath("id")
	if err != nil {
		t.Skip(err)
	}
	program, err := os.ReadFile(id)
	if err != nil {
		t.Fatal(err)
	}
	s, w := newStore(t)
	setuid := file("id", string(program))
	setuid.Mode = 0o4755
	img := addImage(t, w, "x", makeTar(t, dir("./", 0o755), setuid))
	target := t.TempDir()
	if err := os.Chmod(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	mount, _ := mountImage(t, s, img, "")
	if err := Attach(mount, target); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	cmd := exec.Command(target+"/id", "-u")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "0" {
		t.Errorf("%s %v", out, err)
	}
}

func BenchmarkMount(b *testing.B) {
	needMounts(b)
	for _, n := range []int{1, 5, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, w := newStore(b)
			var layers [][]byte
			for i := range n {
				layers = append(layers, makeTar(b, dir("./", 0o755), file(fmt.Sprint(i), "")))
			}
			img := addImage(b, w, "x", layers...)
			for b.Loop() {
				b.StopTimer()
				writable := b.TempDir()
				b.StartTimer()
				mount, err := s.Mount(img, writable)
				if err != nil {
					b.Fatal(err)
				}
				mount.Close()
			}
		})
	}
}

func TestMountForUsers(t *testing.T) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 1 << 16}}
	users, err := NewUsers(ids, ids)
	if err != nil {
		t.Fatal(err)
	}
	defer users.Namespace.Close()
	eachBackend(t, func(t *testing.T, s *Store, w *Writer) {
		t.Run("detached", func(t *testing.T) { testMountForUsers(t, s, w, users, s.MountFor) })
		t.Run("attached", func(t *testing.T) {
			testMountForUsers(t, s, w, users, func(img *Image, writable string, users *Users) (*os.File, error) {
				return s.mountAttached(img, "", writable, users)
			})
		}) // on older kernels
	})
}

func testMountForUsers(t *testing.T, s *Store, w *Writer, users *Users, mountFor func(*Image, string, *Users) (*os.File, error)) {
	base := uint32(users.uid)
	lower := file("a", "lower")
	lower.Uid, lower.Gid = 33, 44
	img := addImage(t, w, "x", makeTar(t, dir("./", 0o711), lower, file("b", "of root")))
	writable := t.TempDir()
	mount, err := s.Mount(img, writable) // as one that is filled
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fdPath(mount)+"/c", nil, 0o644); err != nil {
		t.Error(err)
	}
	mount.Close()
	if mount, err = mountFor(img, writable, users); err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	path := fdPath(mount)
	for name, want := range map[string]uint32{"": base, "a": base + 33, "b": base, "c": base} {
		var stat unix.Stat_t
		if err := unix.Stat(path+"/"+name, &stat); err != nil || stat.Uid != want {
			t.Errorf("%q has uid %d, not %d (%v)", name, stat.Uid, want, err)
		}
	}
	if err := os.WriteFile(path+"/d", nil, 0o644); err == nil {
		t.Error("who has no id in the namespace makes files")
	}
	become := exec.Command("sh", "-c", "cd "+path+" && echo x > d && echo y >> a && rm b && ln -s a e && mkdir f && rmdir f && mkdir f && mv a f/")
	become.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: base, Gid: base}, AmbientCaps: []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN}}
	become.ExtraFiles = []*os.File{mount}
	become.Args[2] = strings.ReplaceAll(become.Args[2], path, "/proc/self/fd/3")
	if out, err := become.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for name, want := range map[string]uint32{"d": 0, "f": 0, "f/a": 33, "b": 0, "c": 0} {
		var stat unix.Stat_t
		if err := unix.Lstat(filepath.Join(writable, "upper", name), &stat); err != nil || stat.Uid != want {
			t.Errorf("on disk, %q has uid %d, not %d (%v)", name, stat.Uid, want, err)
		}
	}
}
