package units

import (
	"fmt"
	"path"
	"strings"
)

// Bind is a bind mount; its shape is that of BindPaths= on the bus (ssbt).
type Bind struct {
	Source, Target string
	IgnoreMissing  bool
	Flags          uint64 // MS_REC or 0
}

// Recursive is the bind flag that takes the mounts below the source along (MS_REC).
const Recursive = 16384

// parseBinds reads one entry of BindPaths= or more: [-]SOURCE[:TARGET[:rbind|norbind]].
func parseBinds(s string) ([]Bind, error) {
	out := []Bind{}
	field := syntax{separators: ":" + blanks, quotes: true, everyField: true}
	for rest, more := s, s != ""; more; {
		source, after, separator, err := field.next(rest)
		if err != nil {
			return nil, err
		}
		b := Bind{Flags: Recursive}
		b.Source, b.IgnoreMissing = strings.CutPrefix(source, "-")
		b.Target = b.Source
		if separator == ':' {
			if b.Target, after, separator, err = field.next(after); err != nil {
				return nil, err
			}
		}
		if separator == ':' {
			option := ""
			if option, after, separator, err = (syntax{separators: blanks, quotes: true}).next(after); err != nil {
				return nil, err
			}
			switch option {
			case "", "rbind":
			case "norbind":
				b.Flags = 0
			default:
				return nil, fmt.Errorf("%q is not SOURCE[:TARGET[:rbind|norbind]]", s)
			}
		}
		if !path.IsAbs(b.Source) || !path.IsAbs(b.Target) {
			return nil, fmt.Errorf("%q: paths must be absolute", s)
		}
		out = append(out, b)
		rest, more = after, separator != 0
	}
	return out, nil
}

func formatBind(b Bind) string {
	source := b.Source
	if b.IgnoreMissing {
		source = "-" + source
	}
	s := quotePart(source) + ":" + quotePart(b.Target)
	if b.Flags == 0 {
		s += ":norbind"
	}
	return s
}

// quotePart writes a path whose colons are a part of it. 257 and 262 read them alike only when they are outside of quotes (tried).
func quotePart(s string) string {
	parts := strings.Split(s, ":")
	for i := range parts {
		parts[i] = quoteWord(parts[i])
	}
	return strings.Join(parts, `\:`)
}

// Tmpfs is a temporary file system and its mount options (ss).
type Tmpfs struct{ Path, Options string }

func parseTmpfs(s string) ([]Tmpfs, error) {
	entries, err := splitWords(s)
	out := []Tmpfs{}
	for _, e := range entries {
		path, options, _, err := syntax{separators: ":", everyField: true}.next(e)
		if err != nil {
			return nil, err
		}
		out = append(out, Tmpfs{path, options})
	}
	return out, err
}

// formatTmpfs leaves "%" in the options as it is: they have no specifiers.
func formatTmpfs(t Tmpfs) string {
	if t.Options == "" {
		return quoteWord(t.Path)
	}
	return quoteWord(t.Path) + ":" + strings.ReplaceAll(quoteWord(t.Options), "%%", "%")
}

// MountImage is a disk image and where the service sees it (ssba(ss)); the options are pairs of a partition and mount options.
type MountImage struct {
	Source, Target string
	IgnoreMissing  bool
	Options        []Pair
}

// ExtensionImage is a disk image that is laid over the root (sba(ss)).
type ExtensionImage struct {
	Source        string
	IgnoreMissing bool
	Options       []Pair
}

// splitImages reads a list of images: for each, its parts.
func splitImages(s string) ([][]string, error) {
	entries, err := syntax{separators: blanks, quotes: true, keepEscapes: true}.split(s)
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, e := range entries {
		parts, err := syntax{separators: ":", cEscapes: true}.split(e)
		if err != nil {
			return nil, err
		}
		if len(parts) > 0 {
			out = append(out, parts)
		}
	}
	return out, nil
}

