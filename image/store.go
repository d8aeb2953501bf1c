package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// DefaultRoot is where the store is.
const DefaultRoot = "/var/lib/nspawnd"

// Kinds of errors, for [errors.Is].
var (
	ErrNotFound = errors.New("not in the store") // an image, a layer or a blob
	ErrReadOnly = errors.New("is marked read-only")
	ErrChanged  = errors.New("was replaced or removed just now")
)

// Limits on what is read back, far above what is ever written.
const (
	MaxBlob   = 4 << 20 // bytes of a manifest, configuration or signature
	MaxLayers = 480     // of an image; overlayfs takes 500 lower directories
	maxRecord = 2 * MaxBlob
)

// Store is the directory that images are kept in.
type Store struct {
	root    string
	backend backend // for new layers; nil is what the host can
}

// backend keeps the content of layers. A layer has a directory to itself, which has its final name only when create
// has returned and everything in it is on disk.
type backend interface {
	// create reads a layer's uncompressed tar to its end and keeps it in dir.
	create(dir string, tar io.Reader) (layerRecord, error)
	// lower returns the layer in dir as a directory that overlayfs can use as a lower one, and says whether that is a detached mount.
	lower(dir string) (lower *os.File, detached bool, err error)
	// open returns the layer's uncompressed tar again, byte for byte.
	open(dir string) (io.ReadCloser, error)
	// verify holds all that is in dir, but the content of the tar that open returns and the record, against the tar, which
	// it reads to its end. It returns the record that create returned.
	verify(dir string, tar io.Reader) (layerRecord, error)
}

const layerFile = "layer.json"

// layerRecord is what an image needs to know of its layers when it is put together; it lies beside the layer.
type layerRecord struct {
	Size   int64 `json:"size"`             // bytes on disk
	Root   bool  `json:"root,omitempty"`   // says what the root directory's attributes are
	Opaque bool  `json:"opaque,omitempty"` // hides everything below

	Reopens Reopens `json:"reopens,omitempty"`
}

// Open returns the store below root, which need not exist yet. Nobody else may be able to change what is in it.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(root, &stat); err == nil {
		switch {
		case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, fmt.Errorf("store %s: not a directory", root)
		case stat.Uid != 0 && stat.Uid != uint32(os.Geteuid()):
			return nil, fmt.Errorf("store %s: belongs to user %d, who can change the images in it; to take it over, with all that is in it now: chown -R root %s", root, stat.Uid, root)
		case stat.Mode&0o022 != 0:
			return nil, fmt.Errorf("store %s: others can change the images in it; to end that: chmod go-w %s", root, root)
		}
	}
	return &Store{root: root}, nil
}

// Backends by the name that users know.
var backends = map[string]backend{"erofs": erofsBackend{}, "dirs": dirsBackend{}}

// SetBackend says how layers are kept that are added from now on: "erofs", "dirs", or "" for the first of these that the host can
// mount from. A store may have layers of both kinds.
func (s *Store) SetBackend(name string) error {
	b, ok := backends[name]
	if !ok && name != "" {
		return fmt.Errorf("no backend %q, there are erofs and dirs", name)
	}
	s.backend = b
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) layerDir(diffID Digest) string { return s.path("layers", layerName(diffID)) }

const layerPrefix = "sha256-"

func layerName(diffID Digest) string { return layerPrefix + diffID.Hex() }

func fromLayerName(name string) (diffID Digest, ok bool) {
	hex, ok := strings.CutPrefix(name, layerPrefix)
	diffID, err := ParseDigest(sha256Prefix + hex)
	return diffID, ok && err == nil
}

// Image returns the record of the image that is stored under ref; the error is [ErrNotFound] if there is none.
func (s *Store) Image(ref Reference) (*Image, error) {
	img, err := s.readImage(s.RecordPath(ref))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// RecordPath is where the record of the image with this name is, or would be.
func (s *Store) RecordPath(ref Reference) string { return s.path("images", ref.recordPath()) }

// removal is the command that removes a record that can't be read.
func (s *Store) removal(path string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(path, s.path("images")+"/"), ".json")
	if ref, err := ParseReference(name); err == nil && s.RecordPath(ref) == path {
		return "machinectl-lite remove " + name
	}
	return "rm " + path
}

