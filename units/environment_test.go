package units

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMergeEnvironment(t *testing.T) {
	image := []string{"A=1", "BARE", "PATH=/bin", "ODD.name=x"}
	for _, c := range []struct {
		name string
		o    Options
		want string // "": refused
	}{
		{"the image's", Options{}, "container=nspawnd A=1 PATH=/bin ODD.name=x"},
		{"the caller's are below the image's", Options{HostEnv: []string{"A=h", "H=h"}}, "container=nspawnd H=h A=1 PATH=/bin ODD.name=x"},
		{"merged", Options{MergeEnv: []string{"PATH=$PATH:/x", "N=${PATH}", `E=\$A-$$A$`, "D=${NONE:-d}${BARE:-b}${A:-z}", "P=${A:+yes}${NONE:+no}"}},
			"container=nspawnd A=1 ODD.name=x PATH=/bin:/x N=/bin:/x E=$A-$1$ D=db1 P=yes"},
		{"unset", Options{UnsetEnv: []string{"A", "PATH", "none"}, Env: []string{"A=2"}}, "container=nspawnd ODD.name=x A=2"},
		{"all unset", Options{UnsetAllEnv: true, MergeEnv: []string{"M=1"}, Env: []string{"E="}}, "E="},
		{"unfinished", Options{MergeEnv: []string{"A=${B"}}, ""},
		{"no name", Options{MergeEnv: []string{"A=${}"}}, ""},
		{"another operator", Options{MergeEnv: []string{"A=${B?}"}}, ""},
		{"another operator", Options{MergeEnv: []string{"A=${B##x}"}}, ""},
		{"not assigned", Options{MergeEnv: []string{"A"}}, ""},
	} {
		got, err := mergeEnvironment(image, c.o)
		if strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	caller := []string{"HOME=/root", "LC_A=a", "LC_B=b=c", "EMPTY="}
	got, err := ParseEnvFile(" A=1\r\n#c\n\t# c\nB =2 \nC=\"q\" # no comment\n\nLC_*\nNOPE\nHOME\nEMPTY\nD=\nE=a=b", caller)
	want := []string{"A=1", "B =2 ", `C="q" # no comment`, "LC_A=a", "LC_B=b=c", "HOME=/root", "EMPTY=", "D=", "E=a=b"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err := ParseEnvFile("A=1\n=2\n", nil); err == nil || !strings.HasPrefix(err.Error(), "line 2: ") {
		t.Error(got, err)
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$A${B:-x}\\$")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := environment{"A=b"}.expand(s)
		if err == nil && !strings.ContainsAny(s, `$\`) && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
