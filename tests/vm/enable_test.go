package vm

import (
	"fmt"
	"testing"
)

// TestEnable compares the verbs for images of systemd-nspawn with machinectl's.
func TestEnable(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Must("bash", "-euc", `mkdir -p /var/lib/machines/{tree,my-tree}/{usr/lib,etc}; for t in tree my-tree; do echo ID=x > /var/lib/machines/$t/usr/lib/os-release; done
			mkdir -p /etc/systemd/nspawn /run/systemd/nspawn; printf '[Exec]\nBoot=no\n' > /etc/systemd/nspawn/tree.nspawn; echo runtime > /run/systemd/nspawn/rt.nspawn; echo image > /var/lib/machines/img.nspawn; echo hidden > /var/lib/machines/tree.nspawn`)
		const wants = "/etc/systemd/system/machines.target.wants"
		same := func(command string) {
			t.Helper()
			run := func(program string) Result {
				return m.Run("bash", "-c", "LANG=C.UTF-8 timeout 20 "+program+" "+command+"; status=$?; ls -l --time-style=+ "+wants+" 2>&1; systemctl show -P ActiveState systemd-nspawn@tree; exit $status")
			}
			m.Script("rm -rf /tmp/before; ! [ -d " + wants + " ] || cp -a " + wants + " /tmp/before")
			theirs := run("machinectl")
			m.Script("rm -rf " + wants + "; ! [ -d /tmp/before ] || cp -a /tmp/before " + wants)
			ours := run("machinectl-lite")
			if ours.Status != theirs.Status || ours.Stdout != theirs.Stdout || theirs.Status == 0 && ours.Stderr != theirs.Stderr || (ours.Stderr == "") != (theirs.Stderr == "") {
				t.Errorf("%s\nours %d\n%s%s\nmachinectl %d\n%s%s", command, ours.Status, ours.Stdout, ours.Stderr, theirs.Status, theirs.Stdout, theirs.Stderr)
			}
		}
		for _, command := range []string{
			"enable tree my-tree", "disable tree my-tree", "enable tree nosuch", "disable nosuch", "enable", "enable a/b",
			"enable tree my-tree -V", "disable --runner=vmspawn tree my-tree", "enable -V --runner=nspawn tree", "disable -V tree", "disable tree", "enable -V nosuch", "enable --runner=kvm tree", "start -V nosuch", "start --runner= tree",
			"cat tree", "cat tree rt img", "cat tree.nspawn /etc/systemd/nspawn/tree.nspawn", "cat nosuch", "cat tree nosuch rt", "cat ./x/tree.nspawn", "cat /etc/passwd",
			"edit tree", "set-limit 1G", "set-limit tree 1G", "set-limit tree -", "set-limit tree foo", "set-limit", "set-limit a b c",
		} {
			same(command)
		}
		vmspawned := ""
		for i, program := range []string{"machinectl", "machinectl-lite"} {
			if m.Suite == Trixie {
				vmspawned += fmt.Sprintf("%s start -V: 1 0\n%[1]s enable -q --now -V: 1 0\n%[1]s disable -q -V: 1 0\n", program)
			} else {
				vmspawned += fmt.Sprintf("%s start -V: 1 %d\n%[1]s enable -q --now -V: 1 %[3]d systemd-vmspawn@tree.service\n%[1]s disable -q -V: 0 %[3]d\n", program, 2*i+1, 2*i+2)
			}
		}
		m.expect(t,
			outcome{"machinectl-lite start tree my-tree; journalctl -q -u systemd-nspawn@tree -u systemd-nspawn@my-tree | grep -c Starting", 0, "2\n", "/^$|starting systemd-nspawn@tree.service: failed/"},
			outcome{"machinectl start nosuch 2> /dev/null", 1, "", ""},
			outcome{"machinectl-lite start tree nosuch; journalctl -q -u systemd-nspawn@tree | grep -c Starting", 0, "2\n", "/neither a kept machine nosuch nor an image/"},
			// Neither's virtual machine boots: the tree has no kernel, and on 257 no package has the unit.
			outcome{"began() { journalctl --sync; journalctl -q -o cat _PID=1 UNIT=systemd-vmspawn@tree.service | grep -c Starting || :; }; for program in machinectl machinectl-lite; do for verb in 'start -V' 'enable -q --now -V' 'disable -q -V'; do " +
				"$program $verb tree 2> /dev/null && status=0 || status=$?; echo $program $verb: $status $(began) $(ls " + wants + " 2> /dev/null || :); done; done", 0, vmspawned, ""},
			outcome{"machinectl-lite enable -q --now tree; journalctl -q -u systemd-nspawn@tree | grep -c Starting", 0, "3\n", "/^$|starting systemd-nspawn@tree.service: failed/"},
			outcome{"machinectl-lite disable -q --now tree && ls /etc/systemd/system/machines.target.wants 2>/dev/null", 2, "", ""},
			outcome{"machinectl-lite set-limit tree foo", 1, "", "machinectl-lite: set-limit: \"foo\" is not a size\n"},
			outcome{"machinectl-lite poweroff no_such", 1, "", "/^machinectl-lite: could not stop machine: .*no_such.*\n$/"},
			outcome{"machinectl-lite enable nosuch", 1, "", "/^machinectl-lite: could not enable machine: nosuch: No image 'nosuch' known\n$/"},
			outcome{"machinectl-lite cat nosuch", 1, "", "machinectl-lite: no settings file found for machine \"nosuch\"\n"},
		)
		m.WriteFile("/tmp/editor", []byte("#!/bin/sh\nfor f in \"$@\"; do case $f in -x) ;; *empty*) : > \"$f\" ;; *) echo edited >> \"$f\" ;; esac; done\n"), 0o755)
		for _, program := range []string{"machinectl", "machinectl-lite"} {
			edit := func(names string, status int, want string) {
				t.Helper()
				s := m.session(t, "SYSTEMD_EDITOR='/tmp/editor -x' "+program+" edit "+names)
				s.saw(want)
				s.ends(status)
			}
			edit("tree", 0, "tree.nspawn")
			edit("new", 0, "new.nspawn")
			edit("rt img", 0, "img.nspawn")
			m.expect(t, outcome{"cd /etc/systemd/nspawn; ls -A; cat tree.nspawn new.nspawn img.nspawn; cat /run/systemd/nspawn/rt.nspawn /var/lib/machines/img.nspawn; stat -c %a new.nspawn; rm new.nspawn img.nspawn; printf '[Exec]\\nBoot=no\\n' > tree.nspawn; echo runtime > /run/systemd/nspawn/rt.nspawn; echo image > /var/lib/machines/img.nspawn", 0,
				"img.nspawn\nnew.nspawn\ntree.nspawn\n[Exec]\nBoot=no\nedited\nedited\nimage\nedited\nruntime\nedited\nimage\n644\n", ""})
		}
		s := m.session(t, "SYSTEMD_EDITOR=/tmp/editor machinectl-lite edit empty; ls -A /etc/systemd/nspawn")
		s.saw(`empty.nspawn was not changed: its copy is empty\r\ntree.nspawn\r\n`)
		s.ends(0)
		s = m.session(t, "SYSTEMD_EDITOR=/tmp/editor machinectl-lite edit empty tree; grep -c edited /etc/systemd/nspawn/tree.nspawn")
		s.saw(`empty.nspawn was not changed: its copy is empty\r\n1\r\n`)
		s.ends(0)
		s = m.session(t, "SYSTEMD_EDITOR=false machinectl-lite edit tree")
		s.saw(`false: exit status 1; nothing was changed\r\n`)
		s.ends(1)
	})
}