// CheckWritable says whether the image that is stored under ref, if there is one, may be replaced or removed: the error is
// [ErrReadOnly] if not.
func (s *Store) CheckWritable(ref Reference) error {
	// A record that can't be read protects nothing: to replace it is what helps.
	if img, err := s.Image(ref); err == nil && img.ReadOnly {
		return fmt.Errorf("%w; to let it change: machinectl-lite read-only %s false", ErrReadOnly, ref)
	}
	return nil
}

// Images returns the records of all images, by name. Records that can't be read are left out and named in the error.
func (s *Store) Images() ([]*Image, error) {
	var images []*Image
	var unreadable []error
	err := filepath.WalkDir(s.path("images"), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || entry.IsDir() {
			return err
		}
		img, err := s.readImage(path)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			unreadable = append(unreadable, fmt.Errorf("%w; to remove it: %s", err, s.removal(path)))
			return nil
		}
		images = append(images, img)
		return nil
	})
	if err != nil {
		unreadable = append(unreadable, err)
	}
	slices.SortFunc(images, func(a, b *Image) int { return cmp.Compare(a.Reference.String(), b.Reference.String()) })
	return images, errors.Join(unreadable...)
}

func (s *Store) readImage(path string) (*Image, error) {
	img, err := readRecord(path)
	if err == nil && s.RecordPath(img.Reference) != path {
		return nil, fmt.Errorf("record %s: is that of %s", path, img.Reference)
	}
	return img, err
}

func readRecord(path string) (*Image, error) {
	data, err := readLimited(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	img, err := parseImage(data)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", path, err)
	}
	return img, nil
}

