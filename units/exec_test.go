package units

import (
	"slices"
	"strings"
	"testing"
)

const runningUnit = `# This is a transient unit file
[Unit]
Description=web: Limit
LimitNOFILE=5

[Service]
ExecStart=
ExecStart=:"/run/nspawnd-launcher" "--"
RootDirectory=/run/nspawnd/web.1
PrivatePIDs=yes
TasksMax=3
MemoryMax=5M
MemoryDenyWriteExecute=yes
LimitNOFILE=7:8
CapabilityBoundingSet=cap_chown cap_sys_admin
NoNewPrivileges=yes
SystemCallFilter=read write
SystemCallFilter=~setns:EPERM unshare:EPERM
SystemCallFilter=sethostname
OOMScoreAdjust=9
PrivateUsers=no
`

func TestExecUnit(t *testing.T) {
	r := Running{Machine: "web-1", Env: []string{"PATH=/bin", "HOME=/root"}, WorkingDir: "/data", Slice: "machine.slice", Files: []string{runningUnit},
		Argv: []string{"/run/nspawnd-launcher", "--hostname=x", "--refuse-naming", "--bounding=1", "--ambient=2000", "--ids=7,8,9", "--quoted", `--env="a.b=c\xff"`, "--", "sh", "--ids=0,0"}}
	unit, err := ExecUnit(r, Exec{ID: "1", Argv: []string{"a b", "$x %n"}, Env: []string{"HOME=/h"}, Launcher: "/l"}, 257)
	if err != nil {
		t.Fatal(err)
	}
	account, err := r.PayloadAccount()
	if err != nil || unit.Name != `nspawnd-web\x2d1-exec-1.service` || account.UID != 7 {
		t.Errorf("%s as %v", unit.Name, account)
	}
	text := unit.Text()
	for _, line := range []string{
		`ExecStart=:/l "--exec=nspawnd-web\\x2d1.service" "--as=machinectl-lite: web-1" --ids=7,8,9 "--workdir=\"/data\"" --ambient=2000 --bounding=200001` +
			` --refuse=setns --refuse=unshare --refuse=sethostname --refuse=setdomainname "--env=\"PATH=/bin\"" "--env=\"a.b=c\\xff\"" "--env=\"HOME=/h\"" -- "\"a b\"" "\"$x %%n\""`,
		"LimitNOFILE=7:8", "NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes", "OOMScoreAdjust=9", "SystemCallFilter=setns unshare", "Slice=machine.slice",
		"CapabilityBoundingSet=CAP_CHOWN CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_ADMIN",
	} {
		if !slices.Contains(strings.Split(text, "\n"), line) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	for _, directive := range []string{"TasksMax", "MemoryMax", "PrivatePIDs", "RootDirectory", "PrivateUsers", "PartOf", "BindsTo"} {
		if unit.Get(directive) != nil {
			t.Errorf("%s= is for the machine alone", directive)
		}
	}

	// Another user has not the payload's ambient capabilities; with --privileged limits stay.
	unit, err = ExecUnit(r, Exec{ID: "1", Argv: []string{"x"}, Account: &Account{UID: 5, GID: 6}, Home: "/home", Launcher: "/l"}, 257)
	if text := unit.Text(); err != nil || strings.Contains(text, "--ambient") || !strings.Contains(text, `--ids=5,6`) || !strings.Contains(text, "HOME=/home") || strings.Contains(text, "HOME=/root") {
		t.Errorf("%v: %s", err, text)
	}
	unit, err = ExecUnit(r, Exec{ID: "1", Argv: []string{"x"}, Privileged: true, Launcher: "/l"}, 257)
	if unit.Get("CapabilityBoundingSet") != nil || unit.Get("SystemCallFilter") != nil || unit.Get("NoNewPrivileges") != nil || unit.Get("LimitNOFILE") == nil || err != nil {
		t.Errorf("%v: %s", err, unit.Text())
	}

	for more, want := range map[string]string{
		"AppArmorProfile=x":                     "its payload is confined by AppArmorProfile=x",
		"PrivateUsers=self":                     "its payload is confined by PrivateUsers=self",
		"NewConfinement=yes":                    "NewConfinement=",
		"CapabilityBoundingSet=CAP_SEVENLEAGUE": "CAP_SEVENLEAGUE",
	} {
		changed := r
		changed.Files = append(slices.Clone(r.Files), "[Service]\n"+more+"\n")
		if _, err := ExecUnit(changed, Exec{Argv: []string{"x"}, Launcher: "/l"}, 257); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", more, err)
		}
	}
	// What was laid over confines too: lists grow, a bounding set only shrinks, blank lines and comments are nothing.
	changed := r
	changed.Files = append(slices.Clone(r.Files), "[Service]\n# LimitNOFILE=9\n\nCapabilityBoundingSet=\\\n CAP_SYS_ADMIN\nLimitNOFILE = 6\n[Unit]\nNice=9\n")
	unit, err = ExecUnit(changed, Exec{Argv: []string{"x"}, Launcher: "/l"}, 257)
	if text := unit.Text(); err != nil || !strings.Contains(text, "--bounding=200000 ") || !strings.Contains(text, "LimitNOFILE=6:6") && !strings.Contains(text, "LimitNOFILE=6\n") || unit.Get("Nice") != nil {
		t.Errorf("%v: %s", err, text)
	}
}
