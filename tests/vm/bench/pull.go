package main

import (
	"strings"
	"time"

	"nspawnd/tests/vm"
)

const (
	pullImage = vm.RegistryAddress + "/demo/large:1"
	pullTools = disk + "/tools" // what skopeo and umoci make of it
)

// coldPull asks how long it takes to have an image of a registry ready to run: five layers with 380 MB of Debian's files, over TLS on
// the loopback device, with nothing of it in any store.
func coldPull(l *lab) (contest, error) {
	if err := storesOnDisk(l); err != nil {
		return contest{}, err
	}
	if err := preparePull(l); err != nil {
		return contest{}, err
	}
	c := contest{
		ours: command{Name: "machinectl-lite", Argv: []string{"machinectl-lite", "--root=" + store, "pull-oci", "--quiet", pullImage},
			Before: shell("rm -rf "+store, "sync")},
		peers: []peer{
			{command{Name: "podman", Argv: []string{"podman", "pull", "--quiet", pullImage},
				Before: shell("podman rmi --all --force >/dev/null", "sync")}, 0.3},
			{command{Name: "skopeo+umoci", Before: shell("rm -rf "+pullTools, "mkdir -p "+pullTools, "sync"),
				Argv: shell("cd "+pullTools, "skopeo --insecure-policy copy --remove-signatures --quiet docker://"+pullImage+" oci:oci:1", "umoci unpack --image oci:1 bundle")}, 0},
		},
		notes: []string{
			"nothing of the image is in a store before a run; what was written before is on disk, and all stores are on the same. The registry's files are in the page cache",
			"machinectl-lite verifies a signature; the others are not asked to",
			"memory is that of the largest process; importctl has a service do the work",
		},
		memory: true,
		runs:   10,
	}
	if l.Suite == vm.Forky { // the first with pull-oci
		c.peers = append(c.peers, peer{command{Name: "importctl", Argv: []string{"importctl", "--quiet", "--class=machine", "pull-oci", pullImage, "large"},
			Before: shell("machinectl --quiet clean --all", "sync")}, 0.5})
	}
	return c, nil
}

// shell is a command of several lines.
func shell(lines ...string) []string { return []string{"sh", "-euc", strings.Join(lines, "\n")} }

// preparePull makes the image of the lab's own files, signs it and trusts the signature.
func preparePull(l *lab) error {
	l.Registry()
	// importctl of 262 closes the pipe at the end of the archive and then fails now and then, if more than the two blocks that end one comes.
	_, err := l.script(5*time.Minute, `
		mkdir -p `+trees+`/large
		cd `+trees+`/large
		umoci init --layout oci
		umoci new --image oci:1
		layer() {
			tar --directory=/ --one-file-system --sort=name --blocking-factor=1 --exclude=usr/bin/cosign --create --file=layer.tar "$@"
			umoci raw add-layer --image oci:1 layer.tar
			rm layer.tar
		}
		layer usr/lib/x86_64-linux-gnu bin sbin lib lib64
		layer --exclude=usr/lib/x86_64-linux-gnu usr/lib usr/share usr/sbin
		layer usr/bin
		layer usr/libexec
		layer etc var/lib/dpkg
		umoci config --image oci:1 --architecture amd64 --os linux --config.user root --config.cmd true
		skopeo --insecure-policy copy --quiet oci:oci:1 docker://`+pullImage+`
		cd /
		rm -r `+trees+`/large`)
	if err != nil {
		return err
	}
	_, err = l.script(time.Minute, "machinectl-lite trust add --yes --prefix "+vm.RegistryAddress+"/demo "+l.SignSigstore(pullImage))
	return err
}
