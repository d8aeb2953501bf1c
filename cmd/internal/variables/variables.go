// Package variables reads the variables that a user asks for.
package variables

import (
	"fmt"
	"os"

	"nspawnd/units"
)

// Read gives the assignments of --env-file, and after them those of --env. What has no value has ours.
func Read(files, assignments []string) (env []string, err error) {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil {
			var lines []string
			lines, err = units.ParseEnvFile(string(data), os.Environ())
			env = append(env, lines...)
		}
		if err != nil {
			return nil, fmt.Errorf("--env-file %s: %w", file, err)
		}
	}
	for _, assignment := range assignments {
		parsed, err := units.ParseEnv(assignment, os.Environ())
		if err != nil {
			return nil, fmt.Errorf("--env: %w", err)
		}
		env = append(env, parsed...)
	}
	return env, nil
}
