// Package aci reads App Container Images (ACI), rkt's own format: what the manifest says, in the words of an OCI image, and the
// tar with the files, in the form of an OCI layer. It is pure: files, network and signatures are package fetch's.
//
// The format is that of github.com/appc/spec, version 0.8.11 (aci.md, types.md), the last.
package aci

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"nspawnd/image"
)

// Manifest is an image manifest (aci.md, "Image Manifest Schema"), with what is used here.
type Manifest struct {
	Kind          string       `json:"acKind"`
	Version       string       `json:"acVersion"`
	Name          string       `json:"name"`
	Labels        []Pair       `json:"labels"`
	App           *app         `json:"app"`
	Dependencies  []Dependency `json:"dependencies"`
	PathWhitelist []string     `json:"pathWhitelist"`
	Annotations   []Pair       `json:"annotations"`
	unknown       []string
}

// Pair is a label, an annotation or a variable of the environment.
type Pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Dependency is an image whose files lie below this one's.
type Dependency struct {
	Name   string `json:"imageName"`
	ID     string `json:"imageID"` // "" if any will do
	Labels []Pair `json:"labels"`
}

type app struct {
	Exec              []string     `json:"exec"`
	User              string       `json:"user"`
	Group             string       `json:"group"`
	SupplementaryGIDs []uint32     `json:"supplementaryGIDs"`
	EventHandlers     []Pair       `json:"eventHandlers"`
	WorkingDirectory  string       `json:"workingDirectory"`
	Environment       []Pair       `json:"environment"`
	MountPoints       []mountPoint `json:"mountPoints"`
	Ports             []port       `json:"ports"`
	Isolators         []struct {
		Name string `json:"name"`
	} `json:"isolators"`
}

type mountPoint struct {
	Name     string `json:"name"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly"`
}

type port struct {
	Name            string `json:"name"`
	Protocol        string `json:"protocol"`
	Port            int    `json:"port"`
	Count           *int   `json:"count"`
	SocketActivated bool   `json:"socketActivated"`
}

// Limits on a manifest. encoding/json has its own on how deep values are in each other.
const (
	MaxManifest     = 1 << 20 // bytes
	MaxDependencies = 64      // of one image, with those of its dependencies
)

