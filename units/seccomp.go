package units

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// SeccompProfile is a filter of system calls as podman and docker write it: linux.seccomp of the runtime-spec (config-linux.md), whose rules may
// also depend on capabilities and architectures (containers-common's seccomp.json).
type SeccompProfile struct {
	DefaultAction   string        `json:"defaultAction"`
	DefaultErrno    string        `json:"defaultErrno"`
	DefaultErrnoRet *uint         `json:"defaultErrnoRet"`
	Architectures   []string      `json:"architectures"`
	ArchMap         []seccompArch `json:"archMap"`
	Syscalls        []seccompRule `json:"syscalls"`
}

type seccompArch struct {
	Architecture     string   `json:"architecture"`
	SubArchitectures []string `json:"subArchitectures"`
}

type seccompRule struct {
	Name     string            `json:"name"` // of old profiles
	Names    []string          `json:"names"`
	Action   string            `json:"action"`
	Errno    string            `json:"errno"`
	ErrnoRet *uint             `json:"errnoRet"`
	Args     []struct{}        `json:"args"`
	Includes seccompConditions `json:"includes"`
	Excludes seccompConditions `json:"excludes"`
}

type seccompConditions struct {
	Arches []string `json:"arches"`
	Caps   []string `json:"caps"`
}

// ParseSeccompProfile reads a profile; what systemd can't do as a whole is refused (actions that trap, trace or ask a supervisor).
func ParseSeccompProfile(data []byte) (*SeccompProfile, error) {
	p := &SeccompProfile{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, err
	}
	if p.DefaultAction == "" {
		return nil, fmt.Errorf("no defaultAction")
	}
	if _, err := p.fallback(); err != nil && p.DefaultAction != actionAllow {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	for i, rule := range p.Syscalls {
		if rule.Name != "" {
			p.Syscalls[i].Names = append(rule.Names, rule.Name)
		}
		if _, err := rule.verdict(); err != nil && rule.Action != actionAllow && rule.Action != actionLog {
			return nil, fmt.Errorf("rule for %.60s: %w", strings.Join(p.Syscalls[i].Names, " "), err)
		}
	}
	return p, nil
}

const (
	actionAllow = "SCMP_ACT_ALLOW"
	actionLog   = "SCMP_ACT_LOG"
)

// verdict is what systemd writes behind a system call that is not allowed: an error's name or number, or "kill".
func verdict(action, errno string, errnoRet *uint) (string, error) {
	switch action {
	case "SCMP_ACT_ERRNO":
		switch {
		case errno != "":
			return errno, nil
		case errnoRet != nil:
			return strconv.FormatUint(uint64(*errnoRet), 10), nil
		}
		return "EPERM", nil
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD":
		return "kill", nil
	}
	return "", fmt.Errorf("SystemCallFilter= can't express the action %.30q", action)
}

func (r seccompRule) verdict() (string, error) { return verdict(r.Action, r.Errno, r.ErrnoRet) }

func (p *SeccompProfile) fallback() (string, error) {
	return verdict(p.DefaultAction, p.DefaultErrno, p.DefaultErrnoRet)
}

func (c seccompConditions) hasCaps(mask uint64) bool {
	return slices.ContainsFunc(c.Caps, func(name string) bool {
		bit, err := ParseCapabilities(name)
		return err == nil && bit&mask != 0
	})
}

// applies says whether a rule is for this architecture and a process with these capabilities.
func (r seccompRule) applies(caps uint64) bool {
	return (len(r.Includes.Arches) == 0 || slices.Contains(r.Includes.Arches, runtime.GOARCH)) &&
		!slices.Contains(r.Excludes.Arches, runtime.GOARCH) &&
		(len(r.Includes.Caps) == 0 || r.Includes.hasCaps(caps)) && !r.Excludes.hasCaps(caps)
}

// set adds the directives that say what the profile says for a process with the given capabilities. It returns the system calls of which
// the profile looks at arguments, which no directive does: they are allowed, whatever the arguments.
func (p *SeccompProfile) set(u *Unit, caps uint64) (anyArguments []string) {
	allowed, logged := map[string]bool{}, map[string]bool{}
	refused := map[string]string{}
	conditional := map[string]bool{}
	granted := map[string]bool{} // by a capability; otherwise, of two rules that contradict each other the one that refuses holds
	for _, rule := range p.Syscalls {
		if !rule.applies(caps) {
			continue
		}
		for _, name := range rule.Names {
			switch refusal, err := rule.verdict(); {
			case rule.Action == actionLog:
				logged[name], allowed[name] = true, true
			case rule.Action == actionAllow:
				allowed[name] = true
				granted[name] = granted[name] || len(rule.Includes.Caps) > 0
				conditional[name] = conditional[name] || len(rule.Args) > 0
			case len(rule.Args) > 0:
				conditional[name] = true
			case err == nil:
				refused[name] = refusal
			}
		}
	}
	fallback, _ := p.fallback()
	if p.DefaultAction != actionAllow {
		for _, name := range alwaysAllowed {
			if !allowed[name] && refused[name] == "" {
				refused[name] = fallback
			}
		}
	}
	var refusals []string
	for name, refusal := range refused {
		switch {
		case granted[name]:
		case p.DefaultAction != actionAllow && sameVerdict(refusal, fallback): // written out, libseccomp refuses it (EACCES)
			refusals = append(refusals, name)
		default:
			refusals = append(refusals, name+":"+refusal)
		}
	}
	slices.Sort(refusals)
	switch {
	case p.DefaultAction == actionAllow && len(refusals) > 0:
		u.set("SystemCallFilter", []Filter{{false, refusals}})
	case p.DefaultAction != actionAllow:
		u.set("SystemCallFilter", []Filter{{true, sortedKeys(allowed)}, {false, refusals}})
		if n, known := errnoNumber(fallback); known {
			u.set("SystemCallErrorNumber", n) // without it the manager lets the process be killed
		}
	}
	if len(logged) > 0 {
		u.set("SystemCallLog", []Filter{{true, sortedKeys(logged)}})
	}
	u.set("SystemCallArchitectures", p.architectures())
	for name, is := range conditional {
		if !is {
			delete(conditional, name)
		}
	}
	return sortedKeys(conditional)
}

// alwaysAllowed are the calls that systemd adds to each list of what is allowed (@default, systemd.exec(5)) and that a program starts without: they
// have to be refused by name. Podman's profile does not have them.
var alwaysAllowed = []string{"lsm_get_self_attr", "lsm_list_modules", "mseal"}

// architectures are the profile's, in systemd's words. Podman's own is taken without x32, which hardly a kernel has: the manager builds a
// filter for each architecture, which costs a start some milliseconds.
func (p *SeccompProfile) architectures() []string {
	if p == podmanProfile {
		return map[string][]string{"amd64": {"native", "x86"}, "arm64": {"native", "arm"}}[runtime.GOARCH]
	}
	native := map[string]string{"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}[runtime.GOARCH]
	names := p.Architectures
	for _, a := range p.ArchMap {
		if a.Architecture == native {
			names = append(names, a.SubArchitectures...)
		}
	}
	out := []string{"native"}
	for scmp, name := range map[string]string{"SCMP_ARCH_X86": "x86", "SCMP_ARCH_X32": "x32", "SCMP_ARCH_ARM": "arm"} {
		if slices.Contains(names, scmp) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func sameVerdict(a, b string) bool {
	x, knownX := errnoNumber(a)
	y, knownY := errnoNumber(b)
	return a == b || knownX && knownY && x == y
}

func sortedKeys(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// errnoNumber reads an error's number, or its name as it may stand as a default; not "kill".
func errnoNumber(s string) (int32, bool) {
	n, err := parseErrno(s)
	return n, err == nil && n != killNumber
}
