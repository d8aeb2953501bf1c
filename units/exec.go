package units

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Running is what the manager tells of a machine that runs: how its payload was started, and what it is confined to.
type Running struct {
	Machine    string
	Argv       []string // of its ExecStart=
	Env        []string
	WorkingDir string
	Slice      string
	Account    Account  // with User= of the user's own: the host's
	Leader     string   // of a machine whose first process alone tells: its PID, a colon, and when it started, as in /proc/PID/stat
	Ambient    string   // the ambient capabilities of that, a mask in hexadecimal
	Files      []string // the content of its unit file and of what was laid over that, in order; for one that the leader alone tells of, as if there was one
}

// Exec is a command that is to run beside a machine's payload.
type Exec struct {
	ID          string   // tells it from others
	Argv        []string // its first word is looked up in its PATH
	Env         []string // NAME=VALUE, laid over the payload's
	Account     *Account // nil: the payload's
	Home, User  string   // of Account: its directory and name
	WorkingDir  string   // "": the payload's
	Privileged  bool     // all capabilities, no filter of system calls
	Terminal    bool     // the output is one, which is to be its standard input and its controlling one too
	Detached    bool     // what it says goes to the journal
	Launcher    string   // path of the launcher on the host
	Description string
}

// ExecUnit gives the service that runs a command beside a machine's payload. The service's process is the launcher, which joins the machine. What the service has of the
// machine's own is what joining does not bring, as for a probe (Machine.health). The machine's control group has the machine's limits, and the command is in that.
//
// Nothing has it stopped with the machine: what is in the machine's PID namespace or control group ends with it, and the service with the command.
// A dependency would have it started again when the machine is (PartOf=), or the machine's stop wait for it (After=).
func ExecUnit(r Running, e Exec, manager int) (u Unit, err error) {
	service := ServiceName(r.Machine)
	u.Name = strings.TrimSuffix(service, ".service") + "-exec-" + e.ID + ".service"
	payload, err := r.payload()
	if err != nil {
		return u, err
	}
	u.set("Description", e.Description)
	u.set("CollectMode", "inactive-or-failed")
	u.set("Type", "exec")
	confined, err := r.confinement(manager)
	if err != nil {
		return u, err
	}
	for _, d := range confined.Directives {
		if !e.Privileged || isProcess(d.Name) {
			u.set(d.Name, d.Value)
		}
	}
	account := payload.account
	if e.Account != nil {
		account, payload.ambient = *e.Account, ""
	}
	beside := "--exec=" + service
	if r.Leader != "" {
		beside = "--exec-beside=" + r.Leader
	}
	args := []string{e.Launcher, beside, "--as=machinectl-lite: " + r.Machine,
		"--ids=" + Machine{Account: account}.ids(), "--workdir=" + strconv.QuoteToASCII(cmp.Or(e.WorkingDir, r.WorkingDir, "/"))}
	if e.Terminal {
		args = append(args, "--terminal")
	}
	if e.Privileged {
		args = append(args, "--privileged")
	} else {
		args = append(args, confine(&u, payload)...)
	}
	env := environment(slices.Concat(r.Env, payload.env))
	if e.Account != nil {
		env.unset("HOME")
		env = append(env, "HOME="+e.Home)
		if r.Leader != "" && e.User != "" { // systemd-nspawn sets them
			env = append(env, "USER="+e.User, "LOGNAME="+e.User)
		}
	}
	for _, assignment := range e.Env {
		if err := env.set(assignment); err != nil {
			return u, err
		}
	}
	for _, assignment := range env {
		args = append(args, "--env="+strconv.QuoteToASCII(assignment))
	}
	args = append(args, "--")
	for _, word := range e.Argv {
		if strings.ContainsRune(word, 0) || len(word) > maxString {
			return u, fmt.Errorf("argument %.40q can't be given to a process", word)
		}
		args = append(args, strconv.QuoteToASCII(word))
	}
	u.set("ExecStart", Command{e.Launcher, args, []string{noExpansion}})
	u.set("Slice", r.Slice)
	u.set("ReadOnlyPaths", []string{e.Launcher})
	u.set("IgnoreSIGPIPE", false)
	u.set("TimeoutStopSec", uint64(10_000_000))
	u.set("FinalKillSignal", int32(finalSignal))
	u.set("SyslogIdentifier", r.Machine)
	u.set("LogExtraFields", []string{"OBJECT_SYSTEMD_UNIT=" + service})
	if e.Terminal {
		u.set("StandardInput", "null")
	}
	if e.Detached {
		u.set("StandardInput", DetachedStreams.Input)
		u.set("StandardOutput", DetachedStreams.Output)
		u.set("StandardError", DetachedStreams.Error)
	}
	return u, nil
}

// ExecRelay gives the unit that writes to the journal what a command says whose terminal was left.
func ExecRelay(machine string, command Unit) Unit {
	u := Machine{Name: machine, Streams: Streams{Terminal: true}}.RelayUnit(command)
	u.Name = strings.TrimSuffix(command.Name, ".service") + "-log.service"
	return u
}

// finalSignal is what has the launcher kill the command at once.
const finalSignal = 64

