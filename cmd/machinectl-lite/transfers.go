package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"nspawnd/cmd/internal/printable"
	"nspawnd/importd"
)

const aboutTransfers = `

This is done by systemd-importd, as for machinectl and importctl, and says what that says. Ctrl-C leaves the transfer to go on in the background
(see list-transfers, cancel-transfer). With --class it is an image of a portable service (/var/lib/portables) or an extension of the system
(/var/lib/extensions, /var/lib/confexts) instead, see portablectl and systemd-sysext. `

// transferFlags are the flags of the verbs that begin a transfer.
type transferFlags struct {
	quiet, force, readOnly bool
	verify, format         string
	class                  imageClass
	keep                   keepDownload
}

// imageClass is what an image is for.
type imageClass importd.Class

var imageClasses = []struct {
	class  importd.Class
	letter string
}{{importd.Machine, "m"}, {importd.Portable, "P"}, {importd.SysExt, "S"}, {importd.ConfExt, "C"}}

func (c *imageClass) Set(value string) error {
	var classes []string
	for _, known := range imageClasses {
		classes = append(classes, string(known.class))
	}
	return oneOf((*string)(c), value, classes)
}

func (c *imageClass) String() string { return string(*c) }
func (c *imageClass) Type() string   { return "class" }

func (c *imageClass) register(cmd *cobra.Command) {
	*c = imageClass(importd.Machine)
	cmd.Flags().Var(c, "class", "Images of this `class`: machine, portable (services), sysext or confext (extensions)")
	for _, known := range imageClasses {
		cmd.Flags().BoolFuncP(known.letter, known.letter, "Same as --class="+string(known.class), func(string) error { return c.Set(string(known.class)) })
	}
}

// keepDownload says whether a copy of what was downloaded stays beside the image; by default one of machines'.
type keepDownload struct{ set, keep bool }

func (k *keepDownload) Set(value string) (err error) {
	k.set = true
	k.keep, err = boolean(value)
	return err
}

func (k *keepDownload) String() string { return "" } // the default is none of its own
func (k *keepDownload) Type() string   { return "boolean" }

func (f *transferFlags) pullFlags() importd.Flags {
	if f.keep.keep || !f.keep.set && importd.Class(f.class) == importd.Machine {
		return f.imageFlags() | importd.KeepDownload
	}
	return f.imageFlags()
}

func (f *transferFlags) imageFlags() (flags importd.Flags) {
	if f.force {
		flags |= importd.Force
	}
	if f.readOnly {
		flags |= importd.ReadOnly
	}
	return flags
}

func pullTarCommand() *cobra.Command {
	return pullCommand(importd.Tar, "tar", "Download a tar of a system as an image of systemd-nspawn", "https://example.org/debian.tar.xz debian")
}

func pullRawCommand() *cobra.Command {
	return pullCommand(importd.Raw, "raw", "Download a disk as an image of systemd-nspawn", "--verify=checksum https://example.org/debian.raw.xz")
}

func pullCommand(format importd.Format, word, short, example string) *cobra.Command {
	flags := transferFlags{verify: "signature"}
	cmd := transferCommand(&flags, "pull-"+word+" URL [NAME]", short,
		`Download an image, which may be compressed, into /var/lib/machines, for systemd-nspawn, start and enable.`+aboutTransfers+`Images of registries, for nspawnd-run, are what pull-oci fetches.

URL begins with http://, https:// or file://. Without a NAME, or with -, the image is called as the URL ends, without suffixes such as .`+word+`.xz.

--verify=signature wants a SHA256SUMS file, or one called as the image with .sha256, beside the image, and a signature of it by a key of
/usr/lib/systemd/import-pubring.* or /etc/systemd/import-pubring.*; checksum the file alone, which proves nothing about where the image comes from.`, example,
		func(ctx context.Context, c *importd.Client, args []string) (*importd.Transfer, error) {
			if allowed := []string{"signature", "checksum", "no"}; !slices.Contains(allowed, flags.verify) {
				return nil, fmt.Errorf("--verify: %q is not one of %s", flags.verify, strings.Join(allowed, ", "))
			}
			name := cmp.Or(argument(args, 1), nameOfURL(args[0]))
			return c.Pull(ctx, format, importd.Class(flags.class), args[0], imageName(format, name), flags.verify, flags.pullFlags())
		})
	cmd.Flags().StringVar(&flags.verify, "verify", flags.verify, "Verify by `signature`, checksum or no")
	cmd.Flags().Var(&flags.keep, "keep-download", "Whether a copy of the download, which is never changed, stays beside the image: `yes` or no; by default for machines' images alone")
	cmd.Flags().BoolFuncP("N", "N", "Same as --keep-download=no", func(string) error { return flags.keep.Set("no") })
	flags.register(cmd)
	return cmd
}

