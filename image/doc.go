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
//	layers/sha256-HEX/       one layer, by DiffID: what its backend keeps of it
//	images/HOST/PATH:TAG.json, images/HOST/PATH@sha256:HEX.json
//	                         the record of an image, one per name
//	tmp/                     what is being written
//
// A file or a layer has its final name only when it is complete and on disk. A layer that is being written is a directory
// in tmp/ whose flock(2) belongs to the writer; others that want the same layer wait for it and use the result. Every
// writer holds a shared flock on tmp/ itself, so whoever gets the exclusive one knows that what lies there is left over.
package image
