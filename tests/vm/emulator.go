package vm

import (
	"fmt"
	"io"
	"os"
)

// emulatorPackages are QEMU and the firmware that it starts by itself.
var emulatorPackages = []string{"qemu-system-x86", "seabios"}

func emulatorName(suite Suite) (string, error) {
	key, err := recipeKey(nil, append([]string{"qemu", string(suite)}, emulatorPackages...)...)
	return fmt.Sprintf("qemu-%s-%s", suite, key), err
}

// emulator is the directory of a suite's QEMU, unpacked for labs and not installed, built first if the cache has none.
func emulator(suite Suite, log io.Writer) (string, error) {
	name, err := emulatorName(suite)
	if err != nil {
		return "", err
	}
	return cached(name, log, func(b build) error {
		return b.debootstrap(suite, b.result, emulatorPackages, "--variant=extract")
	})
}

// Emulator makes QEMU a command of the lab.
func (m *Machine) Emulator() {
	m.helper()()
	dir, err := emulator(m.Suite, os.Stderr)
	if err != nil {
		m.fatalf("%w", err)
	}
	usr := m.inCache(dir) + "/usr"
	m.WriteFile("/usr/local/bin/qemu-system-x86_64", fmt.Appendf(nil, `#!/bin/sh
LD_LIBRARY_PATH=%[1]s/lib/x86_64-linux-gnu exec %[1]s/bin/qemu-system-x86_64 -L %[1]s/share/qemu -L %[1]s/share/seabios "$@"
`, usr), 0o755)
}
