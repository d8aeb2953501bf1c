package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Platform says what an image runs on, in Go's words (image-spec image-index.md).
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// Config is how an image wants to be run: the "config" object of an OCI or Docker image configuration (image-spec
// config.md). All of it is a stranger's text: names, paths and numbers in it have not been checked.
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`

	// Docker's own additions, kept as they are.
	Healthcheck json.RawMessage `json:"Healthcheck,omitempty"`
	Shell       []string        `json:"Shell,omitempty"`
	StopTimeout *int            `json:"StopTimeout,omitempty"`

	// Other names the fields beside these that have a value, sorted; at most maxOther.
	Other []string `json:"Other,omitempty"`
}

// ParseConfig reads an image configuration and returns what is in it for us: the platform, how the image is run, and the
// DiffIDs of its layers, base first.
func ParseConfig(data []byte) (Platform, Config, []Digest, error) {
	var c struct {
		Platform
		Config json.RawMessage `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Platform{}, Config{}, nil, fmt.Errorf("image configuration: %w", err)
	}
	if c.RootFS.Type != "layers" {
		return Platform{}, Config{}, nil, fmt.Errorf("image configuration: root file system of type %q, not of layers", c.RootFS.Type)
	}
	config, err := parseRunConfig(c.Config)
	if err != nil {
		return Platform{}, Config{}, nil, fmt.Errorf("image configuration: %w", err)
	}
	return c.Platform, config, c.RootFS.DiffIDs, nil
}

const maxOther = 64

// parseRunConfig reads the "config" object.
func parseRunConfig(data []byte) (config Config, err error) {
	if data == nil { // it is optional
		return config, nil
	}
	var all map[string]any
	if err := errors.Join(json.Unmarshal(data, &config), json.Unmarshal(data, &all)); err != nil {
		return config, err
	}
	config.Other = nil
	fields := reflect.VisibleFields(reflect.TypeFor[Config]())
	for _, name := range slices.Sorted(maps.Keys(all)) {
		known := slices.ContainsFunc(fields, func(f reflect.StructField) bool { return strings.EqualFold(f.Name, name) && name != "Other" })
		if !known && !unset(all[name]) && len(config.Other) < maxOther {
			config.Other = append(config.Other, name)
		}
	}
	return config, config.check()
}

// unset says whether a JSON value is how an encoder writes a field that nobody has set.
func unset(v any) bool {
	switch v := v.(type) {
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return v == nil || v == false || v == 0.0 || v == ""
}

// check refuses what no process can be given.
func (c Config) check() error {
	words := []string{c.User, c.WorkingDir, c.StopSignal}
	for _, list := range [][]string{c.Env, c.Entrypoint, c.Cmd, c.Shell} {
		words = append(words, list...)
	}
	for volume := range c.Volumes {
		words = append(words, volume)
	}
	for _, word := range words {
		if strings.ContainsRune(word, 0) {
			return errors.New("a string in it contains a NUL byte")
		}
	}
	return nil
}
