package units

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// enumeration is the kind of numbers that have names. Up to highest, a number may also be given as such.
func enumeration(names map[string]int32, highest int32) kind {
	return kind{parser(func(s string) (int32, error) {
		if n, known := names[s]; known {
			return n, nil
		}
		if n, err := parseUnsigned(s, 31); err == nil && int32(n) <= highest {
			return int32(n), nil
		}
		return 0, fmt.Errorf("%q is not one of %s", s, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
	}), line(func(v int32) string {
		for name, n := range names {
			if n == v {
				return name
			}
		}
		return formatInt32(v)
	}), one, nil}
}

var (
	// syslog(3)
	logLevels  = map[string]int32{"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}
	facilities = map[string]int32{"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7, "uucp": 8, "cron": 9,
		"authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23}
	schedulers     = map[string]int32{"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}                // sched(7)
	ioClasses      = map[string]int32{"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}                // ioprio_set(2)
	memoryPolicies = map[string]int32{"default": 0, "preferred": 1, "bind": 2, "interleave": 3, "local": 4} // set_mempolicy(2)
	propagations   = map[string]uint64{"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "": 0}
)

func parsePropagation(s string) (uint64, error) {
	flags, known := propagations[s]
	if !known {
		return 0, fmt.Errorf("%q is not one of shared, slave, private", s)
	}
	return flags, nil
}

func formatPropagation(v uint64) string {
	for name, flags := range propagations {
		if flags == v {
			return name
		}
	}
	return ""
}

// killNumber stands for "kill" in SystemCallErrorNumber=.
const killNumber = 1<<31 - 2

// errnoAliases are second names of errors.
var errnoAliases = map[string]int32{"EWOULDBLOCK": 11, "EDEADLOCK": 35, "EOPNOTSUPP": 95, "ENOTSUP": 95}

func parseErrno(s string) (int32, error) {
	if s == "kill" {
		return killNumber, nil
	}
	for n := range int32(134) {
		if formatErrno(n) == s || n == errnoAliases[s] && n != 0 {
			return n, nil
		}
	}
	if n, err := parseUnsigned(s, 31); err == nil && n <= 4095 {
		return int32(n), nil
	}
	return 0, fmt.Errorf("%q is not the name of an error (errno(3)), a number up to 4095, or kill", s)
}

func formatErrno(v int32) string {
	if v == killNumber {
		return "kill"
	}
	if name := unix.ErrnoName(unix.Errno(v)); name != "" {
		return name
	}
	return formatInt32(v)
}

// mappings are the bits of /proc/PID/coredump_filter (core(5)).
var mappings = []string{"private-anonymous", "shared-anonymous", "private-file-backed", "shared-file-backed", "elf-headers", "private-huge", "shared-huge",
	"private-dax", "shared-dax"}

// parseCoreFilter reads names of kinds of memory, "default", "all", or a hexadecimal mask.
func parseCoreFilter(s string) (uint64, error) {
	words, err := splitWords(s)
	if err != nil {
		return 0, err
	}
	var mask uint64
	for _, w := range words {
		switch bit := slices.Index(mappings, w); {
		case bit >= 0:
			mask |= 1 << bit
		case w == "default":
			mask |= 0x33
		case w == "all":
			mask = 1<<32 - 1
		default:
			bits, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimPrefix(w, "0x"), "0X"), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("%q is not one of %s, default, all", w, strings.Join(mappings, ", "))
			}
			mask |= bits
		}
	}
	return mask, nil
}

// signals of Linux on every architecture but alpha, mips, parisc and sparc (signal(7)).
var signals = map[string]int32{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11,
	"USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21,
	"TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
	"RTMIN": 34, "RTMAX": 64,
}

var signalNames = func() map[int32]string {
	names := make(map[int32]string, len(signals))
	for name, n := range maps.All(signals) {
		names[n] = "SIG" + name
	}
	return names
}()

// ParseSignal gives the number of SIGTERM, TERM, 15, SIGRTMIN+3 or SIGRTMAX-1, in any case.
func ParseSignal(s string) (int32, error) {
	name := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(s)), "SIG")
	base, offset, sign := name, 0, strings.IndexAny(name, "+-")
	var err error
	if sign > 0 && strings.HasPrefix(name, "RTM") {
		base = name[:sign]
		offset, err = strconv.Atoi(name[sign:])
	}
	n, known := signals[base]
	if !known {
		var plain int
		plain, err = strconv.Atoi(name)
		n = int32(plain)
	}
	n += int32(offset)
	if err != nil || n < 1 || n > 64 || offset != 0 && n < 34 {
		return 0, fmt.Errorf("%q is not a signal", s)
	}
	return n, nil
}

// parseSignalExactly reads a signal as unit files have it: in capitals.
func parseSignalExactly(s string) (int32, error) {
	n, err := ParseSignal(s)
	if s != strings.ToUpper(strings.TrimSpace(s)) {
		err = fmt.Errorf("%q is not a signal", s)
	}
	return n, err
}

// SignalName gives the name of a signal's number: SIGTERM, SIGRTMIN+3.
func SignalName(n int32) string {
	if name, known := signalNames[n]; known {
		return name
	}
	if n > 34 && n < 64 {
		return fmt.Sprintf("SIGRTMIN+%d", n-34)
	}
	return strconv.Itoa(int(n))
}

// Statuses are exit statuses and signals (aiai).
type Statuses struct{ Codes, Signals []int32 }

// exitStatuses are the names of exit statuses (systemd.exec(5), "Process Exit Codes").
var exitStatuses = sync.OnceValue(func() map[string]int32 {
	names := map[string]int32{"MEMORY_THP": 246, "EXCEPTION": 255}
	for first, list := range map[int32]string{
		0:  "SUCCESS FAILURE INVALIDARGUMENT NOTIMPLEMENTED NOPERMISSION NOTINSTALLED NOTCONFIGURED NOTRUNNING",
		64: `USAGE DATAERR NOINPUT NOUSER NOHOST UNAVAILABLE SOFTWARE OSERR OSFILE CANTCREAT IOERR TEMPFAIL PROTOCOL NOPERM CONFIG`,
		200: `CHDIR NICE FDS EXEC MEMORY LIMITS OOM_ADJUST SIGNAL_MASK STDIN STDOUT CHROOT IOPRIO TIMERSLACK SECUREBITS SETSCHEDULER
			CPUAFFINITY GROUP USER CAPABILITIES CGROUP SETSID CONFIRM STDERR`,
		224: `PAM NETWORK NAMESPACE NO_NEW_PRIVILEGES SECCOMP SELINUX_CONTEXT PERSONALITY APPARMOR ADDRESS_FAMILIES RUNTIME_DIRECTORY`,
		235: `CHOWN SMACK_PROCESS_LABEL KEYRING STATE_DIRECTORY CACHE_DIRECTORY LOGS_DIRECTORY CONFIGURATION_DIRECTORY NUMA_POLICY CREDENTIALS BPF KSM`,
	} {
		for i, name := range strings.Fields(list) {
			names[name] = first + int32(i)
		}
	}
	return names
})

// parseStatuses reads exit statuses, by name or number, and names of signals.
func parseStatuses(s string) (Statuses, error) {
	words, err := splitWords(s)
	statuses := Statuses{[]int32{}, []int32{}}
	for _, w := range words {
		code, known := exitStatuses()[w]
		n, notNumber := parseUnsigned(w, 8)
		switch {
		case known:
			statuses.Codes = append(statuses.Codes, code)
		case notNumber == nil:
			statuses.Codes = append(statuses.Codes, int32(n))
		default:
			sig, err := parseSignalExactly(w)
			if err != nil {
				return statuses, fmt.Errorf("%q is neither an exit status nor a signal", w)
			}
			statuses.Signals = append(statuses.Signals, sig)
		}
	}
	return statuses, err
}

func formatStatuses(s Statuses) string {
	var out []string
	for _, code := range s.Codes {
		out = append(out, strconv.Itoa(int(code)))
	}
	for _, sig := range s.Signals {
		out = append(out, SignalName(sig))
	}
	return strings.Join(out, " ")
}

func mergeStatuses(before, added any) any {
	a, b := before.(Statuses), added.(Statuses)
	return Statuses{slices.Concat(a.Codes, b.Codes), slices.Concat(a.Signals, b.Signals)}
}
