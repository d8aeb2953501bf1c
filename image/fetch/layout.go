package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"nspawnd/image"
)

// containerdName is where containerd and docker keep the name of an image in an OCI layout.
const containerdName = "io.containerd.image.name"

// openLayout gives the image of an OCI layout (image-spec image-layout.md) with the given org.opencontainers.image.ref.name, or
// the only one. It closes f when it fails.
func openLayout(f files, refName string) (src *fileSource, err error) {
	defer closeOnError(f, &err)
	data, err := readSmall(f, v1.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("not an OCI layout: it has no " + v1.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	if err := checkObjects(data); err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", v1.ImageIndexFile, err)
	}
	var matching []v1.Descriptor
	var has []string
	for _, descriptor := range index.Manifests {
		if refName == "" || descriptor.Annotations[v1.AnnotationRefName] == refName {
			matching = append(matching, descriptor)
		}
		has = append(has, descriptor.Annotations[v1.AnnotationRefName])
	}
	if err := one(len(matching), has); err != nil {
		return nil, err
	}
	src = &fileSource{files: f, blob: func(d image.Digest) string { return "blobs/sha256/" + d.Hex() }}
	for _, key := range []string{containerdName, v1.AnnotationRefName} {
		// "latest" is no name: it has to have a host.
		if value := matching[0].Annotations[key]; strings.Contains(value, "/") {
			src.names = append(src.names, value)
		}
	}
	d, err := image.ParseDigest(matching[0].Digest.String())
	if err != nil {
		return nil, err
	}
	if src.manifest, err = readSmall(f, src.blob(d)); err != nil {
		return nil, err
	}
	if image.DigestOf(src.manifest) != d {
		return nil, fmt.Errorf("manifest %s: %w", d, errDigest)
	}
	src.mimeType = matching[0].MediaType
	return src, nil
}

// one wants one image of those that are there.
func one(n int, has []string) error {
	if n == 1 {
		return nil
	}
	has = slices.DeleteFunc(has, func(s string) bool { return s == "" })
	slices.Sort(has)
	what := "no image of that name in it"
	if n > 1 {
		what = fmt.Sprintf("%d images in it, of which one has to be named behind a colon", n)
	}
	const enough = 10
	if len(has) > enough {
		has = append(has[:enough], "…")
	}
	return fmt.Errorf("%s; it has: %s", what, strings.Join(has, ", "))
}

func closeOnError(c io.Closer, err *error) {
	if *err != nil {
		c.Close()
	}
}
