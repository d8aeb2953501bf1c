package vm

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var updateIsolation = flag.Bool("update-isolation", false, "write the tables of docs/isolation.md")

// isolationDoc has a table for each suite, between a line "<!-- SUITE: Linux VERSION -->" and one "<!-- end -->".
const isolationDoc = "../../docs/isolation.md"

// weaker is what nspawnd-run allows and podman doesn't, by regular expressions of "GROUP KEY", and why.
var weaker = []struct{ what, why string }{
	{"call .* landlock_restrict_self", "it only takes rights away; the kernel refuses it to those without no_new_privs, which podman does not set"},
	{"attempt .* socket netlink 9", "podman's EINVAL is for software that a refusal upsets; to send there takes CAP_AUDIT_*, which neither gives"},
	{"devices /dev/char(/.*)?", "links to the nodes beside it"},
	{"mounts /run", "the image's own /run, nosuid and nodev"},
}

// Each way to say no. Anything else is an error about arguments, from a call that is allowed.
var refusals = []string{"EPERM", "ENOSYS", "EROFS", "unsupported", "refused", "killed"}

// measures are a prober's lines: KEY and VALUE by GROUP and KEY.
type measures map[[2]string]string

func parseMeasures(output string) measures {
	out := measures{}
	for line := range strings.Lines(output) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if len(f) == 3 && f[2] != "gone" {
			out[[2]string{f[0], numbered.ReplaceAllString(f[1], "erofs-N")}] = f[2]
		}
	}
	return out
}

// ofTheHost are measurements that another host has other values of.
var ofTheHost = map[string]string{
	"Max processes": "by the host's memory", "Max pending signals": "by the host's memory",
	"SigIgn": "inherited", "coredump_filter": "inherited", "loginuid": "inherited", "nice": "inherited", "timerslack_ns": "inherited",
}

// numbered are names that the kernel counts up; a store of layers in EROFS has some for each machine.
var numbered = regexp.MustCompile(`erofs-[0-9]+`)

// verdict says how ours is beside theirs: "same", "stricter", "weaker" or, where neither can be said, "differs".
func isolationVerdict(group, key string, ours, theirs string, oursThere, theirsThere bool) string {
	if ours == theirs && oursThere == theirsThere {
		return "same"
	}
	less := func(is bool) string {
		if is {
			return "stricter"
		}
		return "weaker"
	}
	switch kind, _, _ := strings.Cut(group, " "); kind {
	case "call", "attempt":
		return less(slices.Contains(refusals, ours) || !slices.Contains(refusals, theirs))
	case "paths":
		switch {
		case !oursThere || ours == "":
			return "stricter"
		case !theirsThere && strings.Count(key, "/") > 3: // devices come and go; a directory that is masked has nothing in it
			return "same"
		}
		return less(!strings.ContainsFunc(ours, func(r rune) bool { return !strings.ContainsRune(theirs, r) }))
	case "capabilities":
		a, _ := strconv.ParseUint(ours, 16, 64)
		b, _ := strconv.ParseUint(theirs, 16, 64)
		return less(a&^b == 0)
	case "limits":
		a, b := strings.Fields(ours), strings.Fields(theirs)
		return less(len(a) == 2 && len(b) == 2 && below(a[0], b[0]) && below(a[1], b[1]))
	case "namespaces":
		return less(ours == "own")
	case "devices":
		return less(!oursThere || strings.HasPrefix(ours, "d---"))
	case "mounts":
		flags := strings.Fields(ours)
		switch {
		case !oursThere: // what podman gives beside: /etc/hosts and such
			return "stricter"
		case !theirsThere:
			return less(slices.Contains(flags, "ro"))
		}
		for _, flag := range strings.Fields(theirs)[1:] {
			if flag != "rw" && !slices.Contains(flags, flag) {
				return "weaker"
			}
		}
		return "stricter"
	}
	switch key {
	case "NoNewPrivs", "Seccomp":
		return less(ours > theirs)
	case "Groups":
		return less(ours == "")
	case "hostname", "domainname":
		return "differs"
	}
	return "weaker"
}

func below(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return b == "unlimited" || errX == nil && errY == nil && x <= y
}

