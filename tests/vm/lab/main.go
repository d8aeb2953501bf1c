// Command lab boots labs and VMs from a shell.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	vm "nspawnd/tests/vm"
)

const usage = `usage:
  lab SUITE [COMMAND...]              a command, or a prompt, in a fresh lab that is gone afterwards
  lab [-name NAME] start [SUITE]      a lab that stays (default name: lab, default suite: forky)
  lab [-name NAME] exec [COMMAND...]  a command, or a prompt, in it; newly built binaries are installed first
  lab [-name NAME] stop
  lab [-name NAME] registry           start registry.test:5000 with the test images in it
  lab [-name NAME] sign KIND IMAGE    sign one there, by gpg, sigstore or cosign; prints the public key's path in the lab
  lab ls                              the labs that stay
  lab vm SUITE COMMAND...             a command in QEMU (NSPAWND_VM_KVM=1: with KVM; -serial: show the console)
  lab build [SUITE...]                only build what labs, VMs and the test images are made from
  lab prune                           remove from the cache what an older recipe made
SUITE is trixie or forky.
`

func main() {
	name := flag.String("name", "lab", "the lab that stays")
	serial := flag.Bool("serial", false, "show a VM's serial console on standard error")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	status, err := lab(*name, *serial, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

func lab(name string, serial bool, args []string) (status int, err error) {
	if len(args) == 0 {
		flag.Usage()
		return 2, nil
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "build":
		suites, err := parseSuites(args)
		if err != nil {
			return 0, err
		}
		return 0, vm.Build(suites, os.Stderr)
	case "prune":
		return 0, vm.Prune(os.Stderr)
	case "ls":
		for _, name := range vm.Names() {
			fmt.Println(name)
		}
		return 0, nil
	case "start":
		suite := vm.Forky
		if len(args) > 0 {
			suites, err := parseSuites(args)
			if err != nil {
				return 0, err
			}
			suite = suites[0]
		}
		m, err := vm.Start(suite, vm.Options{Name: name, Keep: true})
		if err != nil {
			return 0, err
		}
		warn(m)
		return 0, nil
	case "exec":
		m, err := vm.Open(name)
		if err != nil {
			return 0, err
		}
		if err := m.Install(); err != nil {
			return 0, err
		}
		return interact(m, args)
	case "vm":
		if len(args) < 2 {
			flag.Usage()
			return 2, nil
		}
		suites, err := parseSuites(args[:1])
		if err != nil {
			return 0, err
		}
		streams := vm.VMStreams{Stdout: os.Stdout, Stderr: os.Stderr, Log: os.Stderr}
		if serial {
			streams.Serial = os.Stderr
		}
		return vm.RunVM(context.Background(), suites[0], shellJoin(args[1:]), nil, streams)
	case "registry", "sign":
		m, err := vm.Open(name)
		if err != nil {
			return 0, err
		}
		// What a test would be failed by is a panic without one.
		defer func() {
			if failure, ok := recover().(error); ok {
				err = failure
			}
		}()
		if verb == "registry" {
			fmt.Println(m.Registry())
			return 0, nil
		}
		sign := map[string]func(string) string{"gpg": m.SignGPG, "sigstore": m.SignSigstore, "cosign": m.SignCosign}
		if len(args) != 2 || sign[args[0]] == nil {
			flag.Usage()
			return 2, nil
		}
		fmt.Println(sign[args[0]](args[1]))
		return 0, nil
	case "stop":
		m, err := vm.Open(name)
		if err != nil {
			return 0, err
		}
		return 0, m.Stop()
	}
	suites, err := parseSuites([]string{verb})
	if err != nil {
		return 0, err
	}
	m, err := vm.Start(suites[0], vm.Options{})
	if err != nil {
		return 0, err
	}
	warn(m)
	status, err = interact(m, args)
	return status, errors.Join(err, m.Stop())
}

func parseSuites(names []string) ([]vm.Suite, error) {
	if len(names) == 0 {
		return vm.AllSuites, nil
	}
	var suites []vm.Suite
	for _, name := range names {
		if !slices.Contains(vm.AllSuites, vm.Suite(name)) {
			return nil, fmt.Errorf("%s is neither a verb nor a suite, see lab -help", name)
		}
		suites = append(suites, vm.Suite(name))
	}
	return suites, nil
}

// shellJoin is a script that runs one command with these arguments.
func shellJoin(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

func warn(m *vm.Machine) {
	if state, failed := m.State(); state != "running" {
		fmt.Fprintf(os.Stderr, "lab: booted to %s, failed units: %s\n", state, strings.Join(failed, " "))
	}
}

func interact(m *vm.Machine, args []string) (status int, err error) {
	if len(args) == 0 {
		args = []string{"bash", "-l"}
	}
	cmd := m.Command(args[0], args[1:]...)
	cmd.Env = slices.DeleteFunc(cmd.Env, func(variable string) bool { return variable == "SYSTEMD_PAGER=" })
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}
