package units

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nspawnd/cgroup"
)

// kind is how the values of a directive are read from text, written to a unit file and sent over the bus.
type kind struct {
	parse func(string) (any, error)
	text  func(any) []string // the right-hand sides of one assignment or more
	wire  func(property string, v any) []Property
	merge func(before, added any) any // for lists: what a second assignment does; nil: it replaces
}

// one is the wire form of kinds whose Go value has the property's D-Bus type already.
func one(property string, v any) []Property { return []Property{{property, v}} }

// lines is the text form of kinds that take one assignment.
func line[T any](format func(T) string) func(any) []string {
	return func(v any) []string { return []string{format(v.(T))} }
}

func parser[T any](parse func(string) (T, error)) func(string) (any, error) {
	return func(s string) (any, error) { return parse(s) }
}

// eachProperty is the wire form of lists that the bus takes one by one.
func eachProperty[T any](property string, v any) []Property {
	var out []Property
	for _, item := range v.([]T) {
		out = append(out, Property{property, item})
	}
	return out
}

func extend[T any](before, added any) any {
	return append(slices.Clone(before.([]T)), added.([]T)...)
}

var (
	boolean = kind{parser(parseBool), line(formatBool), one, nil}
	text    = kind{parser(func(s string) (string, error) { return s, nil }), line(escapeSpecifiers), one, nil}
	words   = kind{parser(splitWords), line(joinWords), one, extend[string]}
	// unitNames are written as they are: in these lists systemd takes a backslash for part of the name.
	unitNames = kind{parser(func(s string) ([]string, error) { return strings.Fields(s), nil }),
		line(func(v []string) string { return strings.Join(v, " ") }), one, extend[string]}
	// assignments are words of which each is better read on a line of its own.
	assignments       = kind{parser(splitWords), eachWord, one, extend[string]}
	integer           = kind{parser(parseInt32), line(func(v int32) string { return strconv.Itoa(int(v)) }), one, nil}
	number            = kind{parser(parseUint32), line(func(v uint32) string { return strconv.FormatUint(uint64(v), 10) }), one, nil}
	mode              = kind{parser(parseMode), line(func(v uint32) string { return fmt.Sprintf("%04o", v) }), one, nil}
	signal            = kind{parser(parseSignal), line(SignalName), one, nil}
	count             = kind{parser(parseCount), line(formatCount), one, nil}
	size              = kind{parser(parseSize), line(formatCount), one, nil}
	quota             = kind{parser(parsePercent), line(formatPercent), one, nil}
	span              = kind{parser(parseSpan), line(formatSpan), one, nil}
	elapse            = kind{nil, line(formatSpan), elapseProperty, nil}
	loadedCredentials = kind{parser(parseLoadedCredential), eachPair, one, extend[Pair]}
	limit             = kind{parser(parseLimit), line(formatLimit), limitProperties, nil}
	caps              = kind{parser(ParseCapabilities), line(formatCapabilities), one, nil}
	command           = kind{nil, line(formatCommand), commandProperty, nil}
	commands          = kind{nil, eachCommand, one, nil}
	binds             = kind{parser(parseBinds), eachBind, one, extend[Bind]}
	tmpfs             = kind{parser(parseTmpfs), eachTmpfs, one, extend[Tmpfs]}
	filters           = kind{parser(parseFilter), eachFilter, eachProperty[Filter], extend[Filter]}
	statuses          = kind{nil, line(formatStatuses), one, nil}
	fields            = kind{parser(splitWords), eachWord, bytesProperty, extend[string]}
	hostname          = kind{parser(parsePair), line(formatPair), hostnameProperty, nil}
	// profile is sent with a flag that it may be missing.
	profile = kind{parser(func(s string) (string, error) { return s, nil }), line(escapeSpecifiers), profileProperty, nil}
	devices = kind{parser(parseDevice), eachDevice, one, extend[Pair]}
)

// Command is a program and its arguments, argv[0] among them. The manager expands neither "$" nor "%" in them.
// Its shape is that of the bus (a(sasas)).
type Command struct {
	Path  string
	Argv  []string
	Flags []string
}

