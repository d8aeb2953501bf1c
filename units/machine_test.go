package units

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nspawnd/cgroup"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func pointer[T any](v T) *T { return &v }

// machines are the cases of which each has a golden file for both encodings.
var machines = map[string]struct {
	config  Config
	options Options
	machine Machine
}{
	"web-257": {
		Config{Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT",
			Env: []string{"NGINX_VERSION=1.28"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"a": "b"}},
		Options{},
		Machine{Name: "web", Image: "registry.test:5000/demo/nginx:latest", Digest: "sha256:00", Path: "/docker-entrypoint.sh",
			Network: HostNetwork, Detached: true, Manager: 257, Root: "/run/nspawnd/web.1", Dir: "/var/lib/nspawnd/machines/web.1",
			Launcher: "/usr/lib/nspawnd/nspawnd-launcher", Streams: DetachedStreams},
	},
	"web-262": {
		Config{Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"},
		Options{},
		Machine{Name: "web", Image: "registry.test:5000/demo/nginx:latest", Digest: "sha256:00", Path: "/docker-entrypoint.sh",
			Network: HostNetwork, Detached: true, Manager: 262, Dir: "/var/lib/nspawnd/machines/web.1",
			Streams: Streams{Input: "null", Output: "journal", Error: "journal", Relay: true, Tag: "front"},
			Extra:   []Directive{{"StandardError", "append:/srv/log 100%"}, {"LogNamespace", "web"}}},
	},
	"terminal-262": {
		Config{Cmd: []string{"bash"}},
		Options{},
		Machine{Name: "shell", Image: "demo/bash", Digest: "sha256:00", Path: "/bin/bash", Network: HostNetwork, Detached: true, Manager: 262,
			Dir: "/var/lib/nspawnd/machines/shell.1", Launcher: "/usr/lib/nspawnd/nspawnd-launcher", Streams: Streams{Terminal: true}},
	},
	"user-limits-volumes": {
		Config{User: "redis", Cmd: []string{"redis-server"}, Volumes: map[string]struct{}{"/data": {}}, WorkingDir: "/data", StopTimeout: pointer(30)},
		Options{Env: []string{"my.var=odd name", "LANG=C.UTF-8"}, Args: []string{"sh", "-c", "echo $HOME 100% \"quoted\" 'a\\b'\nline"}},
		Machine{Name: "my-cache", Image: "demo/redis", Digest: "sha256:00", Path: "/bin/sh", Network: NoNetwork, ReadOnly: true, Manager: 262,
			Account: Account{UID: 999, GID: 998, Groups: []uint32{998, 5}}, Launcher: "/usr/lib/nspawnd/nspawnd-launcher",
			Mounts: []Mount{{Type: "bind", Source: "/srv/a:b", Target: "/a", Prepared: true}, {Type: "bind", Source: "/srv/ro", Target: "/sys/ro", ReadOnly: true, NoRecursive: true},
				{Type: "tmpfs", Target: "/cache", Options: []string{"size=1m"}}},
			Devices: []Pair{{"/dev/fuse", "rwm"}, {"char-10", "r"}}, ShmSize: "1m",
			Resources: []cgroup.Setting{{Directive: "MemoryMax", Value: "67108864"}, {Directive: "MemorySwapMax", Value: "67108864"}, {Directive: "CPUQuota", Value: "150%"}, {Directive: "TasksMax", Value: "100"}},
			Dir:       "/var/lib/nspawnd/machines/my-cache.1",
			Extra: []Directive{{"MemoryHigh", uint64(48 << 20)}, {"TasksMax", uint64(cgroup.Infinity)}, {"CapabilityBoundingSet", uint64(1)},
				{"LimitNOFILE", Limit{1024, 4096}}}},
	},
}

func init() { // what is added to these
	again := machines["web-257"]
	again.machine.Restart = Restart{RestartOnFailure, 3}
	again.machine.Labels = Labels{[]string{"app=web", "text=a \"b\" $c %n"}, []string{"by=me"}}
	machines["restart-257"] = again

	hidden := machines["web-257"]
	hidden.machine.Hides = "/usr/bin/nspawnd-run"
	machines["hidden-257"] = hidden

	mapped := machines["user-limits-volumes"]
	ids := []IDRange{{0, 1 << 20, 1 << 16}}
	mapped.machine.Users = &Users{ids, ids, "/run/nspawnd/users/1048576+65536@my-cache.1"}
	machines["users-262"] = mapped

	probed := machines["user-limits-volumes"]
	probed.config.Healthcheck = []byte(`{"Test":["CMD","redis-cli","ping"],"Retries":5}`)
	probed.machine.Health, _ = MergeHealth(probed.config, HealthOptions{OnFailure: "restart"})
	machines["health-262"] = probed
}

func TestTranslate(t *testing.T) {
	for name, c := range machines {
		t.Run(name, func(t *testing.T) {
			m := c.machine
			var err error
			if m.Payload, err = Merge(c.config, c.options, m.Name); err != nil {
				t.Fatal(err)
			}
			set := translate(t, m)
			golden(t, name+".units", set.Text())
			var b strings.Builder
			for _, u := range append([]Unit{set.Main}, set.Aux...) {
				fmt.Fprintf(&b, "%s\n", u.Name)
				for _, p := range u.Properties() {
					fmt.Fprintf(&b, "\t%s = %#v\n", p.Name, p.Value)
				}
			}
			golden(t, name+".bus", b.String())
		})
	}
}

func translate(t *testing.T, m Machine) Set {
	t.Helper()
	set, err := m.Translate()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, go test -update writes it):\n%s", path, diff)
	}
}

