// Package importd is a typed client of systemd-importd, org.freedesktop.import1(5), which downloads, imports and exports the images of /var/lib/machines, and those of
// portable services and extensions.
//
// It owns everything that is said to import1: beginning a transfer and following it to its end, listing transfers, cancelling one. The caller hands in a connection of
// the system bus and the files that are read or written. What a transfer says may have been written by strangers, such as names in an archive: it is to be escaped
// before it is printed.
package importd

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"

	"nspawnd/internal/buserror"

	"github.com/godbus/dbus/v5"
)

const (
	busName           = "org.freedesktop.import1"
	managerPath       = dbus.ObjectPath("/org/freedesktop/import1")
	managerInterface  = busName + ".Manager"
	transferPath      = managerPath + "/transfer"
	transferInterface = busName + ".Transfer"
)

// Client talks to import1 over a connection that it neither opens nor closes.
type Client struct {
	conn    *dbus.Conn
	Timeout time.Duration // bounds each call whose context does not; sd-bus's own default at first
}

// New gives a client that uses conn, a connection of a bus with a systemd-importd on it.
func New(conn *dbus.Conn) *Client { return &Client{conn, 25 * time.Second} }

// ErrUnavailable says that there is no systemd-importd.
var ErrUnavailable = errors.New("systemd-importd is not available")

// Format is the form of an image outside of /var/lib/machines.
type Format string

const (
	Tar        Format = "Tar"
	Raw        Format = "Raw"        // a disk
	FileSystem Format = "FileSystem" // a directory, which can only be imported
)

// Class is what an image is for, and so where it is stored.
type Class string

const (
	Machine  Class = "machine"  // in /var/lib/machines
	Portable Class = "portable" // a portable service, in /var/lib/portables
	SysExt   Class = "sysext"   // an extension of /usr, in /var/lib/extensions
	ConfExt  Class = "confext"  // one of /etc, in /var/lib/confexts
)

// Flags say how an image is stored.
type Flags uint64

const (
	Force        Flags = 1 << iota // in place of one that has the name
	ReadOnly                       //
	KeepDownload                   // beside a copy of what was downloaded, which is never changed
)

// Pull begins to download the image at a URL. Verify is no, checksum or signature; name, or the URL's when it is empty, is what the image will be called.
func (c *Client) Pull(ctx context.Context, format Format, class Class, url, name, verify string, flags Flags) (*Transfer, error) {
	return c.begin(ctx, "Pull"+string(format)+"Ex", url, name, string(class), verify, uint64(flags))
}

// Import begins to import an image from a file, which may be compressed, a pipe or, for [FileSystem], a directory. The file can be closed when Import returns.
func (c *Client) Import(ctx context.Context, format Format, class Class, from *os.File, name string, flags Flags) (*Transfer, error) {
	defer runtime.KeepAlive(from)
	return c.begin(ctx, "Import"+string(format)+"Ex", dbus.UnixFD(from.Fd()), name, string(class), uint64(flags))
}

// Export begins to write an image to a file or a pipe. Compression is uncompressed, xz, gzip, bzip2 or, from systemd 258 on, zstd. The file can be closed when Export returns.
func (c *Client) Export(ctx context.Context, format Format, class Class, name string, to *os.File, compression string) (*Transfer, error) {
	defer runtime.KeepAlive(to)
	return c.begin(ctx, "Export"+string(format)+"Ex", name, string(class), dbus.UnixFD(to.Fd()), compression, uint64(0))
}

// Summary is what a list says of a transfer.
type Summary struct {
	ID       uint32
	Type     string // pull-tar, import-raw, …
	Remote   string // where from; empty when it is a file
	Local    string // the image's name
	Class    string
	Progress float64 // from 0 to 1; below 0 when it is not known
	Path     dbus.ObjectPath
}

// List gives the transfers of images of a class.
func (c *Client) List(ctx context.Context, class Class) ([]Summary, error) {
	var transfers []Summary
	err := c.call(ctx, "ListTransfersEx", []any{string(class), uint64(0)}, &transfers)
	return transfers, err
}

// Cancel ends a transfer, whoever began it.
func (c *Client) Cancel(ctx context.Context, id uint32) error {
	return c.call(ctx, "CancelTransfer", []any{id})
}

func (c *Client) call(ctx context.Context, method string, args []any, reply ...any) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return reason(c.conn.Object(busName, managerPath).CallWithContext(ctx, managerInterface+"."+method, 0, args...).Store(reply...))
}

// reason gives err what the bus's name for it stands for.
func reason(err error) error { return buserror.Explain(err, "systemd-importd", ErrUnavailable, nil) }
