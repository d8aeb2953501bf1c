package image

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Inputs are the files that decided whether an image is trusted, as they were then: directories of rules, rules, keys, and the places of
// policy.json. As long as none has changed, the decision stands, and that costs a start a few calls of stat(2).
type Inputs struct {
	Paths []string  `json:"paths,omitempty"`
	Stamp Digest    `json:"stamp,omitempty"` // of what stat(2) says of them
	Until time.Time `json:"until,omitzero"`  // the decision stands no longer than that: a key expires
}

// inputsSettle is how long a file must have been left alone: within it, another change may leave all its times the same.
const inputsSettle = 50 * time.Millisecond

// StampInputs stamps files that are about to be read. There is no stamp if one has changed only just now.
func StampInputs(paths []string) Inputs {
	in := Inputs{Paths: paths}
	if stamp, changed := stampPaths(paths); time.Since(changed) > inputsSettle {
		in.Stamp = stamp
	}
	return in
}

// Current says whether nothing has changed, so that what was decided holds now.
func (in Inputs) Current(now time.Time) bool {
	if in.Stamp == "" || !in.Until.IsZero() && now.After(in.Until) {
		return false
	}
	stamp, _ := stampPaths(in.Paths)
	return stamp == in.Stamp
}

// stampPaths gives a digest over the files' identities and times, and when the last of them changed.
func stampPaths(paths []string) (stamp Digest, changed time.Time) {
	var b strings.Builder
	for _, path := range paths {
		var s unix.Stat_t
		err := unix.Stat(path, &s)
		fmt.Fprintln(&b, path, err, s.Dev, s.Ino, s.Size, s.Mtim.Nano(), s.Ctim.Nano())
		if t := time.Unix(0, s.Ctim.Nano()); t.After(changed) {
			changed = t
		}
	}
	return DigestOf([]byte(b.String())), changed
}

// SetTrust stores that the image old was accepted again, and why, unless another is stored under its name meanwhile.
func (w *Writer) SetTrust(ctx context.Context, old *Image, trust Trust) error {
	return w.edit(ctx, old.Reference, func(img *Image) error {
		if img.ManifestDigest != old.ManifestDigest || !img.Trust.Time.Equal(old.Trust.Time) {
			return nil
		}
		img.Trust = trust
		return w.writeRecord(img)
	})
}
