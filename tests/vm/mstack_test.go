package vm

import "testing"

// What export-mstack writes runs with systemd alone, with all that is ours gone. TestTreesBesidePeers compares the trees.
func TestExportMStack(t *testing.T) {
	m := Lab(t, Forky)
	m.Registry()
	const machines = "/var/lib/machines"
	run := "systemd-run -q --wait --pipe -p RootMStack=" + machines
	m.expect(t,
		outcome{"machinectl-lite pull-oci -q --insecure-options=image " + redis + ":1", 0, "/.*/", "/WARNING/"},
		outcome{"machinectl-lite export-mstack redis:1 " + machines + "/cache.mstack", 0, "", ""},
		outcome{"machinectl-lite export-mstack --read-only redis:1 " + machines + "/fixed.mstack/", 0, "", ""},
		outcome{"machinectl-lite export-mstack redis:1 " + machines + "/cache.mstack", 1, "", "/^machinectl-lite: image .*redis:1: exporting: " + machines + "/cache.mstack exists already; remove it or name another\n$/"},
		outcome{"machinectl-lite export-mstack redis:1 /no/where", 1, "", "/exporting: .*no such file or directory\n$/"},
		outcome{"machinectl-lite export-mstack redis:1", 1, "", "/takes an image and a directory/"},
		// A damaged layer is not exported, and nothing is left.
		outcome{"cd /var/lib/nspawnd/layers; f=$(ls */layer.tar | head -n1); cp $f /tmp/good; printf x | dd of=$f bs=1 seek=1000000 conv=notrunc status=none; machinectl-lite export-mstack redis:1 " + machines + "/bad.mstack; s=$?; cp /tmp/good $f; ls -A " + machines + "; exit $s",
			1, "cache.mstack\nfixed.mstack\n", "/layer sha256:.*: damaged: /"},
		outcome{"rm -r /var/lib/nspawnd/* /usr/local/bin/machinectl-lite", 0, "", "/.*/"},
		outcome{run + "/cache.mstack sh -c 'redis-server --version > /version; id -u redis; cat README || cat /data/README'", 0, "/from the image\n$/", "/.*/"},
		outcome{run + "/cache.mstack cat /version", 0, "/^Redis server/", ""}, // changes stay
		outcome{"cat " + machines + "/cache.mstack/rw/data/version", 0, "/^Redis server/", ""},
		outcome{run + "/fixed.mstack sh -c 'touch /x || cat /data/README'", 0, "from the image\n", "/Read-only file system/"},
		outcome{"systemd-nspawn -q --pipe -M cache --mstack=" + machines + "/cache.mstack cat /version /data/README", 0, "/^Redis server.*\nfrom the image\n$/", "/.*/"},
	)
}
