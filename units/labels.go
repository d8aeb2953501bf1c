package units

import (
	"fmt"
	"slices"
	"strings"
)

// Journal fields that a machine's log has, and by which its unit says what it was started with.
const (
	labelField      = "NSPAWND_LABEL"
	annotationField = "NSPAWND_ANNOTATION"
)

// Labels are what the user notes of a machine, KEY=VALUE each.
type Labels struct{ Labels, Annotations []string }

// maxLabels bounds what is written to the journal with each line of a machine's log.
const maxLabels = 64 << 10

// ParseLabel reads KEY[=VALUE] of podman-run(1) --label and --annotation.
func ParseLabel(s string) (string, error) {
	key, value, _ := strings.Cut(s, "=")
	if strings.TrimSpace(key) == "" || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%.60q is not KEY=VALUE", s)
	}
	return strings.TrimSpace(key) + "=" + value, nil
}

// ParseLabelFile reads a file of labels, one a line; empty lines and those that begin with "#" count nothing.
func ParseLabelFile(text string) (labels []string, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		label, err := ParseLabel(line)
		if err != nil {
			return nil, err
		}
		labels = append(labels, label)
	}
	return labels, nil
}

func (l Labels) set(u *Unit) error {
	var fields []string
	size := 0
	for _, list := range []struct {
		field string
		words []string
	}{{labelField, l.Labels}, {annotationField, l.Annotations}} {
		for _, word := range lastOfEachKey(list.words) {
			fields = append(fields, list.field+"="+word)
			size += len(word)
		}
	}
	if size > maxLabels {
		return fmt.Errorf("labels and annotations of %d bytes together are more than %d, and the journal would have them with each line", size, maxLabels)
	}
	if fields != nil {
		u.set("LogExtraFields", fields)
	}
	return nil
}

// lastOfEachKey leaves out what a later word with the same key replaces.
func lastOfEachKey(words []string) (out []string) {
	for _, word := range words {
		key, _, _ := strings.Cut(word, "=")
		out = slices.DeleteFunc(out, func(w string) bool { return strings.HasPrefix(w, key+"=") })
		out = append(out, word)
	}
	return out
}

// LabelsOf reads the labels of a machine out of its unit's LogExtraFields.
func LabelsOf(fields [][]byte) (l Labels) {
	for _, field := range fields {
		name, value, _ := strings.Cut(string(field), "=")
		switch name {
		case labelField:
			l.Labels = append(l.Labels, value)
		case annotationField:
			l.Annotations = append(l.Annotations, value)
		}
	}
	return l
}
