// Package fetch brings images from registries into the store: it resolves a name, decides by policy whether the image is
// trusted, downloads what the store lacks, checks every digest and writes the record.
//
// It is the part of image that is slow to load, so only the command that pulls links it.
//
// The way of the data: the manifest is fetched once; if it is an index, the instance for the platform is chosen. Before
// anything else is asked for, the signatures are held against the rule that covers the name (policy.go). Then the
// configuration, and the layers some at a time: network → digest of the blob → decompression → [image.Writer.AddLayer], which
// takes the DiffID, keeps the tar and indexes it. Each arrow is a goroutine with a bounded queue. The record is written
// when all of that is on disk.
//
// ACIs (aci.go, discovery.go) are fetched as one file, which is verified before it is unpacked; what comes of it is handled as an OCI
// image from there on.
package fetch