func TestMerge(t *testing.T) {
	image := Config{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=1", "BARE", "PATH=/bin"}, WorkingDir: "srv//x/.."}
	for _, c := range []struct {
		name    string
		config  Config
		options Options
		argv    string // "": refused
		check   func(Payload) bool
	}{
		{"the image's own", image, Options{}, "/entry serve", func(p Payload) bool { return p.WorkingDir == "/srv" && p.StopSignal == 15 }},
		{"arguments replace Cmd", image, Options{Args: []string{"-x"}}, "/entry -x", nil},
		{"an entrypoint drops Cmd", image, Options{Entrypoint: pointer("/other")}, "/other", nil},
		{"an entrypoint with arguments", image, Options{Entrypoint: pointer(`["/a","b"]`), Args: []string{"c"}}, "/a b c", nil},
		{"no entrypoint", image, Options{Entrypoint: pointer(""), Args: []string{"sh"}}, "sh", nil},
		{"nothing left to run", image, Options{Entrypoint: pointer("")}, "", nil},
		{"nothing to run", Config{}, Options{}, "", nil},
		{"no JSON", image, Options{Entrypoint: pointer(`["a"`)}, `["a"`, nil},
		{"a NUL byte", image, Options{Args: []string{"a\x00b"}}, "", nil},
		{"bad signal", Config{Cmd: []string{"x"}, StopSignal: "SIGNOPE"}, Options{}, "", nil},
		{"real-time signal", Config{Cmd: []string{"x"}, StopSignal: "SIGRTMIN+3"}, Options{}, "x", func(p Payload) bool { return p.StopSignal == 37 }},
		{"numeric signal", Config{Cmd: []string{"x"}, StopSignal: "9"}, Options{}, "x", func(p Payload) bool { return p.StopSignal == 9 }},
		{"relative --workdir", image, Options{WorkingDir: "x"}, "", nil},
		{"--workdir", image, Options{WorkingDir: "/x/"}, "/entry serve", func(p Payload) bool { return p.WorkingDir == "/x" }},
		{"--user", image, Options{User: "1:2"}, "/entry serve", func(p Payload) bool { return p.User == "1:2" }},
		{"environment", image, Options{Env: []string{"A=2"}}, "/entry serve", func(p Payload) bool {
			a, _ := p.Getenv("A")
			_, bare := p.Getenv("BARE")
			path, _ := p.Getenv("PATH")
			host, _ := p.Getenv("HOSTNAME")
			return a == "2" && !bare && path == "/bin" && host == "m"
		}},
		{"nameless environment", Config{Cmd: []string{"x"}, Env: []string{"=x"}}, Options{}, "", nil},
		{"volume at the root", Config{Cmd: []string{"x"}, Volumes: map[string]struct{}{"/": {}, "b/../a": {}}}, Options{}, "x",
			func(p Payload) bool { return len(p.Volumes) == 1 && p.Volumes[0] == "/a" }},
	} {
		p, err := Merge(c.config, c.options, "m")
		if (err == nil) != (c.argv != "") || err == nil && (strings.Join(p.Argv, " ") != c.argv || c.check != nil && !c.check(p)) {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
	}
}

// Nothing of an image may become a directive: whatever its strings hold, each unit file keeps its lines.
func TestTextKeepsItsLines(t *testing.T) {
	evil := "x\nExecStart=/evil\r\x1b[31m%n $HOME \\ \" '"
	m := Machine{Name: "m", Image: evil, Path: "/bin/" + evil, Network: HostNetwork, Manager: 262, Dir: "/d"}
	var err error
	m.Payload, err = Merge(Config{Cmd: []string{evil, evil}, Env: []string{"A=" + evil}, Volumes: map[string]struct{}{evil: {}}}, Options{}, "m")
	if err != nil {
		t.Fatal(err)
	}
	m.ReadOnly = true
	plain := m
	plain.Image, plain.Path = "x", "/bin/x"
	plain.Payload, _ = Merge(Config{Cmd: []string{"x", "x"}, Env: []string{"A=\x01"}, Volumes: map[string]struct{}{"x": {}}}, Options{}, "m")
	keys := func(s Set) (out []string) {
		for line := range strings.Lines(s.Text()) {
			key, _, _ := strings.Cut(line, "=")
			out = append(out, strings.TrimSpace(key))
		}
		return out
	}
	if diff := cmp.Diff(keys(translate(t, plain)), keys(translate(t, m))); diff != "" {
		t.Errorf("directives differ (-plain +evil):\n%s", diff)
	}
	for _, r := range translate(t, m).Text() {
		if r < ' ' && r != '\n' || r == 0x7f {
			t.Errorf("control character %q in the unit files", r)
		}
	}
}

func TestMachineOf(t *testing.T) {
	for unit, want := range map[string]string{
		"nspawnd-web.service":            "web",
		`nspawnd-my\x2dapp.service`:      "my-app",
		`nspawnd-a\x2droot.service`:      "a-root",
		"nspawnd-root.service":           "root",
		"nspawnd-web-root.service":       "",
		`nspawnd-my\x2dapp-root.service`: "",
		"nspawnd-web.socket":             "",
		"nginx.service":                  "",
		"nspawnd-.service":               "",
	} {
		got := MachineOf(unit)
		if got != want {
			t.Errorf("%s: got %q, want %q", unit, got, want)
		}
		if got != "" && ServiceName(got) != unit {
			t.Errorf("%s: its machine's unit is %s", unit, ServiceName(got))
		}
	}
}