var (
	identifier   = regexp.MustCompile(`^[a-z0-9]+([-._~/][a-z0-9]+)*$`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9.-]*$`)
	imageID      = regexp.MustCompile(`^sha512-[0-9a-f]{128}$`)
)

// CheckID wants an image ID in full: "sha512-" and the hash of the uncompressed tar.
func CheckID(id string) error {
	if !imageID.MatchString(id) {
		return fmt.Errorf("image ID %q: not sha512- and 128 lower-case hexadecimal digits", id)
	}
	return nil
}

// CheckName wants an AC Identifier.
func CheckName(name string) error {
	if !identifier.MatchString(name) {
		return fmt.Errorf("name %q: only lower-case letters and digits, joined by one of - . _ ~ / each", name)
	}
	return nil
}

// ParseManifest reads and checks a manifest.
func ParseManifest(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("manifest: %d bytes, more than %d", len(data), MaxManifest)
	}
	err := json.Unmarshal(data, m)
	if err == nil {
		err = m.check()
	}
	if err == nil {
		err = m.findUnknown(data)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

func (m *Manifest) check() error {
	switch {
	case m.Kind != "ImageManifest":
		return fmt.Errorf("acKind %q, not ImageManifest", m.Kind)
	case !strings.HasPrefix(m.Version, "0.") && !strings.HasPrefix(m.Version, "1."):
		return fmt.Errorf("acVersion %q is not known", m.Version)
	case len(m.PathWhitelist) > 0:
		return errors.New("has a pathWhitelist, which is not supported: all files of the image and its dependencies would be there")
	case len(m.Dependencies) > MaxDependencies:
		return fmt.Errorf("more than %d dependencies", MaxDependencies)
	}
	if err := CheckName(m.Name); err != nil {
		return err
	}
	if err := checkPairs("label", m.Labels, identifier); err != nil {
		return err
	}
	if err := checkPairs("annotation", m.Annotations, identifier); err != nil {
		return err
	}
	for _, d := range m.Dependencies {
		err := errors.Join(CheckName(d.Name), checkPairs("label", d.Labels, identifier))
		if d.ID != "" {
			err = errors.Join(err, CheckID(d.ID))
		}
		if err != nil {
			return fmt.Errorf("dependency %q: %w", d.Name, err)
		}
	}
	if m.App == nil {
		return nil
	}
	if err := m.App.check(); err != nil {
		return fmt.Errorf("app: %w", err)
	}
	return nil
}

func checkPairs(kind string, pairs []Pair, name *regexp.Regexp) error {
	seen := map[string]bool{}
	for _, p := range pairs {
		switch {
		case !name.MatchString(p.Name) || kind == "label" && p.Name == "name":
			return fmt.Errorf("%s %q: not a name for one", kind, p.Name)
		case seen[p.Name]:
			return fmt.Errorf("%s %q: there twice", kind, p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

func (a *app) check() error {
	for _, who := range []struct{ field, name string }{{"user", a.User}, {"group", a.Group}} {
		switch {
		case who.name == "":
			return fmt.Errorf("no %s", who.field)
		case strings.HasPrefix(who.name, "/"):
			return fmt.Errorf("%s %q: to run as the owner of a file is not supported", who.field, who.name)
		case strings.Contains(who.name, ":"):
			return fmt.Errorf("%s %q: not a name", who.field, who.name)
		}
	}
	if a.WorkingDirectory != "" && !path.IsAbs(a.WorkingDirectory) {
		return fmt.Errorf("workingDirectory %q is not absolute", a.WorkingDirectory)
	}
	for _, m := range a.MountPoints {
		if !path.IsAbs(m.Path) {
			return fmt.Errorf("mount point %q: its path %q is not absolute", m.Name, m.Path)
		}
	}
	for _, p := range a.Ports {
		if count := p.count(); p.Port < 1 || count < 1 || p.Port > 65535 || count > 65536-p.Port {
			return fmt.Errorf("port %q: out of range", p.Name)
		}
	}
	return checkPairs("environment variable", a.Environment, variableName)
}

func (p port) count() int {
	if p.Count == nil {
		return 1
	}
	return *p.Count
}

// findUnknown notes fields that no field of Manifest is for.
func (m *Manifest) findUnknown(data []byte) error {
	var top struct {
		fields
		App fields `json:"app"`
	}
	if err := json.Unmarshal(data, &top.fields); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &struct{ App *fields }{&top.App}); err != nil {
		return err
	}
	m.unknown = append(
		top.fields.without("", "acKind", "acVersion", "name", "labels", "app", "dependencies", "pathWhitelist", "annotations"),
		top.App.without("app.", "exec", "user", "group", "supplementaryGIDs", "eventHandlers", "workingDirectory", "environment",
			"mountPoints", "ports", "isolators")...)
	return nil
}

type fields map[string]json.RawMessage

// without gives the other names, sorted, with prefix before each. As encoding/json has it, case makes no difference.
func (f fields) without(prefix string, known ...string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) }) {
			names = append(names, prefix+name)
		}
	}
	return names
}

// Label returns a label's value, "" if there is none.
func (m *Manifest) Label(name string) string { return Value(m.Labels, name) }

// Value returns the value of the pair with the given name, "" if there is none.
func Value(pairs []Pair, name string) string {
	for _, p := range pairs {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// Reference is the name that an image called name has here; without a version, the tag is "latest".
func Reference(name, version string) (image.Reference, error) {
	full := name
	if version != "" {
		full += ":" + version
	}
	ref, err := image.ParseReference(full)
	if err == nil && ref.Repository() != name {
		err = errors.New("does not begin with a host")
	}
	if err != nil {
		return ref, fmt.Errorf("%q can't be an image's name here: %w", full, err)
	}
	return ref, nil
}

// What the spec calls architectures (labels.go), by Go's names.
var architectures = map[string]image.Platform{
	"i386": {Architecture: "386"}, "x86_64": {Architecture: "amd64"}, "aarch64": {Architecture: "arm64"},
	"aarch64_be": {Architecture: "arm64be"}, "armv6l": {Architecture: "arm", Variant: "v6"},
	"armv7l": {Architecture: "arm", Variant: "v7"}, "armv7b": {Architecture: "armbe", Variant: "v7"},
}

// Architecture returns the spec's name for that of a platform.
func Architecture(p image.Platform) string {
	switch {
	case p.Architecture == "386":
		return "i386"
	case p.Architecture == "arm64":
		return "aarch64"
	case p.Architecture == "arm" && p.Variant == "v6":
		return "armv6l"
	case p.Architecture == "arm":
		return "armv7l"
	}
	return p.Architecture
}

// Platform returns what the image runs on. What its labels leave open is that of host: the image does not depend on it.
func (m *Manifest) Platform(host image.Platform) image.Platform {
	p := host
	if os := m.Label("os"); os != "" {
		p.OS = os
		if arch := m.Label("arch"); arch != "" { // means nothing without os
			known, ok := architectures[arch]
			if !ok {
				known.Architecture = arch
			}
			p.Architecture, p.Variant = known.Architecture, known.Variant
		}
	}
	return p
}

// Annotations that the image-spec has too, by its names (annotations.md).
var annotations = map[string]string{
	"created": v1.AnnotationCreated, "authors": v1.AnnotationAuthors, "homepage": v1.AnnotationURL, "documentation": v1.AnnotationDocumentation,
}

// Config returns how the image wants to be run, and the names of what it says that has no place there.
func (m *Manifest) Config() (image.Config, []string) {
	c := image.Config{Labels: map[string]string{}}
	left := slices.Clone(m.unknown)
	for _, p := range m.Labels {
		c.Labels[p.Name] = p.Value
	}
	if version := m.Label("version"); version != "" {
		c.Labels[v1.AnnotationVersion] = version
	}
	for _, p := range m.Annotations {
		name := p.Name
		if known, ok := annotations[name]; ok {
			name = known
		}
		if _, taken := c.Labels[name]; taken {
			left = append(left, "annotation "+p.Name)
			continue
		}
		c.Labels[name] = p.Value
	}
	a := m.App
	if a == nil {
		return c, left
	}
	c.Entrypoint, c.User, c.WorkingDir = a.Exec, a.User+":"+a.Group, a.WorkingDirectory
	for _, p := range a.Environment {
		c.Env = append(c.Env, p.Name+"="+p.Value)
	}
	if len(a.SupplementaryGIDs) > 0 {
		left = append(left, "app.supplementaryGIDs")
	}
	for _, h := range a.EventHandlers {
		left = append(left, "app.eventHandlers "+h.Name)
	}
	for _, i := range a.Isolators {
		left = append(left, "app.isolators "+i.Name)
	}
	for _, mount := range a.MountPoints {
		set(&c.Volumes, path.Clean(mount.Path))
		if mount.ReadOnly {
			left = append(left, "readOnly of app.mountPoints "+mount.Name)
		}
	}
	for _, p := range a.Ports {
		if p.SocketActivated {
			left = append(left, "socketActivated of app.ports "+p.Name)
		}
		if p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp" {
			left = append(left, "app.ports "+p.Name)
			continue
		}
		for n := range p.count() {
			set(&c.ExposedPorts, strconv.Itoa(p.Port+n)+"/"+p.Protocol)
		}
	}
	return c, left
}

func set(m *map[string]struct{}, key string) {
	if *m == nil {
		*m = map[string]struct{}{}
	}
	(*m)[key] = struct{}{}
}