// Blob returns a manifest, configuration or signature by its digest.
func (s *Store) Blob(digest Digest) ([]byte, error) {
	data, err := readLimited(s.path("blobs", "sha256", digest.Hex()), MaxBlob)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err == nil && DigestOf(data) != digest {
		err = errors.New("damaged: its content has another digest")
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	return data, nil
}

// HasLayer says whether the layer is stored.
func (s *Store) HasLayer(diffID Digest) bool {
	_, err := s.layer(diffID)
	return err == nil
}

// LayerSize returns the bytes that a layer takes on disk.
func (s *Store) LayerSize(diffID Digest) (int64, error) {
	l, err := s.layer(diffID)
	return l.Size, err
}

func (s *Store) layer(diffID Digest) (l layerRecord, err error) {
	data, err := readLimited(filepath.Join(s.layerDir(diffID), layerFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err != nil {
		return l, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return l, nil
}

// Writer adds to the store. Any number may be at work at the same time, in this process and in others. What a Writer has
// added stays until it is closed, also if no image needs it yet.
type Writer struct {
	// Repair has [Writer.AddLayer] verify a layer that is stored already, and replace it if it is damaged.
	Repair bool

	store   *Store
	dir     *os.File    // its directory in tmp/, locked
	full    atomic.Bool // there was no space for something
	added   bool        // an image
	backend func() (backend, error)
}

const writerPrefix = "writer-"

// Writer prepares the store for writing and removes what writers left half done that are dead.
func (s *Store) Writer() (*Writer, error) {
	for _, dir := range []string{"", "blobs", "blobs/sha256", "layers", "images", "machines", "tmp"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	if _, err := s.removeLeftovers(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	dir, err := lockDir(context.Background(), s.path("tmp", writerPrefix+rand.Text()))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	w := &Writer{store: s, dir: dir}
	w.backend = sync.OnceValues(w.chooseBackend)
	return w, nil
}

// chooseBackend finds out what the host can. Whether it mounts EROFS from files depends on the kernel, on its configuration and on the
// store's file system, and nothing tells but trying.
func (w *Writer) chooseBackend() (backend, error) {
	if w.store.backend != nil {
		return w.store.backend, nil
	}
	dir, err := os.MkdirTemp(w.dir.Name(), "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if _, err := (erofsBackend{}).create(dir, bytes.NewReader(nil)); err != nil {
		return dirsBackend{}, nil
	}
	mount, _, err := erofsBackend{}.lower(dir)
	if err != nil {
		return dirsBackend{}, nil
	}
	return erofsBackend{}, mount.Close()
}

// Close ends the writing. If no image came of it, what nothing else needs is removed again, but layers only when the disk is full:
// whoever tries again has less to fetch. [Store.Clean] removes them too.
func (w *Writer) Close() error {
	if err := w.close(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

func (w *Writer) close() error {
	defer w.dir.Close()
	claimed := digests{}
	if err := claimed.addClaims(w.dir.Name()); err != nil {
		return err
	}
	if err := os.RemoveAll(w.dir.Name()); err != nil {
		return err
	}
	if w.added || len(claimed) == 0 {
		return nil
	}
	for digest := range claimed {
		if !w.full.Load() && w.store.HasLayer(digest) {
			delete(claimed, digest)
		}
	}
	unlock, err := w.store.lock(context.Background(), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = w.store.sweep(claimed, unlock)
	return err
}

// TempFile returns a new file on the store's disk. It has no name: it is gone when it is closed.
func (w *Writer) TempFile() (*os.File, error) {
	f, err := os.CreateTemp(w.dir.Name(), "file-")
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return f, os.Remove(f.Name())
}

// claim keeps a blob or layer, which may be there or not, from being removed as long as the Writer is open.
func (w *Writer) claim(ctx context.Context, digest Digest) error {
	unlock, err := w.store.lock(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := os.OpenFile(filepath.Join(w.dir.Name(), layerName(digest)), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// noticeFull remembers that the disk is full.
func (w *Writer) noticeFull(err error) {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		w.full.Store(true)
	}
}

// AddBlob stores a manifest, configuration or signature.
func (w *Writer) AddBlob(data []byte) (digest Digest, err error) {
	digest = DigestOf(data)
	defer func() {
		if err != nil {
			w.noticeFull(err)
			err = fmt.Errorf("blob %s: %w", digest, err)
		}
	}()
	if err := w.claim(context.Background(), digest); err != nil {
		return digest, err
	}
	if _, err := w.store.Blob(digest); err == nil {
		return digest, nil
	}
	return digest, w.writeFile(w.store.path("blobs", "sha256", digest.Hex()), data)
}

// FetchBlob returns a blob from the store. If it is not there, FetchBlob stores what fetch returns; if somebody else is fetching it,
// FetchBlob waits and uses the result.
func (w *Writer) FetchBlob(ctx context.Context, digest Digest, fetch func() ([]byte, error)) ([]byte, error) {
	if err := w.claim(ctx, digest); err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	if data, err := w.store.Blob(digest); err == nil {
		return data, nil
	}
	dir := w.store.path("tmp", layerName(digest))
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	defer lock.Close()
	defer os.RemoveAll(dir)
	if data, err := w.store.Blob(digest); err == nil {
		return data, nil
	}
	data, err := fetch()
	if err != nil {
		return nil, err
	}
	_, err = w.AddBlob(data)
	return data, err
}

// AddLayer stores the layer with the given DiffID unless it is there already. If somebody else is writing it, AddLayer
// waits and uses the result. Otherwise it calls open for the layer's uncompressed tar, reads that to its end and checks
// its digest before the layer gets its name.
func (w *Writer) AddLayer(ctx context.Context, diffID Digest, open func() (io.ReadCloser, error)) (err error) {
	defer func() {
		if err != nil {
			w.noticeFull(err)
			err = fmt.Errorf("layer %s: %w", diffID, err)
		}
	}()
	if err := w.claim(ctx, diffID); err != nil {
		return err
	}
	if w.hasLayer(diffID) {
		return nil
	}
	dir := w.store.path("tmp", layerName(diffID))
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	defer os.RemoveAll(dir) // while locked; when all went well nothing is there any more, or what was damaged
	if w.hasLayer(diffID) {
		return nil
	}
	backend, err := w.backend()
	if err != nil {
		return err
	}
	if err := removeContent(dir); err != nil { // of a writer that was killed
		return err
	}
	tar, err := open()
	if err != nil {
		return err
	}
	defer tar.Close()
	hash := sha256.New()
	record, err := backend.create(dir, io.TeeReader(tar, hash))
	if err != nil {
		return err
	}
	if got := digestFromSum(hash.Sum(nil)); got != diffID {
		return fmt.Errorf("its uncompressed content has digest %s", got)
	}
	// That this host can't mount it is found out before there is an image that can't run.
	lower, _, err := backend.lower(dir)
	if err != nil {
		return err
	}
	lower.Close()
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(dir, layerFile), data); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := w.nameLayer(dir, diffID); err != nil {
		return err
	}
	return syncDir(w.store.path("layers"))
}

// hasLayer says whether there is nothing to be added.
func (w *Writer) hasLayer(diffID Digest) bool {
	return w.store.HasLayer(diffID) && (!w.Repair || w.store.VerifyLayer(diffID) == nil)
}

// inUse says what to do about a machine that uses something, or has it.
func (s *Store) inUse(how, machine string) error {
	verb := "terminate"
	if IsKept(s.KeptDir(machine)) {
		verb = "remove-machine"
	}
	return fmt.Errorf("machine %s %s it; to end that: machinectl-lite %s %s", machine, how, verb, machine)
}

// nameLayer makes what is in dir the layer. What was damaged is in dir then.
func (w *Writer) nameLayer(dir string, diffID Digest) error {
	to := w.store.layerDir(diffID)
	if _, err := os.Lstat(to); err != nil || !w.Repair {
		return os.Rename(dir, to)
	}
	unlock, err := w.store.lock(context.Background(), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	// An EROFS that is mounted keeps its files; a directory would be gone under the machine.
	if backendOf(to) == (dirsBackend{}) {
		uses, err := w.store.machineUses()
		if err != nil {
			return err
		}
		for _, use := range uses {
			if slices.Contains(use.image.Layers, diffID) {
				return w.store.inUse("uses", use.machine)
			}
		}
	}
	return unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
}

// AddImage stores the record of an image whose layers and blobs are stored; it fills in what follows from them. The error
// is [ErrReadOnly] if it would replace an image that is marked so.
func (w *Writer) AddImage(img *Image) error {
	if err := w.addImage(img); err != nil {
		w.noticeFull(err)
		return fmt.Errorf("image %s: %w", img.Reference, err)
	}
	w.added = true
	return nil
}

func (w *Writer) addImage(img *Image) error {
	unlock, err := w.store.lock(context.Background(), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.store.CheckWritable(img.Reference); err != nil {
		return err
	}
	img.Size, img.BaseLayer, img.RootLayer, img.Reopens = 0, 0, -1, ReopensNo
	for i, diffID := range img.Layers {
		l, err := w.store.layer(diffID)
		if err != nil {
			return err
		}
		img.Size += l.Size
		if l.Root {
			img.RootLayer = i
		}
		if l.Opaque {
			img.BaseLayer = i
		}
		if l.Reopens == ReopensYes || l.Reopens == ReopensUnknown && img.Reopens == ReopensNo {
			img.Reopens = l.Reopens
		}
	}
	return w.writeRecord(img)
}

// writeRecord makes img the image that is stored under its name.
func (w *Writer) writeRecord(img *Image) error {
	if err := img.check(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(img, "", "\t")
	if err != nil {
		return err
	}
	return w.writeFile(w.store.RecordPath(img.Reference), append(data, '\n'))
}

// writeFile makes path hold data, now or, after a crash, not at all; the directories above it are made too.
func (w *Writer) writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(w.dir.Name(), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := w.mkdirSynced(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (w *Writer) mkdirSynced(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.mkdirSynced(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// lockDir makes dir and locks it. Who had the lock before removes or renames the directory, so what one gets may be
// nobody's any more.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	for {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, f, unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if there, err := os.Stat(dir); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
	}
}

// flock waits for a lock until ctx ends. The call can't be interrupted: when ctx ends first, it gets its lock later and
// drops it.
func flock(ctx context.Context, f *os.File, how int) error {
	if unix.Flock(int(f.Fd()), how|unix.LOCK_NB) == nil {
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // shares the lock
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer unix.Close(fd)
		err := unix.Flock(fd, how)
		for err == unix.EINTR {
			err = unix.Flock(fd, how)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, err
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func removeContent(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}