// imageOptions reads PARTITION:OPTIONS pairs. One part alone is for the root partition.
func imageOptions(parts []string) []Pair {
	out := []Pair{}
	for ; len(parts) > 1; parts = parts[2:] {
		out = append(out, Pair{parts[0], parts[1]})
	}
	if len(parts) == 1 {
		out = append(out, Pair{"root", parts[0]})
	}
	return out
}

// parseMountImages reads [-]IMAGE:PATH[:OPTIONS|:PARTITION:OPTIONS…] for each image.
func parseMountImages(s string) ([]MountImage, error) {
	images, err := splitImages(s)
	out := []MountImage{}
	for _, parts := range images {
		if len(parts) < 2 {
			return nil, fmt.Errorf("%q is not IMAGE:PATH", s)
		}
		source, ignore := strings.CutPrefix(parts[0], "-")
		out = append(out, MountImage{source, parts[1], ignore, imageOptions(parts[2:])})
	}
	return out, err
}

// parseExtensionImages reads [-]IMAGE[:OPTIONS|:PARTITION:OPTIONS…] for each image.
func parseExtensionImages(s string) ([]ExtensionImage, error) {
	images, err := splitImages(s)
	out := []ExtensionImage{}
	for _, parts := range images {
		source, ignore := strings.CutPrefix(parts[0], "-")
		out = append(out, ExtensionImage{source, ignore, imageOptions(parts[1:])})
	}
	return out, err
}

func formatImage(ignoreMissing bool, options []Pair, paths ...string) string {
	s := ""
	if ignoreMissing {
		s = "-"
	}
	for _, p := range options {
		paths = append(paths, p.First, p.Second)
	}
	for i, p := range paths {
		if i > 0 {
			s += ":"
		}
		s += partOf(p)
	}
	return s
}

func formatMountImage(i MountImage) string {
	return formatImage(i.IgnoreMissing, i.Options, i.Source, i.Target)
}
func formatExtensionImage(i ExtensionImage) string {
	return formatImage(i.IgnoreMissing, i.Options, i.Source)
}

// Directory is one that the manager makes for the service, and a symbolic link to it (sst).
type Directory struct {
	Path, Link string
	Flags      uint64
}

// readOnlyDirectory is the one flag of a directory.
const readOnlyDirectory = 1

// parseDirectories reads DIRECTORY[:LINK[:ro]] for each.
func parseDirectories(s string) ([]Directory, error) {
	entries, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	out := []Directory{}
	for _, e := range entries {
		parts, err := syntax{separators: ":", quotes: true, everyField: true}.split(e)
		if err != nil || len(parts) == 0 || len(parts) > 3 {
			return nil, fmt.Errorf("%q is not DIRECTORY[:LINK[:ro]]", e)
		}
		d := Directory{Path: parts[0]}
		if len(parts) > 1 {
			d.Link = parts[1]
		}
		if len(parts) > 2 && parts[2] != "" {
			if parts[2] != "ro" {
				return nil, fmt.Errorf("%q: %q is not ro", e, parts[2])
			}
			d.Flags = readOnlyDirectory
		}
		out = append(out, d)
	}
	return out, nil
}

func formatDirectory(d Directory) string {
	s := d.Path
	switch {
	case d.Flags != 0:
		s += ":" + d.Link + ":ro"
	case d.Link != "":
		s += ":" + d.Link
	}
	return quoteWord(s)
}

// directoryProperties sends plain directories as every version takes them, and those with a link or a flag in the newer form.
func directoryProperties(directive string, v any) []Property {
	plain, linked := []string{}, []Directory{}
	for _, d := range v.([]Directory) {
		if d.Link == "" && d.Flags == 0 {
			plain = append(plain, d.Path)
		} else {
			linked = append(linked, d)
		}
	}
	var out []Property
	if len(plain) > 0 || len(linked) == 0 {
		out = append(out, Property{directive, plain})
	}
	if len(linked) > 0 {
		out = append(out, Property{directive + "Symlink", linked})
	}
	return out
}
