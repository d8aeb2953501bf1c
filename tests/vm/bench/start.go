package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"nspawnd/tests/vm"
)

const (
	startImage = vm.RegistryAddress + "/demo/tiny:1"
	trees      = "/var/tmp/nspawnd-bench" // not on overlayfs, where an overlay can have no upper directory
	// plainTree has the image's files, and /usr, without which systemd-nspawn refuses a root.
	plainTree = trees + "/plain"
	// peerRoot is an overlay over it, as a machine's root is one.
	peerRoot = trees + "/root"
)

// warmStart asks how long a command of an image takes that is in the store: the image's smallest program, which does nothing.
func warmStart(l *lab) (contest, error) {
	if err := prepareImages(l); err != nil {
		return contest{}, err
	}
	dryRun, err := l.script(time.Minute, "nspawnd-run --dry-run --network=none --name bench "+startImage+" true")
	if err != nil {
		return contest{}, err
	}
	unit, err := parseService(dryRun)
	if err != nil {
		return contest{}, err
	}
	// systemd-run waits until the unit is inactive, and with it for ExecStop=; nspawnd-run waits for the process only.
	quick := unit.without("ExecStop", "RootDirectoryStartOnly")
	argv, notes, err := spellable(l, quick.inRoot(peerRoot))
	if err != nil {
		return contest{}, err
	}
	if len(quick.properties) < len(unit.properties) {
		notes = append(notes, "systemd-run goes without ExecStop=: it would wait for that, nspawnd-run does not")
	}
	same := command{Name: "systemd-run", Argv: argv.line(""),
		Shown: fmt.Sprintf("%s -p … (%d properties) %s", strings.Join(systemdRun, " "), len(argv.properties), strings.Join(argv.command, " "))}
	notes = append(notes,
		"systemd-run and systemd-nspawn use a tree that is there already; nspawnd-run and podman make a new root for each run, and remove it",
		"podman goes without its default limit of processes: the lab's cgroups have no controllers, and crun insists")
	c := contest{
		ours: command{Name: "nspawnd-run", Argv: []string{"nspawnd-run", "--network=none", startImage, "true"}},
		peers: []peer{
			{same, 1.15},
			{command{Name: "systemd-run-plain", Argv: append(append([]string{}, systemdRun...), plainTree+"/bin/tiny", "true")}, 0},
			{command{Name: "systemd-nspawn", Argv: []string{"systemd-nspawn", "-q", "--pipe", "--private-network", "-D", plainTree, "/bin/tiny", "true"}}, 0.7},
			{command{Name: "podman", Argv: []string{"podman", "run", "--rm", "--network=none", "--pids-limit=0", startImage, "true"}}, 0.45},
		},
		notes: notes,
	}
	c.report = func(w io.Writer) error {
		if err := reportPhases(l, w, argv); err != nil {
			return err
		}
		if l.properties {
			return reportProperties(l, w, argv)
		}
		return nil
	}
	return c, nil
}

// prepareImages puts the image into both stores and into plain trees.
func prepareImages(l *lab) error {
	l.Registry()
	key := l.SignSigstore(startImage)
	_, err := l.script(5*time.Minute, `
		machinectl-lite trust add --yes --prefix `+vm.RegistryAddress+`/demo `+key+`
		machinectl-lite pull-oci --quiet `+startImage+`
		podman pull --quiet `+startImage+`
		mkdir -p `+plainTree+` `+peerRoot+`
		container=$(podman create `+startImage+`)
		podman export $container | tar --extract --directory=`+plainTree+`
		podman rm $container
		cd `+plainTree+`
		mkdir -p usr dev etc proc run sys tmp var/tmp
		cp -a bin usr/bin

		# What nspawnd-run does before it calls the manager: the overlay, and the machine's own terminals, for the unit to bind.
		mkdir `+trees+`/upper `+trees+`/work
		mount -t overlay overlay -o volatile,lowerdir=`+plainTree+`,upperdir=`+trees+`/upper,workdir=`+trees+`/work `+peerRoot+`
		mount -t devpts devpts -o mode=620,gid=5,ptmxmode=666 `+peerRoot+`/proc`)
	return err
}

// phases are the parts of a start, by the points in time between which they lie.
var phases = []struct {
	name string
	took func(timeline) int64
}{
	{"client, bus, manager: until the first unit starts", func(t timeline) int64 { return t.FirstUnit - t.Forked }},
	{"manager: from the companion unit to the service", func(t timeline) int64 { return t.MainUnit - t.FirstUnit }},
	{"executor: namespaces, mounts, seccomp, until execve", func(t timeline) int64 { return t.Payload - t.MainUnit }},
	{"payload, until the manager has seen its end", func(t timeline) int64 { return t.Exited - t.Payload }},
	{"client: from there until it has ended", func(t timeline) int64 { return t.Waited - t.Exited }},
	{"all", func(t timeline) int64 { return t.Waited - t.Forked }},
}

// reportPhases says where the time goes, beside systemd-run with the same properties.
func reportPhases(l *lab, w io.Writer, peer invocation) error {
	ours := command{Name: "nspawnd-run", Argv: []string{"nspawnd-run", "--network=none", "--name", "bench" + numberMark, startImage, "true"},
		Units: []string{"nspawnd-bench" + numberMark + ".service", "nspawnd-bench" + numberMark + "-root.service"}}
	theirs := command{Name: "systemd-run", Argv: peer.line("--unit=benchpeer" + numberMark), Units: []string{"benchpeer" + numberMark + ".service"}}
	followed, err := l.timelines([]command{ours, theirs}, l.runs)
	if err != nil {
		return err
	}
	// What the client does up to the start call, alone; and what a process costs that does nothing.
	dryRun := command{Name: "dry run", Argv: []string{"nspawnd-run", "--dry-run", "--network=none", "--name", "bench", startImage, "true"}}
	usage := command{Name: "usage", Argv: []string{"nspawnd-run", "--help"}}
	alone, err := l.measure([]command{dryRun, usage}, l.runs)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "\n  where the time goes (medians, ms)")
	fmt.Fprintf(w, "  %-52s %12s %12s\n", "", "nspawnd-run", "systemd-run")
	for _, phase := range phases {
		fmt.Fprintf(w, "  %-52s %12.1f %12.1f\n", phase.name, phaseMedian(followed[ours.Name], phase.took), phaseMedian(followed[theirs.Name], phase.took))
	}
	fmt.Fprintf(w, "  alone: nspawnd-run --dry-run %.1f ms (no start, but all up to it), nspawnd-run --help %.1f ms (the process)\n",
		median(alone.Milliseconds[dryRun.Name]), median(alone.Milliseconds[usage.Name]))
	return nil
}

func phaseMedian(timelines []timeline, took func(timeline) int64) float64 {
	var values []float64
	for _, t := range timelines {
		values = append(values, float64(took(t))/1000)
	}
	return median(values)
}
