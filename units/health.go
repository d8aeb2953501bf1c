package units

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Health is how a machine is asked whether it works. Without Test it isn't.
type Health struct {
	Test        []string // a command that is run in the machine; its first word is looked up in the payload's PATH
	Interval    time.Duration
	Timeout     time.Duration
	StartPeriod time.Duration // from the machine's start on; failures in it count nothing
	Retries     int           // failures in a row that make it unhealthy
	OnFailure   string        // what happens then: "", "kill", "restart" or "stop"
	Ready       bool          // the machine counts as started when it is healthy
}

// HealthOptions are what a run lays over the image's Healthcheck; nil: nothing.
type HealthOptions struct {
	Disable                        bool
	Command                        *string // "none", a shell's command line, or a JSON array
	Interval, Timeout, StartPeriod *time.Duration
	Retries                        *int
	OnFailure                      string
	Ready                          bool
}

// Docker's defaults, and the least that it takes.
const (
	defaultHealthInterval = 30 * time.Second
	defaultHealthTimeout  = 30 * time.Second
	defaultHealthRetries  = 3
	minHealthSpan         = time.Millisecond
)

// MergeHealth lays options over an image's Healthcheck (Docker's image specification 1.2, "Healthcheck").
func MergeHealth(config Config, o HealthOptions) (h Health, err error) {
	var image struct {
		Test                           []string
		Interval, Timeout, StartPeriod time.Duration
		Retries                        int
	}
	if config.Healthcheck != nil && o.Command == nil && !o.Disable {
		if err := json.Unmarshal(config.Healthcheck, &image); err != nil {
			return h, fmt.Errorf("the image's Healthcheck: %w", err)
		}
	}
	test := image.Test
	if o.Command != nil {
		if test, err = parseHealthCommand(*o.Command); err != nil {
			return h, err
		}
	}
	switch {
	case o.Disable || len(test) == 0 || test[0] == "NONE":
		if o.OnFailure != "" || o.Ready || o.Command == nil && (o.Interval != nil || o.Timeout != nil || o.StartPeriod != nil || o.Retries != nil) {
			return h, errors.New("the image has no health check; give one by --health-cmd")
		}
		return h, nil
	case test[0] == "CMD":
		h.Test = test[1:]
	case test[0] == "CMD-SHELL" && len(test) == 2:
		shell := config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		h.Test = append(slices.Clone(shell), test[1])
	default:
		return h, fmt.Errorf("the image's Healthcheck: %.40q is not NONE, CMD or CMD-SHELL", test[0])
	}
	if len(h.Test) == 0 || h.Test[0] == "" {
		return h, errors.New("the health check names no command")
	}
	for _, word := range h.Test {
		if strings.ContainsRune(word, 0) || len(word) > maxString {
			return h, fmt.Errorf("the health check's argument %.40q can't be given to a process", word)
		}
	}
	span := func(option *time.Duration, image, otherwise time.Duration) time.Duration {
		if option != nil {
			return *option
		}
		if image >= minHealthSpan {
			return image
		}
		return otherwise
	}
	h.Interval = span(o.Interval, image.Interval, defaultHealthInterval)
	h.Timeout = span(o.Timeout, image.Timeout, defaultHealthTimeout)
	h.StartPeriod = span(o.StartPeriod, image.StartPeriod, 0)
	h.Retries = defaultHealthRetries
	if o.Retries != nil {
		h.Retries = *o.Retries
	} else if image.Retries > 0 {
		h.Retries = image.Retries
	}
	if h.Interval < minHealthSpan || h.Timeout < minHealthSpan || h.StartPeriod < 0 || h.Retries < 1 {
		return h, errors.New("a health check's interval, timeout and number of retries can't be 0 or less")
	}
	h.OnFailure, h.Ready = o.OnFailure, o.Ready
	return h, nil
}

func parseHealthCommand(s string) ([]string, error) {
	switch {
	case s == "none":
		return []string{"NONE"}, nil
	case strings.HasPrefix(s, "["):
		var words []string
		if err := json.Unmarshal([]byte(s), &words); err != nil {
			return nil, fmt.Errorf("%q is not a JSON array of strings", s)
		}
		if len(words) > 0 && slices.Contains([]string{"CMD", "CMD-SHELL", "NONE"}, words[0]) {
			return words, nil
		}
		return append([]string{"CMD"}, words...), nil
	}
	return []string{"CMD-SHELL", s}, nil
}

// HealthFile is where a machine's health is kept.
func HealthFile(machine string) string { return "/run/nspawnd/" + machine + ".health" }

