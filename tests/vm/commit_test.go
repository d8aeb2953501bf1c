package vm

import "testing"

// TestCommit: what a machine has changed, as podman says of the same changes; its tree; and an image made of it, which runs here and in podman.
func TestCommit(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("machinectl-lite", "pull-oci", "-q", redis)
		m.WriteFile("/tmp/change", []byte(`
			echo new > /srv/new; mkdir -p "/srv/d/a b"; ln -s /etc/passwd /srv/link; ln /srv/new /srv/hard; chmod 600 /etc/passwd
			rm -rf /var/lib/dpkg; mkdir /var/lib/dpkg; echo again > /var/lib/dpkg/status; rm /bin/ls; mkfifo /srv/fifo; head -c 300000 /dev/zero > /srv/zeros
			echo up > /srv/done
		`), 0o755)
		sh := func(options, script string) string {
			return "nspawnd-run -d --name web " + options + " -u 0 --entrypoint sh -v /tmp/change:/change:ro " + redis + " -c '" + script + "' > /dev/null; "
		}
		const tree = " | tar -tv --numeric-owner --full-time --exclude=run --exclude=dev --exclude=proc --exclude=sys --exclude=etc/hosts --exclude=etc/hostname --exclude=etc/resolv.conf --exclude=change | sed 's/\\.[0-9]* / /; s/  */ /g' | grep -v '/$' | sort -k6 "
		m.expect(t,
			outcome{sh("-v data:/mnt", "sh /change; echo x > /mnt/x; sleep 1000") + "await sh -c 'machinectl-lite diff web | grep -q /srv/done'", 0, "", ""},
			outcome{"machinectl-lite diff web | grep -v ' /change\\| /mnt\\| /root$' > /tmp/ours; grep ' /srv\\|passwd\\|dpkg\\|bin/ls' /tmp/ours", 0,
				"/^C /etc/passwd\nC /srv\nA /srv/d\nA /srv/d/a b\nA /srv/done\nA /srv/fifo\nA /srv/hard\nA /srv/link\nA /srv/new\nA /srv/zeros\nD /usr/bin/ls\nC /var/lib/dpkg\n(D /var/lib/dpkg/[^\n]*\n)+C /var/lib/dpkg/status\n(D /var/lib/dpkg/[^\n]*\n)*$/", ""},
			outcome{"machinectl-lite diff --json=short web | jq -r '.[] | select(.path == \"/srv/new\").change'", 0, "A\n", ""},
			outcome{"machinectl-lite diff nosuch", 1, "", "machinectl-lite: nosuch is no machine of nspawnd that runs or is kept\n"},

			outcome{"machinectl-lite export web | tar -xO srv/hard; machinectl-lite export web /tmp/web.tar; machinectl-lite export web /tmp/web.tar; tar -tf /tmp/web.tar | grep -c '^mnt/x\\|bin/ls$\\|\\.wh\\.'", 1, "new\n0\n", "machinectl-lite: open /tmp/web.tar: file exists\n"},

			outcome{"machinectl-lite commit --pause --author me --message 'with news' --change 'CMD [\"cat\",\"/srv/new\"]' --change 'ENV A=b c' --change ENTRYPOINT=[] --change 'LABEL x=y' web localhost/web:2", 0, "/^localhost/web@sha256:[0-9a-f]{64}\n$/", ""},
			outcome{"systemctl show -P FreezerState nspawnd-web; machinectl-lite inspect-image localhost/web:2 | jq -r '.[] | .Trust.kind, (.Trust.insecure | join(\",\")), .Trust.machine, .History[-1].comment, .Labels.x, (.RootFS.Layers | length)'", 0,
				"/^running\ncommitted\nimage\nweb " + redis + "@sha256:[0-9a-f]{64}\nwith news\ny\n[0-9]+\n$/", ""},
			// It runs, as what the machine was; under a name that a rule is for it does not.
			outcome{"nspawnd-run localhost/web:2; nspawnd-run --entrypoint sh localhost/web:2 -c 'echo $A; cat /srv/done /var/lib/dpkg/status; echo /var/lib/dpkg/*; stat -c %a /etc/passwd; readlink /srv/link; stat -c %h /srv/hard; [ ! -e /bin/ls ] && [ -p /srv/fifo ]; stat -c %s /srv/zeros'", 0, "new\nb c\nup\nagain\n/var/lib/dpkg/status\n600\n/etc/passwd\n2\n300000\n", ""},
			outcome{"machinectl-lite verify-image localhost/web:2 > /dev/null", 0, "", ""},
			outcome{"machinectl-lite commit web " + RegistryAddress + "/demo/own:1 > /dev/null; nspawnd-run --pull=never " + RegistryAddress + "/demo/own:1", 125, "", "/^nspawnd-run: image .*demo/own:1: .*not trusted/"},
			outcome{"nspawnd-run --pull=never --insecure-options=image " + RegistryAddress + "/demo/own:1 cat /srv/new", 0, "new\n", "/./"},
			// podman sees the same tree as we do.
			outcome{"machinectl-lite export-oci localhost/web:2 oci-archive:/tmp/web.oci && podman pull -q oci-archive:/tmp/web.oci > /dev/null && podman create -q --name peer localhost/web:2 > /dev/null && podman export peer" + tree + "> /tmp/theirs; " +
				"nspawnd-run -d --name same --entrypoint sleep localhost/web:2 inf > /dev/null; machinectl-lite export same" + tree + "> /tmp/ours; machinectl-lite stop -t 0 same; podman rm -f peer > /dev/null; wc -l < /tmp/theirs; diff /tmp/ours /tmp/theirs", 0, "/^[0-9]{3,}\n$/", ""},

			outcome{"machinectl-lite commit web web2", 1, "", "/must be in full/"},
			outcome{"machinectl-lite commit --change 'RUN rm' web localhost/web:3", 1, "", "/--change: \"RUN rm\" is not one of CMD, /"},
			outcome{"machinectl-lite commit web localhost/web@sha256:" + zeros64, 1, "", "/has a digest/"},
			outcome{"machinectl-lite stop -t 0 web; systemctl reset-failed 'nspawnd-*' 2> /dev/null; ls /var/lib/nspawnd/tmp", 0, "", ""},

			// Kept, and stopped. No link that the machine makes leads out of it.
			outcome{"nspawnd-run --keep --name pet -u 0 --entrypoint sh " + redis + " -c 'rm -rf /srv; ln -s /etc /srv; touch /tmp/.wh.x'; await sh -c '! systemctl is-active -q nspawnd-pet-root'; machinectl-lite diff pet | grep 'srv\\|wh'; machinectl-lite export pet | tar -t | grep -c '^srv/'", 1, "C /srv\nA /tmp/.wh.x\n0\n", ""},
			outcome{"machinectl-lite commit pet localhost/pet:1; machinectl-lite rm pet", 0, "", "/^machinectl-lite: image localhost/pet:1: /tmp/.wh.x: .*\n$/"},
		)
		s := m.session(t, "nspawnd-run -d --name web "+tiny+" trap; machinectl-lite export web; machinectl-lite stop web")
		s.saw("export: a tar is nothing for a terminal")
		s.ends(0)
		m.nothingLeft(t)
	})
}

