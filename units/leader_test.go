package units

import (
	"slices"
	"strings"
	"testing"
)

func TestProcessRunning(t *testing.T) {
	files := ProcFiles{
		Status: "Name:\tsystemd\nUid:\t7\t100100\t7\t7\nGid:\t7\t100101\t7\t7\nGroups:\t100005 5 100006 \nCapAmb:\t0000000000002400\nCpus_allowed_list:\t0-1\n",
		Stat:   "42 (a b) c) S 1 42 42 0 -1 4194560 0 0 0 0 0 0 0 0 25 5 1 0 98765 0 0\n",
		Limits: "Limit                     Soft Limit           Hard Limit           Units     \nMax cpu time              unlimited            unlimited            seconds   \n" +
			"Max open files            1048576              1048577              files     \nMax nice priority         0                    0                    \n",
		OOMScoreAdj: "-7\n", UIDMap: "         0     100000      65536\n", GIDMap: "         0     100000      65536\n",
	}
	r, err := files.Running("web", 42)
	if err != nil || r.Leader != "42:98765" || r.Account.UID != 100 || r.Account.GID != 101 || !slices.Equal(r.Account.Groups, []uint32{5, 6}) || r.Ambient != "2400" {
		t.Errorf("%+v, %v", r, err)
	}
	unit, err := ExecUnit(r, Exec{ID: "1", Argv: []string{"id"}, Launcher: "/l"}, 257)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`ExecStart=:/l --exec-beside=42:98765 "--as=machinectl-lite: web" --ids=100,101,5,6 "--workdir=\"/\"" --ambient=2400 -- "\"id\""`,
		"LimitCPU=infinity:infinity", "LimitNOFILE=1024:1048577", "LimitNICE=0:0", "OOMScoreAdjust=-7", "Nice=5", "CPUAffinity=0-1", "Slice=machine.slice",
	} {
		if !slices.Contains(strings.Split(unit.Text(), "\n"), line) {
			t.Errorf("no line %s in\n%s", line, unit.Text())
		}
	}
	// Another user has not its ambient capabilities.
	unit, err = ExecUnit(r, Exec{ID: "1", Argv: []string{"id"}, Launcher: "/l", Account: &Account{UID: 9, GID: 9}, Home: "/h", User: "nine"}, 257)
	if text := unit.Text(); err != nil || strings.Contains(text, "--ambient") || !strings.Contains(text, `"--env=\"HOME=/h\"" "--env=\"USER=nine\"" "--env=\"LOGNAME=nine\""`) {
		t.Errorf("%v\n%s", err, text)
	}
	for name, change := range map[string]func(*ProcFiles){
		"ended": func(f *ProcFiles) { f.Stat = "" }, "another's": func(f *ProcFiles) { f.UIDMap = "0 200000 10" }, "no ids": func(f *ProcFiles) { f.Status = "" },
	} {
		bad := files
		change(&bad)
		if r, err := bad.Running("web", 42); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
