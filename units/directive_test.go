package units

import (
	"strings"
	"testing"

	"nspawnd/cgroup"

	"github.com/google/go-cmp/cmp"
)

func TestParseDirective(t *testing.T) {
	for _, c := range []struct {
		in      string
		manager int
		want    []Property // nil: refused
	}{
		{"MemoryMax=64M", 257, []Property{{"MemoryMax", uint64(64 << 20)}}},
		{"MemoryMax=infinity", 257, []Property{{"MemoryMax", uint64(cgroup.Infinity)}}},
		{"MemoryMax=x", 257, nil},
		{"MemoryMax=", 257, []Property{{"MemoryMax", uint64(cgroup.Infinity)}}},
		{"CPUQuota=150%", 257, []Property{{"CPUQuotaPerSecUSec", uint64(1_500_000)}}},
		{"CPUQuota=150", 257, nil},
		{"TimeoutStopSec=1min 30s", 257, []Property{{"TimeoutStopUSec", uint64(90_000_000)}}},
		{"TimeoutStopSec=1.5", 257, []Property{{"TimeoutStopUSec", uint64(1_500_000)}}},
		{"TimeoutStopSec=1 parsec", 257, nil},
		{"NoNewPrivileges=no", 257, []Property{{"NoNewPrivileges", false}}},
		{"NoNewPrivileges=maybe", 257, nil},
		{"KillSignal=SIGRTMIN+3", 257, []Property{{"KillSignal", int32(37)}}},
		{"LimitNOFILE=1024:4096", 257, []Property{{"LimitNOFILE", uint64(4096)}, {"LimitNOFILESoft", uint64(1024)}}},
		{"LimitNOFILE=9:1", 257, nil},
		{"CapabilityBoundingSet=CAP_CHOWN CAP_KILL", 257, []Property{{"CapabilityBoundingSet", uint64(33)}}},
		{"CapabilityBoundingSet=CAP_NOPE", 257, nil},
		{"SystemCallFilter=~@mount reboot", 257, []Property{{"SystemCallFilter", Filter{false, []string{"@mount", "reboot"}}}}},
		{`Environment=A=b "C=d e"`, 257, []Property{{"Environment", []string{"A=b", "C=d e"}}}},
		{`Environment="A=b`, 257, nil},
		{"BindPaths=/a:/b:norbind -/c", 257, []Property{{"BindPaths", []Bind{{"/a", "/b", false, 0}, {"/c", "/c", true, Recursive}}}}},
		{"BindPaths=a:/b", 257, nil},
		{"TemporaryFileSystem=/tmp:size=10M", 257, []Property{{"TemporaryFileSystem", []Tmpfs{{"/tmp", "size=10M"}}}}},
		{"DeviceAllow=/dev/fuse rw", 257, []Property{{"DeviceAllow", []Pair{{"/dev/fuse", "rw"}}}}},
		{"UMask=0027", 257, []Property{{"UMask", uint32(0o027)}}},
		{"ProtectHostname=private:x", 258, []Property{{"ProtectHostnameEx", Pair{"private", "x"}}}},
		{"ProtectHostname=private:x", 257, nil},
		{"ExecStart=/bin/x", 257, nil},
		{"Nonsense=1", 257, nil},
		{"MemoryMax", 257, nil},
	} {
		d, err := ParseDirective(c.in, c.manager)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if err == nil {
			if diff := cmp.Diff(c.want, (Unit{Directives: []Directive{d}}).Properties()); diff != "" {
				t.Errorf("%s:\n%s", c.in, diff)
			}
		}
	}
}

// What a directive's text form says must be what its parser reads.
func TestTextReadsBack(t *testing.T) {
	for _, in := range []string{"MemoryMax=67108864", "CPUQuota=150%", "TimeoutStopSec=90s", "KillSignal=SIGQUIT", "UMask=0027",
		"LimitNOFILE=1024:4096", "CapabilityBoundingSet=CAP_CHOWN CAP_KILL", "SystemCallFilter=~@mount reboot", "NoNewPrivileges=yes",
		"BindPaths=/a:/b:norbind", "TemporaryFileSystem=/tmp:size=10M", "DeviceAllow=/dev/fuse rw", "ProtectHostname=private:x", "Nice=-5"} {
		d, err := ParseDirective(in, 262)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := (Unit{Directives: []Directive{d}}).Text(); !strings.Contains(got, in+"\n") {
			t.Errorf("%s became %s", in, got)
		}
	}
}

func TestNamesAndVolumes(t *testing.T) {
	for name, want := range map[string]bool{"web": true, "my-app-2.x": true, "my_app": false, "": false, "-a": false, "a..b": false, "a/b": false, ".": false,
		strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "a\x1b": false, "ä": false, "a-": false} {
		if ValidName(name) != want {
			t.Errorf("ValidName(%q) is %v", name, !want)
		}
	}
	for in, want := range map[string]string{"nginx": "nginx", "a__b": "a--b", "--": "machine", "ä!x": "x"} {
		if got := MachineNameFrom(in); got != want || !ValidName(got+".012345") {
			t.Errorf("MachineNameFrom(%q) is %q", in, got)
		}
	}
}

func FuzzSplitWords(f *testing.F) {
	f.Add(`a "b c" 'd' e\ f`)
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			return
		}
		for _, w := range words {
			if strings.ContainsAny(w, "%") || strings.IndexFunc(w, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0 {
				continue // these have an escape that only systemd reads
			}
			if back, err := splitWords(quoteWord(w)); err != nil || len(back) != 1 || back[0] != w {
				t.Errorf("%q was written %s and read back %q, %v", w, quoteWord(w), back, err)
			}
		}
	})
}
