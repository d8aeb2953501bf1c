package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Commit says how an image is made of a machine.
type Commit struct {
	Machine string
	Dir     string    // its directory in the store
	Base    *Image    // that it was made of
	As      Reference // the image's name
	Author  string
	Message string
	Changes []string // instructions of a Dockerfile that change the configuration
}

// Run stores the image: the layers of the machine's, and one with what the machine has changed. Nobody vouches for it, and that is what its record says;
// what it is trusted for is found out at a start, as for an image that was imported without a proof.
func (c Commit) Run(ctx context.Context, store *Store) (img *Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s: %w", c.As, err)
		}
	}()
	if err := errors.Join(checkNewName(c.As), store.CheckWritable(c.As)); err != nil {
		return nil, err
	}
	base, err := store.Blob(c.Base.ConfigDigest)
	if err != nil {
		return nil, err
	}
	writer, err := store.Writer()
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	layer, err := writer.TempFile()
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	hash := sha256.New()
	if err := exportChanges(ctx, c.Dir, io.MultiWriter(layer, hash)); err != nil {
		return nil, err
	}
	diffID := digestFromSum(hash.Sum(nil))
	now := time.Now().Truncate(time.Second)
	config, err := c.config(base, diffID, now)
	if err != nil {
		return nil, err
	}
	img = &Image{Reference: c.As, ConfigDigest: DigestOf(config), Pulled: now,
		Trust: Trust{Kind: TrustCommit, Time: now, Insecure: []string{"image"}, Machine: c.Machine + " " + c.Base.Reference.Repository() + "@" + string(c.Base.ManifestDigest)}}
	if img.Platform, img.Config, img.Layers, err = ParseConfig(config); err != nil {
		return nil, err
	}
	for _, diffID := range c.Base.Layers { // they stay, whatever happens to the machine
		if err := writer.AddLayer(ctx, diffID, func() (io.ReadCloser, error) { return nil, ErrChanged }); err != nil {
			return nil, err
		}
	}
	err = writer.AddLayer(ctx, diffID, func() (io.ReadCloser, error) {
		_, err := layer.Seek(0, io.SeekStart)
		return io.NopCloser(contextReader{ctx, layer}), err
	})
	if err != nil {
		return nil, err
	}
	manifest, err := store.manifest(config, img.Layers)
	if err != nil {
		return nil, err
	}
	img.ManifestDigest = DigestOf(manifest)
	for _, blob := range [][]byte{config, manifest} {
		if _, err := writer.AddBlob(blob); err != nil {
			return nil, err
		}
	}
	return img, writer.AddImage(img)
}

// config gives the configuration of the machine's image with what is new in it. What we do not know of it stays.
func (c Commit) config(base []byte, diffID Digest, now time.Time) ([]byte, error) {
	var all map[string]any
	if err := json.Unmarshal(base, &all); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	root, _ := all["rootfs"].(map[string]any)
	diffIDs, _ := root["diff_ids"].([]any)
	if root == nil || len(diffIDs) >= MaxLayers {
		return nil, fmt.Errorf("its image has %d layers already", len(diffIDs))
	}
	root["diff_ids"] = append(diffIDs, diffID)
	created := now.UTC().Format(time.RFC3339)
	entry := map[string]any{"created": created, "created_by": "machinectl-lite commit " + c.Machine}
	if c.Message != "" {
		entry["comment"] = c.Message
	}
	if c.Author != "" {
		entry["author"] = c.Author
		all["author"] = c.Author
	}
	all["created"] = created
	history, _ := all["history"].([]any)
	all["history"] = append(history, entry)
	if all["os"] == nil {
		all["os"], all["architecture"] = "linux", runtime.GOARCH
	}
	run, _ := all["config"].(map[string]any)
	if run == nil {
		run = map[string]any{}
	}
	for _, change := range c.Changes {
		if err := applyChange(run, change); err != nil {
			return nil, fmt.Errorf("--change: %w", err)
		}
	}
	all["config"] = run
	return json.Marshal(all)
}

