package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newRoot gives a tree to look things up in, below a directory with a file that nothing in the tree may reach.
func newRoot(t *testing.T) (*Root, string) {
	t.Helper()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(outside, "root")
	for _, name := range []string{"usr/bin", "etc", "bin", "work/sub", "usr/local/sbin"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]fs.FileMode{"usr/bin/tool": 0o755, "bin/data": 0o644, "usr/bin/data": 0o644, "work/run": 0o755, "work/tool": 0o700, "etc/file": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"escape": "../secret", "absolute": "/../../secret", "host": outside + "/secret", "magic": "/proc/self/root/etc/passwd",
		"sh": "usr/bin/tool", "abs": "/usr/bin/tool", "loop": "loop", "dangling": "/etc/new", "dangling2": "/none/new",
		"bin/linked": "../work/run", "to-etc": "/etc", "fifo-link": "fifo",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NewRoot(f), dir
}

func TestRootReadFile(t *testing.T) {
	r, dir := newRoot(t)
	for name, want := range map[string]string{
		"etc/file": "etc/file", "/etc/file": "etc/file", "../../etc/file": "etc/file", "sh": "usr/bin/tool", "abs": "usr/bin/tool", "to-etc/file": "etc/file",
	} {
		if got, err := r.ReadFile(name, 100); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"escape": "no such file", "absolute": "no such file", "host": "no such file", "magic": "no such file", "loop": "too many levels",
		"fifo": "not a regular file", "fifo-link": "not a regular file", "etc": "not a regular file", "none": "no such file",
	} {
		if got, err := r.ReadFile(name, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := r.ReadFile("etc/file", 7); err == nil || !strings.Contains(err.Error(), "larger than 7 bytes") {
		t.Error(err)
	}
	if _, err := r.ReadFile("etc/file", 8); err != nil {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadFile("null", 1); err == nil {
			t.Error("a device was opened")
		}
		if err := r.WriteFile("null", []byte("x"), 0o600); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "null")); string(data) != "x" {
			t.Errorf("a device was not replaced: %q, %v", data, err)
		}
	}
}

func TestRootWriteFile(t *testing.T) {
	r, dir := newRoot(t)
	for name, lands := range map[string]string{"etc/file": "etc/file", "etc/new file": "etc/new file", "dangling": "etc/new", "sh": "usr/bin/tool"} {
		if err := r.WriteFile(name, []byte("x"), 0o640); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, lands)); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	for _, name := range []string{"dangling2", "fifo-link", "fifo", "loop"} {
		if err := r.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() || info.Size() != 1 {
			t.Errorf("%s was not replaced: %v, %v", name, info, err)
		}
	}
	for _, name := range []string{"etc", "none/x"} {
		if err := r.WriteFile(name, []byte("x"), 0o600); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	r.WriteFile("escape", []byte("x"), 0o600)
	r.WriteFile("host", []byte("x"), 0o600)
	if data, _ := os.ReadFile(filepath.Join(dir, "..", "secret")); string(data) != "secret" {
		t.Errorf("outside, there is %q", data)
	}
}

func TestRootMkdirAll(t *testing.T) {
	r, dir := newRoot(t)
	for name, lands := range map[string]string{"a/b/c": "a/b/c", "/x/y": "x/y", "to-etc/d": "etc/d", "work": "work", "../up": "up"} {
		if err := r.MkdirAll(name, 0o750, uint32(os.Getuid()), uint32(os.Getgid())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		info, err := os.Stat(filepath.Join(dir, lands))
		if err != nil || !info.IsDir() || name != "work" && info.Mode().Perm() != 0o750 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, name := range []string{"etc/file", "etc/file/x", "loop/x", "dangling/x"} {
		if err := r.MkdirAll(name, 0o755, 0, 0); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

func TestLookPath(t *testing.T) {
	r, _ := newRoot(t)
	for _, test := range []struct {
		argv0, path, workdir, want string
		err                        error
	}{
		{"tool", "", "", "/usr/bin/tool", nil},
		{"tool", "/none:/usr/bin", "", "/usr/bin/tool", nil},
		{"tool", ":/usr/bin", "work", "/work/tool", nil},
		{"tool", "sub:../usr/bin", "/work", "/work/../usr/bin/tool", nil},
		{"linked", "/bin", "/", "/bin/linked", nil},
		{"/sh", "", "", "/sh", nil},
		{"./run", "", "/work", "/work/run", nil},
		{"sub/../run", "", "/work", "/work/sub/../run", nil},
		{"../sh", "", "/work", "/work/../sh", nil},
		{"data", "/bin", "", "", ErrCommandNotExecutable},
		{"data", "/bin:/none", "", "", ErrCommandNotExecutable},
		{"none", "", "", "", ErrCommandNotFound},
		{"", "", "", "", ErrCommandNotFound},
		{"/escape", "", "", "", ErrCommandNotFound},
		{"/host", "", "", "", ErrCommandNotFound},
		{"/etc", "", "", "", ErrCommandNotExecutable},
		{"etc", "/", "", "", ErrCommandNotExecutable},
		{"/etc/file/x", "", "", "", ErrCommandNotFound},
		{"/fifo", "", "", "", ErrCommandNotExecutable},
		{"/loop", "", "", "", ErrCommandNotExecutable},
		{"/" + strings.Repeat("x", 300), "", "", "", ErrCommandNotExecutable},
	} {
		got, err := r.LookPath(test.argv0, test.path, test.workdir)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%q in %q from %q: %q, %v", test.argv0, test.path, test.workdir, got, err)
		}
	}
}

const passwd = `# a comment
root:x:0:0:root:/root:/bin/sh

app:x:1000:1001:App:/home/app:/bin/sh
short:x:1002:1003
1000:x:5:5::/:
odd:x:notanumber:5::/:
nohome:x:7:7:::
+::::::
:x:9:9::/:
`

const group = `root:x:0:
app:x:1001:
wheel:x:10:root,app
audio:x:29:app,app2
audio:x:29:app
big:x:4294967295:app
staff:x:50:
`

func TestUser(t *testing.T) {
	for _, test := range []struct {
		spec string
		want User
	}{
		{"", User{UID: 0, GID: 0, Groups: []uint32{10}, Home: "/root", Name: "root", Shell: "/bin/sh", Group: "root"}},
		{"root", User{UID: 0, GID: 0, Groups: []uint32{0, 10}, Home: "/root", Name: "root", Shell: "/bin/sh", Group: "root"}},
		{"app", User{UID: 1000, GID: 1001, Groups: []uint32{10, 29, 1001}, Home: "/home/app", Name: "app", Shell: "/bin/sh", Group: "app"}},
		{"1000", User{UID: 1000, GID: 1001, Groups: []uint32{10, 29, 1001}, Home: "/home/app", Name: "app", Shell: "/bin/sh", Group: "app"}},
		{"app:staff", User{UID: 1000, GID: 50, Group: "staff", Groups: []uint32{50}, Home: "/home/app", Name: "app", Shell: "/bin/sh"}},
		{"app:77", User{UID: 1000, GID: 77, Groups: []uint32{77}, Home: "/home/app", Name: "app", Shell: "/bin/sh"}},
		{"app:", User{UID: 1000, GID: 1001, Groups: []uint32{10, 29, 1001}, Home: "/home/app", Name: "app", Shell: "/bin/sh", Group: "app"}},
		{":staff", User{UID: 0, GID: 50, Group: "staff", Groups: []uint32{50}, Home: "/root", Name: "root", Shell: "/bin/sh"}},
		{"4294967294", User{UID: 4294967294, Groups: []uint32{0}, Group: "root"}},
		{"12345:23456", User{UID: 12345, GID: 23456, Groups: []uint32{23456}}},
		{"short", User{UID: 1002, GID: 1003, Groups: []uint32{1003}, Home: "/", Name: "short"}},
		{"nohome", User{UID: 7, GID: 7, Groups: []uint32{7}, Home: "/", Name: "nohome"}},
	} {
		got, err := findUser(test.spec, []byte(passwd), []byte(group))
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", test.spec, err, diff)
		}
	}
	for _, spec := range []string{"nobody", "odd", "app:none", "-1", "4294967295", "99999999999", "app:4294967295", "a:b:c", " ", "+"} {
		if got, err := findUser(spec, []byte(passwd), []byte(group)); err == nil {
			t.Errorf("%q: %+v", spec, got)
		}
	}
}

func TestMoreGroups(t *testing.T) {
	got, err := findUser("app:staff", []byte(passwd), []byte(group), "audio", "4000", "50", "29")
	if diff := cmp.Diff([]uint32{29, 50, 4000}, got.Groups); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := findUser("app", []byte(passwd), []byte(group), "none"); err == nil {
		t.Error("a group that is not there")
	}
}

func TestAddUser(t *testing.T) {
	r, dir := newRoot(t)
	read := func(name string) string { data, _ := os.ReadFile(filepath.Join(dir, name)); return string(data) }
	if err := r.AddUser(User{UID: 5, GID: 6}, "/data:x"); err != nil {
		t.Fatal(err)
	}
	if passwd, group := read("etc/passwd"), read("etc/group"); passwd != "5:*:5:6:container user:/:/bin/sh\n" || group != "6:x:6:5\n" {
		t.Errorf("%q, %q", passwd, group)
	}
	os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh"), 0o644)
	for range 2 {
		user, err := r.User("7:6")
		if err == nil {
			err = r.AddUser(user, "/data")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if passwd, group := read("etc/passwd"), read("etc/group"); passwd != "root:x:0:0::/root:/bin/sh\n7:*:7:6:container user:/data:/bin/sh\n" || group != "6:x:6:5\n" {
		t.Errorf("%q, %q", passwd, group)
	}
}

func TestUserOfRoot(t *testing.T) {
	r, dir := newRoot(t)
	if got, err := r.User("5"); err != nil || got.UID != 5 {
		t.Error("without files:", got, err)
	}
	if _, err := r.User("app"); err == nil || err.Error() != `user "app": no such user in the image's /etc/passwd` {
		t.Error(err)
	}
	os.WriteFile(filepath.Join(dir, "etc/real"), []byte(passwd), 0o644)
	os.Symlink("/etc/real", filepath.Join(dir, "etc/passwd"))
	if got, err := r.User("app"); err != nil || got.UID != 1000 {
		t.Error(got, err)
	}
	unix.Mkfifo(filepath.Join(dir, "etc/group"), 0o644)
	if _, err := r.User("app"); err == nil {
		t.Error("a FIFO is no list of groups")
	}
	os.Remove(filepath.Join(dir, "etc/group"))
	os.WriteFile(filepath.Join(dir, "etc/group"), make([]byte, maxAccounts+1), 0o644)
	if _, err := r.User("app"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("app:staff", passwd, group)
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		user, err := findUser(spec, []byte(passwd), []byte(group))
		if err == nil && (user.UID > maxID || user.GID > maxID || len(user.Groups) > maxGroups) {
			t.Errorf("%+v", user)
		}
	})
}
