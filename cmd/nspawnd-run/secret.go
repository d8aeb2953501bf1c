package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// secretFlags say which secrets of the host the machine gets.
type secretFlags struct{ secrets []string }

func (g *secretFlags) register(f *pflag.FlagSet) {
	f.StringArrayVar(&g.secrets, "secret", nil, "give it a secret: `NAME[,src=FILE][,type=mount|env][,target=…][,uid=…][,gid=…][,mode=…]`, by default the credential NAME of /etc/credstore or its like (systemd.exec(5)), as /run/secrets/NAME")
}

// credentialStores are systemd's own, by precedence (systemd.exec(5), LoadCredential=).
var credentialStores = []string{"/etc/credstore", "/run/credstore", "/usr/local/lib/credstore", "/usr/lib/credstore"}

func (g *secretFlags) apply(m *units.Machine, _ *units.Options) error {
	for _, word := range g.secrets {
		s, err := units.ParseSecret(word)
		if err != nil {
			return fmt.Errorf("--secret: %w", err)
		}
		if slices.ContainsFunc(m.Secrets, func(other units.Secret) bool { return other.Name == s.Name }) {
			return fmt.Errorf("--secret: %s is named twice", s.Name)
		}
		if s.Source == "" {
			for _, store := range credentialStores {
				for _, encrypted := range []bool{false, true} {
					path := filepath.Join(store, s.Name)
					if encrypted {
						path = filepath.Join(store+".encrypted", s.Name)
					}
					if _, err := os.Stat(path); err == nil && s.Source == "" {
						s.Source, s.Encrypted = path, encrypted
					}
				}
			}
			if s.Source == "" {
				return fmt.Errorf("--secret: there is no %s in %s, or these with .encrypted; src=FILE names another file", s.Name, strings.Join(credentialStores, ", "))
			}
		}
		if info, err := os.Stat(s.Source); err != nil {
			return fmt.Errorf("--secret: %w", err)
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("--secret: %s is not a regular file", s.Source)
		}
		m.Secrets = append(m.Secrets, s)
	}
	return nil
}
