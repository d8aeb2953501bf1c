package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHealth(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", tiny, "true")
		m.Must("machinectl-lite", "pull-oci", redis)
		for name, test := range map[string]func(*testing.T, *Machine){"states": healthStates, "readiness": healthReadiness, "actions": healthActions, "confinement": probeConfinement} {
			t.Run(name, func(t *testing.T) { test(t, m.With(t)) })
		}
		m.nothingLeft(t)
	})
}

// probed starts a machine whose health is asked for several times a second.
func probed(name, options, probe string) string {
	return fmt.Sprintf("nspawnd-run -d --name %s --health-interval 200ms %s --health-cmd '%s' %s trap; ", name, options, probe, tiny)
}

// health waits for what machinectl-lite status says.
func health(name, words string) string {
	return fmt.Sprintf("await sh -c \"machinectl-lite status -n0 %s | grep -q 'Health: %s'\" || machinectl-lite status -n0 %s; ", name, words, name)
}

func healthStates(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{probed("well", "", `["tiny","echo","a","b"]`) + health("well", "healthy; last probe passed.*: a b"), 0, "well\n", ""},
		outcome{probed("ill", "--health-retries 2", `["CMD","tiny","exit","3"]`) + health("ill", "unhealthy, \\([2-9]\\|[1-9][0-9]*\\) failed in a row; last probe failed"), 0, "ill\n", ""},
		outcome{probed("late", "--health-retries 1 --health-timeout 300ms", `["tiny","sleep","infinity"]`) + health("late", "unhealthy.*no answer within 300ms"), 0, "late\n", ""},
		outcome{probed("young", "--health-retries 1 --health-start-period 1h", `["tiny","false"]`) + health("young", "starting; last probe failed"), 0, "young\n", ""},
		outcome{probed("none", "--health-retries 1", "exit 3") + health("none", "unhealthy.*/bin/sh: no such file"), 0, "none\n", ""},
		// Not one line for each probe, no unit that failed, and systemctl shows the probe.
		outcome{"journalctl -q -o cat -u nspawnd-well-health -u nspawnd-ill-health | grep -v pids.max; systemctl --failed -q; systemctl status nspawnd-well-health | head -1", 0, "/^. nspawnd-well-health.service - Health of nspawnd-well.service\n$/", ""},
		outcome{"systemctl stop nspawnd-well nspawnd-ill nspawnd-late nspawnd-young nspawnd-none", 0, "", ""},
		outcome{probed("back", "--health-retries 1", `["tiny","cat","/run/ok"]`) + health("back", "unhealthy") + "touch /proc/$(systemctl show -P MainPID nspawnd-back)/root/run/ok; " + health("back", "healthy;") + "systemctl stop nspawnd-back", 0, "back\n", ""},
		// A machine that was started again begins again.
		outcome{probed("again", "--health-retries 1 --health-interval 2s", `["tiny","false"]`) + health("again", "unhealthy") + "systemctl restart nspawnd-again; " + health("again", "unhealthy, 1 failed") + "systemctl stop nspawnd-again", 0, "again\n", ""},
		outcome{"nspawnd-run --no-healthcheck --dry-run " + tiny + " | grep -c health", 1, "0\n", ""},
		outcome{"nspawnd-run --health-retries 1 " + tiny + " true", 125, "", "/^nspawnd-run: .*no health check; give one by --health-cmd\n$/"},
		outcome{"nspawnd-run --health-interval 3 --health-cmd x " + tiny, 125, "", "/^nspawnd-run: --health-interval: \"3\" is not a time.*\n$/"},
		outcome{"nspawnd-run --health-on-failure explode " + tiny, 125, "", "/^nspawnd-run: --health-on-failure: .*\n$/"},
		outcome{"nspawnd-run --health-cmd x -p PrivateUsers=identity " + tiny, 125, "", "/^nspawnd-run: .*health check.*PrivateUsers=.*\n$/"},
	)
	m.nothingLeft(t)
}

// healthReadiness is --sdnotify=healthy: whoever waits for the machine waits until it is healthy.
func healthReadiness(t *testing.T, m *Machine) {
	const state = "systemctl show -P ActiveState nspawnd-able; "
	able := probed("able", "--sdnotify=healthy", `["tiny","cat","/run/ok"]`)
	m.expect(t,
		outcome{able[:len(able)-2] + " & await sh -c 'journalctl -q -u nspawnd-able-health -o cat | grep -q . || systemctl is-active -q nspawnd-able-health.timer'; sleep 1; " + state +
			"touch /proc/$(systemctl show -P MainPID nspawnd-able)/root/run/ok; wait $!; " + state + "machinectl-lite wait --condition=healthy able && systemctl restart nspawnd-able; " + state +
			"systemctl stop nspawnd-able", 0, "activating\nable\nactive\nactive\n", ""},
		outcome{probed("never", "--sdnotify=healthy -p TimeoutStartSec=2 --health-retries=1", `["tiny","false"]`) + "systemctl reset-failed nspawnd-never", 0, "", "/never.*timeout/"},
		outcome{probed("killed", "--sdnotify=healthy --health-retries=1 --health-on-failure=kill", `["tiny","false"]`) + "systemctl reset-failed nspawnd-killed", 0, "", "/^nspawnd-run: killed: .*\n$/"},
		outcome{"nspawnd-run --sdnotify=healthy --health-interval 200ms --health-cmd '[\"tiny\",\"true\"]' " + tiny + " exit 5", 5, "", ""},
		outcome{"nspawnd-run --sdnotify=healthy --health-interval 200ms --health-cmd '[\"tiny\",\"true\"]' " + tiny + " sleep 1", 0, "", ""},
	)
	m.nothingLeft(t)
}

