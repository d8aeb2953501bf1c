package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
)

func imageStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "image-status [NAME...]",
		Short: "Show details of images",
		Long: `Show what an image is, why it was accepted, and how it wants to be run. Without a NAME, show the store.

An image's NAME may be the end of its name, or the first digits of its ID or digest.` + aboutThere,
		Example: `  machinectl-lite image-status registry.example/team/web:1
  machinectl-lite image-status web`,
		ValidArgsFunction: completeImages(-1),
		RunE: func(cmd *cobra.Command, names []string) (err error) {
			out := openOutput(options.noPager)
			defer func() { err = errors.Join(err, out.close()) }()
			if len(names) == 0 && !options.own() {
				return poolStatus(cmd.Context(), out)
			}
			if len(names) == 0 {
				usage, err := storeUsage()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(out, "\t%8s: %s\n\t%8s: %s\n\t%8s: %d\n", "Path", storeRoot, "Usage", bytesWords(usage.bytes), "Images", usage.images)
				return err
			}
			shown := blocks{out: out}
			return forEachImage(cmd.Context(), names, func(d detailedImage) error { return shown.write(d.format(time.Now())) })
		},
	}
}

func showImageCommand() *cobra.Command {
	var flags propertyFlags
	cmd := &cobra.Command{
		Use:   "show-image [NAME...]",
		Short: "Show properties of images",
		Long: `Show the properties of images, or without a NAME those of the store, as lines NAME=VALUE for programs. Those that machinectl
has too are called as there. Properties without a value are shown with --all.` + aboutThere,
		Example: `  machinectl-lite show-image web
  machinectl-lite show-image -P ManifestDigest web
  machinectl-lite show-image --property=TrustKind,Signer web`,
		ValidArgsFunction: completeImages(-1),
		RunE: func(cmd *cobra.Command, names []string) error {
			flags.join()
			if len(names) == 0 && !options.own() {
				return flags.showManager(cmd.Context())
			}
			if len(names) == 0 {
				usage, err := storeUsage()
				if err != nil {
					return err
				}
				_, err = fmt.Print(flags.format([]property{{"PoolPath", storeRoot}, {"PoolUsage", strconv.FormatInt(usage.bytes, 10)}, {"PoolLimit", "infinity"}}))
				return err
			}
			shown := blocks{out: os.Stdout}
			return forEachImage(cmd.Context(), names, func(d detailedImage) error { return shown.write(flags.format(d.properties())) })
		},
	}
	flags.register(cmd)
	return cmd
}

// propertyFlags choose what show verbs show.
type propertyFlags struct {
	names, values []string
	value         bool
}

func (f *propertyFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&f.names, "property", "p", nil, "Show only properties by this `name`")
	cmd.Flags().BoolVar(&f.value, "value", false, "Show values only, without the names")
	cmd.Flags().StringSliceVarP(&f.values, "P", "P", nil, "Equivalent to --value --property=`name`")
}

// join makes of -P what it stands for.
func (f *propertyFlags) join() {
	f.names = append(f.names, f.values...)
	f.value = f.value || len(f.values) > 0
}

type property struct{ name, value string }

func (f *propertyFlags) format(properties []property) string {
	var b strings.Builder
	for _, p := range properties {
		if len(f.names) > 0 && !slices.Contains(f.names, p.name) || p.value == "" && !options.all {
			continue
		}
		if !f.value {
			b.WriteString(printable.Line(p.name) + "=")
		}
		b.WriteString(printable.Line(p.value) + "\n")
	}
	return b.String()
}

// storeUsage counts every layer once.
func storeUsage() (usage struct {
	bytes  int64
	images int
}, err error) {
	store, err := image.Open(storeRoot)
	if err != nil {
		return usage, err
	}
	images, err := store.Images()
	usage.images = len(images)
	for layer := range layerUsers(images) {
		size, _ := store.LayerSize(layer)
		usage.bytes += size
	}
	return usage, err
}

// layerUsers counts the images that have a layer.
func layerUsers(images []*image.Image) map[image.Digest]int {
	users := map[image.Digest]int{}
	for _, img := range images {
		for _, layer := range slices.Compact(slices.Sorted(slices.Values(img.Layers))) {
			users[layer]++
		}
	}
	return users
}

// imageDetails is everything that is shown of an image.
type imageDetails struct {
	*image.Image
	path      string
	created   time.Time
	exclusive int64 // bytes of layers that no other image has
	layers    []string
	os        string
}

