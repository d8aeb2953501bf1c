package vm

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// transferMessages makes what importctl and machinectl-lite write comparable: in 257 importctl draws its progress in a pipe, too; what is fetched at the same time comes in any order, and when
// the image fails what goes with it may not come at all.
func transferMessages(output string) string {
	var lines []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(regexp.MustCompile(`^.*\r`).ReplaceAllString(strings.TrimRight(line, "\r\n"), ""))
		line = regexp.MustCompile(`transfer job \d+|pipe:\[\d+\]`).ReplaceAllString(line, "N")
		if !regexp.MustCompile(`^$|^(Got|Imported|Exported) \d+%|has been replaced by|\.(nspawn|verity|roothash|roothash\.p7s) failed with|could not be retrieved, proceeding`).MatchString(line) {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// startFileServer serves /srv/web at http://127.0.0.1, and below /slow/ slowly.
func (m *Machine) startFileServer(t *testing.T) {
	t.Helper()
	m.Copy(buildCommand(t, "./webserver"), "/usr/local/bin/webserver")
	m.must(`mkdir -p /srv/web; systemd-run --quiet --unit=lab-web --property=Type=exec webserver files /srv/web 40000`)
	m.Eventually("the server answers", func() bool { return m.Run("curl", "--silent", "--fail", "http://127.0.0.1/").Status == 0 })
}

// TestTransfers compares downloads, imports and exports of images by systemd-importd with importctl's and machinectl's.
func TestTransfers(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.startFileServer(t)
		// Each program gets files of its own: what was downloaded from a URL is kept.
		m.must(`
			mkdir -p /srv/w/tree/{usr/lib,etc,bin}
			cd /srv/w
			echo ID=x > tree/usr/lib/os-release; head -c 500000 /dev/urandom > tree/bin/big; chmod 4755 tree/bin/big; ln -s big tree/bin/link; chown 12:34 tree/etc
			tar -b 1 -C tree -c . > t.tar; gzip -k t.tar; xz -k t.tar; zstd -q -k t.tar
			head -c 300000 /dev/urandom > r.raw; truncate -s 4M r.raw; gzip -k r.raw; xz -k r.raw; zstd -q -k r.raw
			gpg --quiet --batch --passphrase "" --quick-generate-key images@example.org rsa2048 sign never
			for name in theirs ours; do
				mkdir /srv/web/$name; cd /srv/web/$name
				cp /srv/w/{t.tar,t.tar.*,r.raw,r.raw.*} .; cp t.tar unlisted.tar; cp t.tar evil.tar; cp t.tar signed.tar; cp r.raw signed.raw
				sha256sum signed.tar signed.raw t.tar* r.raw* > SHA256SUMS; sha256sum r.raw | sed 's/r.raw/evil.tar/' >> SHA256SUMS
			done
		`)
		images := 0
		same := func(t *testing.T, command string, status int) {
			t.Helper()
			images++ // one that was made read-only can't be removed for the next
			var seen, stderr []string
			for _, program := range []string{"machinectl", "machinectl-lite"} {
				name := map[string]string{"machinectl": "theirs", "machinectl-lite": "ours"}[program]
				transfers := map[string]string{"machinectl": "importctl", "machinectl-lite": "machinectl-lite"}[program]
				script := strings.NewReplacer("NAME-x", fmt.Sprint(name, "-", images), "NAME", name, "WEB", "http://127.0.0.1/"+name).Replace(command)
				r := m.Run("bash", "-c", "set -o pipefail; cd /srv/w; export LANG=C.UTF-8; run() { timeout 60 "+program+" \"$@\"; }; ctl() { timeout 60 "+transfers+` "$@"; }; `+script)
				seen = append(seen, fmt.Sprintf("status %d\n%s", r.Status, strings.ReplaceAll(r.Stdout, name, "NAME")))
				stderr = append(stderr, transferMessages(strings.ReplaceAll(r.Stderr, name, "NAME")))
			}
			if status != 0 && !(strings.Contains(stderr[0], "Enqueued") && strings.Contains(stderr[1], "Enqueued")) { // found out by the program itself
				stderr[0], stderr[1] = fmt.Sprint(stderr[0] != ""), fmt.Sprint(stderr[1] != "")
			}
			if seen[0] != seen[1] || stderr[0] != stderr[1] || !strings.HasPrefix(seen[0], fmt.Sprintf("status %d\n", status)) {
				t.Errorf("%s: want status %d\n%s%s\n== ours\n%s%s", command, status, seen[0], stderr[0], seen[1], stderr[1])
			}
		}
		newer := 1 // what 257 can't do
		if m.Suite == Forky {
			newer = 0
		}
		const (
			tree  = `; status=$?; cd /var/lib/machines/NAME-x && find . -printf '%P %y %m %U %G %s %l\n' | sort; cat bin/big | sha256sum; touch new 2>&1; exit $status`
			disk  = `; status=$?; cd /var/lib/machines && stat -c '%a %U %s' NAME-x.raw && sha256sum NAME-x.raw; exit $status`
			clean = `; status=$?; ls -A /var/lib/machines | grep NAME-x; exit $status`
		)
		t.Run("import", func(t *testing.T) {
			for _, c := range []struct {
				command string
				status  int
			}{
				{"run import-tar t.tar NAME-x" + tree, 0}, {"run import-tar t.tar.gz NAME-x" + tree, 0}, {"run import-tar t.tar.xz NAME-x.tar.xz" + tree, 0},
				{"run import-tar --read-only t.tar NAME-x" + tree, 0}, {"run import-tar -q t.tar NAME-x" + tree, 0}, {"run import-tar - NAME-x < t.tar" + tree, 0}, {"cat t.tar.gz | run import-tar '' NAME-x" + tree, 0},
				{"run import-raw r.raw NAME-x" + disk, 0}, {"run import-raw r.raw.gz NAME-x" + disk, 0}, {"run import-raw r.raw.xz NAME-x.img.raw.xz" + disk, 0}, {"run import-raw --read-only r.raw NAME-x" + disk, 0},
				{"run import-raw - NAME-x < r.raw" + disk, 0},
				{"run import-fs tree NAME-x" + tree, 0}, {"run import-fs --read-only /srv/w/tree/ NAME-x" + tree, 0},
				{"run import-fs t.tar NAME-x", 1}, {"run import-fs nosuch NAME-x", 1}, {"run import-fs .", 1}, {"run import-fs - NAME-x", 1},
				{"cp t.tar NAME-x.tar; run import-tar NAME-x.tar" + tree, 0}, {"cp -a tree NAME-x; run import-fs NAME-x" + tree, 0},
				{"run import-tar t.tar NAME-y", 0}, {"run import-tar t.tar NAME-y", 1}, {"run import-tar -q t.tar NAME-y", 1}, {"run import-fs tree NAME-y", 1}, {"run import-tar --force t.tar NAME-y", 0},
				{"run import-tar nosuch NAME-x", 1}, {"run import-tar tree NAME-x", 1}, {"run import-raw /dev/null NAME-x", 1}, {"run import-tar t.tar NAME/x", 1}, {"run import-tar t.tar ..", 1}, {"run import-tar -", 1}, {"run import-tar", 1},
				{"run import-tar a b c", 1}, {"run import-tar --nonsense t.tar", 1}, {"head -c 50000 t.tar.gz | run import-tar - NAME-x" + clean, 1},
			} {
				same(t, c.command, c.status)
			}
			if newer == 0 {
				same(t, "run import-tar t.tar.zst NAME-x"+tree, 0)
				same(t, "run import-raw r.raw.zst NAME-x"+disk, 0)
			}
		})
		t.Run("pull", func(t *testing.T) {
			m := m.With(t)
			for _, c := range []struct {
				command string
				status  int
			}{
				{"run pull-tar --verify=checksum WEB/t.tar NAME-x" + tree, 0}, {"run pull-tar --verify=checksum --read-only WEB/t.tar.xz NAME-x" + tree, 0}, {"run pull-tar --verify=no -q WEB/t.tar.gz NAME-x" + tree, 0},
				{"run pull-raw --verify=checksum WEB/r.raw NAME-x" + disk, 0}, {"run pull-raw --verify=no --read-only WEB/r.raw.xz NAME-x" + disk, 0},
				{"run pull-tar --verify=no WEB/unlisted.tar; rm -r /var/lib/machines/unlisted", 0},
				{"run pull-tar --verify=checksum WEB/unlisted.tar NAME-x" + clean, 1}, {"run pull-tar --verify=checksum WEB/evil.tar NAME-x" + clean, 1},
				{"run pull-tar WEB/signed.tar NAME-x" + clean, 1}, {"run pull-raw --verify=signature WEB/signed.raw NAME-x" + clean, 1},
				{"run pull-tar --verify=no WEB/nosuch.tar NAME-x" + clean, 1}, {"run pull-tar --verify=no http://127.0.0.1:1/x.tar NAME-x" + clean, 1}, {"run pull-tar --verify=no WEB/t.tar NAME-y", 1},
				{"run pull-tar --verify=maybe WEB/t.tar NAME-x", 1}, {"run pull-tar --verify= WEB/t.tar NAME-x", 1}, {"run pull-tar ftp://127.0.0.1/t.tar NAME-x", 1}, {"run pull-tar t.tar", 1}, {"run pull-tar http://127.0.0.1/", 1}, {"run pull-tar", 1},
				{"run pull-tar a b c", 1}, {"run pull-tar --verify=no WEB/t.tar a/b", 1},
			} {
				same(t, c.command, c.status)
			}
			// A signature, by a key that nobody trusts and then by one that this host does.
			m.must(`cd /srv/web/theirs; gpg --quiet --batch --detach-sign --output SHA256SUMS.gpg SHA256SUMS; gpg --quiet --batch --enarmor < SHA256SUMS.gpg | sed 's/ARMORED FILE/SIGNATURE/' > SHA256SUMS.asc
				cmp SHA256SUMS ../ours/SHA256SUMS; cp SHA256SUMS.* ../ours`)
			same(t, "run pull-tar WEB/signed.tar NAME-x"+clean, 1)
			m.must(`gpg --export images@example.org > /etc/systemd/import-pubring.gpg; cp /etc/systemd/import-pubring.gpg /etc/systemd/import-pubring.pgp`)
			same(t, "run pull-tar WEB/signed.tar NAME-x"+tree, 0)
			same(t, "run pull-raw WEB/signed.raw NAME-x"+disk, 0)
			if newer == 0 {
				same(t, "run pull-tar --verify=no WEB/t.tar.zst NAME-x"+tree, 0)
			}
		})
		t.Run("class and copy of the download", func(t *testing.T) {
			m := m.With(t)
			m.must(`cd /srv/web; for name in theirs ours; do for i in $(seq 9); do cp $name/r.raw $name/r$i.raw; done; done`)
			m.must(`mkdir -p /var/lib/{portables,extensions,confexts}`)
			const (
				begin = "touch NAME.mark; sleep 0.05; "
				made  = `; status=$?; find /var/lib/{machines,portables,extensions,confexts} -mindepth 1 -maxdepth 1 -cnewer NAME.mark -printf '%p %y %m %s\n' | sort; exit $status`
			)
			for _, c := range []struct {
				command string
				status  int
			}{
				{"ctl -m pull-raw --verify=no WEB/r1.raw NAME-x", 0}, {"ctl -m pull-raw --verify=no --keep-download=no WEB/r2.raw NAME-x", 0}, {"ctl -mN pull-raw --verify=no WEB/r3.raw NAME-x", 0}, {"ctl -m -N --keep-download=yes pull-raw --verify=no WEB/r4.raw NAME-x", 0},
				{"ctl -P pull-raw --verify=no WEB/r5.raw NAME-x", 0}, {"ctl --class=portable --keep-download=1 pull-raw --verify=no --read-only WEB/r6.raw NAME-x", 0}, {"ctl -SC pull-tar --verify=checksum WEB/t.tar NAME-x", 0}, {"ctl -C --class=sysext -q pull-raw --verify=no WEB/r8.raw NAME-x.sysext.raw", 0},
				{"ctl -P import-raw r.raw NAME-x; ctl --class=portable export-raw NAME-x | cmp - r.raw", 0}, {"ctl -S import-fs tree NAME-x; ctl -S export-tar NAME-x NAME.tar; tar -tf NAME.tar | sort", 0}, {"ctl -C import-tar t.tar NAME-x; ctl -m export-tar NAME-x NAME.new", 1},
				{"ctl --class=nonsense import-tar t.tar NAME-x", 1}, {"ctl --class= import-tar t.tar NAME-x", 1}, {"ctl -m --keep-download=maybe pull-raw WEB/r9.raw NAME-x", 1}, {"ctl -m --keep-download= pull-raw WEB/r9.raw NAME-x", 1},
			} {
				same(t, begin+c.command+made, c.status)
			}
		})
		t.Run("export", func(t *testing.T) {
			m := m.With(t)
			m.must("cd /srv/w; machinectl -q import-tar t.tar img; machinectl -q import-raw r.raw disk")
			for _, c := range []struct {
				command string
				status  int
			}{
				{"run export-tar img NAME.tar; tar -tvf NAME.tar | sort", 0}, {"run export-tar img NAME.tar.xz; xz -dc NAME.tar.xz | tar -tv | sort; stat -c '%a %U' NAME.tar.xz", 0}, {"run export-tar img NAME.gz; gzip -dc NAME.gz | tar -tv | sort", 0},
				{"run export-tar img NAME.tar.bz2; head -c 3 NAME.tar.bz2; run import-tar -q NAME.tar.bz2 NAME-x" + tree, 0}, {"run export-tar img NAME.tgz; tar -tf NAME.tgz | sort", 0},
				{"run export-raw disk NAME.raw; cmp NAME.raw r.raw", 0}, {"run export-raw disk NAME.raw.xz; xz -dc NAME.raw.xz | cmp - r.raw", 0}, {"run export-raw -q disk NAME.raw.gz; gzip -dc NAME.raw.gz | cmp - r.raw", 0},
				{"run export-raw disk NAME.bz2; head -c 3 NAME.bz2", 0}, {"run export-raw --format=gzip disk NAME.xz; gzip -dc < NAME.xz | cmp - r.raw", 0}, {"run export-raw --format=uncompressed disk NAME.xz; cmp NAME.xz r.raw", 0},
				{"run export-raw disk | cmp - r.raw", 0}, {"run export-raw --format=xz disk - | xz -dc | cmp - r.raw", 0}, {"run export-raw disk '' > NAME.out; cmp NAME.out r.raw", 0}, {"run export-tar disk NAME.new", 1}, {"run export-raw img NAME.new", 1},
				{"run export-tar nosuch NAME.new", 1}, {"run export-tar a/b NAME.new", 1}, {"run export-raw disk /nosuch/NAME", 1}, {"run export-raw disk /srv/w/", 1}, {"run export-raw --format=gz disk NAME.new", 1},
				{"run export-raw", 1}, {"run export-raw disk > /dev/full", 1}, {"run export-raw disk /dev/null", 1}, {"run export-raw --format=zstd disk NAME.zst", newer},
				{"umask 077; run export-raw -q disk NAME.private; stat -c %a NAME.private", 0},
			} {
				same(t, c.command, c.status)
			}
			suffix := outcome{"cd /srv/w; machinectl-lite export-raw -q disk x.zst && zstd -dc x.zst | cmp - r.raw", 0, "", ""}
			if newer == 1 { // importctl writes a file that is not compressed
				suffix = outcome{"cd /srv/w; machinectl-lite export-raw -q disk x.zst || ls x.zst", 2, "", "/^Unknown format: zstd\nls: /"}
			}
			m.expect(t, suffix,
				// What an export fails to write leaves the old file, or none; importctl leaves an empty one.
				outcome{"ls -A /srv/w | grep -c 'ours.new\\|export-'", 1, "0\n", ""},
				outcome{"cd /srv/w; echo old > old; machinectl-lite export-tar -q disk old || cat old; ls -A | grep export-", 1, "old\n", "Failed to export image: Not a directory\n"},
				outcome{"cd /srv/w; chmod 640 old; chown 12:34 old; ln -s old link; machinectl-lite export-raw -q disk link && stat -c '%a %u:%g %s %F' link old", 0, "777 0:0 3 symbolic link\n640 12:34 4194304 regular file\n", ""},
				outcome{"machinectl-lite export-raw -q disk /dev/full; stat -c %F /dev/full", 0, "character special file\n", "//"},
			)
			s := m.session(t, "machinectl-lite export-raw disk")
			s.saw("machinectl-lite: export-raw: an image is nothing for a terminal")
			s.ends(1)
		})
	})
}

