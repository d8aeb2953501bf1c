// Package image owns images on this host: their names, the store that holds them, their configuration, who vouches for
// them, and the mounted tree that a machine runs on. It knows nothing of units or D-Bus.
//
// This package is what a warm start links, so it imports nothing that is slow to load: talking to registries and
// verifying signatures is the work of the package fetch below it, which writes into the same [Store].
//
// The way of an image: [ParseReference] makes a name out of what a user typed, [Store.Image] reads the record that was
// written when the image was pulled, [Store.Mount] builds a detached overlay mount of its layers, and [Root] looks things
// up in that mount (commands, users) without ever following a path of the image on the host.
//
// # The store
//
// Everything lies below one directory (/var/lib/nspawnd), in plain files that belong to root alone:
//
//	blobs/sha256/HEX         manifests, configurations and signatures, by digest
//	layers/sha256-HEX/       one layer, by DiffID: what its backend keeps of it. "erofs" keeps the tar and an EROFS
//	                         index over it (layer.tar, layer.erofs, and layer.sparse for files with holes), "dirs" a
//	                         directory (tree/) and the rest of the tar (layer.rest, content/)
//	images/HOST/PATH:TAG.json, images/HOST/PATH@sha256:HEX.json
//	                         the record of an image, one per name
//	machines/NAME.RANDOM/    a machine's writable layer, and a link to the record of the image that it runs on
//	tmp/                     what is being written or removed
//
// A file or a layer has its final name only when it is complete and on disk. A layer that is being written is a directory
// in tmp/ whose flock(2) belongs to the writer; others that want the same layer wait for it and use the result.
//
// Nothing is removed that somebody needs: an image by its record, a machine by its link to one, a [Writer] by what it has
// claimed, which are files in a directory of its own in tmp/. A flock on layers/ makes that sure: shared while something is
// claimed, exclusive while records change and while it is found out what nobody needs. A start takes no lock
// ([Store.Claim]). What is in tmp/ and not locked was left by the dead; the next to come removes it.
package image
