package units

import (
	"slices"
	"strings"
	"testing"
)

func TestCapabilityList(t *testing.T) {
	mask := func(names string) uint64 {
		m, err := ParseCapabilities(names)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct {
		add, drop []string
		want      uint64
	}{
		{nil, nil, DefaultCapabilities},
		{[]string{"net_admin", "CAP_SYS_TIME"}, nil, DefaultCapabilities | mask("NET_ADMIN SYS_TIME")},
		{[]string{"NET_ADMIN,SYS_TIME"}, []string{"chown"}, (DefaultCapabilities | mask("NET_ADMIN SYS_TIME")) &^ mask("CHOWN")},
		{nil, []string{"all"}, 0},
		{[]string{"CHOWN"}, []string{"ALL"}, mask("CHOWN")},
		{[]string{"ALL"}, nil, allCapabilities &^ deviceCapabilities},
		{[]string{"ALL"}, []string{"CHOWN"}, allCapabilities &^ deviceCapabilities &^ 1},
	} {
		var s Security
		var err, err2 error
		s.AddCapabilities, err = ParseCapabilityList(c.add)
		s.DropCapabilities, err2 = ParseCapabilityList(c.drop)
		if err != nil || err2 != nil || s.capabilities() != c.want {
			t.Errorf("add %v, drop %v: %x, want %x (%v, %v)", c.add, c.drop, s.capabilities(), c.want, err, err2)
		}
	}
	for _, bad := range []string{"", "NO_SUCH", "CHOWN,", "~CHOWN", "CHOWN KILL X"} {
		if _, err := ParseCapabilityList([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSecurityOptions(t *testing.T) {
	for option, want := range map[string]string{
		"no-new-privileges=maybe": "neither yes nor no", "seccomp=": "no value", "mask=proc": "not an absolute path",
		"label=x:y": "none of disable", "label=type:": "none of disable", "systempaths=x": "unconfined", "nonsense": "none of", "apparmor": "no value",
	} {
		if err := new(Security).ParseSecurityOption(option); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", option, err)
		}
	}
	var s Security
	for _, option := range []string{"label=type:my_t", "label=level:s0:c1,c2", "no-new-privileges:false", "unmask=/proc/k*:/sys/firmware", "mask=/etc/x/"} {
		if err := s.ParseSecurityOption(option); err != nil {
			t.Error(err)
		}
	}
	if s.SELinux != "system_u:system_r:my_t:s0:c1,c2" || !s.NewPrivileges {
		t.Errorf("%+v", s)
	}
	u := Unit{}
	Machine{Manager: 257, Security: s}.isolate(&u)
	masked := u.Get("InaccessiblePaths").([]string)
	if slices.Contains(masked, "-+/proc/kcore") || slices.Contains(masked, "-+/sys/firmware") || !slices.Contains(masked, "-+/proc/acpi") || !slices.Contains(masked, "-+/etc/x") {
		t.Errorf("masked: %v", masked)
	}
}

// docker's default profile in small: conditions on capabilities, architectures and arguments.
const seccompExample = `{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
	"syscalls": [
		{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
		{"names": ["pause"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM"},
		{"names": ["reboot"], "action": "SCMP_ACT_KILL"},
		{"names": ["only_s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}]}`

func TestSeccompProfile(t *testing.T) {
	p, err := ParseSeccompProfile([]byte(seccompExample))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		caps string
		want string
	}{
		{"", "SystemCallFilter=personality read write\nSystemCallFilter=~lsm_get_self_attr lsm_list_modules mount:38 mseal pause reboot:kill\nSystemCallErrorNumber=EPERM\n"},
		{"SYS_ADMIN", "SystemCallFilter=mount personality read write\nSystemCallFilter=~lsm_get_self_attr lsm_list_modules mseal pause reboot:kill\nSystemCallErrorNumber=EPERM\n"},
	} {
		caps, _ := ParseCapabilities(c.caps)
		var u Unit
		if calls := p.set(&u, caps); !slices.Equal(calls, []string{"personality"}) {
			t.Errorf("calls with conditions on arguments: %v", calls)
		}
		if text := u.Text(); !strings.Contains(text, c.want) {
			t.Errorf("with %q: %s", c.caps, text)
		}
	}
	for profile, want := range map[string]string{
		`{"defaultAction": "SCMP_ACT_TRACE"}`: "SCMP_ACT_TRACE", `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_NOTIFY"}]}`: "SCMP_ACT_NOTIFY",
		`{}`: "defaultAction", `[]`: "cannot unmarshal",
	} {
		if _, err := ParseSeccompProfile([]byte(profile)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", profile, err)
		}
	}
	p, err = ParseSeccompProfile([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}, {"names": ["getpid"], "action": "SCMP_ACT_LOG"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var u Unit
	p.set(&u, 0)
	if text := u.Text(); !strings.Contains(text, "SystemCallFilter=~chmod:EPERM\n") || !strings.Contains(text, "SystemCallLog=getpid\n") {
		t.Error(text)
	}
}

func TestAddressFamilies(t *testing.T) {
	for in, want := range map[string]string{
		"":                    "RestrictAddressFamilies=~AF_VSOCK\n",
		"AF_INET AF_UNIX":     "RestrictAddressFamilies=AF_INET AF_UNIX\n",
		"~AF_PACKET AF_INET6": "RestrictAddressFamilies=~AF_VSOCK\nRestrictAddressFamilies=~AF_PACKET AF_INET6\n",
	} {
		m := Machine{Name: "web", Manager: 262, Payload: Payload{Argv: []string{"x"}}, Path: "/x"}
		if in != "" {
			d, err := ParseDirective("RestrictAddressFamilies="+in, 262)
			if err != nil {
				t.Fatal(err)
			}
			m.Extra = []Directive{d}
		}
		set, err := m.Translate()
		if err != nil || !strings.Contains(set.Main.Text(), want) || strings.Count(set.Main.Text(), "RestrictAddressFamilies") != strings.Count(want, "\n") {
			t.Errorf("%s: %v\n%s", in, err, set.Main.Text())
		}
	}
}

func FuzzSeccompProfile(f *testing.F) {
	f.Add([]byte(seccompExample))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if p, err := ParseSeccompProfile(data); err == nil {
			p.set(&Unit{}, DefaultCapabilities)
		}
	})
}
