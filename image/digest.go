package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest names content by its hash: "sha256:" and 64 lower-case hexadecimal digits (image-spec descriptor.md). It is the
// only algorithm in the store. github.com/opencontainers/go-digest is not used here: compiling its expressions takes a
// millisecond of every start.
type Digest string

const sha256Prefix = "sha256:"

// ParseDigest checks s and returns it as a Digest.
func ParseDigest(s string) (Digest, error) {
	digits, ok := strings.CutPrefix(s, sha256Prefix)
	if !ok {
		return "", fmt.Errorf("digest %q: not a sha256 digest", s)
	}
	if len(digits) != hex.EncodedLen(sha256.Size) || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("digest %q: not 64 lower-case hexadecimal digits", s)
	}
	return Digest(s), nil
}

// DigestOf returns the digest of data.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return digestFromSum(sum[:])
}

func digestFromSum(sum []byte) Digest {
	return Digest(sha256Prefix + hex.EncodeToString(sum))
}

// Hex returns the hexadecimal digits alone.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), sha256Prefix) }

// Short returns the first 12 digits, for people.
func (d Digest) Short() string {
	digits := d.Hex()
	return digits[:min(12, len(digits))]
}

// UnmarshalText lets no malformed digest in from JSON.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
