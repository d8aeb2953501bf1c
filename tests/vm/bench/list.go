package main

import (
	"fmt"
	"time"
)

const (
	listedOurs   = 200 // machines of nspawnd: what lists them reads their os-release in their own mount namespaces
	listedOthers = 800 // services that were registered with machined and do nothing
)

// list asks how long it takes to list a thousand machines.
func list(l *lab) (contest, error) {
	if err := prepareImages(l); err != nil {
		return contest{}, err
	}
	// machined keeps descriptors for each machine, 262's several, of which it may have 1024 by default.
	_, err := l.script(10*time.Minute, fmt.Sprintf(`
		mkdir /run/systemd/system/systemd-machined.service.d
		printf '[Service]\nLimitNOFILE=16384\n' > /run/systemd/system/systemd-machined.service.d/limit.conf
		systemctl daemon-reload
		systemctl try-restart systemd-machined
		for n in $(seq %d); do nspawnd-run --network=none --detach --name %s$n %s trap >/dev/null; done
		printf '[Service]\nType=exec\nExecStart=sleep infinity\n' > /run/systemd/system/listed@.service
		systemctl daemon-reload
		systemctl start listed@{1..%d}
		for n in {1..%[4]d}; do
			busctl --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus \
				other$n 0 bench container $(systemctl show -P MainPID listed@$n) ''
		done
		machinectl list --no-pager > /tmp/theirs
		machinectl-lite list --no-pager | diff - /tmp/theirs
		[ $(grep -c container /tmp/theirs) = %d ]`, listedOurs, manyPrefix, startImage, listedOthers, listedOurs+listedOthers))
	if err != nil {
		return contest{}, err
	}
	return contest{
		ours:  command{Name: "machinectl-lite", Argv: []string{"machinectl-lite", "list", "--no-pager"}},
		peers: []peer{{command{Name: "machinectl", Argv: []string{"machinectl", "list", "--no-pager"}}, 1.5}},
		notes: []string{fmt.Sprintf("of %d machines of nspawnd and %d others; both printed the same", listedOurs, listedOthers)},
	}, nil
}
