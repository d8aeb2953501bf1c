package fetch

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"nspawnd/image"
)

// Source is an image in files of this host, as containers-transports(5) writes it: TRANSPORT:PATH[:IMAGE]. The zero value is
// none, so the image is on a registry.
type Source struct {
	transport string // of transports
	path      string
	image     string // which of several: an OCI layout's org.opencontainers.image.ref.name, or a name and tag in a docker-archive
}

// Transports are those of [ParseSource].
var Transports = []string{"oci", "oci-archive", "docker-archive", "dir"}

// ParseSource reads the name of an image in files; ok says whether s begins with one of [Transports] at all.
func ParseSource(s string) (source Source, ok bool, err error) {
	source.transport, source.path, ok = strings.Cut(s, ":")
	if !ok || !slices.Contains(Transports, source.transport) {
		return Source{}, false, nil
	}
	if source.transport != "dir" { // which takes a colon as a part of the path
		source.path, source.image, _ = strings.Cut(source.path, ":")
	}
	if source.path == "" {
		return Source{}, true, fmt.Errorf("source %q: no path", s)
	}
	return source, true, nil
}

func (s Source) String() string {
	text := s.transport + ":" + s.path
	if s.image != "" {
		text += ":" + s.image
	}
	return text
}

// absolute names the same files from wherever the name is read; "" is for a registry.
func (s Source) absolute() (string, error) {
	if s == (Source{}) {
		return "", nil
	}
	var err error
	s.path, err = filepath.Abs(s.path)
	return s.String(), err
}

// hasSignatures says whether signatures can be there.
func (s Source) hasSignatures() bool { return s == Source{} || s.transport == "dir" }

// scopes are those of policy.json for the transport, the most specific first: the path and the directories above it
// (containers-policy.json(5)). A docker-archive has none.
func (s Source) scopes() []string {
	if s.transport == "docker-archive" {
		return nil
	}
	path, err := filepath.Abs(s.path)
	if err != nil {
		return nil
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	var scopes []string
	for ; path != "/"; path = filepath.Dir(path) {
		scopes = append(scopes, path)
	}
	return scopes
}

// open opens the source. Signatures are only in "dir:"; that is the one that containers/image reads for us, since only it can
// make signatures of files. The others we read in place: that module unpacks an oci-archive as root into /var/tmp, whatever is in
// it and however large it is, and reads a docker-archive's layers twice.
//
// names are those that the image has for itself.
func (s Source) open(ctx context.Context) (src types.ImageSource, names []string, err error) {
	src, err = s.openFiles(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", s, err)
	}
	if f, ok := src.(*fileSource); ok {
		names = f.names
	}
	return src, names, nil
}

func (s Source) openFiles(ctx context.Context) (types.ImageSource, error) {
	switch s.transport {
	case "dir":
		if err := checkDir(s.path); err != nil {
			return nil, err
		}
		ref, err := directory.NewReference(s.path)
		if err != nil {
			return nil, err
		}
		return ref.NewImageSource(ctx, nil)
	case "oci":
		root, err := os.OpenRoot(s.path)
		if err != nil {
			return nil, err
		}
		return openLayout(dirFiles{root}, s.image)
	}
	archive, err := openTar(ctx, s.path)
	if err != nil {
		return nil, err
	}
	if s.transport == "docker-archive" {
		return openDockerArchive(ctx, archive, s.image)
	}
	return openLayout(archive, s.image)
}

// checkDir refuses what would make the reader of "dir:" wait or take memory without end.
func checkDir(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	signatures := 0
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name := entry.Name()
		signature := strings.Contains(name, "signature-")
		if signature {
			signatures++
		}
		switch {
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s: not a regular file", name)
		case (signature || strings.HasSuffix(name, "manifest.json") || name == "version") && info.Size() > image.MaxBlob:
			return tooLarge(name, info.Size())
		case signatures > maxSignatures:
			return fmt.Errorf("more than %d signatures", maxSignatures)
		}
	}
	return nil
}

const maxSignatures = 128

func tooLarge(name string, size int64) error {
	return fmt.Errorf("%s: %d bytes, more than %d", name, size, image.MaxBlob)
}

// files are those of an image: of a directory or of a tar.
type files interface {
	// open gives a regular file and its size. The error is fs.ErrNotExist if there is none.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// readSmall gives all of a small file.
func readSmall(f files, name string) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > image.MaxBlob {
		return nil, tooLarge(name, size)
	}
	return io.ReadAll(io.LimitReader(r, size))
}

// dirFiles are below a directory; a link that leads out of it leads nowhere.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (d dirFiles) Close() error { return d.root.Close() }

// fileSource is an image in files, without signatures, as containers/image wants it.
type fileSource struct {
	files
	name     types.ImageReference // that the image is to have here
	manifest []byte
	mimeType string
	names    []string                  // what the files call the image
	blob     func(image.Digest) string // the file that has a blob
}

func (f *fileSource) Reference() types.ImageReference { return f.name }

func (f *fileSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	if instance == nil {
		return f.manifest, f.mimeType, nil
	}
	d, err := image.ParseDigest(instance.String())
	if err != nil {
		return nil, "", err
	}
	data, err := readSmall(f.files, f.blob(d))
	return data, manifest.GuessMIMEType(data), err
}

func (f *fileSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	d, err := image.ParseDigest(info.Digest.String())
	if err != nil {
		return nil, 0, err
	}
	return f.open(f.blob(d))
}

func (f *fileSource) HasThreadSafeGetBlob() bool { return true }

func (f *fileSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

func (f *fileSource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}
