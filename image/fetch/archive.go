package fetch

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"golang.org/x/sys/unix"

	"nspawnd/image"
)

// openDockerArchive gives the image of a "docker save" archive with the given name and tag, or the only one. Such an archive has no
// manifest; we make the one that podman makes. It closes f when it fails.
func openDockerArchive(ctx context.Context, f *tarFiles, wanted string) (src *fileSource, err error) {
	defer closeOnError(f, &err)
	data, err := readSmall(f, "manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("not a docker-archive: it has no manifest.json")
	}
	if err != nil {
		return nil, err
	}
	if err := checkObjects(data); err != nil {
		return nil, err
	}
	type item struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var items, matching []item
	if err := json.Unmarshal(data, &items); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	var has []string
	for _, item := range items {
		if wanted == "" || slices.ContainsFunc(item.RepoTags, func(tag string) bool { return sameName(tag, wanted) }) {
			matching = append(matching, item)
		}
		has = append(has, item.RepoTags...)
	}
	if err := one(len(matching), has); err != nil {
		return nil, err
	}
	src = &fileSource{files: f, names: matching[0].RepoTags, mimeType: manifest.DockerV2Schema2MediaType}
	if wanted != "" {
		src.names = []string{wanted}
	}
	config, err := readSmall(f, matching[0].Config)
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	_, _, diffIDs, err := image.ParseConfig(config)
	if err != nil {
		return nil, err
	}
	paths := matching[0].Layers
	if len(paths) != len(diffIDs) || len(paths) > image.MaxLayers {
		return nil, fmt.Errorf("manifest.json has %d layers, the image configuration %d; at most %d are possible", len(paths), len(diffIDs), image.MaxLayers)
	}
	configDigest := image.DigestOf(config)
	blobs := map[image.Digest]string{configDigest: matching[0].Config}
	src.blob = func(d image.Digest) string { return blobs[d] }
	made := manifest.Schema2{SchemaVersion: 2, MediaType: src.mimeType, LayersDescriptors: []manifest.Schema2Descriptor{},
		ConfigDescriptor: manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2ConfigMediaType, Size: int64(len(config)), Digest: digest.Digest(configDigest)}}
	for i, diffID := range diffIDs {
		d, size, err := f.layer(ctx, paths[i], diffID)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", diffID, err)
		}
		blobs[d] = paths[i]
		made.LayersDescriptors = append(made.LayersDescriptors, manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2LayerMediaType, Size: size, Digest: digest.Digest(d)})
	}
	src.manifest, err = json.Marshal(made)
	return src, err
}

// sameName says whether both name the same image.
func sameName(a, b string) bool {
	x, err := image.ParseReference(a)
	if err != nil {
		return false
	}
	y, err := image.ParseReference(b)
	return err == nil && x == y
}

// tarFiles are in a tar that is read in place.
type tarFiles struct {
	file  *os.File
	files map[string]extent
	links map[string]string
}

type extent struct{ offset, size int64 }

const maxTarFiles = 100_000

// openTar finds the files of a tar. One that is compressed, as a layer may be, is read from a copy that has no name on the host and
// ends with us.
func openTar(ctx context.Context, name string) (t *tarFiles, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { closeOnError(f, &err) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("not a regular file"))
	}
	if compressed, err := isCompressed(f); err != nil {
		return nil, err
	} else if compressed {
		plain, err := uncompressedCopy(ctx, f)
		if err != nil {
			return nil, err
		}
		f.Close()
		f = plain
	}
	t = &tarFiles{f, map[string]extent{}, map[string]string{}}
	return t, t.scan(ctx)
}

func isCompressed(r io.ReaderAt) (bool, error) {
	buffered := bufio.NewReader(io.NewSectionReader(r, 0, 16))
	magic, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return false, err
	}
	return isGzip(magic) || isZstd(magic), nil
}

func uncompressedCopy(ctx context.Context, f *os.File) (plain *os.File, err error) {
	// The directory that containers-storage.conf(5) has for large files: /tmp may be in memory.
	plain, err = os.CreateTemp("/var/tmp", "nspawnd-")
	if err != nil {
		return nil, err
	}
	defer closeOnError(plain, &err)
	if err := os.Remove(plain.Name()); err != nil {
		return nil, err
	}
	r, err := decompressor(bufio.NewReaderSize(f, pieceSize))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, err = io.Copy(plain, (&budget{}).limit(io.NopCloser(readerContext{ctx, r})))
	return plain, err
}

// readerContext ends with its context.
type readerContext struct {
	ctx context.Context
	io.Reader
}

func (r readerContext) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

func (t *tarFiles) scan(ctx context.Context) error {
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	reader := tar.NewReader(t.file)
	for n := 0; ; n++ {
		header, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading tar: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n == maxTarFiles {
			return fmt.Errorf("more than %d files in it", maxTarFiles)
		}
		name := path.Clean("/" + header.Name)
		switch header.Typeflag {
		case tar.TypeReg:
			// It reads a header to its last byte and no further. Of a sparse file it would read the map too.
			offset, err := t.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			for key := range header.PAXRecords {
				if strings.HasPrefix(key, "GNU.sparse.") {
					return fmt.Errorf("%s: sparse files are not supported", header.Name)
				}
			}
			t.files[name] = extent{offset, header.Size}
		case tar.TypeSymlink: // "docker save" made these of a layer that is in two images
			t.links[name] = path.Join(path.Dir(name), header.Linkname)
		case tar.TypeLink:
			t.links[name] = path.Clean("/" + header.Linkname)
		}
	}
}

func (t *tarFiles) find(name string) (*io.SectionReader, error) {
	name = path.Clean("/" + name)
	if target, ok := t.links[name]; ok {
		name = target // and no further, so there is no loop
	}
	file, ok := t.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(name, "/"), fs.ErrNotExist)
	}
	return io.NewSectionReader(t.file, file.offset, file.size), nil
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	r, err := t.find(name)
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(r), r.Size(), nil
}

func (t *tarFiles) Close() error { return t.file.Close() }

// layer gives the digest and size of a docker-archive's layer as it is in the archive. An uncompressed one's is its DiffID, which
// is checked when the layer is read.
func (t *tarFiles) layer(ctx context.Context, name string, diffID image.Digest) (image.Digest, int64, error) {
	r, err := t.find(name)
	if err != nil {
		return "", 0, err
	}
	compressed, err := isCompressed(r)
	if err != nil || !compressed {
		return diffID, r.Size(), err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, readerContext{ctx, r}); err != nil {
		return "", 0, err
	}
	return image.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil))), r.Size(), nil
}
