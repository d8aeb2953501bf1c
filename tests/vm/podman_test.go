package vm

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// probe is a script whose output says how a payload is confined: one line, "KEY VALUE", for each thing.
const probe = `
id | sed 's/^/id /'
pwd | sed 's/^/cwd /'
umask | sed 's/^/umask /'
grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr '\t' ' '
for n in cgroup ipc mnt pid uts net; do [ $(readlink /proc/self/ns/$n) = "$(eval echo \$host_$n)" ] && echo "ns/$n host" || echo "ns/$n own"; done
for p in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/scsi /proc/sched_debug \
	/sys/firmware /sys/dev/block /sys/fs/selinux; do
	if [ ! -e $p ]; then echo "$p absent"
	elif [ -d $p ]; then [ -n "$(ls $p 2>/dev/null)" ] && echo "$p visible" || echo "$p masked"
	else [ -n "$(head -c1 $p 2>/dev/null | tr -d '\0')" ] && echo "$p visible" || echo "$p masked"; fi
done
for p in /proc/sys/kernel/panic /proc/sysrq-trigger /sys/kernel/mm/ksm/run /sys/fs/cgroup/cgroup.procs; do
	[ -e $p ] || { echo "$p absent"; continue; }
	(: >> $p) 2>/dev/null && echo "$p writable" || echo "$p read-only"
done
for p in / /run /tmp /dev/shm /etc; do (touch $p/probe) 2>/dev/null && echo "$p writable" || echo "$p read-only"; done
echo "processes $(ls -d /proc/[0-9]* | wc -l | sed 's/^[2-9]$/few/')"
for d in /dev/*; do [ -d $d ] || echo "$d present"; done
ls /dev/pts | sed 's,^,/dev/pts/,; s,$, present,'
`

// TestBesidePodman runs the same image with podman in the same lab and explains each difference.
func TestBesidePodman(t *testing.T) {
	// What differs, and why: ours, podman's.
	explained := map[string]string{
		"NoNewPrivs":       "no new privileges are our default; podman's is to allow them",
		"/dev/core":        "podman makes the link; PrivateDevices= does not, and its target is masked in both",
		"/proc/interrupts": "podman masks it from 5.8 on",
		"/sys/dev/block":   "podman means to mask it (podman-run(1)), but its sysfs has it",
	}
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		host := ""
		for _, n := range []string{"cgroup", "ipc", "mnt", "pid", "uts", "net"} {
			host += "host_" + n + "=" + strings.TrimSpace(m.Must("readlink", "/proc/self/ns/"+n)) + "\n"
		}
		run := host + probe
		ours := facts(m.Must("nspawnd-run", "-u", "0", "--entrypoint", "sh", redis, "-c", run))
		podmans := facts(m.Must("podman", "run", "--rm", "--network=host", "--cgroups=disabled", "--cgroupns=private", "-u", "0", "--entrypoint", "sh", redis, "-c", run))
		for key, theirs := range podmans {
			if ours[key] != theirs {
				why, known := explained[key]
				t.Logf("%-28s ours %q, podman's %q: %s", key, ours[key], theirs, why)
				if !known {
					t.Errorf("%s: ours %q, podman's %q", key, ours[key], theirs)
				}
			}
		}
		for key, value := range ours {
			if _, both := podmans[key]; !both {
				why, known := explained[key]
				t.Logf("%-28s ours %q, podman has none: %s", key, value, why)
				if !known {
					t.Errorf("%s: ours %q, podman has none", key, value)
				}
			}
		}
	})
}

func facts(output string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(output) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[strings.TrimSuffix(key, ":")] = strings.TrimSpace(value)
	}
	return out
}

// TestPodmanFlags: docs/podman.md has every flag of podman's, those that it calls refused are, with a reason, and the others are in our help.
func TestPodmanFlags(t *testing.T) {
	doc, err := os.ReadFile("../../docs/podman.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, refused []string
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, flag := range regexp.MustCompile("`--([a-z0-9-]+)`").FindAllStringSubmatch(cells[1], -1) {
			listed = append(listed, flag[1])
			if strings.HasPrefix(cells[2], " refused") {
				refused = append(refused, flag[1])
			}
		}
	}
	help := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z0-9-]+)`)
	Suites(t, func(t *testing.T, m *Machine) {
		theirs, ours := help.FindAllStringSubmatch(m.Must("podman", "run", "--help"), -1), help.FindAllStringSubmatch(m.Must("nspawnd-run", "--help"), -1)
		for _, flag := range theirs {
			if !slices.Contains(listed, flag[1]) {
				t.Errorf("docs/podman.md says nothing of --%s", flag[1])
			}
		}
		for _, flag := range listed {
			switch inHelp := slices.ContainsFunc(ours, func(o []string) bool { return o[1] == flag }); {
			case slices.Contains(refused, flag):
				m.expect(t, outcome{"nspawnd-run --" + flag + "=1 nothing", 125, "", "/^nspawnd-run: --" + flag + ": .{20,}\n$/"})
			case !inHelp && flag != "cgroup-parent" && flag != "help": // --slice, and itself
				t.Errorf("--%s is not in the help", flag)
			}
		}
	})
}
