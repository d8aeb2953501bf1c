package main

import (
	"fmt"
	"time"
)

// manyMachines is how many run beside the one whose start is measured.
const (
	manyMachines = 500
	manyPrefix   = "many" // of their names
)

// scale asks whether a start takes longer beside many machines that run.
func scale(l *lab) (contest, error) {
	if err := prepareImages(l); err != nil {
		return contest{}, err
	}
	ours := command{Name: "nspawnd-run", Argv: []string{"nspawnd-run", "--network=none", startImage, "true"}}
	alone, err := l.measure([]command{ours}, l.runs)
	if err != nil {
		return contest{}, err
	}
	_, err = l.script(10*time.Minute, fmt.Sprintf(`for n in $(seq %d); do nspawnd-run --network=none --detach --name %s$n %s trap >/dev/null; done
		[ $(systemctl list-units --no-legend 'nspawnd-%[2]s*.service' | grep --count ' running ') = %[1]d ]`, manyMachines, manyPrefix, startImage))
	if err != nil {
		return contest{}, err
	}
	return contest{
		ours: ours,
		peers: []peer{
			{command{Name: "systemd-run-plain", Argv: append(append([]string{}, systemdRun...), plainTree+"/bin/tiny", "true")}, 0},
			{command{Name: "systemd-nspawn", Argv: []string{"systemd-nspawn", "-q", "--pipe", "--private-network", "-D", plainTree, "/bin/tiny", "true"}}, 0},
		},
		notes:    []string{fmt.Sprintf("beside %d machines of nspawnd that run", manyMachines)},
		baseline: median(alone.Milliseconds[ours.Name]),
	}, nil
}
