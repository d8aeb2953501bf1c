package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// trustDirs makes directories of rules from PATH → content; "link" is a link to /dev/null.
func trustDirs(t *testing.T, files map[string]string) []string {
	t.Helper()
	top := t.TempDir()
	dirs := []string{filepath.Join(top, "etc"), filepath.Join(top, "usr")}
	for name, content := range files {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if content == "link" {
			os.Symlink("/dev/null", path)
		} else if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dirs
}

func rule(prefix, key string) string {
	return `{"prefix":"` + prefix + `","keys":[{"type":"gpg","file":"` + key + `"}]}`
}

func TestReadTrust(t *testing.T) {
	dirs := trustDirs(t, map[string]string{
		"usr/vendor.json":     rule("vendor.test", "vendor.gpg"),
		"usr/overridden.json": rule("old.test", "x"),
		"etc/overridden.json": rule("new.test", "/abs"),
		"usr/masked.json":     rule("masked.test", "x"),
		"etc/masked.json":     "link",
		"usr/emptied.json":    rule("emptied.test", "x"),
		"etc/emptied.json":    "",
		"etc/README":          "not a rule",
		"etc/.hidden.json":    "{",
	})
	rules, err := ReadTrust(dirs)
	if err != nil {
		t.Fatal(err)
	}
	want := []TrustRule{
		{Path: dirs[0] + "/overridden.json", Prefix: "new.test", Keys: []TrustKey{{Type: KeyGPG, File: "/abs"}}},
		{Path: dirs[1] + "/vendor.json", Prefix: "vendor.test", Keys: []TrustKey{{Type: KeyGPG, File: dirs[1] + "/vendor.gpg"}}},
	}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Error(diff)
	}
	if rules, err := ReadTrust([]string{"/none/a", "/none/b"}); rules != nil || err != nil {
		t.Error(rules, err)
	}
}

func TestReadTrustErrors(t *testing.T) {
	for content, want := range map[string]string{
		"{":                               "unexpected",
		`{"prefix":"a.test"}`:             "no keys",
		`{"prefix":"a.test","keys":[{}]}`: "unknown type of key",
		`{"prefix":"a.test","keys":[{"type":"gpg"}]}`:                     "without file",
		`{"prefix":"a.test","keys":[{"type":"gpg","file":"x"}],"typo":1}`: "unknown field",
		rule("a.test", "x") + "{}":                                        "more than one object",
		rule("", "x"):                                                     "prefix",
		rule("team/app", "x"):                                             "write names in full, docker.io/team/app",
		rule("a.test/", "x"):                                              "prefix",
		rule("a.test/UPPER", "x"):                                         "prefix",
		rule("a.test/x:tag", "x"):                                         "prefix",
		rule("*.a.test/path", "x"):                                        "wildcard",
		rule("*x", "x"):                                                   "prefix",
		`{"prefix":"a.test","keys":[{"type":"gpg","file":"x"}],"lookaside":"ftp://x"}`: "lookaside",
	} {
		dirs := trustDirs(t, map[string]string{"etc/r.json": content})
		if _, err := ReadTrust(dirs); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "etc/r.json") {
			t.Errorf("%s: %v", content, err)
		}
	}
	for _, prefix := range []string{"*", "*.test", "*.a.test", "a.test", "a.test:5000", "localhost", "a.test:5000/b/c", "docker.io/library"} {
		if err := checkPrefix(prefix); err != nil {
			t.Error(err)
		}
	}
}