func newImageDetails(store *image.Store, img *image.Image) imageDetails {
	d := imageDetails{Image: img, path: store.RecordPath(img.Reference), created: readBlobs(store, img).created(), os: osName(store, img)}
	images, _ := store.Images() // a record that can't be read has no say in what is shared
	users := layerUsers(images)
	for _, layer := range img.Layers {
		size, err := store.LayerSize(layer)
		words := bytesWords(size)
		if err != nil {
			words = "missing"
		}
		if users[layer] <= 1 {
			d.exclusive += size
		}
		d.layers = append(d.layers, string(layer)+" "+words)
	}
	return d
}

// osName reads what the image calls its operating system; "" if it says nothing, or for who may not mount.
func osName(store *image.Store, img *image.Image) string {
	mount, err := store.Mount(img, "")
	if err != nil {
		return ""
	}
	defer mount.Close()
	root := image.NewRoot(mount)
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} { // os-release(5)
		text, err := root.ReadFile(path, 64<<10)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if value, found := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); found {
				return strings.Trim(value, `"'`)
			}
		}
	}
	return ""
}

func (d imageDetails) platform() string {
	return strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/")
}

// command is what a start without arguments runs.
func (d imageDetails) command() []string { return slices.Concat(d.Config.Entrypoint, d.Config.Cmd) }

func (d imageDetails) labels() []string {
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(d.Config.Labels)) {
		labels = append(labels, name+"="+d.Config.Labels[name])
	}
	return labels
}

// format lays the details out as machinectl does.
func (d imageDetails) format(now time.Time) string {
	b := newDetails(d.Reference.String(), now)
	b.line("Type", imageType)
	b.line("Path", d.path)
	b.line("OS", d.os)
	b.line("Platform", d.platform())
	b.line("Digest", string(d.ManifestDigest))
	b.line("ID", d.ConfigDigest.Hex())
	b.line("RO", writability(d.ReadOnly))
	b.when("Created", d.created)
	b.when("Modified", d.Pulled)
	b.line("Usage", fmt.Sprintf("%s (exclusive: %s)", bytesWords(d.Size), bytesWords(d.exclusive)))
	b.line("Layers", d.layers...)
	b.line("ACI", d.ACI...)
	b.line("Trust", string(d.Trust.Kind))
	b.line("Rule", d.Trust.Rule)
	b.line("Signer", d.Trust.Signer)
	b.line("Insecure", strings.Join(d.Trust.Insecure, " "))
	b.when("Verified", d.Trust.Time)
	b.line("Command", quoted(d.command()))
	b.line("User", d.Config.User)
	b.line("WorkDir", d.Config.WorkingDir)
	b.line("Env", d.Config.Env...)
	b.line("Ports", strings.Join(slices.Sorted(maps.Keys(d.Config.ExposedPorts)), " "))
	b.line("Volumes", slices.Sorted(maps.Keys(d.Config.Volumes))...)
	b.line("Stop", d.Config.StopSignal)
	b.line("Labels", d.labels()...)
	return b.String()
}

func writability(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "writable"
}