const zeros64 = "0000000000000000000000000000000000000000000000000000000000000000"

// TestDiffBesidePodman makes the same changes in a machine and in a container of podman, and knows each line that differs.
func TestDiffBesidePodman(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("machinectl-lite", "pull-oci", "-q", redis)
		m.Must("podman", "pull", "-q", redis)
		m.WriteFile("/tmp/change", []byte(`set -e
			mkdir -p /srv/new/a/b; echo x > /srv/new/a/b/file; echo x > "/srv/with space"; ln -s /etc/passwd /srv/link; mkfifo /srv/fifo; touch /srv/.wh.x; mkdir /srv/empty
			echo gone > /srv/gone; rm /srv/gone; mkdir /srv/goner; echo x > /srv/goner/x; rm -rf /srv/goner
			echo more >> /etc/passwd; chmod 600 /etc/shadow; chown 5 /etc/group; touch /etc/bash.bashrc /var/log/apt; chmod 711 /var/spool; ln /etc/shells /etc/hard
			rm /usr/bin/tac; rm -rf /var/cache/apt
			rm /etc/profile; echo again > /etc/profile; rm /etc/debian_version; ln -s issue /etc/debian_version
			rm -rf /var/cache/debconf; echo file > /var/cache/debconf; mv /media /opt/media
			# Directories where there were another and a file, and what the machine has anew at each start.
			rm -rf /etc/skel; mkdir /etc/skel; echo again > /etc/skel/.profile
			rm /etc/issue.net; mkdir /etc/issue.net
			mkdir /run/own; echo x > /run/own/file; echo x > /dev/shm/x
			echo changed
		`), 0o755)
		const options = " -u 0 -v /tmp/change:/mnt/change:ro --tmpfs /mnt/tmp --entrypoint sh " + redis + " -c '. /mnt/change; exec sleep inf' > /dev/null; "
		// podman has /var after /var/cache, and all else in the order of paths.
		const diffs = "podman diff peer | LC_ALL=C sort -k 2 > /tmp/theirs; machinectl-lite diff same > /tmp/ours; "
		// podman takes a directory that is not the image's any more for a deleted one, even when no directory was there.
		const differ = "< D /etc/issue.net\n> C /etc/issue.net\n< D /etc/skel\n> C /etc/skel\n> D /etc/skel/.bash_logout\n> D /etc/skel/.bashrc\n"
		m.expect(t,
			outcome{"podman run -d --name peer --network=none --cgroups=disabled" + options + "nspawnd-run -d --keep --name same" + options + "await sh -c 'podman logs peer | grep -q changed'; said same changed; " + diffs + "grep -c . /tmp/theirs; diff /tmp/theirs /tmp/ours | grep '^[<>]'", 0,
				"40\n" + differ + "< A /run/own\n< A /run/own/file\n", ""},
			// Stopped, they say the same.
			outcome{"cp /tmp/theirs /tmp/their; cp /tmp/ours /tmp/our; podman stop -t 0 peer > /dev/null; machinectl-lite stop -t 0 same; systemctl reset-failed nspawnd-same; " + diffs + "diff /tmp/their /tmp/theirs && diff /tmp/our /tmp/ours", 0, "", ""},
			outcome{"machinectl-lite diff --json=short same | jq -r '.[] | .change + \" \" + .path' | diff - /tmp/our; podman rm peer > /dev/null; machinectl-lite rm same", 0, "", ""},
		)
		m.nothingLeft(t)
	})
}