// HealthTimerName is the timer that starts a machine's probes.
func HealthTimerName(machine string) string { return healthUnit(ServiceName(machine)) + ".timer" }

func healthUnit(service string) string { return strings.TrimSuffix(service, ".service") + "-health" }

func healthOutput(machine string) string { return HealthFile(machine) + "-output" }

// health adds a timer and the service that it starts. The service runs the launcher, which joins the machine for the probe; what the service has of
// the machine's own confinement is what joining does not bring: all but namespaces and mounts.
//
// confined is the machine's service without what it has for the launcher alone.
func (m Machine) health(set *Set, confined Unit) error {
	if len(m.Health.Test) == 0 {
		return nil
	}
	for _, d := range set.Main.Directives {
		if unjoinable(d.Name) {
			if m.HealthAsked {
				return fmt.Errorf("a health check can't be run in a machine with %s=; --no-healthcheck leaves it out", d.Name)
			}
			set.Notes = append(set.Notes, "Healthcheck is not mapped: it can't be run in a machine with "+d.Name+"=")
			return nil
		}
	}
	base := healthUnit(set.Main.Name)
	s := Unit{Name: base + ".service"}
	s.set("Description", "Health of "+set.Main.Name)
	s.set("PartOf", []string{set.Main.Name})
	if !m.Health.Ready { // which is what the machine's start waits for
		s.set("After", []string{set.Main.Name})
	}
	s.set("CollectMode", "inactive-or-failed")
	s.set("StartLimitIntervalSec", uint64(0))
	for _, d := range confined.Directives {
		if directives[d.Name].section == "Service" && !joined(d.Name) {
			s.set(d.Name, d.Value)
		}
	}
	probe := []string{m.Launcher, "--probe=" + set.Main.Name, "--timeout=" + formatSeconds(m.Health.Timeout), "--output=" + healthOutput(m.Name),
		"--ids=" + m.ids(), "--workdir=" + strconv.Quote(m.Payload.WorkingDir)}
	if bounding, limited := s.Get("CapabilityBoundingSet").(uint64); limited {
		probe = append(probe, fmt.Sprintf("--bounding=%x", bounding))
	}
	probe = append(probe, m.ambient()...)
	for _, call := range joinable(&s) {
		probe = append(probe, "--refuse="+call)
	}
	for _, e := range m.Payload.Env {
		probe = append(probe, "--env="+strconv.Quote(e))
	}
	probe = append(probe, "--")
	for _, word := range m.Health.Test {
		probe = append(probe, strconv.Quote(word))
	}
	s.set("Type", "oneshot")
	s.set("ExecStart", Command{m.Launcher, probe, []string{noExpansion}})
	record := []string{m.Launcher, "--record-health=" + set.Main.Name, "--state=" + HealthFile(m.Name), "--output=" + healthOutput(m.Name),
		"--retries=" + strconv.Itoa(m.Health.Retries), "--start-period=" + formatSeconds(m.Health.StartPeriod)}
	if m.Health.OnFailure != "" {
		record = append(record, "--action="+m.Health.OnFailure)
	}
	if m.Health.Ready {
		record = append(record, "--notify")
	}
	s.set("ExecStopPost", []Command{{m.Launcher, record, []string{noExpansion, privileged}}})
	s.set("SuccessExitStatus", Statuses{Codes: []int32{1, 2}, Signals: []int32{}}) // an unhealthy machine is not a unit that failed
	s.set("TimeoutStartSec", uint64((m.Health.Timeout+10*time.Second)/time.Microsecond))
	s.set("TimeoutStopSec", uint64(10_000_000))
	s.set("OOMPolicy", "continue")
	s.set("LogLevelMax", int32(5)) // notice: not each probe's start and end
	s.set("ReadOnlyPaths", []string{m.Launcher})

	t := Unit{Name: base + ".timer"}
	t.set("Description", "Health of "+set.Main.Name)
	t.set("PartOf", []string{set.Main.Name})
	if !m.Health.Ready {
		t.set("After", []string{set.Main.Name})
	}
	t.set("StopWhenUnneeded", true)
	t.set("CollectMode", "inactive-or-failed")
	interval := uint64(m.Health.Interval / time.Microsecond)
	t.set("OnActiveSec", interval)
	t.set("OnUnitInactiveSec", interval)
	t.set("AccuracySec", min(interval/10+1, 1_000_000))
	set.Main.set("Wants", []string{t.Name})
	set.Aux = append(set.Aux, t, s)
	return nil
}

// unjoinable says whether a directive confines a service in a way that the launcher can't give to a process beside it.
func unjoinable(name string) bool {
	return slices.Contains([]string{"PrivateUsers", "AppArmorProfile", "SELinuxContext", "SmackProcessLabel"}, name)
}