// TestTransferList is what others see of a transfer, how it is left, cancelled, and lost.
func TestTransferList(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.startFileServer(t)
		m.must("head -c 8000000 /dev/urandom > /srv/web/big.raw; cp /srv/web/big.raw /srv/web/other.raw; tar -C /etc -c . > /srv/web/t.tar")
		const slow = "--verify=no http://127.0.0.1/slow/"
		m.expect(t,
			outcome{"machinectl-lite list-transfers", 0, "No transfers.\n", ""},
			outcome{"machinectl-lite list-transfers --no-legend", 0, "", ""},
			outcome{"machinectl-lite list-transfers --json=short", 0, "[]\n", ""},
		)
		m.must(`systemd-run -q --unit=one machinectl-lite pull-raw ` + slow + `big.raw slow
			systemd-run -q --unit=two sh -c 'mkfifo /tmp/fifo; exec machinectl-lite import-tar - "from pipe" 0<> /tmp/fifo'`)
		m.Eventually("both transfers are there", func() bool {
			return regexp.MustCompile(`(?s)-.*from pipe.*[1-9]%.*slow`).MatchString(m.Run("importctl", "-m", "list-transfers").Stdout)
		})
		for _, options := range []string{"", " --no-legend", " --json=short", " --json=pretty", " -j"} {
			var theirs, ours, again Result
			for range 20 { // until the progress was the same before and after
				theirs, ours, again = m.Script("importctl -m list-transfers"+options), m.Script("machinectl-lite list-transfers"+options), m.Script("importctl -m list-transfers"+options)
				if theirs.Stdout == again.Stdout {
					break
				}
			}
			if ours != (Result{Stdout: theirs.Stdout, Duration: ours.Duration}) || !strings.Contains(ours.Stdout, "from pipe") {
				t.Errorf("%s\n%+v\nours\n%+v", options, theirs, ours)
			}
		}
		show := func(program string) string {
			shown := m.terminal(t, 100, nil, "bash", "-c", program+" list-transfers | cat; "+program+" --no-pager list-transfers; "+program+" --json=pretty --no-pager list-transfers")
			shown = regexp.MustCompile(`\x1b\]8;;[^\x1b]*\x1b\\`).ReplaceAllString(comparable(shown), "") // importctl makes links of what is remote
			return regexp.MustCompile(` +\r?\n`).ReplaceAllString(shown, "\n")
		}
		var theirs, ours string
		for range 20 {
			if theirs, ours = show("importctl -m"), show("machinectl-lite"); theirs == ours {
				break
			}
		}
		if theirs != ours {
			t.Errorf("on a terminal:\n%q\nours\n%q", theirs, ours)
		}
		for _, command := range []string{"list-transfers x", "cancel-transfer", "cancel-transfer x", "cancel-transfer 0", "cancel-transfer 99", "cancel-transfer 4294967296", "cancel-transfer 99 x"} {
			theirs, ours := m.Script("machinectl "+command), m.Script("machinectl-lite "+command)
			if theirs.Status != 1 || ours.Status != 1 || ours.Stdout != "" || strings.Count(ours.Stderr, "\n") != cmp.Or(strings.Count(command, "99 x")*2, 1) {
				t.Errorf("%s: %+v\nours %+v", command, theirs, ours)
			}
		}
		m.expect(t,
			outcome{"machinectl-lite pull-raw " + slow + "big.raw other", 1, "", "/^machinectl-lite: could not transfer image: Transfer for .* already in progress.\n$/"},
			outcome{"machinectl-lite cancel-transfer $(machinectl-lite list-transfers --json=short | jq .[].id) && await sh -c '! systemctl -q is-active one two'; systemctl show -P ExecMainStatus one two; await sh -c 'machinectl-lite list-transfers | grep No'; ls /var/lib/machines", 0, "1\n\n1\nNo transfers.\n", ""},
			outcome{"journalctl -q -o cat -u one | grep -c '^machinectl-lite: transfer was cancelled'", 0, "1\n", ""},
			outcome{"machinectl-lite cancel-transfer 98 99", 1, "", "machinectl-lite: could not cancel transfer: No transfer by id 98\nmachinectl-lite: could not cancel transfer: No transfer by id 99\n"},
		)

		m.expect(t, outcome{"mkfifo /tmp/fifo2; systemd-run -q --unit=extension sh -c 'exec machinectl-lite -S import-raw - ext 0<> /tmp/fifo2'; await sh -c 'machinectl-lite -S list-transfers | grep -q ext'; importctl -S list-transfers | diff - <(machinectl-lite --class=sysext list-transfers); " +
			"machinectl-lite -S list-transfers --no-legend | grep -o 'import-raw sysext ext'; machinectl-lite list-transfers; machinectl-lite -C list-transfers; machinectl-lite cancel-transfer $(machinectl-lite -S list-transfers --json=short | jq .[].id)", 0,
			"import-raw sysext ext\nNo transfers.\nNo transfers.\n", ""})

		// On a terminal: how far it is, and what ctrl-C does.
		escapes := regexp.MustCompile(`\x1b\]9;4;[0-9;]*\x1b\\`) // newer terminals show these in the task bar
		for _, columns := range []uint16{40, 80, 160} {
			var bars []string
			for _, program := range []string{"importctl", "machinectl-lite"} {
				class := map[bool]string{true: " -m"}[program == "importctl"]
				var status int
				var shown string
				for range 3 {
					d := m.dialog(t, columns, program+class+" pull-raw "+slow+"big.raw left; s=$?; echo; exit $s")
					d.await(`Got \d+% of`)
					d.say(ctrlC)
					status, shown = d.end()
					shown = strings.TrimSuffix(escapes.ReplaceAllString(comparable(shown), ""), "\r\n")
					if program == "machinectl-lite" || strings.Contains(shown, " to abort transfer.") { // importctl on a busy machine may end without a word
						break
					}
					m.Script("importctl -m cancel-transfer $(importctl -m list-transfers --json=short | jq .[].id)")
				}
				id := regexp.MustCompile(`Use "` + program + ` cancel-transfer (\d+)" to abort transfer\.\r+\n$`).FindStringSubmatch(shown)
				if status != 1 || id == nil {
					t.Fatalf("status %d, %q", status, shown)
				}
				seen := ""
				for _, part := range []string{"\rTotal: [^\r]*  0%[^\r]*\r", "\x1b[^\x1b]*HTTP request to [^\r\n]*nspawn [^\r\n]*"} {
					seen += regexp.MustCompile(part).FindString(shown)
				}
				bars = append(bars, seen)
				m.expect(t, outcome{"machinectl-lite list-transfers --no-legend", 0, "/^ *" + id[1] + " +[0-9]% pull-raw machine left  ?http/", ""},
					outcome{"machinectl-lite cancel-transfer " + id[1] + "; await sh -c 'machinectl-lite list-transfers | grep No'", 0, "No transfers.\n", ""})
			}
			if bars[0] != bars[1] || !strings.Contains(bars[0], "━") || !strings.Contains(bars[0], "HTTP") {
				t.Errorf("%q\nours\n%q", bars[0], bars[1])
			}
		}
		// An export that is left goes on in its place.
		m.must("machinectl-lite import-raw -q /srv/web/big.raw disk")
		d := m.dialog(t, 80, "rm -f /tmp/x.xz; machinectl-lite export-raw disk /tmp/x.xz; ls -A /tmp | grep '#'")
		d.await("saving to '/tmp/x.xz'")
		d.say(ctrlC)
		if status, shown := d.end(); status != 1 || !strings.Contains(shown, "Continuing") {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t, outcome{"await sh -c 'machinectl-lite list-transfers | grep -q No' && xz -dc /tmp/x.xz | cmp - /srv/web/big.raw", 0, "", ""})
		// But not in that of another, until it is complete.
		d = m.dialog(t, 80, "echo before > /tmp/x.xz; machinectl-lite export-raw disk /tmp/x.xz; cat /tmp/x.xz; ls -A /tmp | grep '#'")
		d.await("saving to '/tmp/x.xz'")
		d.say(ctrlC)
		if status, shown := d.end(); status != 0 || !regexp.MustCompile(`/tmp/x.xz stays as it is; what is not complete goes on in /tmp/\.#export-\w+\r\nbefore\r\n\.#export-\w+\r\n$`).MatchString(shown) {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t, outcome{"await sh -c 'machinectl-lite list-transfers | grep -q No' && xz -dc /tmp/.#export-* | cmp - /srv/web/big.raw; rm /tmp/.#export-*", 0, "", ""})

		// Others can send signals, too.
		m.must("systemd-run -q --unit=three machinectl-lite pull-raw " + slow + "big.raw spoofed")
		m.Eventually("the transfer is there", func() bool { return strings.Contains(m.Run("importctl", "list-transfers").Stdout, "spoofed") })
		m.expect(t,
			outcome{`name=$(busctl list --json=short | jq -r '.[] | select(.process == "machinectl-lite") | .name'); id=$(machinectl-lite list-transfers --json=short | jq .[0].id)
				busctl emit --destination=$name /org/freedesktop/import1 org.freedesktop.import1.Manager TransferRemoved uos $id /org/freedesktop/import1/transfer/_$id done
				busctl emit --destination=$name /org/freedesktop/import1/transfer/_$id org.freedesktop.import1.Transfer LogMessage us 3 spoofed-line
				sleep 0.5; systemctl is-active three; journalctl -q -u three | grep spoofed-line`, 1, "active\n", ""},
			// systemd-importd that goes takes the transfer with it. importctl would wait for ever.
			outcome{"systemctl kill -s KILL systemd-importd; await sh -c '! systemctl -q is-active three'; systemctl show -P ExecMainStatus three; journalctl -q -o cat -u three | grep ^machinectl", 0, "1\nmachinectl-lite: systemd-importd has ended, and the transfer with it\n", ""},
		)
		m.expect(t,
			outcome{"machinectl-lite pull-tar --verify=no $'http://127.0.0.1/\\e[31mx.tar' evil", 1, "", `/Pulling 'http://127.0.0.1/\\x1b\[31mx.tar', saving as 'evil'/`},
			// Who is not root may look.
			outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite list-transfers", 0, "No transfers.\n", ""},
			outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite import-tar /srv/web/t.tar x", 1, "", "/^machinectl-lite: could not transfer image: (Access|Permission) denied; try: sudo machinectl-lite …\n$/"},
			outcome{"cd /tmp; setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite export-raw disk y; ls -A | grep '^y\\|#'", 1, "", "/^machinectl-lite: could not transfer image: (Access|Permission) denied; try: sudo machinectl-lite …\n$/"},
			outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite cancel-transfer 1", 1, "", "/^machinectl-lite: could not cancel transfer: (Access|Permission) denied; try: sudo machinectl-lite …\n$/"},
			// Without systemd-importd.
			outcome{"systemctl -q mask --runtime --now systemd-importd 2> /dev/null; machinectl-lite list-transfers", 1, "", "/^machinectl-lite: could not get transfers: .*systemd-importd comes with systemd-container.*\n$/"},
			outcome{"machinectl-lite import-tar /srv/web/t.tar x", 1, "", "/^machinectl-lite: could not transfer image: .*systemd-importd comes with systemd-container.*\n$/"},
			outcome{"systemctl -q unmask --runtime systemd-importd; rm /usr/share/dbus-1/system-services/org.freedesktop.import1.service; systemctl reload dbus; machinectl-lite list-transfers", 1, "",
				"/^machinectl-lite: could not get transfers: .*systemd-importd comes with systemd-container.*\n$/"},
			outcome{"machinectl-lite cancel-transfer 1", 1, "", "/^machinectl-lite: could not cancel transfer: .*systemd-importd comes with systemd-container.*\n$/"},
		)
	})
}

