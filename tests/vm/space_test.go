package vm

import "testing"

// TestSpace: what df says is what the disk and clean say.
func TestSpace(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		const (
			df   = "machinectl-lite df --json=short "
			rows = " | jq -r '.[] | [.type, .total, .active] | @tsv'; "
			// What is reclaimable and what clean says that it freed.
			freed = `want=$(machinectl-lite df --json=short $all | jq '[.[].reclaimable] | add'); got=$(machinectl-lite clean --json=short $all | jq '[.[].size] | add // 0'); [ $want = $got ] || echo $want $got; echo $((got > 0)); `
		)
		m.expect(t,
			outcome{df + rows, 0, "images\t0\t0\nlayers\t0\t0\nmachines\t0\t0\nvolumes\t0\t0\nleftovers\t0\t0\n", ""},
			outcome{"machinectl-lite pull-oci -q " + tiny + "; machinectl-lite pull-oci -q " + redis, 0, "//", ""},
			outcome{"nspawnd-run -d --name web -v data:/data " + tiny + " trap; said web ready; nspawnd-run --keep --name pet -u 0 --entrypoint dd " + redis + " if=/dev/zero of=/big bs=1M count=5 status=none; machinectl-lite create-volume idle; " +
				df + rows, 0, "/^web\nimages\t2\t2\nlayers\t[0-9]+\t[0-9]+\nmachines\t2\t1\nvolumes\t2\t1\nleftovers\t0\t0\n$/", ""},
			outcome{"machinectl-lite df --json=short | jq '.[2].size | . > 5242880 and . < 8000000'", 0, "true\n", ""},
			outcome{"for kind in layers machines volumes; do [ $(machinectl-lite df --json=short | jq -r \".[] | select(.type == \\\"$kind\\\").size\") -le $(du -s -B1 /var/lib/nspawnd/$kind | cut -f1) ] || echo $kind; done", 0, "", ""},
			// Nothing is to be freed, also with --all; df changes nothing.
			outcome{"all=; " + freed + "all=--all; " + freed, 0, "0\n0\n", ""},
			outcome{"machinectl-lite df", 0, `/^TYPE +TOTAL ACTIVE SIZE +RECLAIMABLE\nimages +2 +2 .*\n(.*\n){4}\n[0-9.]+M in all\.\n$/`, ""},
			outcome{"machinectl-lite df --no-legend | grep -c .", 0, "5\n", ""},
			outcome{"find /var/lib/nspawnd | sort > /tmp/before; machinectl-lite df > /dev/null; find /var/lib/nspawnd | sort | cmp - /tmp/before", 0, "", ""},
			// A killed command's files, a dead machine's directory, and an image's record that is gone.
			outcome{"mkdir -p /var/lib/nspawnd/tmp/dead /var/lib/nspawnd/machines/dead.1/upper; head -c 100000 /dev/zero > /var/lib/nspawnd/tmp/dead/x; all=; " + freed, 0, "1\n", ""},
			outcome{"machinectl-lite rm pet; machinectl-lite df --all | tail -1", 0, "/^[0-9.]+M in all; to free [0-9.]+M: machinectl-lite clean --all\n$/", ""},
			outcome{"all=; " + freed + "all=--all; " + freed, 0, "0\n1\n", ""},
			outcome{"machinectl-lite list-images --json=short | jq -r .[].name", 0, tiny + ":latest\n", ""},
			outcome{"machinectl-lite df x", 1, "", "machinectl-lite: df takes no argument (see machinectl-lite df --help)\n"},

			// rm is remove-machine; with --force also of what runs.
			outcome{"machinectl-lite rm web", 1, "", "/machine web runs; to end it/"},
			outcome{"nspawnd-run -d --keep --name pet " + tiny + " trap; machinectl-lite rm --force web pet; machinectl-lite list-kept; machinectl-lite list; ls /var/lib/nspawnd/machines", 0, "pet\nNo kept machines.\nNo machines.\n", ""},
			outcome{"nspawnd-run -d --keep --name deaf --entrypoint sleep --stop-timeout 60 " + redis + " inf; timeout 20 machinectl-lite rm -f -t 1 deaf || echo late; machinectl-lite list-kept; systemctl reset-failed nspawnd-deaf 2> /dev/null", 0, "/^deaf\nNo kept machines.\n$/", ""},
			outcome{"machinectl-lite rm -f nosuch", 1, "", "machinectl-lite: there is no kept machine nosuch\n"},
		)
		m.nothingLeft(t)
	})
}