func importTarCommand() *cobra.Command {
	return importCommand(importd.Tar, "tar", "FILE", "Import a tar of a system as an image of systemd-nspawn", "debian.tar.xz")
}

func importRawCommand() *cobra.Command {
	return importCommand(importd.Raw, "raw", "FILE", "Import a disk as an image of systemd-nspawn", "--force disk.img debian")
}

func importFSCommand() *cobra.Command {
	return importCommand(importd.FileSystem, "fs", "DIRECTORY", "Import a directory with a system as an image of systemd-nspawn", "/srv/debian")
}

func importCommand(format importd.Format, word, source, short, example string) *cobra.Command {
	what, without := `FILE, which may be compressed, or standard input where it is -,`, `, without suffixes such as .`+word+`.xz`
	if format == importd.FileSystem {
		what, without = `DIRECTORY, with all that is in it,`, ``
	}
	var flags transferFlags
	cmd := transferCommand(&flags, "import-"+word+" "+source+" [NAME]", short,
		`Copy `+what+` into /var/lib/machines as an image, for systemd-nspawn, start and enable.`+aboutTransfers+`Container images, for nspawnd-run, are what import-oci takes.

Without a NAME, the image is called as what it is made from`+without+`.`, example,
		func(ctx context.Context, c *importd.Client, args []string) (*importd.Transfer, error) {
			file, path, name := os.Stdin, argument(args, 0), argument(args, 1)
			if format == importd.FileSystem {
				path = args[0]
			}
			if path != "" || format == importd.FileSystem {
				var err error
				if file, err = openImport(format, path); err != nil {
					return nil, err
				}
				defer file.Close()
				name = cmp.Or(name, filepath.Base(path))
			}
			if name = imageName(format, name); name == "" {
				return nil, errors.New("the image needs a name")
			}
			return c.Import(ctx, format, importd.Class(flags.class), file, name, flags.imageFlags())
		})
	flags.register(cmd)
	return cmd
}

