//go:build docs

package main

import (
	"fmt"
	"os"

	"nspawnd/dist"
)

// init makes the command write its own man pages and completions instead of running. Users don't get this build.
func init() {
	if err := dist.Generate(newRootCommand(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