func healthActions(t *testing.T, m *Machine) {
	m.expect(t,
		outcome{"nspawnd-run --name stops --health-interval 200ms --health-retries 1 --health-on-failure stop --health-cmd '[\"tiny\",\"false\"]' " + tiny + " trap", 0, "/^ready\n(CONT\n)?TERM\n$/", ""},
		outcome{"nspawnd-run --name dies --health-interval 200ms --health-retries 1 --health-on-failure kill --health-cmd '[\"tiny\",\"false\"]' " + tiny + " trap", 137, "ready\n", ""},
		outcome{probed("kills", "--restart always --health-retries 2 --health-on-failure kill", `["tiny","false"]`) + "await sh -c '[ $(systemctl show -P NRestarts nspawnd-kills) -ge 2 ]'; systemctl stop nspawnd-kills; systemctl reset-failed nspawnd-kills 2>/dev/null || :", 0, "kills\n", ""},
		outcome{probed("anew", "--health-retries 2 --health-on-failure restart", `["tiny","false"]`) + "await sh -c '[ $(journalctl -q -t anew -o cat | grep -c ready) -ge 2 ]'; systemctl stop nspawnd-anew", 0, "anew\n", ""},
	)
	m.nothingLeft(t)
}

// probeConfinement: what a probe is and may do is what the payload is and may do, and it sees what that sees.
func probeConfinement(t *testing.T, m *Machine) {
	m.buildLook(t)
	machines := map[string]string{
		"root": "-u 0", "user": "-u 1234:56", "network": "-u 0 --network none", "cap": "-u 0 -p CapabilityBoundingSet=CAP_CHOWN", "ambient": "-u 1234:56 --cap-add NET_ADMIN", "filter": "-u 0 -p SystemCallFilter=~mknod:EXDEV -p LimitNOFILE=99:100",
	}
	m.withUsers(machines)
	for name, options := range machines {
		m.Must("sh", "-c", "chmod 777 /srv/look; rm -f /srv/look/p*")
		const to = "/look/look | sort > /look/%[1]s.new 2>&1; mv /look/%[1]s.new /look/%[1]s"
		r := m.Script("nspawnd-run -d --name " + name + " " + options + ` -w /opt -e 'A=b "c' -v /srv/look:/look --health-interval 200ms --health-cmd '` + fmt.Sprintf(to, "probe") +
			"' --entrypoint sh " + redis + " -c '" + fmt.Sprintf(to, "payload") + "; sleep 1000 & wait'")
		if r.Status != 0 {
			t.Fatal(r.Stderr)
		}
		m.Eventually("payload and probe have looked", func() bool {
			return m.Script("test -e /srv/look/payload && test -e /srv/look/probe").Status == 0
		})
		payload, probe := string(m.ReadFile("/srv/look/payload")), string(m.ReadFile("/srv/look/probe"))
		if diff := cmp.Diff(payload, probe); diff != "" || strings.Count(payload, "\n") < 60 {
			t.Errorf("%s (-payload +probe):\n%s", name, diff)
		}
		if name == "root" {
			t.Log(payload)
		}
		m.Script("systemctl kill -s KILL --kill-whom=main nspawnd-" + name + "; systemctl stop nspawnd-" + name + "; systemctl reset-failed nspawnd-" + name)
	}
	m.nothingLeft(t)
}

// withUsers adds machines that have users of their own, where systemd starts services in a user namespace.
func (m *Machine) withUsers(machines map[string]string) {
	if m.Suite != Trixie {
		machines["users"] = "-u 0 --userns=auto"
		machines["more"] = "-u 1234:56 --group-add 77 --uidmap 0:200000:1000 --uidmap 1000:300000:60000"
		machines["few"] = "-p LimitNOFILE=88:100 -u 0 --userns=auto:size=1000 --cap-drop all --cap-add CHOWN"
	}
}

// buildLook puts the program that says what its process may do into /srv/look.
func (m *Machine) buildLook(t *testing.T) {
	t.Helper()
	look := filepath.Join(t.TempDir(), "look")
	build := exec.Command("go", "build", "-o", look, "./look")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.Copy(look, "/srv/look/look")
}