// openImport opens what an image is made from.
func openImport(format importd.Format, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() && format != importd.FileSystem {
		err = fmt.Errorf("%s is a directory, which is for import-fs", path)
	} else if err == nil && !info.IsDir() && format == importd.FileSystem {
		err = fmt.Errorf("%s is not a directory", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func exportTarCommand() *cobra.Command {
	return exportImageCommand(importd.Tar, "tar", "Write an image of systemd-nspawn as a tar", "debian debian.tar.xz")
}

func exportRawCommand() *cobra.Command {
	return exportImageCommand(importd.Raw, "raw", "Write an image of systemd-nspawn as a disk", "--format=gzip debian > debian.raw.gz")
}

func exportImageCommand(format importd.Format, word, short, example string) *cobra.Command {
	var flags transferFlags
	cmd := transferCommand(&flags, "export-"+word+" NAME [FILE]", short,
		`Write an image of /var/lib/machines to a file or, without one or with -, to standard output.`+aboutTransfers+`Images of nspawnd are what export-oci writes, and trees of its machines export.

It is compressed as --format says, otherwise as the end of the file's name: .xz, .gz, .bz2 or .zst; zstd takes a systemd newer than 257. A file that is there is
replaced when the new one is complete; where it goes on in the background, it does so under another name, which is said.`, example, nil)
	cmd.ValidArgsFunction = nil
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		compression, err := compressionOf(flags.format, argument(args, 1))
		if err != nil {
			return err
		}
		out := exportFile{file: os.Stdout}
		if path := argument(args, 1); path != "" {
			if err := out.open(path); err != nil {
				return err
			}
		} else if term.IsTerminal(int(os.Stdout.Fd())) {
			return fmt.Errorf("%s: an image is nothing for a terminal; name a file or redirect the output", cmd.Name())
		}
		err = flags.run(cmd.Context(), out.replacer(), func(ctx context.Context, c *importd.Client) (*importd.Transfer, error) {
			return c.Export(ctx, format, importd.Class(flags.class), args[0], out.file, compression)
		})
		return out.finish(err)
	}
	flags.class.register(cmd)
	cmd.Flags().StringVar(&flags.format, "format", "", "Compress by `format`: uncompressed, xz, gzip, bzip2 or zstd")
	cmd.Flags().BoolVarP(&flags.quiet, "quiet", "q", false, "Show notices, warnings and errors only")
	return cmd
}

// register adds the flags of verbs that make an image.
func (f *transferFlags) register(cmd *cobra.Command) {
	f.class.register(cmd)
	cmd.Flags().BoolVar(&f.force, "force", false, "Replace an image that has the name")
	cmd.Flags().BoolVar(&f.readOnly, "read-only", false, "Make the image read-only")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Show notices, warnings and errors only")
}

func transferCommand(flags *transferFlags, use, short, long, example string, begin func(context.Context, *importd.Client, []string) (*importd.Transfer, error)) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Short: short, Long: long, Example: "  machinectl-lite " + verb + " " + example,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("%s takes one or two arguments: %s (see %s --help)", verb, strings.TrimPrefix(use, verb+" "), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.run(cmd.Context(), strings.NewReplacer(), func(ctx context.Context, c *importd.Client) (*importd.Transfer, error) { return begin(ctx, c, args) })
		},
	}
}