// Bind is a bind mount; its shape is that of BindPaths= on the bus (ssbt).
type Bind struct {
	Source, Target string
	IgnoreMissing  bool
	Flags          uint64 // MS_REC or 0
}

// Recursive is the bind flag that takes the mounts below the source along (MS_REC).
const Recursive = 16384

// Tmpfs is a temporary file system and its mount options (ss).
type Tmpfs struct{ Path, Options string }

// Filter is a list that allows or denies (bas): SystemCallFilter=, RestrictAddressFamilies=. The first of several decides what
// happens to all that none names; a denied system call may carry its error, "setns:EPERM".
type Filter struct {
	Allow bool
	Names []string
}

// Limit is a resource limit, soft and hard (LimitNOFILE= and its like).
type Limit struct{ Soft, Hard uint64 }

// Statuses are exit statuses and signals (aiai).
type Statuses struct{ Codes, Signals []int32 }

// Pair is a value of two parts (ss), like ProtectHostname=private:NAME.
type Pair struct{ First, Second string }

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", s)
}

func formatBool(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

func parseInt32(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return int32(n), nil
}

func parseUint32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return uint32(n), nil
}

func parseMode(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 12)
	if err != nil {
		return 0, fmt.Errorf("%q is not an octal mode", s)
	}
	return uint32(n), nil
}

func parseCount(s string) (uint64, error) {
	if s == "infinity" {
		return cgroup.Infinity, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor infinity", s)
	}
	return n, nil
}

