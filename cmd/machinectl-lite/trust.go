package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
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
	yes       bool
}

func trustAddCommand() *cobra.Command {
	var flags trustFlags
	cmd := &cobra.Command{
		Use:   "add --prefix PREFIX KEYFILE",
		Short: "Trust a key for images whose names begin with PREFIX",
		Long: `Trust the public key in KEYFILE for images whose names begin with PREFIX: a host with its port, or a host and the
beginning of a path by whole components. "*.example.com" are all hosts below example.com, "*" is every image.

KEYFILE has an OpenPGP public key, for simple signing, or a PEM public key, for cosign and sigstore. Its fingerprint is shown; compare
it with what its owner told you. An OpenPGP key's names can be written by anybody.

Images below PREFIX are then accepted with a signature by this key, or by another that was added for the same prefix,
and not without.`,
		Example: `  machinectl-lite trust add --prefix registry.example/team cosign.pub
  machinectl-lite trust add --prefix registry.example/team --lookaside https://registry.example/signatures team.asc`,
		Args: oneArgument("key file"),
		RunE: func(cmd *cobra.Command, args []string) error { return flags.add(args[0]) },
	}
	cmd.Flags().StringVar(&flags.prefix, "prefix", "", "Trust the key for images whose names begin with `prefix`")
	cmd.Flags().StringVar(&flags.keyType, "type", "", "Refuse the key unless its `type` is gpg or sigstore")
	cmd.Flags().StringVar(&flags.lookaside, "lookaside", "", "GPG signatures are at `URL` (containers-registries.d(5))")
	cmd.Flags().BoolVarP(&flags.yes, "yes", "y", false, "Do not ask")
	return cmd
}

func (f trustFlags) add(file string) error {
	if f.prefix == "" {
		return errors.New("trust add: which images is the key for? Say --prefix=HOST/PATH")
	}
	if f.keyType != "" && f.keyType != string(image.KeyGPG) && f.keyType != string(image.KeySigstore) {
		return fmt.Errorf("--type=%s: must be gpg or sigstore", f.keyType)
	}
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
	}
	if err := f.confirm(); err != nil {
		return err
	}
	var rule image.TrustRule
	for _, key := range keys {
		if rule, err = image.AddTrust(image.TrustDirs, f.prefix, key.Type, key.Fingerprint, key.Data, f.lookaside); err != nil {
			return err
		}
	}
	fmt.Println(rule.Path)
	return nil
}

// confirm asks on a terminal; without one, silence is not consent.
func (f trustFlags) confirm() error {
	if f.yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("trust add: compare the fingerprint, then say --yes: there is no terminal to ask on")
	}
	fmt.Fprintf(os.Stderr, "Trust this for images whose names begin with %s? [y/N] ", printable.Line(f.prefix))
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
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
			if failed != nil {
				return failed
			}
			return nil
		},
	}
}

func trustRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove PREFIX",
		Short: "Remove the rules for a prefix",
		Long: `Remove the rules for a prefix, with the keys that were added to them. The vendor's rules are masked. Images that are
stored already stay.`,
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
