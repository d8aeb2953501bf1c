package main

import "time"

// disk is a directory on the disk that the lab has for the store.
const (
	disk  = "/var/lib/nspawnd"
	store = disk + "/store" // ours
)

// storesOnDisk puts the peers' stores on the same file system as ours, before anything is in them. The lab has them on a tmpfs.
func storesOnDisk(l *lab) error {
	_, err := l.script(time.Minute, `
		for store in containers machines; do
			mkdir -p `+disk+`/$store /var/lib/$store
			mount --bind `+disk+`/$store /var/lib/$store
		done`)
	return err
}