// run begins a transfer and shows it until it ends or the user leaves it. names are what to write for what importd says.
func (f *transferFlags) run(ctx context.Context, names *strings.Replacer, begin func(context.Context, *importd.Client) (*importd.Transfer, error)) error {
	host, err := connect(ctx)
	if err != nil {
		return err
	}
	defer host.close()
	transfer, err := begin(ctx, host.importd())
	if err != nil {
		return fmt.Errorf("could not transfer image: %w", withImportd(err))
	}
	show := transferDisplay{terminal: newTerminal(os.LookupEnv, os.Stderr), Writer: os.Stderr, quiet: f.quiet, names: names}
	show.said(priorityInfo, fmt.Sprintf("Enqueued transfer job %d. Press C-c to continue download in background.", transfer.ID))
	err = transfer.Wait(ctx, show.said, show.progress)
	if errors.Is(err, importd.ErrBusGone) { // ctrl-C ends the ssh that leads there too, maybe before it is seen here
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	show.end()
	switch {
	case ctx.Err() != nil:
		show.said(priorityInfo, fmt.Sprintf(`Continuing download in the background. Use "machinectl-lite cancel-transfer %d" to abort transfer.`, transfer.ID))
		return errInBackground
	case errors.Is(err, importd.ErrFailed) && show.saidWhy:
		return &statusError{status: 1}
	}
	return err
}

// errInBackground is that a transfer goes on without us, which has been said.
var errInBackground = &statusError{status: 1}

// importd is what transfers images on the same bus.
func (h *host) importd() *importd.Client {
	client := importd.New(h.systemd.Bus)
	client.Timeout = h.machined.Timeout
	return client
}

// withImportd says what to do where there is no systemd-importd.
func withImportd(err error) error {
	if errors.Is(err, importd.ErrUnavailable) {
		return fmt.Errorf("%w (systemd-importd comes with systemd-container; it may be masked)", err)
	}
	return err
}

// argument gives an argument; "" when it is not there, and for -.
func argument(args []string, i int) string {
	if i >= len(args) || args[i] == "-" {
		return ""
	}
	return args[i]
}

// nameOfURL gives the last part of a URL's path, "" when it has none.
func nameOfURL(url string) string {
	url, _, _ = strings.Cut(url, "#")
	url, _, _ = strings.Cut(url, "?")
	if _, rest, found := strings.Cut(url, "://"); found {
		url = rest
	}
	_, path, _ := strings.Cut(url, "/")
	path = strings.TrimRight(path, "/")
	return path[strings.LastIndexByte(path, '/')+1:]
}

// suffixes are what files with images are called beside what an image is: a tar has one of them, a disk any number.
var suffixes = map[importd.Format][]string{
	importd.Tar: {".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tar.zst", ".tgz"},
	importd.Raw: {".xz", ".gz", ".bz2", ".zst", ".sysext.raw", ".confext.raw", ".raw", ".qcow2", ".img", ".bin"},
}

// imageName is what an image is called that comes from a file of this name.
func imageName(format importd.Format, name string) string {
	for {
		i := slices.IndexFunc(suffixes[format], func(suffix string) bool { return strings.HasSuffix(name, suffix) })
		if i < 0 {
			return name
		}
		name = strings.TrimSuffix(name, suffixes[format][i])
		if format == importd.Tar {
			return name
		}
	}
}

// compressions are those that importd knows, with the suffix of each.
var compressions = []struct{ name, suffix string }{{"xz", ".xz"}, {"gzip", ".gz"}, {"bzip2", ".bz2"}, {"zstd", ".zst"}, {"uncompressed", ""}}

// compressionOf says how to compress a file.
func compressionOf(wanted, path string) (string, error) {
	for _, c := range compressions {
		if wanted == c.name || wanted == "" && strings.HasSuffix(path, c.suffix) {
			return c.name, nil
		}
	}
	return "", fmt.Errorf("--format: %q is not one of uncompressed, xz, gzip, bzip2, zstd", wanted)
}

// exportFile is what an export writes: a new file beside its place, which it takes when it is complete or, where there is no file yet, when it goes on without us.
type exportFile struct {
	file   *os.File
	target string // "" when it is written in place, such as a pipe
}

func (e *exportFile) open(path string) (err error) {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		e.file, err = os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
		return err
	}
	name := filepath.Join(filepath.Dir(path), ".#export-"+strconv.FormatUint(rand.Uint64(), 36))
	if e.file, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666); err != nil {
		var pathError *os.PathError
		if errors.As(err, &pathError) {
			pathError.Path = path
		}
		return err
	}
	e.target = path
	if info != nil { // who could not read the old file shall not read the new one
		stat := info.Sys().(*syscall.Stat_t)
		_ = e.file.Chown(int(stat.Uid), int(stat.Gid)) // which only root can
		err = e.file.Chmod(info.Mode().Perm())
	}
	if err != nil {
		return e.finish(err)
	}
	return nil
}

// replacer has messages name the file by what it will be called.
func (e *exportFile) replacer() *strings.Replacer {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.file.Fd()))
	if e.target == "" || err != nil {
		return strings.NewReplacer()
	}
	return strings.NewReplacer(link, filepath.Join(filepath.Dir(link), filepath.Base(e.target)))
}

// finish puts the file into its place unless the export has failed.
func (e *exportFile) finish(err error) error {
	if e.target == "" {
		return err
	}
	if closing := e.file.Close(); err == nil {
		err = closing
	}
	switch {
	case err == nil:
		err = os.Rename(e.file.Name(), e.target)
	case errors.Is(err, errInBackground):
		linked := os.Link(e.file.Name(), e.target) // which replaces nothing, also where renameat2(2) can't be told that
		switch {
		case errors.Is(linked, fs.ErrExist):
			return fmt.Errorf("%s stays as it is; what is not complete goes on in %s", e.target, e.file.Name())
		case linked != nil:
			return fmt.Errorf("it goes on in %s: %w", e.file.Name(), linked)
		}
	}
	if err != nil {
		os.Remove(e.file.Name())
	}
	return err
}

// syslog(3)'s priorities by which a transfer's messages differ.
const (
	priorityError = 3
	priorityInfo  = 6
)

// priorityColors are the colours of messages, by priority.
var priorityColors = [8]string{red, red, red, red, yellow, bright, "", grey}

