// Package version says which nspawnd this is.
package version

import "runtime/debug"

// String is the module's version as the Go toolchain recorded it.
func String() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
