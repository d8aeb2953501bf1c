package vm

import (
	"strings"
	"testing"
)

// TestFiles compares bind, copy-to and copy-from with machinectl's, on a machine of ours and on a container of systemd-nspawn.
func TestFiles(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.importImage("shell")
		bootContainer(t, m, "bootc", "")
		m.Must("nspawnd-run", "-d", "--name", "web", "-u", "0", shellImage, "sleep", "infinity")
		m.Must("bash", "-euc", `mkdir -p /srv/files/tree/dir; cd /srv/files; echo content > tree/dir/file; ln -s file tree/dir/link; ln -s /nowhere tree/dangling; ln tree/dir/file tree/hard
			chmod 4750 tree/dir/file; chown 5:60 tree/dir; mkfifo tree/fifo; echo x > $'tree/odd\nname'; touch -d @1000000000 tree/dir/file; head -c 100000000 /dev/urandom > big`)
		inside := func(machine, script string) string {
			return m.Must("bash", "-c", `nsenter --mount --root --wd --pid --target $(machinectl show -P Leader `+machine+`) sh -c "$0"`, script)
		}
		const list = ` && find . -printf '%P %y %m %U %G %s %n %l\n' | sort; cat dir/file; date -r dir/file +%s`
		for _, machine := range []string{"web", "bootc"} {
			var seen []string
			for _, program := range []string{"machinectl", "machinectl-lite"} {
				here := "/mnt/" + program
				inside(machine, "mkdir -p "+here)
				m.Must("bash", "-c", "mkdir -p /srv/back; rm -rf /srv/back/*")
				var log strings.Builder
				for _, command := range []string{
					"copy-to NAME tree /mnt/tree", "copy-to NAME tree /mnt/tree", "copy-to NAME big /mnt/big", "copy-to NAME big /mnt/big", "copy-to --force NAME /srv/files/big /mnt/big", "copy-to NAME nosuch /mnt/no",
					"copy-to NAME tree relative", "copy-to NAME tree/dangling /mnt/dangling", "copy-to NAME", "copy-to NAME a b c",
					"copy-from NAME /mnt/tree back/tree", "copy-from NAME /mnt/big /srv/back/big", "copy-from NAME /mnt/big /srv/back/big", "copy-from --force NAME /mnt/big /srv/back/big", "copy-from NAME /nosuch back/no",
					"copy-from NAME relative back/no",
					"bind NAME /srv/files /mnt/here", "bind --mkdir NAME /srv/files /mnt/here/there", "bind --read-only --mkdir NAME /srv/files /mnt/only", "bind --mkdir NAME /srv/files/big /mnt/dir/one", "bind NAME /nosuch /mnt",
					"bind NAME relative /mnt", "bind NAME /srv/files/..  /mnt", "bind --mkdir NAME /srv/files",
				} {
					r := m.Run("bash", "-c", "cd /srv/files; [[ '"+command+"' != copy-from* ]] || cd /srv; timeout 60 "+program+" "+strings.NewReplacer("NAME", machine, "/mnt", here).Replace(command))
					log.WriteString(command + map[bool]string{true: ": done\n", false: ": refused\n"}[r.Status == 0])
					reason := r.Stderr[strings.LastIndex(strings.TrimSpace(r.Stderr), ": ")+1:]
					if r.Status != 0 && !strings.Contains(command, "NAME a b c") && !strings.HasSuffix(command, "copy-to NAME") {
						log.WriteString(reason)
					}
				}
				log.WriteString(inside(machine, "cd "+here+"/tree"+list+"; cd ..; cmp big here/there/big; cmp big dir/one; cmp big /srv/files/big; touch only/x 2>&1; touch here/there/new"))
				log.WriteString(m.Must("bash", "-c", "cd /srv/back/tree"+list+"; cmp /srv/files/big /srv/back/big; ls /srv/files/new; rm /srv/files/new"))
				seen = append(seen, strings.ReplaceAll(log.String(), here, "/mnt"))
			}
			if seen[0] != seen[1] || !strings.Contains(seen[1], "dir/file f 4750 0 0 8 2") || !strings.Contains(seen[1], "Read-only file system") {
				t.Errorf("%s:\nmachinectl\n%s\nours\n%s", machine, seen[0], seen[1])
			}
		}
		m.expect(t,
			outcome{"machinectl-lite copy-to nosuch /etc/hosts", 1, "", "machinectl-lite: could not copy: nosuch: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite bind nosuch /etc/hosts", 1, "", "machinectl-lite: could not bind mount: nosuch: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite bind web", 1, "", "/^machinectl-lite: bind wants a machine, a source and at most one target/"},
			// What is bound goes with the machine.
			outcome{"machinectl-lite bind --mkdir web /srv/files /mnt/last; machinectl kill -s KILL bootc; machinectl-lite kill -s KILL web; await systemctl is-failed -q nspawnd-web; systemctl reset-failed nspawnd-web; ls /srv/files/big", 0, "/srv/files/big\n", ""},
		)
		m.nothingLeft(t)
	})
}
