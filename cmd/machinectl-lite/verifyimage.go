package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

func verifyImageCommand() *cobra.Command {
	var policyOnly, repair bool
	cmd := &cobra.Command{
		Use:   "verify-image NAME...",
		Short: "Check stored images again: who signed them, and every byte",
		Long: `Check stored images again, without a network. By the rules that hold now (see trust, and containers-policy.json(5)) the stored manifest and
signatures must be acceptable; who signed an image, the rule that accepts it and when it was last checked are shown. Every byte that is stored
of it is held against its digest: manifest, index, configuration, signatures, layers, and what was derived of them.

With --repair, what is damaged of layers, manifests and configurations is fetched again from where the image came, and takes the place of what
was there at once or not at all. It must be the very same, so neither the image nor its name changes, and all images that share a layer have it
repaired. Machines that run go on with what they have.

nspawnd-run has the first part done when a rule or a key has changed since the last time, and starts nothing that is refused.

Exit status: 0 if all is well, 1 otherwise, with one line for each fault on standard error. That the result could not be noted, as in a store that is read-only, is said there too but is
no fault.`,
		Example: `  machinectl-lite verify-image registry.example/team/web
  machinectl-lite verify-image --json=pretty web db
  machinectl-lite verify-image --repair web`,
		Args:              imageNames(1, -1),
		ValidArgsFunction: completeImages(-1),
		RunE: func(cmd *cobra.Command, names []string) error {
			return verifyImages(cmd.Context(), names, policyOnly, repair)
		},
	}
	cmd.Flags().BoolVar(&policyOnly, "policy-only", false, "Ask the rules alone, and show nothing but what is wrong")
	cmd.Flags().BoolVar(&repair, "repair", false, "Fetch again what is damaged")
	cmd.MarkFlagsMutuallyExclusive("policy-only", "repair")
	return cmd
}

func verifyImages(ctx context.Context, names []string, policyOnly, repair bool) error {
	t := table{header: []string{"NAME", "TRUST", "SIGNER", "RULE", "CHECKED", "RESULT"}, values: []string{"CHECKED"}}
	var faulty failures
	err := forEachStored(names, func(store *image.Store, img *image.Image) error {
		faults := verifyImage(ctx, store, img, policyOnly, repair)
		result, trust := "ok", img.Trust
		if faults != nil {
			result = "FAILED"
		}
		checked := cellsFor(options.jsonLayout() != "").when(trust.Time)
		t.rows = append(t.rows, []string{img.Reference.String(), string(trust.Kind), trust.Signer, trust.Rule, checked, result})
		faulty = append(faulty, faults...)
		return nil
	})
	var missing failures
	if errors.As(err, &missing) {
		faulty = append(faulty, missing...)
	} else if err != nil {
		return err
	}
	if !policyOnly {
		if err := t.show("images"); err != nil {
			return err
		}
	}
	return faulty.orNil()
}

// verifyImage returns what is wrong with an image, and stores why it is accepted if that has to be known anew.
func verifyImage(ctx context.Context, store *image.Store, img *image.Image, policyOnly, repair bool) (faults failures) {
	if repair && fetch.VerifyContent(store, img) != nil {
		if err := fetch.Repair(ctx, store, img, fetch.Options{}); err != nil {
			faults = append(faults, withAdvice(err))
		}
	}
	trust, err := fetch.Recheck(ctx, store, img, fetch.Options{})
	if err != nil {
		faults = append(faults, withAdvice(err))
	} else {
		if err := setTrust(ctx, store, img, trust); err != nil {
			err = fmt.Errorf("image %s: the rules accept it, but that could not be noted: %w", img.Reference, err)
			if policyOnly { // to note it is what was asked for
				return failures{err}
			}
			fmt.Fprintf(os.Stderr, "%s: %s\n", program, printableLines(err.Error()))
		}
		img.Trust = trust
	}
	if policyOnly {
		return faults
	}
	help := "verify-image --repair " + img.Reference.String()
	if repair { // signatures, the index and the record are none of the image itself
		help = fetch.PullCommand(img)
	}
	for _, err := range fetch.VerifyContent(store, img) {
		faults = append(faults, fmt.Errorf("image %s: %w; to repair it: machinectl-lite %s", img.Reference, err, help))
	}
	return faults
}

func setTrust(ctx context.Context, store *image.Store, img *image.Image, trust image.Trust) error {
	writer, err := store.Writer()
	if err != nil {
		return err
	}
	defer writer.Close()
	return writer.SetTrust(ctx, img, trust)
}
