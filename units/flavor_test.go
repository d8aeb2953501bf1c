package units

import (
	"strings"
	"testing"
)

// Each directive that systemd-nspawn has an option for, as a user may give it.
func TestNspawnOptions(t *testing.T) {
	samples := map[string][2]string{
		"BindPaths": {"/a:/b", "--bind=/a:/b:rbind"}, "BindReadOnlyPaths": {"/a:/b:norbind", "--bind-ro=/a:/b:norbind"},
		"TemporaryFileSystem": {"/t:size=1M", "--tmpfs=/t:size=1M"}, "Environment": {"\"A=b c\"", "--setenv=A=b c"}, "WorkingDirectory": {"/w", "--chdir=/w"},
		"PrivateNetwork": {"yes", "--private-network"}, "NetworkNamespacePath": {"/n", "--network-namespace-path=/n"},
		"NoNewPrivileges": {"yes", "--no-new-privileges=yes"}, "CapabilityBoundingSet": {"CAP_CHOWN", "--capability=CAP_CHOWN"},
		"SELinuxContext": {"a:b:c:d", "--selinux-context=a:b:c:d"}, "OOMScoreAdjust": {"-5", "--oom-score-adjust=-5"}, "Personality": {"x86-64", "--personality=x86-64"},
		"KillSignal": {"SIGINT", "--kill-signal=2"}, "LoadCredential": {"a:/b", "--load-credential=a:/b"}, "LimitNOFILE": {"1:2", "--rlimit=NOFILE=1:2"},
	}
	for name, option := range nspawnDirectives {
		if _, ok := samples[name]; !ok && option != nil {
			t.Errorf("no sample for %s", name)
		}
	}
	for name, sample := range samples {
		d, err := ParseDirective(name+"="+sample[0], 262)
		if err != nil {
			t.Error(err)
			continue
		}
		service := Unit{Name: "x.service", Directives: []Directive{d, {"ExecStart", Command{Path: "/p", Argv: []string{"/p"}}}}}
		u, err := Machine{Name: "x", Root: "/root"}.nspawn(service)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(u.Properties()) != len(u.Directives) || !strings.Contains(u.Text(), "Delegate=yes\n") {
			t.Errorf("%s: %v\n%s", name, u.Properties(), u.Text())
		}
		if argv := strings.Join(u.Get("ExecStart").(Command).Argv, "\n"); !strings.Contains(argv, "\n"+sample[1]+"\n") {
			t.Errorf("%s=%s: no %q in\n%s", name, sample[0], sample[1], argv)
		}
	}
}
