package fetch

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"nspawnd/image"
)

// Key is a public key that can sign images.
type Key struct {
	Type image.KeyType
	// Fingerprint is an OpenPGP key's own, in upper case, or "sha256:" and the hash of a PEM key's SubjectPublicKeyInfo.
	Fingerprint string
	UserIDs     []string  // of an OpenPGP key; anybody can write anything there
	Data        []byte    // the key alone, as containers/image reads it
	Expires     time.Time // the first of an OpenPGP key's parts that is still valid; zero for never
	Faults      []string  // why an OpenPGP key can't sign any more: "is revoked", "has expired"
}

// ParseKeys reads a file of public keys: OpenPGP ones, armoured or not, or one PEM public key as cosign writes it.
func ParseKeys(data []byte) ([]Key, error) {
	if block, _ := pem.Decode(data); block != nil && block.Type != openpgp.PublicKeyType {
		return parsePEM(block, data)
	}
	entities, err := readKeyRing(data)
	if err != nil {
		return nil, fmt.Errorf("neither an OpenPGP nor a PEM public key: %w", err)
	}
	if len(entities) == 0 {
		return nil, errors.New("no key in it")
	}
	var keys []Key
	for _, entity := range entities {
		if entity.PrivateKey != nil {
			return nil, errors.New("has a private key; export the public one with gpg --export")
		}
		var public bytes.Buffer
		if err := entity.Serialize(&public); err != nil {
			return nil, err
		}
		key := Key{
			Type:        image.KeyGPG,
			Fingerprint: strings.ToUpper(hex.EncodeToString(entity.PrimaryKey.Fingerprint)),
			Data:        public.Bytes(),
			Expires:     expiry(entity, time.Now()),
			Faults:      faults(entity, time.Now()),
		}
		for name := range entity.Identities {
			key.UserIDs = append(key.UserIDs, name)
		}
		slices.Sort(key.UserIDs)
		keys = append(keys, key)
	}
	return keys, nil
}

// expiry is when the first of the keys that are valid now will no longer be.
func expiry(entity *openpgp.Entity, now time.Time) (first time.Time) {
	add := func(key *packet.PublicKey, signature *packet.Signature) {
		if signature == nil || signature.KeyLifetimeSecs == nil || *signature.KeyLifetimeSecs == 0 {
			return
		}
		if end := key.CreationTime.Add(time.Duration(*signature.KeyLifetimeSecs) * time.Second); end.After(now) {
			first = earlier(first, end)
		}
	}
	signature, _ := entity.PrimarySelfSignature()
	add(entity.PrimaryKey, signature)
	for _, subkey := range entity.Subkeys {
		add(subkey.PublicKey, subkey.Sig)
	}
	return first
}

// faults are why nothing that the key signs is good.
func faults(entity *openpgp.Entity, now time.Time) (faults []string) {
	if entity.Revoked(now) {
		faults = append(faults, "is revoked")
	}
	if signature, _ := entity.PrimarySelfSignature(); signature != nil && entity.PrimaryKey.KeyExpired(signature, now) {
		faults = append(faults, "has expired")
	}
	return faults
}

// earlier is the first of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func readKeyRing(data []byte) (openpgp.EntityList, error) {
	if bytes.Contains(data, []byte("-----BEGIN PGP")) {
		block, err := armor.Decode(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		return openpgp.ReadKeyRing(block.Body)
	}
	return openpgp.ReadKeyRing(bytes.NewReader(data))
}

func parsePEM(block *pem.Block, data []byte) ([]Key, error) {
	if strings.Contains(block.Type, "PRIVATE KEY") {
		return nil, errors.New("is a private key; cosign public-key --key FILE gives the public one")
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("PEM of type %q, not a public key", block.Type)
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(block.Bytes)
	return []Key{{
		Type:        image.KeySigstore,
		Fingerprint: "sha256:" + hex.EncodeToString(sum[:]),
		Data:        pem.EncodeToMemory(block),
	}}, nil
}
