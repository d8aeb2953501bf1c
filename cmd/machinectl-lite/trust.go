package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nspawnd/cmd/internal/printable"
	"nspawnd/image"
	"nspawnd/image/fetch"
)

func trustCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust COMMAND",
		Short: "Say whose signatures make images acceptable",
		Long: `Say whose signatures make images acceptable, by the beginning of their names.

The rules are files in /etc/nspawnd/trust.d/ and, from the vendor, in /usr/lib/nspawnd/trust.d/. A file of the same name in the
first hides one in the second, also if it is empty. The rule with the longest prefix decides alone; rules of policy.json
(containers-policy.json(5)) with a longer one go before it.`,
		Args: func(cmd *cobra.Command, args []string) error { return errors.New("trust: add, list or remove?") },
		RunE: func(cmd *cobra.Command, args []string) error { return nil },
	}
	cmd.AddCommand(trustAddCommand(), trustListCommand(), trustRemoveCommand())
	return cmd
}

// trustFlags are those of trust add.
type trustFlags struct {
	prefix    string
	keyType   string
	lookaside string
	issuer    string
	identity  string
	root      string
	yes       bool
}

func trustAddCommand() *cobra.Command {
	var flags trustFlags
	cmd := &cobra.Command{
		Use:   "add --prefix PREFIX {KEYFILE | --issuer URL --identity NAME --root-of-trust FILE}",
		Short: "Trust a key or an identity for images whose names begin with PREFIX",
		Long: `Trust the public key in KEYFILE for images whose names begin with PREFIX: a host with its port, or a host and the
beginning of a path by whole components. "*.example.com" are all hosts below example.com, "*" is every image.

KEYFILE has an OpenPGP public key, for simple signing, or a PEM public key, for cosign and sigstore. Its fingerprint is shown; compare
it with what its owner told you. An OpenPGP key's names can be written by anybody.

In place of a key: an identity, as cosign signs without keys. A certificate authority (Fulcio) says that the signer was NAME, an e-mail
address or a URI, for the OpenID provider URL, and a transparency log (Rekor) when that was. Which authorities and logs count is in
FILE, a trusted_root.json; it is copied, and never fetched.

A sigstore signature beside the image says for which repository it is, but for no tag: who can write to the registry can put an old image
that was signed back under a tag. A sigstore bundle says for which digest it is and nothing else. A GPG signature names the tag.

Images below PREFIX are then accepted with a signature by this key, or by another that was added for the same prefix,
and not without.`,
		Example: `  machinectl-lite trust add --prefix registry.example/team cosign.pub
  machinectl-lite trust add --prefix registry.example/team --lookaside https://registry.example/signatures team.asc
  machinectl-lite trust add --prefix ghcr.io/team --issuer https://token.actions.githubusercontent.com \
    --identity https://github.com/team/app/.github/workflows/release.yml@refs/heads/main --root-of-trust trusted_root.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return flags.add(cmd.Context(), args) },
	}
	cmd.Flags().StringVar(&flags.prefix, "prefix", "", "Trust the key for images whose names begin with `prefix`")
	cmd.Flags().StringVar(&flags.keyType, "type", "", "Refuse the key unless its `type` is gpg or sigstore")
	cmd.Flags().StringVar(&flags.lookaside, "lookaside", "", "GPG signatures are at `URL` (containers-registries.d(5))")
	cmd.Flags().StringVar(&flags.issuer, "issuer", "", "OpenID provider that vouches for the identity, an `URL`")
	cmd.Flags().StringVar(&flags.identity, "identity", "", "Trust what this identity signs: a `name`, exactly as certificates have it")
	cmd.Flags().StringVar(&flags.root, "root-of-trust", "", "Authorities and logs for identities are in `file`, a trusted_root.json")
	cmd.Flags().BoolVarP(&flags.yes, "yes", "y", false, "Do not ask")
	return cmd
}

func (f trustFlags) add(ctx context.Context, args []string) error {
	if f.prefix == "" {
		return errors.New("trust add: which images is it for? Say --prefix=HOST/PATH")
	}
	keyless := f.issuer != "" || f.identity != "" || f.root != ""
	switch {
	case keyless && (len(args) > 0 || f.issuer == "" || f.identity == "" || f.root == ""):
		return errors.New("trust add: an identity takes all of --issuer, --identity and --root-of-trust, and no key file")
	case !keyless && len(args) == 0:
		return errors.New("trust add: what is to be trusted? Name a file with a public key, or an identity (see machinectl-lite trust add --help)")
	}
	if types := []string{"", string(image.KeyGPG), string(image.KeySigstore)}; !slices.Contains(types, f.keyType) || keyless && f.keyType != "" {
		return fmt.Errorf("--type=%s: must be gpg or sigstore, and is about key files", f.keyType)
	}
	if keyless {
		return f.addIdentity(ctx)
	}
	return f.addKeys(ctx, args[0])
}

// addIdentity adds an identity with a copy of its root.
func (f trustFlags) addIdentity(ctx context.Context) error {
	data, err := os.ReadFile(f.root)
	if err != nil {
		return err
	}
	authorities, err := fetch.ParseRoot(data)
	if err != nil {
		return fmt.Errorf("root of trust %s: %w", f.root, err)
	}
	fmt.Fprintf(os.Stderr, "identity %s\n    for issuer %s\n", printable.Line(f.identity), printable.Line(f.issuer))
	for _, authority := range authorities {
		fmt.Fprintf(os.Stderr, "    certified by %s\n", printable.Line(authority))
	}
	if err := f.confirm(ctx); err != nil {
		return err
	}
	key := image.TrustKey{Type: image.KeyKeyless, Issuer: f.issuer, Subject: f.identity}
	rule, err := image.AddTrust(image.TrustDirs, f.prefix, key, image.DigestOf(data).Hex(), data, f.lookaside)
	if err != nil {
		return err
	}
	fmt.Println(rule.Path)
	return nil
}

func (f trustFlags) addKeys(ctx context.Context, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	keys, err := fetch.ParseKeys(data)
	if err == nil && f.keyType != "" && f.keyType != string(keys[0].Type) {
		err = fmt.Errorf("is a %s key", keys[0].Type)
	}
	if err != nil {
		return fmt.Errorf("key %s: %w", file, err)
	}
	for _, key := range keys {
		fmt.Fprintf(os.Stderr, "%s key %s\n", key.Type, key.Fingerprint)
		for _, id := range key.UserIDs {
			fmt.Fprintf(os.Stderr, "    calls itself %s\n", printable.Line(id))
		}
		for _, fault := range key.Faults {
			fmt.Fprintf(os.Stderr, "    WARNING: %s\n", fault)
		}
	}
	if err := f.confirm(ctx); err != nil {
		return err
	}
	var rule image.TrustRule
	for _, key := range keys {
		if rule, err = image.AddTrust(image.TrustDirs, f.prefix, image.TrustKey{Type: key.Type}, key.Fingerprint, key.Data, f.lookaside); err != nil {
			return err
		}
	}
	fmt.Println(rule.Path)
	return nil
}

// confirm asks on a terminal; without one, silence is not consent.
func (f trustFlags) confirm(ctx context.Context) error {
	if f.yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("trust add: compare what is shown, then say --yes: there is no terminal to ask on")
	}
	fmt.Fprintf(os.Stderr, "Trust this for images whose names begin with %s? [y/N] ", printable.Line(f.prefix))
	answer, err := readAnswer(ctx)
	if err != nil {
		return fmt.Errorf("trust add: %w: nothing changed", err)
	}
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return errors.New("trust add: nothing changed")
	}
	return nil
}

func trustListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the keys that are trusted, and for which images",
		Example: `  machinectl-lite trust list`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			rules, err := image.ReadTrust(image.TrustDirs)
			if err != nil {
				return err
			}
			t := table{header: []string{"PREFIX", "TYPE", "FINGERPRINT", "RULE"}}
			var failed failures
			for _, rule := range rules {
				for _, file := range rule.Keys {
					if file.Type == image.KeyKeyless {
						t.rows = append(t.rows, []string{rule.Prefix, string(file.Type), file.Identity(), rule.Path})
						continue
					}
					data, err := os.ReadFile(file.File)
					if err != nil {
						failed = append(failed, err)
						continue
					}
					keys, err := fetch.ParseKeys(data)
					if err != nil {
						failed = append(failed, fmt.Errorf("key %s: %w", file.File, err))
					}
					for _, key := range keys {
						t.rows = append(t.rows, []string{rule.Prefix, string(key.Type), key.Fingerprint, rule.Path})
					}
				}
			}
			if err := t.show("keys"); err != nil {
				return err
			}
			return failed.orNil()
		},
	}
}

func trustRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove PREFIX",
		Short: "Remove the rules for a prefix",
		Long: `Remove the rules for a prefix, with the keys that were added to them. The vendor's rules are masked. Images that are
stored already stay, and are started only if what is left accepts them.`,
		Example: `  machinectl-lite trust remove registry.example/team`,
		Args:    oneArgument("prefix"),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := image.RemoveTrust(image.TrustDirs, args[0])
			for _, path := range paths {
				fmt.Println("removed " + path)
			}
			return err
		},
	}
}