// transferDisplay shows what a transfer says and, on a terminal, how far it is.
type transferDisplay struct {
	terminal
	io.Writer
	names   *strings.Replacer
	quiet   bool
	saidWhy bool // it has said an error
	ended   bool
	part    float64
}

func (d *transferDisplay) said(priority int, line string) {
	d.saidWhy = d.saidWhy || priority <= priorityError
	if d.quiet && priority >= priorityInfo {
		return
	}
	d.clear()
	fmt.Fprintln(d, d.paint(priorityColors[priority], printable.Line(d.names.Replace(line))))
	d.draw()
}

func (d *transferDisplay) progress(part float64) {
	d.part = part
	d.draw()
}

// bar says whether there is a bar on the screen.
func (d *transferDisplay) bar() bool { return d.tty && d.color && !d.quiet && !d.ended }

// clear makes room for a line.
func (d *transferDisplay) clear() {
	if d.bar() {
		io.WriteString(d, "\r\x1b[K")
	}
}

// draw shows the bar, as importctl does.
func (d *transferDisplay) draw() {
	const title, around = "Total: ", len("Total:   100% ")
	length := d.columns - around
	if !d.bar() || length < 1 || !(d.part >= 0 && d.part <= 1) {
		return
	}
	done, open := "━", "┄"
	if !d.utf8 {
		done, open = "=", "-"
	}
	filled := min(max(int(math.Ceil(d.part*float64(length))), 1), length)
	fmt.Fprintf(d, "\r%s%s %s %s\x1b[K\r", title, d.paint("\x1b[0;1;32m", strings.Repeat(done, filled)), d.paint(grey, strings.Repeat(open, length-filled)), d.paint(bright, fmt.Sprintf("%3.0f%%", d.part*100)))
}

// end leaves the terminal to what is printed next.
func (d *transferDisplay) end() {
	d.clear()
	d.ended = true
}

func listTransfersCommand() *cobra.Command {
	var class imageClass
	cmd := &cobra.Command{
		Use:   "list-transfers",
		Short: "List the transfers that systemd-importd is at",
		Long: `List the downloads, imports and exports of images of /var/lib/machines, or of what --class says, that systemd-importd is at, whoever
began them.`,
		Example: "  machinectl-lite list-transfers",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := connect(cmd.Context())
			if err != nil {
				return err
			}
			defer host.close()
			transfers, err := host.importd().List(cmd.Context(), importd.Class(class))
			if err != nil {
				return fmt.Errorf("could not get transfers: %w", withImportd(err))
			}
			return transferTable(transfers).show("transfers")
		},
	}
	class.register(cmd)
	return cmd
}

func transferTable(transfers []importd.Summary) table {
	slices.SortFunc(transfers, func(a, b importd.Summary) int {
		return cmp.Or(strings.Compare(a.Local, b.Local), cmp.Compare(a.ID, b.ID))
	})
	t := table{header: []string{"ID", "PROGRESS", "TYPE", "CLASS", "LOCAL", "REMOTE"}, numbers: 2, texts: 4}
	for _, transfer := range transfers {
		progress := ""
		if transfer.Progress >= 0 {
			progress = fmt.Sprintf("%d%%", int(transfer.Progress*100))
		}
		t.rows = append(t.rows, []string{strconv.FormatUint(uint64(transfer.ID), 10), progress, transfer.Type, transfer.Class, transfer.Local, transfer.Remote})
	}
	return t
}

func cancelTransferCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "cancel-transfer ID...",
		Short:   "Cancel transfers that systemd-importd is at",
		Long:    `Cancel transfers by the numbers that list-transfers shows, whoever began them. What has come so far is removed.`,
		Example: "  machinectl-lite cancel-transfer 7",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("cancel-transfer: no transfer named (see %s --help)", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEachMachine(cmd.Context(), args, func(host *host, arg string) error {
				id, err := strconv.ParseUint(arg, 10, 32)
				if err != nil || id == 0 {
					return fmt.Errorf("cancel-transfer: %q is not the number of a transfer", arg)
				}
				if err := host.importd().Cancel(cmd.Context(), uint32(id)); err != nil {
					return fmt.Errorf("could not cancel transfer: %w", withImportd(err))
				}
				return nil
			})
		},
	}
}
