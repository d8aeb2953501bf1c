package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"nspawnd/image"
)

// Export writes a stored image to files; format is how its layers are compressed: gzip, zstd or none. Its manifest is a new one, since the
// layers are not compressed as they were: no signature holds for it. Nothing must be where it is written.
func Export(ctx context.Context, store *image.Store, img *image.Image, to Source, format string) error {
	_, err := os.Lstat(to.path)
	if err == nil {
		err = errors.New("is there already")
	} else if err = export(ctx, store, img, to, format); err != nil {
		os.RemoveAll(to.path) // it was not there before
	}
	if err != nil {
		return &Error{Err: fmt.Errorf("%s: %w", to, err)}
	}
	return nil
}

func export(ctx context.Context, store *image.Store, img *image.Image, to Source, format string) error {
	reference, name := "//"+img.Reference.Repository(), to.image
	if tag := img.Reference.Tag(); tag != "" {
		reference += ":" + tag
	} else {
		reference += "@" + string(img.Reference.Digest())
	}
	from, err := docker.ParseReference(reference)
	if err != nil {
		return err
	}
	if name == "" && to.transport != "dir" && img.Reference.Tag() != "" {
		name = img.Reference.Repository() + ":" + img.Reference.Tag()
	}
	parse := map[string]func(string) (types.ImageReference, error){
		"oci": layout.ParseReference, "oci-archive": ociarchive.ParseReference, "docker-archive": dockerarchive.ParseReference, "dir": directory.NewReference,
	}[to.transport]
	path := to.path
	if name != "" {
		path += ":" + name
	}
	destination, err := parse(path)
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	system := &types.SystemContext{}
	if to.transport != "docker-archive" {
		system.DirForceCompress = format != "none"
		system.DirForceDecompress = format == "none"
		system.OCIAcceptUncompressedLayers = format == "none"
		if format != "none" {
			algorithm, err := compression.AlgorithmByName(format)
			if err != nil {
				return err
			}
			system.CompressionFormat = &algorithm
		}
	}
	source, err := newStoreSource(store, img, from)
	if err != nil {
		return err
	}
	_, err = copy.Image(ctx, policy, destination, storeReference{from, source}, &copy.Options{DestinationCtx: system, RemoveSignatures: true})
	return err
}

// storeReference is a stored image for containers/image.
type storeReference struct {
	types.ImageReference
	source *storeSource
}

func (r storeReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return r.source, nil
}

// storeSource gives a stored image with its layers uncompressed.
type storeSource struct {
	fileSource
	store  *image.Store
	config []byte
	layers map[digest.Digest]bool
}

func newStoreSource(store *image.Store, img *image.Image, name types.ImageReference) (*storeSource, error) {
	config, err := store.Blob(img.ConfigDigest)
	if err != nil {
		return nil, err
	}
	s := &storeSource{store: store, config: config, layers: map[digest.Digest]bool{}}
	made := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.Digest(img.ConfigDigest), Size: int64(len(config))}}
	made.SchemaVersion = 2
	for _, diffID := range img.Layers {
		layer, err := store.OpenLayer(diffID)
		if err != nil {
			return nil, err
		}
		size, err := io.Copy(io.Discard, layer)
		layer.Close()
		if err != nil {
			return nil, err
		}
		s.layers[digest.Digest(diffID)] = true
		made.Layers = append(made.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.Digest(diffID), Size: size})
	}
	s.name, s.mimeType = name, v1.MediaTypeImageManifest
	s.manifest, err = json.Marshal(made)
	return s, err
}

func (s *storeSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if !s.layers[info.Digest] {
		return io.NopCloser(bytes.NewReader(s.config)), int64(len(s.config)), nil
	}
	layer, err := s.store.OpenLayer(image.Digest(info.Digest))
	return layer, -1, err
}

func (s *storeSource) Close() error { return nil }
