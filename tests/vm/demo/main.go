// Command demo shows the main job in a lab, with each command and its real output: a signed image is pulled from a registry, runs as
// a systemd service, and leaves nothing behind; an unsigned one is refused.
//
// Usage: demo [SUITE]
package main

import (
	"fmt"
	"io"
	"os"

	"nspawnd/tests/vm"
)

const (
	nginx    = vm.RegistryAddress + "/demo/nginx"
	unsigned = vm.RegistryAddress + "/unsigned/tiny"
)

func main() {
	suite := vm.Trixie
	if len(os.Args) > 1 {
		suite = vm.Suite(os.Args[1])
	}
	if err := demo(suite, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// step is one command and whether it is expected to succeed.
type step struct {
	heading string
	command string
	fails   bool
}

var steps = []step{
	{"A signed image is pulled, verified and started:", "nspawnd-run --detach --name web " + nginx, false},
	{"It is a machine, for our tools and for systemd's:", "machinectl-lite list", false},
	{"", "machinectl list", false},
	{"", "machinectl-lite list-images", false},
	{"It is a service like any other:", "systemctl status --no-pager --lines=2 nspawnd-web", false},
	{"It serves its page:", "curl --silent --retry 20 --retry-connrefused --retry-delay 1 http://localhost/", false},
	{"", "journalctl --no-pager --output=cat -u nspawnd-web", false},
	{"A moment after it is stopped nothing of it is left: no unit, mount, process, cgroup or file:", "systemctl stop nspawnd-web; sleep 1", false},
	{"", "systemctl list-units --all --no-legend 'nspawnd-*'", false},
	{"", "grep -E '^nspawnd | erofs ' /proc/self/mounts", true},
	{"", "pgrep nginx", true},
	{"", "find /sys/fs/cgroup /run/nspawnd /var/lib/nspawnd/machines -mindepth 1 -name '*web*' 2>/dev/null | grep .", true},
	{"", "machinectl list", false},
	{"In the foreground it is a command: input, output and exit status are its own:",
		"echo hello | nspawnd-run " + vm.RegistryAddress + "/demo/tiny cat", false},
	{"", "nspawnd-run " + vm.RegistryAddress + "/demo/tiny exit 42; echo status $?", false},
	{"An unsigned image is refused, with the ways out:", "nspawnd-run " + unsigned + " true", true},
}

func demo(suite vm.Suite, out io.Writer) error {
	lab, err := vm.Start(suite, vm.Options{})
	if err != nil {
		return err
	}
	defer lab.Stop()
	fmt.Fprintf(out, "# A real %s: PID 1 of the lab is %s", suite, lab.Run("systemctl", "--version").Stdout)
	fmt.Fprintln(out, "\n# A registry with images built from Debian packages; each demo image is signed, by GPG or sigstore, and the keys are trusted:")
	lab.Registry()
	trust := func(prefix, key string) step {
		return step{"", "machinectl-lite trust add --yes --prefix " + prefix + " " + key, false}
	}
	setup := []step{trust(nginx, lab.SignGPG(nginx+":latest")), trust(vm.RegistryAddress+"/demo", lab.SignSigstore(vm.RegistryAddress+"/demo/tiny:latest"))}
	for _, s := range append(setup, steps...) {
		if s.heading != "" {
			fmt.Fprintf(out, "\n# %s\n", s.heading)
		}
		fmt.Fprintf(out, "\n$ %s\n", s.command)
		r := lab.Run("bash", "-c", s.command)
		fmt.Fprint(out, r.Stdout, r.Stderr)
		if (r.Status != 0) != s.fails {
			return fmt.Errorf("%s: status %d", s.command, r.Status)
		}
	}
	return nil
}