// TestTransfersElsewhere is systemd-importd of other hosts, of containers and of users, and who may ask it for what.
func TestTransfersElsewhere(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.startFileServer(t)
		startPolkit(t, m)
		bootContainer(t, m, "bootc", "")
		m.must(`cd /srv/web; tar -b 1 -C /etc/systemd -c . > t.tar; head -c 1000000 /dev/urandom > r.raw; cp r.raw other.raw; cp r.raw third.raw`)
		const url = "http://127.0.0.1/"
		m.expect(t,
			outcome{"machinectl-lite -H localhost pull-tar --verify=no " + url + "t.tar far && ls -d /var/lib/machines/far/system.conf", 0, "/var/lib/machines/far/system.conf\n", "/Operation completed successfully/"},
			outcome{"machinectl-lite -H localhost pull-tar --verify=no " + url + "nosuch.tar far2", 1, "", "/Failed to retrieve image file. \\(Wrong URL\\?\\)\nExiting.\n$/"},
			outcome{"machinectl-lite -M bootc pull-raw -q --verify=no file:///usr/bin/bash near; ls /var/lib/machines | grep near; systemd-run -q --pipe --wait -M bootc cmp /usr/bin/bash /var/lib/machines/near.raw && echo there", 0, "there\n", "//"},
			outcome{"machinectl-lite -H localhost/bootc list-transfers; machinectl-lite -M bootc cancel-transfer 77", 1, "No transfers.\n", "machinectl-lite: could not cancel transfer: No transfer by id 77\n"},
		)
		// Who follows a transfer there leaves it as one here.
		d := m.dialog(t, 80, "machinectl-lite -H localhost pull-raw --verify=no "+url+"slow/other.raw left")
		d.await(`Got \d+% of`)
		d.say(ctrlC)
		if status, shown := d.end(); status != 1 || !strings.Contains(shown, "Continuing download in the background.") {
			t.Errorf("status %d, %q", status, shown)
		}
		m.expect(t, outcome{"machinectl-lite -H localhost list-transfers --no-legend", 0, "/^ *[0-9]+ +[0-9]+% pull-raw machine left +http/", ""},
			outcome{"machinectl-lite -H localhost cancel-transfer $(machinectl-lite -H localhost list-transfers --json=short | jq .[].id); await sh -c 'machinectl-lite list-transfers | grep No'", 0, "No transfers.\n", ""})

		// polkit asks for a password.
		for _, command := range []string{"import-tar -q /srv/web/t.tar typed", "pull-raw -q --verify=no " + url + "third.raw typed2", "export-tar -q typed typed.tar.xz", "clone typed cloned", "remove cloned"} {
			d := m.dialog(t, 100, "timeout --foreground 30 ssh -tt alice@localhost machinectl-lite "+command+" && echo done || echo failed")
			d.await("Password: ")
			d.say("secret\n")
			d.await("(done|failed)\r\n$")
			d.tty.Close()
			if !strings.Contains(d.shown(), "done") {
				t.Errorf("%s: %q", command, d.shown())
			}
		}
		m.expect(t, outcome{"xz -dc /home/alice/typed.tar.xz | tar -t | grep -c /system.conf$; stat -c %U /home/alice/typed.tar.xz; ls -A /home/alice | grep '#'; cmp /srv/web/r.raw /var/lib/machines/typed2.raw", 0, "1\nalice\n", ""},
			outcome{"ssh alice@localhost machinectl-lite --no-ask-password import-tar /srv/web/t.tar refused; ls /var/lib/machines | grep refused", 1, "", "/^machinectl-lite: could not transfer image: .*; try: sudo machinectl-lite …\n$/"})

		// A user's own images came with 259.
		user := outcome{"ssh alice@localhost 'mkdir -p .local/state/machines; machinectl-lite --user pull-raw -q --verify=no " + url + "r.raw mine; machinectl-lite --user list-transfers; echo text > f; machinectl-lite -q --user import-raw f file; machinectl-lite -q --user export-raw file | cmp - f; ls .local/state/machines'; ls /var/lib/machines | grep mine", 1, "No transfers.\nfile.raw\nmine.raw\n", "//"}
		if m.Suite == Trixie {
			user = outcome{"ssh alice@localhost machinectl-lite --user list-transfers", 1, "", "/^machinectl-lite: --user: users have machines of their own from systemd 259 on/"}
		}
		m.expect(t, user)
	})
}
