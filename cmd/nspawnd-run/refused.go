package main

import (
	"fmt"
	"slices"

	"nspawnd/units"

	"github.com/spf13/pflag"
)

// refusedFlags are flags that people know from podman-run(1), docker-run(1) and systemd-run(1) and that a machine does not have: each is
// refused with the reason and what to do instead. cgroup.Flags has those about resources.
type refusedFlags struct{ flags *pflag.FlagSet }

type refusedFlag struct {
	name, short string
	why         string
	harmless    []string // values that ask for nothing else than there is
	isSwitch    bool     // without a value it means "true"
}

const (
	noNetwork = "a machine sees the host's network or none (--network): it has no address, name or port of its own"
	noPods    = "there are no pods; units that belong together say so: --property Requires=, After=, PartOf="
	oneCheck  = "there is one health check, whose failures don't count in --health-start-period"
	inJournal = "how the runs of the health check went is in the journal (journalctl -u nspawnd-NAME-health), whose limits are journald.conf(5)'s"
	byPID1    = "PID 1 starts the machine, and has only its own descriptors"
)

var refused = []refusedFlag{
	{name: "scope", isSwitch: true, why: "a scope is a cgroup around a process that its caller starts: systemd gives it no isolation, no restart and no exit status; the machine is a service"},
	{name: "unit", why: "a machine's unit is nspawnd-NAME.service, which is how machinectl-lite finds it; --name chooses NAME"},
	{name: "cgroups", harmless: []string{"enabled"}, why: "the machine is a service, and systemd gives each service a cgroup of its own (enabled)"},
	{name: "publish", why: noNetwork + "; a port that its program listens on is the host's"},
	{name: "publish-all", short: "P", isSwitch: true, harmless: []string{"false"}, why: noNetwork + "; a port that its program listens on is the host's"},
	{name: "expose", why: noNetwork},
	{name: "ip", why: noNetwork},
	{name: "ip6", why: noNetwork},
	{name: "mac-address", why: noNetwork},
	{name: "network-alias", why: noNetwork},
	{name: "link", why: noNetwork},
	{name: "hostuser", why: "the image's users are enough; --passwd makes an entry for a number that has none"},
	{name: "passwd-entry", why: "the entry that is made for a number without one has fixed fields; other ones belong into the image"},
	{name: "group-entry", why: "the entry that is made for a number without one has fixed fields; other ones belong into the image"},
	{name: "pod", why: noPods},
	{name: "pod-id-file", why: noPods},
	{name: "requires", why: "systemd knows of dependencies more than this: --property Requires=nspawnd-NAME.service --property After=nspawnd-NAME.service"},
	{name: "volumes-from", why: "name what they share: a volume, --volume NAME:PATH, in both"},
	{name: "rootfs", isSwitch: true, harmless: []string{"false"}, why: "only an image is run, whose signature can be verified; for a plain directory there is systemd-run --property RootDirectory="},
	{name: "rmi", isSwitch: true, harmless: []string{"false"}, why: "an image can be in use by other machines; afterwards: machinectl-lite remove IMAGE"},
	{name: "systemd", harmless: []string{"false"}, why: "an image's own systemd is not booted (false)"},
	{name: "init-path", why: "--init has a program of nspawnd's own, which is there in every image"},
	{name: "conmon-pidfile", why: "nothing stands between PID 1 and the machine; --pidfile is of its first process"},
	{name: "preserve-fds", why: byPID1 + "; --property OpenFile= gives it files"},
	{name: "preserve-fd", why: byPID1 + "; --property OpenFile= gives it files"},
	{name: "chrootdirs", why: "the file system is whole when the machine starts, for every directory in it"},
	{name: "gpus", why: "device nodes and libraries are named one by one: --device, --volume"},
	{name: "rdt-class", why: "systemd has no directive for it"},
	{name: "seccomp-policy", harmless: []string{"default"}, why: "an image does not choose its own filter; --security-opt seccomp=FILE does"},
	{name: "shm-size-systemd", why: "it is for images that boot; --shm-size is /dev/shm's, --tmpfs says how large others are"},
	{name: "health-startup-cmd", why: oneCheck},
	{name: "health-startup-interval", why: oneCheck},
	{name: "health-startup-retries", why: oneCheck},
	{name: "health-startup-success", why: oneCheck},
	{name: "health-startup-timeout", why: oneCheck},
	{name: "health-log-destination", harmless: []string{"local"}, why: inJournal},
	{name: "health-max-log-count", why: inJournal},
	{name: "health-max-log-size", why: inJournal},
	{name: "disable-content-trust", isSwitch: true, harmless: []string{"false"}, why: "an image needs a trusted signature; --insecure-options=image runs one without"},
	{name: "tls-verify", isSwitch: true, harmless: []string{"true"}, why: "whose certificate need not be verified is said by registries.conf (insecure = true)"},
	{name: "creds", why: "every user of the host can read a command line; --authfile names a file, which podman login writes too"},
	{name: "decryption-key", why: "encrypted images are refused"},
	{name: "retry", why: "a fetch is tried four times, with pauses that grow; machinectl-lite pull-oci goes on where one stopped"},
	{name: "retry-delay", why: "a fetch is tried four times, with pauses that grow; machinectl-lite pull-oci goes on where one stopped"},
	{name: "runtime", why: "systemd is the runtime"},
	{name: "storage-opt", why: "how layers are kept is said when an image is fetched: machinectl-lite pull-oci --backend"},
}

func (g *refusedFlags) register(f *pflag.FlagSet) {
	g.flags = f
	for _, r := range refused {
		f.StringArrayP(r.name, r.short, nil, "")
		f.Lookup(r.name).Hidden = true
		if r.isSwitch {
			f.Lookup(r.name).NoOptDefVal = "true"
		}
	}
}

func (g *refusedFlags) apply(*units.Machine, *units.Options) error {
	for _, r := range refused {
		values, err := g.flags.GetStringArray(r.name)
		if err != nil {
			return err
		}
		for _, value := range values {
			if !slices.Contains(r.harmless, value) {
				return fmt.Errorf("--%s: %s", r.name, r.why)
			}
		}
	}
	return nil
}