// confine lets the launcher have what it needs, and gives the arguments that have it take that from the command.
func confine(u *Unit, p payload) (args []string) {
	if p.ambient != "" {
		args = append(args, "--ambient="+p.ambient)
	}
	if bounding, limited := u.Get("CapabilityBoundingSet").(uint64); limited {
		args = append(args, fmt.Sprintf("--bounding=%x", bounding))
	}
	refuse := joinable(u)
	if bounding, limited := u.Get("CapabilityBoundingSet").(uint64); limited {
		u.set("CapabilityBoundingSet", bounding|capability("KILL")) // to pass signals on
	}
	for _, call := range append(refuse, p.refuse...) {
		args = append(args, "--refuse="+call)
	}
	return args
}

// payload is what a machine's launcher was told of the payload.
type payload struct {
	account Account
	env     []string
	ambient string
	refuse  []string
}

// PayloadAccount gives who the payload was started as.
func (r Running) PayloadAccount() (Account, error) {
	p, err := r.payload()
	return p.account, err
}

func (r Running) payload() (p payload, err error) {
	p.account, p.ambient = r.Account, r.Ambient
	if len(r.Argv) == 0 || r.Argv[0] != launcherPath {
		return p, nil
	}
	text := func(s string) string { return s }
	for _, arg := range r.Argv[1:] {
		option, value, _ := strings.Cut(arg, "=")
		switch option {
		case "--":
			return p, err
		case "--ids":
			p.account.Groups = nil
			for id := range strings.SplitSeq(value, ",") {
				n, err := strconv.ParseUint(id, 10, 32)
				if err != nil {
					return p, fmt.Errorf("the launcher's --ids=%q is not known", value)
				}
				p.account.Groups = append(p.account.Groups, uint32(n))
			}
			if len(p.account.Groups) < 2 {
				return p, fmt.Errorf("the launcher's --ids=%q is not known", value)
			}
			p.account = Account{p.account.Groups[0], p.account.Groups[1], p.account.Groups[2:]}
		case "--ambient":
			p.ambient = value
		case "--refuse-naming":
			p.refuse = []string{"sethostname", "setdomainname"}
		case "--quoted":
			text = func(quoted string) string {
				s, e := strconv.Unquote(quoted)
				err = errors.Join(err, e)
				return s
			}
		case "--env":
			p.env = append(p.env, text(value))
		}
	}
	return p, err
}

// Tells says whether what its unit files tell of the payload's confinement can be given to a process beside it. If not, the leader has to tell.
func (r Running) Tells(manager int) bool {
	_, err := r.confinement(manager)
	return err == nil
}

func (r Running) confinement(manager int) (confined Unit, err error) {
	for _, file := range r.Files {
		if err := confined.layFile(file, manager); err != nil {
			return confined, err
		}
	}
	return confined, nil
}

// layFile lays what a service's unit file says of its confinement over the unit.
func (u *Unit) layFile(text string, manager int) error {
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		name, value, assigned := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case section != "[Service]" || !assigned || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";"):
			continue
		case unjoinable(name) && value != "" && value != "no":
			return fmt.Errorf("its payload is confined by %s=%s, which can't be given to a process beside it", name, value)
		case joined(name) || ofGroup(name) || unjoinable(name):
			continue
		}
		d, err := ParseDirective(name+"="+strings.ReplaceAll(value, "%%", "%"), manager)
		if err != nil {
			return fmt.Errorf("what its payload is confined to can't be given to a process beside it: %w", err)
		}
		if d.Name == "CapabilityBoundingSet" || d.Name == "RestrictNamespaces" {
			u.narrow(d)
			continue
		}
		u.Lay(d)
	}
	return nil
}

// narrow lays a directive that is one value on the bus: better less than what several lines allow together.
func (u *Unit) narrow(d Directive) {
	if before, set := u.Get(d.Name).(uint64); set {
		d.Value = before & d.Value.(uint64)
	}
	u.Lay(d)
}

// ofGroup says whether a directive is about a service's control group (systemd.resource-control(5)), or about the manager's own way with it.
func ofGroup(name string) bool {
	for _, prefix := range []string{"Slice", "DevicePolicy", "DeviceAllow", "CPUPressure", "IOPressure", "ManagedOOM", "CPUSetPartition", "DisableControllers",
		"OOMRules", "CPUWeight", "Startup", "IOWeight", "CPUQuota", "CPUAccounting", "MemoryPressure", "AllowedCPUs", "AllowedMemoryNodes", "MemoryMin", "MemoryLow", "MemoryHigh",
		"MemoryMax", "MemorySwap", "MemoryZSwap", "MemoryAccounting", "DefaultMemory", "Tasks", "IOAccounting", "IODevice", "IORead", "IOWrite",
		"IPA", "IPIngress", "IPEgress", "SocketBind", "BPFProgram", "RestrictNetworkInterfaces", "NFTSet"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// isProcess says whether a directive is about a process and takes nothing from what it may do.
func isProcess(name string) bool {
	for _, prefix := range []string{"Limit", "Nice", "OOMScoreAdjust", "CPUAffinity", "CPUScheduling", "IOScheduling", "NUMA", "UMask", "Personality", "TimerSlack"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
