package main

import (
	"strings"
	"time"

	"nspawnd/tests/vm"
)

// clean asks how long it takes to remove all of 100 images, which have one layer in common and one of 100 files each for itself.
func clean(l *lab) (contest, error) {
	if err := storesOnDisk(l); err != nil {
		return contest{}, err
	}
	const podmans, saved = "/var/lib/containers/storage", disk + "/saved"
	_, err := l.script(5*time.Minute, `
		mkdir -p `+trees+`/many/files
		cd `+trees+`/many
		umoci init --layout oci
		umoci new --image oci:base
		tar --directory=/ --create --file=layer.tar usr/libexec etc
		umoci raw add-layer --image oci:base layer.tar
		umoci config --image oci:base --architecture amd64 --os linux --config.cmd true
		for image in $(seq 100); do
			for file in $(seq 100); do echo "$image $file" > files/$file; done
			tar --create --file=layer.tar files
			umoci tag --image oci:base $image
			umoci raw add-layer --image oci:$image layer.tar
			name=`+vm.RegistryAddress+`/demo/many$image:1
			machinectl-lite --root=`+store+` import-oci --quiet --insecure-options=image oci:oci:$image $name >/dev/null
			skopeo --insecure-policy copy --quiet oci:oci:$image containers-storage:$name
		done
		[ "$(podman images --quiet | wc --lines)" = 100 ]
		mkdir `+saved+`
		mv `+store+` `+saved+`/ours
		cp --archive `+podmans+` `+saved+`/podmans`)
	if err != nil {
		return contest{}, err
	}
	restore := func(from, to string) []string {
		return shell("rm -rf "+to, "cp --archive "+saved+"/"+from+" "+to, "sync")
	}
	return contest{
		ours: command{Name: "machinectl-lite", Argv: strings.Fields("machinectl-lite --root=" + store + " clean --all"), Before: restore("ours", store)},
		peers: []peer{
			{command{Name: "podman", Argv: strings.Fields("podman rmi --all"), Before: restore("podmans", podmans)}, 1},
		},
		notes: []string{"before each run, the store is a new copy of one that had the images stored, on the same disk for both"},
		runs:  5,
	}, nil
}