// parseSize reads bytes with systemd's suffixes K M G T P E, base 1024.
func parseSize(s string) (uint64, error) {
	exponent := strings.IndexByte("KMGTPE", last(s)) + 1
	if exponent == 0 {
		return parseCount(s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil || n > math.MaxUint64>>(10*exponent) {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return n << (10 * exponent), nil
}

func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

func formatCount(v uint64) string {
	if v == cgroup.Infinity {
		return "infinity"
	}
	return strconv.FormatUint(v, 10)
}

// parsePercent reads CPUQuota= and gives µs of CPU time a second.
func parsePercent(s string) (uint64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || n <= 0 || n > 1e8 {
		return 0, fmt.Errorf("%q is not a percentage", s)
	}
	return uint64(n * 10_000), nil
}

func formatPercent(v uint64) string { return strconv.FormatFloat(float64(v)/10_000, 'f', -1, 64) + "%" }

var timeUnits = []struct {
	names []string
	span  time.Duration
}{
	{[]string{"us", "usec", "µs"}, time.Microsecond},
	{[]string{"ms", "msec"}, time.Millisecond},
	{[]string{"", "s", "sec", "second", "seconds"}, time.Second},
	{[]string{"m", "min", "minute", "minutes"}, time.Minute},
	{[]string{"h", "hr", "hour", "hours"}, time.Hour},
	{[]string{"d", "day", "days"}, 24 * time.Hour},
	{[]string{"w", "week", "weeks"}, 7 * 24 * time.Hour},
}

// parseSpan reads a time span of systemd.time(7), like "1min 30s"; the result is in µs.
func parseSpan(s string) (uint64, error) {
	if s == "infinity" {
		return cgroup.Infinity, nil
	}
	bad := fmt.Errorf("%q is not a time span", s)
	rest := strings.ReplaceAll(s, " ", "")
	var total float64
	for rest != "" {
		n := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		value, err := strconv.ParseFloat(rest[:n], 64)
		if err != nil {
			return 0, bad
		}
		rest = rest[n:]
		u := strings.IndexAny(rest, "0123456789.")
		if u < 0 {
			u = len(rest)
		}
		i := slices.IndexFunc(timeUnits, func(t struct {
			names []string
			span  time.Duration
		}) bool {
			return slices.Contains(t.names, rest[:u])
		})
		if i < 0 {
			return 0, bad
		}
		total += value * float64(timeUnits[i].span/time.Microsecond)
		rest = rest[u:]
	}
	if s == "" || total >= math.MaxInt64 {
		return 0, bad
	}
	return uint64(total), nil
}

func formatSpan(v uint64) string {
	switch {
	case v == cgroup.Infinity:
		return "infinity"
	case v%1_000_000 == 0:
		return strconv.FormatUint(v/1_000_000, 10) + "s"
	}
	return strconv.FormatUint(v, 10) + "us"
}

// elapseProperty sends when a timer elapses (a(st)).
func elapseProperty(property string, v any) []Property {
	return []Property{{"TimersMonotonic", []struct {
		Base string
		Span uint64
	}{{property, v.(uint64)}}}}
}

// parseLimit reads SOFT[:HARD] of systemd.exec(5), with size suffixes.
func parseLimit(s string) (Limit, error) {
	soft, hard, both := strings.Cut(s, ":")
	if !both {
		hard = soft
	}
	l := Limit{}
	var err error
	if l.Soft, err = parseSize(soft); err != nil {
		return l, err
	}
	if l.Hard, err = parseSize(hard); err != nil {
		return l, err
	}
	if l.Soft > l.Hard {
		return l, fmt.Errorf("%q: the soft limit is above the hard one", s)
	}
	return l, nil
}

func formatLimit(l Limit) string { return formatCount(l.Soft) + ":" + formatCount(l.Hard) }

func limitProperties(property string, v any) []Property {
	l := v.(Limit)
	return []Property{{property, l.Hard}, {property + "Soft", l.Soft}}
}

func profileProperty(property string, v any) []Property {
	name, ignoreMissing := strings.CutPrefix(v.(string), "-")
	return []Property{{property, struct {
		IgnoreMissing bool
		Profile       string
	}{ignoreMissing, name}}}
}

// Flags of a command, with their prefixes in unit files (systemd.service(5), "Command lines").
const (
	noExpansion   = "no-env-expand"  // ":", "$" stays as it is
	ignoreFailure = "ignore-failure" // "-"
	privileged    = "privileged"     // "+", on the host and as root
)

func commandProperty(property string, v any) []Property {
	return []Property{{property, []Command{v.(Command)}}}
}

func formatCommand(c Command) string {
	prefix := ""
	for _, flag := range c.Flags {
		prefix += map[string]string{noExpansion: ":", ignoreFailure: "-", privileged: "+"}[flag]
	}
	argv := c.Argv
	if c.Path != c.Argv[0] {
		prefix += "@"
		argv = append([]string{c.Path}, argv...)
	}
	return prefix + joinWords(argv)
}

func eachCommand(v any) []string {
	var out []string
	for _, c := range v.([]Command) {
		out = append(out, formatCommand(c))
	}
	return out
}

func eachWord(v any) []string {
	var out []string
	for _, w := range v.([]string) {
		out = append(out, quoteWord(w))
	}
	return out
}

func bytesProperty(property string, v any) []Property {
	out := [][]byte{}
	for _, w := range v.([]string) {
		out = append(out, []byte(w))
	}
	return []Property{{property, out}}
}

// parseBinds reads one entry of BindPaths= or more: [-]SOURCE[:TARGET[:rbind|norbind]].
func parseBinds(s string) ([]Bind, error) {
	entries, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	var out []Bind
	for _, e := range entries {
		b := Bind{Flags: Recursive}
		e, b.IgnoreMissing = strings.CutPrefix(e, "-")
		parts := strings.Split(e, ":")
		b.Source, b.Target = parts[0], parts[0]
		if len(parts) > 1 && parts[1] != "" {
			b.Target = parts[1]
		}
		if len(parts) == 3 && parts[2] == "norbind" {
			b.Flags = 0
		} else if len(parts) > 3 || len(parts) == 3 && parts[2] != "rbind" {
			return nil, fmt.Errorf("%q is not SOURCE[:TARGET[:rbind|norbind]]", e)
		}
		if !strings.HasPrefix(b.Source, "/") || !strings.HasPrefix(b.Target, "/") {
			return nil, fmt.Errorf("%q: paths must be absolute", e)
		}
		out = append(out, b)
	}
	return out, nil
}

func eachBind(v any) []string {
	var out []string
	for _, b := range v.([]Bind) {
		s := strings.ReplaceAll(b.Source, ":", `\:`) + ":" + strings.ReplaceAll(b.Target, ":", `\:`)
		if b.Flags == 0 {
			s += ":norbind"
		}
		if b.IgnoreMissing {
			s = "-" + s
		}
		out = append(out, quoteWord(s))
	}
	return out
}

func parseTmpfs(s string) ([]Tmpfs, error) {
	entries, err := splitWords(s)
	var out []Tmpfs
	for _, e := range entries {
		path, options, _ := strings.Cut(e, ":")
		out = append(out, Tmpfs{path, options})
	}
	return out, err
}

func eachTmpfs(v any) []string {
	var out []string
	for _, t := range v.([]Tmpfs) {
		out = append(out, quoteWord(strings.TrimSuffix(t.Path+":"+t.Options, ":")))
	}
	return out
}

func parseFilter(s string) ([]Filter, error) {
	s, deny := strings.CutPrefix(s, "~")
	names, err := splitWords(s)
	return []Filter{{!deny, names}}, err
}

func eachFilter(v any) []string {
	var out []string
	for _, f := range v.([]Filter) {
		names := joinWords(f.Names)
		if !f.Allow {
			names = "~" + names
		}
		out = append(out, names)
	}
	return out
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

func parsePair(s string) (Pair, error) {
	first, second, _ := strings.Cut(s, ":")
	return Pair{first, second}, nil
}

func formatPair(p Pair) string {
	return escapeSpecifiers(strings.TrimSuffix(p.First+":"+p.Second, ":"))
}

// hostnameProperty sends ProtectHostname=yes as every version takes it; only 258 and later know ProtectHostnameEx.
func hostnameProperty(property string, v any) []Property {
	if p := v.(Pair); p.First == "yes" {
		return []Property{{property, true}}
	}
	return []Property{{property + "Ex", v}}
}

// parseLoadedCredential reads ID[:PATH]; without a path, the manager's own credential of the ID or one of the credential stores.
func parseLoadedCredential(s string) ([]Pair, error) {
	id, path, found := strings.Cut(s, ":")
	if !found {
		path = id
	}
	if !validCredential(id) || path == "" {
		return nil, fmt.Errorf("%q is not ID[:PATH]", s)
	}
	return []Pair{{id, path}}, nil
}

func eachPair(v any) []string {
	var out []string
	for _, p := range v.([]Pair) {
		out = append(out, escapeSpecifiers(p.First+":"+p.Second))
	}
	return out
}

func parseDevice(s string) ([]Pair, error) {
	node, access, found := strings.Cut(s, " ")
	if !found {
		access = "rwm"
	}
	return []Pair{{node, access}}, nil
}

func eachDevice(v any) []string {
	var out []string
	for _, d := range v.([]Pair) {
		out = append(out, escapeSpecifiers(d.First)+" "+d.Second)
	}
	return out
}

// capabilities in the kernel's numbering (linux/capability.h).
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// ParseCapabilities reads a list of capability names, with or without CAP_, and gives the kernel's bit mask. A leading
// "~" stands for all but these.
func ParseCapabilities(s string) (uint64, error) {
	s, invert := strings.CutPrefix(s, "~")
	var mask uint64
	for _, name := range strings.Fields(s) {
		bit := slices.Index(capabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		if bit < 0 {
			return 0, fmt.Errorf("%q is not a capability", name)
		}
		mask |= 1 << bit
	}
	if invert {
		mask ^= 1<<len(capabilities) - 1
	}
	return mask, nil
}

func formatCapabilities(mask uint64) string {
	var out []string
	for bit, name := range capabilities {
		if mask&(1<<bit) != 0 {
			out = append(out, "CAP_"+name)
		}
	}
	return strings.Join(out, " ")
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

// parseSignal reads SIGTERM, TERM, 15, SIGRTMIN+3 or SIGRTMAX-1, in any case.
func parseSignal(s string) (int32, error) {
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