// TestIsolation runs the same prober in podman's default and in ours. What ours allows podman allows too, or weaker says why; and the table in
// docs/isolation.md is what was measured.
func TestIsolation(t *testing.T) {
	native, compat := buildProber(t, "amd64"), buildProber(t, "386")
	// Some kernels run no program of 32 bits.
	has386 := !errors.Is(exec.Command(compat).Run(), syscall.ENOEXEC)
	if !has386 {
		t.Log("this kernel has no system calls of i386: not measured")
	}
	names := map[string]map[string]string{"call amd64": callNames(t, "amd64"), "call 386": callNames(t, "386")}
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Copy(native, "/srv/prober/prober")
		if has386 {
			m.Copy(compat, "/srv/prober/prober-386")
		}
		m.Must("/srv/prober/prober", "plant")
		m.Must("nspawnd-run", "--pull=always", redis, "true")
		m.Must("podman", "pull", "--quiet", redis)
		host := map[string]string{}
		for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"} {
			host[n] = strings.TrimSpace(m.Must("readlink", "/proc/self/ns/"+n))
		}
		run := func(command string) measures {
			all := parseMeasures(m.Must("bash", "-c", command+" --volume=/srv/prober:/prober:ro --user=0 --entrypoint=sh "+redis+
				" -c '/prober/prober all; [ ! -e /prober/prober-386 ] || /prober/prober-386 tries'"))
			out := measures{}
			for id, value := range all {
				if name := names[id[0]][id[1]]; name != "" {
					id[1] = name
				}
				if id[0] == "namespaces" {
					if own := value != host[id[1]]; own {
						value = "own"
					} else {
						value = "host's"
					}
				}
				out[id] = value
			}
			return out
		}
		theirs := run("podman run --rm --network=host --cgroups=disabled --pids-limit=0")
		ours := run("nspawnd-run --name=prober")
		if len(theirs) < 2000 || len(ours) < 2000 {
			t.Fatalf("only %d and %d measurements", len(ours), len(theirs))
		}

		var rows []string
		same := map[string]int{}
		union := measures{}
		for id := range ours {
			union[id] = ""
		}
		for id := range theirs {
			union[id] = ""
		}
		for id := range union {
			a, inOurs := ours[id]
			b, inTheirs := theirs[id]
			verdict := isolationVerdict(id[0], id[1], a, b, inOurs, inTheirs)
			if verdict == "weaker" {
				for _, w := range weaker {
					if regexp.MustCompile("^" + w.what + "$").MatchString(id[0] + " " + id[1]) {
						verdict = w.why
					}
				}
			}
			if verdict == "weaker" {
				t.Errorf("%s %s: ours %q, podman's %q", id[0], id[1], a, b)
			}
			many := strings.HasPrefix(id[0], "call") || strings.HasPrefix(id[0], "attempt") && strings.HasPrefix(id[1], "socket") || id[0] == "attempt 386" || id[0] == "paths"
			if verdict == "same" && many {
				same[id[0]]++
				continue
			}
			if text, ok := ofTheHost[id[1]]; ok && verdict == "same" {
				a, b = text, text
			}
			if id[0] == "paths" && (!inOurs || !inTheirs) {
				continue // of another machine, or a device that came or went
			}
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s | %s |", id[0], code(id[1]), cell(b, inTheirs), cell(a, inOurs), verdict))
		}
		for group := range same {
			rows = append(rows, "| "+group+" | all others | | | same |")
		}
		slices.Sort(rows)
		t.Logf("%d measurements: %v the same\n%s", len(union), same, strings.Join(rows, "\n"))
		checkIsolationDoc(t, m.Suite, rows, has386)
	})
}

func code(s string) string {
	if strings.HasPrefix(s, "/") || !strings.Contains(s, " ") {
		return "`" + s + "`"
	}
	return s
}

func cell(value string, there bool) string {
	switch {
	case !there:
		return "–"
	case value == "":
		return "nothing"
	}
	return value
}

// checkIsolationDoc compares the suite's table with what was measured, or writes it. What there is to see depends on the kernel, so another
// kernel than the table's is no contradiction.
func checkIsolationDoc(t *testing.T, suite Suite, rows []string, has386 bool) {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	kernel := strings.Join(strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)[:2], ".")
	doc, err := os.ReadFile(isolationDoc)
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)<!-- ` + string(suite) + `: Linux ([0-9.]+) -->\n(.*?)<!-- end -->\n`)
	at := section.FindSubmatchIndex(doc)
	if at == nil {
		t.Fatalf("%s has no table for %s", isolationDoc, suite)
	}
	head := "| | | podman | nspawnd-run | |\n|---|---|---|---|---|\n"
	table := head + strings.Join(rows, "\n") + "\n"
	if *updateIsolation {
		doc = slices.Concat(doc[:at[2]], []byte(kernel), doc[at[3]:at[4]], []byte(table), doc[at[5]:])
		if err := os.WriteFile(isolationDoc, doc, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if written := string(doc[at[2]:at[3]]); written != kernel {
		t.Logf("the table is of Linux %s, this is %s: not compared", written, kernel)
		return
	}
	committed := strings.Split(strings.TrimSpace(strings.TrimPrefix(string(doc[at[4]:at[5]]), head)), "\n")
	for _, row := range committed {
		// Of what this host does not have nothing can be said.
		path := regexp.MustCompile("`(/proc/[^`]*)`").FindStringSubmatch(row)
		if path != nil && !exists(path[1]) || !has386 && strings.Contains(row, " 386 |") {
			continue
		}
		if !slices.Contains(rows, row) {
			t.Errorf("%s says what is not so:\n%s", isolationDoc, row)
		}
	}
	for _, row := range rows {
		if !slices.Contains(committed, row) {
			t.Errorf("%s does not say:\n%s", isolationDoc, row)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// buildProber builds ./prober for an architecture and gives its path.
func buildProber(t *testing.T, arch string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "prober-"+arch)
	build := exec.Command("go", "build", "-o", program, "./prober")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the prober: %v\n%s", err, out)
	}
	return program
}

// callNames are an architecture's system calls by number, from the source of golang.org/x/sys.
func callNames(t *testing.T, arch string) map[string]string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "unix", "zsysnum_linux_"+arch+".go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, match := range regexp.MustCompile(`SYS_(\w+)\s+= (\d+)`).FindAllStringSubmatch(string(source), -1) {
		names[match[2]] = strings.ToLower(match[1])
	}
	return names
}