func TestAddAndRemoveTrust(t *testing.T) {
	dirs := trustDirs(t, map[string]string{"usr/a.test+team.json": rule("a.test/team", "vendor.gpg")})
	add := func(prefix string, keyType KeyType, fingerprint, lookaside string) {
		t.Helper()
		if _, err := AddTrust(dirs, prefix, TrustKey{Type: keyType}, fingerprint, []byte(fingerprint), lookaside); err != nil {
			t.Fatal(err)
		}
	}
	prefixes := func() (all []string) {
		t.Helper()
		rules, err := ReadTrust(dirs)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			all = append(all, rule.Prefix+" "+filepath.Base(filepath.Dir(rule.Path)))
		}
		return all
	}
	add("a.test", KeyGPG, "AB", "https://a.test/sigs")
	add("a.test", KeySigstore, "cd", "")
	add("a.test", KeySigstore, "cd", "")
	add("*", KeySigstore, "cd", "")
	add("*.test", KeySigstore, "cd", "")
	rules, err := ReadTrust(dirs)
	if err != nil {
		t.Fatal(err)
	}
	want := []TrustRule{{Path: dirs[0] + "/a.test.json", Prefix: "a.test", Lookaside: "https://a.test/sigs", Keys: []TrustKey{{Type: KeyGPG, File: dirs[0] + "/a.test.AB.gpg"}, {Type: KeySigstore, File: dirs[0] + "/a.test.cd.pub"}}}}
	if diff := cmp.Diff(want, TrustFor(rules, "a.test")); diff != "" {
		t.Error(diff)
	}
	if data, err := os.ReadFile(dirs[0] + "/a.test.AB.gpg"); string(data) != "AB" {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"* etc", "*.test etc", "a.test/team usr", "a.test etc"}, prefixes()); diff != "" {
		t.Error(diff)
	}
	for _, prefix := range []string{"a.test", "a.test/team", "*"} {
		if _, err := RemoveTrust(dirs, prefix); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"*.test etc"}, prefixes()); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(dirs[0] + "/a.test*"); len(left) != 1 || filepath.Base(left[0]) != "a.test+team.json" {
		t.Errorf("left over: %s", left)
	}
	if _, err := RemoveTrust(dirs, "a.test"); err == nil {
		t.Error("removed twice")
	}
	before := dirs
	// A vendor's rule is not lost when a key is added to it.
	dirs = trustDirs(t, map[string]string{"usr/a.test.json": rule("a.test", "vendor.gpg")})
	add("a.test", KeyGPG, "AB", "")
	rules, err = ReadTrust(dirs)
	if err != nil || len(rules) != 1 || len(rules[0].Keys) != 2 || rules[0].Keys[0].File != dirs[1]+"/vendor.gpg" {
		t.Error(rules, err)
	}
	dirs = before
	// A masked vendor's rule gives way to a new one.
	add("a.test/team", KeyGPG, "EF", "")
	if diff := cmp.Diff([]string{"*.test etc", "a.test/team etc"}, prefixes()); diff != "" {
		t.Error(diff)
	}
	if _, err := AddTrust(dirs, "a.test", TrustKey{Type: KeyGPG}, "x", nil, "ftp://x"); err == nil {
		t.Error("a lookaside of another kind")
	}
}

func FuzzParseTrustRule(f *testing.F) {
	f.Add([]byte(rule("a.test/b", "x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		rule, err := parseTrustRule(data, "/dir")
		if err != nil {
			return
		}
		if name := trustFile(rule.Prefix); strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
			t.Errorf("the rule for %q would be in %q", rule.Prefix, name)
		}
	})
}

func FuzzTrustRule(f *testing.F) {
	f.Add([]byte(`{"prefix": "a.test/team", "keys": [{"type": "gpg", "file": "x.gpg"}], "lookaside": "https://a.test"}`))
	f.Add([]byte(`{"prefix": "*.test", "keys": [{"type": "keyless", "file": "/root.json", "issuer": "https://i", "subject": "s@i"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rule, err := parseTrustRule(data, "/dir")
		if err != nil {
			return
		}
		if len(rule.Keys) == 0 || rule.Prefix == "" {
			t.Errorf("trusts nobody or nothing: %+v", rule)
		}
		for _, key := range rule.Keys {
			if !filepath.IsAbs(key.File) || (key.Type == KeyKeyless) != (key.Subject != "") {
				t.Errorf("%+v", key)
			}
		}
	})
}

// A change of any input is noticed, also one that leaves size and content as they were, and a stamp is not made of files that are changing.
func TestInputs(t *testing.T) {
	dir := t.TempDir()
	file, absent := filepath.Join(dir, "file"), filepath.Join(dir, "absent")
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settled := func() Inputs {
		for {
			if in := StampInputs([]string{dir, file, absent}); in.Stamp != "" {
				return in
			}
		}
	}
	write(file)
	if in := StampInputs([]string{file}); in.Stamp != "" || in.Current(time.Now()) {
		t.Error("a stamp of a file that has changed just now")
	}
	for name, change := range map[string]func(){
		"written": func() { write(file) },
		"replaced": func() {
			write(file + ".new")
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		},
		"made": func() { write(absent) },
		"gone": func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		write(file)
		os.Remove(absent)
		in := settled()
		if !in.Current(time.Now()) {
			t.Errorf("%s: not current before", name)
		}
		change()
		if in.Current(time.Now()) {
			t.Errorf("%s: still current", name)
		}
	}
	write(file)
	in := settled()
	in.Until = time.Now().Add(time.Hour)
	if !in.Current(time.Now()) || in.Current(time.Now().Add(2*time.Hour)) {
		t.Error("a key's end")
	}
}
