package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nspawnd/image"
	"nspawnd/image/fetch"
)

func verifyImageCommand() *cobra.Command {
	var policyOnly bool
	cmd := &cobra.Command{
		Use:   "verify-image NAME...",
		Short: "Check stored images again: who signed them, and every byte",
		Long: `Check stored images again, without a network. By the rules that hold now (see trust, and containers-policy.json(5)) the stored manifest and
signatures must be acceptable; who signed an image, the rule that accepts it and when it was last checked are shown. Every byte that is stored
of it is held against its digest: manifest, index, configuration, signatures, layers, and what was derived of them.

nspawnd-run has the first part done when a rule or a key has changed since the last time, and starts nothing that is refused.

Exit status: 0 if all is well, 1 otherwise, with one line for each fault on standard error.`,
		Example: `  machinectl-lite verify-image registry.example/team/web
  machinectl-lite verify-image --json=pretty web db`,
		Args:              imageNames(1, -1),
		ValidArgsFunction: completeImages(-1),
		RunE:              func(cmd *cobra.Command, names []string) error { return verifyImages(cmd.Context(), names, policyOnly) },
	}
	cmd.Flags().BoolVar(&policyOnly, "policy-only", false, "Ask the rules alone, and show nothing but what is wrong")
	return cmd
}

func verifyImages(ctx context.Context, names []string, policyOnly bool) error {
	t := table{header: []string{"NAME", "TRUST", "SIGNER", "RULE", "CHECKED", "RESULT"}}
	var faulty failures
	err := forEachImage(names, func(store *image.Store, img *image.Image) error {
		faults := verifyImage(ctx, store, img, policyOnly)
		result, trust := "ok", img.Trust
		if faults != nil {
			result = "FAILED"
		}
		checked := rfc3339(trust.Time)
		if options.jsonLayout() == "" {
			checked = timestamp(trust.Time)
		}
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
	if faulty != nil {
		return faulty
	}
	return nil
}

// verifyImage returns what is wrong with an image, and stores why it is accepted if that has to be known anew.
func verifyImage(ctx context.Context, store *image.Store, img *image.Image, policyOnly bool) (faults failures) {
	trust, err := fetch.Recheck(ctx, store, img, fetch.Options{})
	if err != nil {
		faults = append(faults, withAdvice(err))
	} else if err := setTrust(ctx, store, img, trust); err != nil {
		faults = append(faults, err)
	}
	if policyOnly {
		return faults
	}
	for _, err := range fetch.VerifyContent(store, img) {
		faults = append(faults, fmt.Errorf("image %s: %w; to replace it: machinectl-lite remove %s && machinectl-lite %s",
			img.Reference, err, img.Reference, fetch.PullCommand(img)))
	}
	return faults
}

func setTrust(ctx context.Context, store *image.Store, img *image.Image, trust image.Trust) error {
	writer, err := store.Writer()
	if err != nil {
		return err
	}
	defer writer.Close()
	if err := writer.SetTrust(ctx, img, trust); err != nil {
		return err
	}
	img.Trust = trust
	return nil
}
