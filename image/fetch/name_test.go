package fetch

import (
	"fmt"
	"path/filepath"
	"testing"

	"go.podman.io/image/v5/types"
)

func TestResolveName(t *testing.T) {
	l := newLab(t)
	for i, test := range []struct {
		config, name string
		want         string
		ask, enforce bool
	}{
		{``, "nginx", "[docker.io/library/nginx:latest]", false, false},
		{``, "a.test/x:1", "[a.test/x:1]", false, false},
		{"unqualified-search-registries = [\"a.test\"]", "nginx:1", "[a.test/nginx:1]", false, false},
		{"unqualified-search-registries = [\"a.test\", \"docker.io\"]", "nginx", "[a.test/nginx:latest docker.io/library/nginx:latest]", true, false},
		{"unqualified-search-registries = [\"a.test\", \"b.test\"]\nshort-name-mode = \"enforcing\"", "x/y", "[a.test/x/y:latest b.test/x/y:latest]", true, true},
		{"unqualified-search-registries = [\"a.test\", \"b.test\"]\nshort-name-mode = \"disabled\"", "x", "[a.test/x:latest b.test/x:latest]", false, false},
		{"unqualified-search-registries = [\"a.test\", \"b.test\"]\n[aliases]\n\"x\" = \"c.test/team/x\"", "x:2", "[c.test/team/x:2]", false, false},
	} {
		system := *l.system
		system.SystemRegistriesConfPath = l.write(fmt.Sprint(i, ".conf"), test.config)
		system.UserShortNameAliasConfPath = filepath.Join(l.etc, "aliases")
		got, err := ResolveName(&system, test.name)
		if err != nil || fmt.Sprint(got.References) != test.want || got.Ask != test.ask || got.Enforce != test.enforce {
			t.Errorf("%s %s: %+v %v", test.config, test.name, got, err)
		}
	}
	if _, err := ResolveName(&types.SystemContext{SystemRegistriesConfPath: l.write("bad.conf", "= no toml")}, "x"); err == nil {
		t.Error("a broken registries.conf")
	}
}
