// Package dist makes what a package installs beside the commands, from the commands' own definitions.
package dist

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Generate writes man pages and completions for bash, zsh and fish into directories of these names below dir.
func Generate(command *cobra.Command, dir string) error {
	command.DisableAutoGenTag = true
	man := filepath.Join(dir, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	if err := doc.GenManTree(command, &doc.GenManHeader{Section: "1", Manual: "nspawnd", Source: "nspawnd"}, man); err != nil {
		return err
	}
	for shell, file := range map[string]struct {
		path     string
		generate func(string) error
	}{
		"bash": {command.Name(), func(path string) error { return command.GenBashCompletionFileV2(path, true) }},
		"zsh":  {"_" + command.Name(), command.GenZshCompletionFile},
		"fish": {command.Name() + ".fish", func(path string) error { return command.GenFishCompletionFile(path, true) }},
	} {
		if err := os.MkdirAll(filepath.Join(dir, shell), 0o755); err != nil {
			return err
		}
		if err := file.generate(filepath.Join(dir, shell, file.path)); err != nil {
			return err
		}
	}
	return nil
}