// joined says whether a directive of the machine's service is none for a service that joins the machine: it makes what is joined, or it is
// about the payload's own life, input and output.
func joined(name string) bool {
	for _, prefix := range []string{"Exec", "NoExec", "Restart", "Timeout", "RuntimeMax", "Kill", "SendSIG", "FinalKill", "Watchdog", "Type", "Notify", "Remain", "GuessMain",
		"SuccessExit", "OOMPolicy", "Root", "Mount", "Bind", "TemporaryFileSystem", "ReadWritePaths", "ReadOnlyPaths", "Inaccessible", "PrivateMounts",
		"PrivatePIDs", "PrivateIPC", "PrivateNetwork", "PrivateTmp", "NetworkNamespacePath", "IPCNamespacePath", "UserNamespacePath",
		"ProtectControlGroups", "ProtectHostname", "ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset", "RuntimeDirectory", "StateDirectory",
		"CacheDirectory", "LogsDirectory", "WorkingDirectory", "User", "Group", "SupplementaryGroups", "DynamicUser", "AmbientCapabilities",
		"Environment", "PassEnvironment", "UnsetEnvironment", "Standard", "TTY", "Syslog", "Log", "Delegate", "RemoveIPC", "IgnoreSIGPIPE",
		"LoadCredential", "SetCredential", "ImportCredential", "KeyringMode", "Coredump", "MemoryPressureWatch", "Extension",
		"ConfigurationDirectory", "PAMName", "Utmp", "OpenFile", "FileDescriptorStore", "RefreshOnReload", "ReloadSignal", "PrivateBPF", "BPFDelegate", "PIDFile",
		"BusName", "NonBlocking", "USBFunction"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// joinable lets the launcher have what joining needs: capabilities, and system calls. It returns those that the machine's filter refuses: so has
// the launcher to, when it has joined.
func joinable(s *Unit) (refuse []string) {
	if bounding, set := s.Get("CapabilityBoundingSet").(uint64); set {
		needs, _ := ParseCapabilities("SYS_ADMIN SYS_PTRACE SYS_CHROOT SETPCAP SETUID SETGID")
		s.set("CapabilityBoundingSet", bounding|needs)
	}
	filters, _ := s.Get("SystemCallFilter").([]Filter)
	if len(filters) == 0 {
		return nil
	}
	needs := []string{"setns", "unshare"}
	for _, name := range needs {
		if !allows(filters, name) {
			refuse = append(refuse, name)
		}
	}
	s.set("SystemCallFilter", []Filter{{true, needs}})
	return refuse
}

// allows says whether a filter lets a system call through. Groups of them ("@process") count as refusing it: better a call less than one too many.
func allows(filters []Filter, call string) bool {
	allowed := !filters[0].Allow
	for _, f := range filters {
		for _, name := range f.Names {
			name, _, _ = strings.Cut(name, ":")
			if name == call {
				allowed = f.Allow
			} else if !f.Allow && strings.HasPrefix(name, "@") {
				allowed = false
			}
		}
	}
	return allowed
}

func formatSeconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// HealthStatus is what is known of a machine's health.
type HealthStatus struct {
	State  string // starting, healthy, unhealthy
	Streak int    // failures since the last success
	Time   time.Time
	Result string // of the last probe: passed, failed
	Output string // of the last probe; a stranger's text
}

// ParseHealthStatus reads a machine's HealthFile.
func ParseHealthStatus(data string) (h HealthStatus) {
	for line := range strings.Lines(data) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "STATE":
			h.State = value
		case "STREAK":
			h.Streak, _ = strconv.Atoi(value)
		case "TIME":
			seconds, _ := strconv.ParseInt(value, 10, 64)
			h.Time = time.Unix(seconds, 0)
		case "RESULT":
			h.Result = value
		case "OUTPUT":
			h.Output, _ = strconv.Unquote(value)
		}
	}
	return h
}

// ids are the account's numbers, as the launcher takes them.
func (m Machine) ids() string {
	ids := []string{strconv.Itoa(int(m.Account.UID)), strconv.Itoa(int(m.Account.GID))}
	for _, g := range m.Account.Groups {
		ids = append(ids, strconv.Itoa(int(g)))
	}
	return strings.Join(ids, ",")
}

// healthFiles are those that a machine's companion removes.
func (m Machine) healthFiles() []string {
	if len(m.Health.Test) == 0 {
		return nil
	}
	return []string{HealthFile(m.Name), healthOutput(m.Name)}
}