// quoted writes words so that one sees where each begins and ends.
func quoted(words []string) string {
	out := make([]string, len(words))
	for i, word := range words {
		out[i] = word
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\$;&|<>*?()`") {
			out[i] = strconv.Quote(word)
		}
	}
	return strings.Join(out, " ")
}

func (d imageDetails) properties() []property {
	layers := make([]string, len(d.Layers))
	for i, layer := range d.Layers {
		layers[i] = string(layer)
	}
	return []property{
		{"Name", d.Reference.String()},
		{"Path", d.path},
		{"Type", imageType},
		{"ReadOnly", yesNo(d.ReadOnly)},
		{"CreationTimestamp", timestamp(d.created)},
		{"ModificationTimestamp", timestamp(d.Pulled)},
		{"Usage", strconv.FormatInt(d.Size, 10)},
		{"Limit", "infinity"},
		{"UsageExclusive", strconv.FormatInt(d.exclusive, 10)},
		{"LimitExclusive", "infinity"},
		{"ManifestDigest", string(d.ManifestDigest)},
		{"ConfigDigest", string(d.ConfigDigest)},
		{"Platform", d.platform()},
		{"Layers", strings.Join(layers, " ")},
		{"ACI", strings.Join(d.ACI, " ")},
		{"TrustKind", string(d.Trust.Kind)},
		{"TrustRule", d.Trust.Rule},
		{"Signer", d.Trust.Signer},
		{"TrustTimestamp", timestamp(d.Trust.Time)},
		{"Insecure", strings.Join(d.Trust.Insecure, " ")},
	}
}

func inspectImageCommand() *cobra.Command {
	var format string
	var raw, config bool
	cmd := &cobra.Command{
		Use:   "inspect-image NAME...",
		Short: "Show images as JSON, with all of their configuration",
		Long: `Show images as a JSON list, with the keys that podman image inspect and docker image inspect have, and with why each was accepted.
With --raw, show an image's manifest just as it was signed; with --config, its configuration.`,
		Example: `  machinectl-lite inspect-image web
  machinectl-lite inspect-image --format '{{.Digest}} {{.Config.User}}' web
  machinectl-lite inspect-image --raw web | sha256sum`,
		Args:              imageNames(1, -1),
		ValidArgsFunction: completeImages(-1),
		RunE: func(_ *cobra.Command, names []string) error {
			var layout *template.Template
			if format != "" {
				var err error
				layout, err = template.New("--format").Funcs(template.FuncMap{"json": jsonOf}).Parse(format)
				if err != nil {
					return fmt.Errorf("--format: %w", err)
				}
			}
			inspected := []inspection{}
			err := forEachStored(names, func(store *image.Store, img *image.Image) error {
				blob := img.ManifestDigest
				switch {
				case config:
					blob = img.ConfigDigest
				case !raw:
					inspected = append(inspected, inspect(store, img))
					return nil
				}
				data, err := store.Blob(blob)
				if err != nil {
					return err
				}
				return writeStranger(data)
			})
			switch {
			case raw || config:
			case layout != nil:
				for _, i := range inspected {
					var b bytes.Buffer
					if err := layout.Execute(&b, i); err != nil {
						return errors.Join(err, fmt.Errorf("--format: %w", err))
					}
					if err := writeStranger(append(b.Bytes(), '\n')); err != nil {
						return err
					}
				}
			default:
				text, jsonErr := json.MarshalIndent(inspected, "", "    ")
				if jsonErr != nil {
					return jsonErr
				}
				_, writeErr := fmt.Println(safeJSON(text))
				err = errors.Join(err, writeErr)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Show what a Go `template` makes of an image; json is a function in it")
	cmd.Flags().BoolVar(&raw, "raw", false, "Show the manifest, byte for byte")
	cmd.Flags().BoolVar(&config, "config", false, "Show the configuration, byte for byte")
	cmd.MarkFlagsMutuallyExclusive("format", "raw", "config")
	return cmd
}

// inspection has podman's keys.
type inspection struct {
	ID           string `json:"Id"`
	Digest       image.Digest
	RepoTags     []string
	RepoDigests  []string
	Created      *time.Time `json:",omitempty"`
	Pulled       time.Time
	Size         int64
	Os           string
	Architecture string
	Variant      string `json:",omitempty"`
	Config       image.Config
	RootFS       struct {
		Type   string
		Layers []image.Digest
	}
	Labels  map[string]string
	History json.RawMessage `json:",omitempty"`
	Trust   image.Trust
}

func inspect(store *image.Store, img *image.Image) inspection {
	ref := img.Reference
	i := inspection{
		ID: img.ConfigDigest.Hex(), Digest: img.ManifestDigest, RepoTags: []string{}, RepoDigests: []string{ref.Repository() + "@" + string(img.ManifestDigest)},
		Pulled: img.Pulled, Size: img.Size, Os: img.Platform.OS, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant,
		Config: img.Config, Labels: img.Config.Labels, Trust: img.Trust,
	}
	if ref.Digest() == "" {
		i.RepoTags = append(i.RepoTags, ref.String())
	}
	i.RootFS.Type, i.RootFS.Layers = "layers", img.Layers
	blobs := readBlobs(store, img)
	if created := blobs.created(); !created.IsZero() {
		i.Created = &created
	}
	var config struct{ History json.RawMessage }
	if json.Unmarshal(blobs.config, &config) == nil {
		i.History = config.History
	}
	return i
}

func jsonOf(v any) (string, error) {
	text, err := json.Marshal(v)
	return safeJSON(text), err
}

// safeJSON escapes what could steer a terminal. Outside of strings JSON has no such characters but line ends.
func safeJSON(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		line, end := strings.CutSuffix(line, "\n")
		b.WriteString(escapeUnprintable(line))
		if end {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// writeStranger writes what an image says: as it is into files and pipes, and in lines without control characters to a terminal.
func writeStranger(data []byte) error {
	if term.IsTerminal(int(os.Stdout.Fd())) {
		var b bytes.Buffer
		for line := range strings.Lines(string(data)) {
			b.WriteString(printable.Line(strings.TrimSuffix(line, "\n")) + "\n")
		}
		data = b.Bytes()
	}
	_, err := os.Stdout.Write(data)
	return err
}