// instructions are those of a Dockerfile that change an image's configuration, with what they do to it.
var instructions = map[string]func(config map[string]any, value string) error{
	"CMD":        func(config map[string]any, value string) error { config["Cmd"] = command(value); return nil },
	"ENTRYPOINT": func(config map[string]any, value string) error { config["Entrypoint"] = command(value); return nil },
	"ENV":        setEnv,
	"EXPOSE":     addTo("ExposedPorts"),
	"LABEL":      setLabel,
	"STOPSIGNAL": setTo("StopSignal"),
	"USER":       setTo("User"),
	"VOLUME":     addTo("Volumes"),
	"WORKDIR":    setTo("WorkingDir"),
}

// applyChange applies an instruction: "CMD [\"sh\"]", "ENV A=b", or with "=" for the first blank.
func applyChange(config map[string]any, change string) error {
	word, value := change, ""
	if i := strings.IndexAny(change, " ="); i >= 0 {
		word, value = change[:i], strings.TrimSpace(change[i+1:])
	}
	apply := instructions[strings.ToUpper(word)]
	if apply == nil || value == "" {
		return fmt.Errorf("%.80q is not one of %s with a value", change, strings.Join(slices.Sorted(maps.Keys(instructions)), ", "))
	}
	return apply(config, value)
}

// command reads a list of words in JSON, or what a shell is to run.
func command(value string) []string {
	var words []string
	if json.Unmarshal([]byte(value), &words) == nil {
		return words
	}
	return []string{"/bin/sh", "-c", value}
}

func setTo(key string) func(map[string]any, string) error {
	return func(config map[string]any, value string) error { config[key] = value; return nil }
}

// addTo adds words to a set, which is an object with empty objects.
func addTo(key string) func(map[string]any, string) error {
	return func(config map[string]any, value string) error {
		set, _ := config[key].(map[string]any)
		if set == nil {
			set = map[string]any{}
		}
		words := strings.Fields(value)
		_ = json.Unmarshal([]byte(value), &words) // or they are one behind the other
		for _, word := range words {
			set[word] = map[string]any{}
		}
		config[key] = set
		return nil
	}
}

func setEnv(config map[string]any, value string) error {
	name, text, found := strings.Cut(value, "=")
	if !found {
		name, text, found = strings.Cut(value, " ")
	}
	if !found || name == "" {
		return fmt.Errorf("ENV %.80q is not NAME=VALUE", value)
	}
	old, _ := config["Env"].([]any)
	config["Env"] = append(slices.DeleteFunc(old, func(v any) bool {
		s, _ := v.(string)
		return strings.HasPrefix(s, name+"=")
	}), name+"="+text)
	return nil
}

func setLabel(config map[string]any, value string) error {
	key, text, found := strings.Cut(value, "=")
	if !found || key == "" {
		return fmt.Errorf("LABEL %.80q is not KEY=VALUE", value)
	}
	labels, _ := config["Labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels[key] = text
	config["Labels"] = labels
	return nil
}

// manifest makes a manifest (image-spec manifest.md) for a configuration and layers of the store, which are not compressed.
func (s *Store) manifest(config []byte, layers []Digest) ([]byte, error) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    Digest `json:"digest"`
		Size      int64  `json:"size"`
	}
	const mediaType = "application/vnd.oci.image."
	m := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, mediaType + "manifest.v1+json", descriptor{mediaType + "config.v1+json", DigestOf(config), int64(len(config))}, nil}
	for _, diffID := range layers {
		size, err := s.layerSize(diffID)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, descriptor{mediaType + "layer.v1.tar", diffID, size})
	}
	return json.Marshal(m)
}

// layerSize gives the bytes of a layer's uncompressed tar.
func (s *Store) layerSize(diffID Digest) (int64, error) {
	layer, err := s.OpenLayer(diffID)
	if err != nil {
		return 0, err
	}
	defer layer.Close()
	if file, ok := layer.(*os.File); ok {
		info, err := file.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	return io.Copy(io.Discard, layer)
}
