// Command signer signs images on a registry without keys, as cosign does with Fulcio and Rekor, by an authority and a log that live as long as
// it does. It writes trusted_root.json, authority.pem and log.pem into the directory that it is given, then reads orders, a line each, and
// answers each with a line: "ok" or what went wrong.
//
//	attachment|bundle SIGNER REPOSITORY DIGEST
//
// SIGNER is how the signature is wrong: right, wrong-root, wrong-identity, wrong-issuer, or expired, seen by the log when the
// certificate was no longer good.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"nspawnd/tests/keyless"
)

func main() {
	trusted, err := keyless.New()
	if err != nil {
		log.Fatal(err)
	}
	stranger, err := keyless.New()
	if err != nil {
		log.Fatal(err)
	}
	for file, data := range map[string][]byte{"trusted_root.json": trusted.Root, "authority.pem": trusted.Authority, "log.pem": trusted.LogKey} {
		if err := os.WriteFile(filepath.Join(os.Args[1], file), data, 0o644); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("ok")
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		if err := sign(trusted, stranger, strings.Fields(orders.Text())); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
}

func sign(trusted, stranger *keyless.World, order []string) error {
	if len(order) != 4 {
		return fmt.Errorf("%q: not an order", order)
	}
	form, signer, repository, digest := order[0], order[1], order[2], order[3]
	world := trusted
	how := keyless.Signing{Subject: "ci@team.example", Issuer: "https://accounts.example", Predicate: keyless.SignPredicate, After: time.Second}
	switch signer {
	case "right":
	case "wrong-root":
		world = stranger
	case "wrong-identity":
		how.Subject = "evil@team.example"
	case "wrong-issuer":
		how.Issuer = "https://evil.example"
	case "expired":
		how.After = 11 * time.Minute
	default:
		return fmt.Errorf("signer %q: not known", signer)
	}
	subject, err := name.NewDigest(repository + "@" + digest)
	if err != nil {
		return err
	}
	if form == "attachment" {
		attachment, err := world.Attachment(how, repository, digest)
		if err != nil {
			return err
		}
		return remote.Write(subject.Context().Tag(strings.Replace(digest, ":", "-", 1)+".sig"), attachment)
	}
	signed, err := remote.Head(subject)
	if err != nil {
		return err
	}
	bundle, err := world.Bundle(how, digest)
	if err != nil {
		return err
	}
	referrer, err := keyless.Referrer(bundle, v1.Descriptor{MediaType: signed.MediaType, Digest: signed.Digest, Size: signed.Size})
	if err != nil {
		return err
	}
	own, err := referrer.Digest()
	if err != nil {
		return err
	}
	return remote.Write(subject.Context().Digest(own.String()), referrer)
}
