package units

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"nspawnd/cgroup"
)

const infinite = cgroup.Infinity

// parseSigned and parseUnsigned read whole numbers as strtol(3) does with base 0: a blank before it, "+", 0x and 0 count.
func parseSigned(s string, size int) (int64, error) {
	s = strings.TrimLeft(s, blanks)
	n, err := strconv.ParseInt(s, 0, size)
	if err != nil || strings.Contains(s, "_") {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func parseUnsigned(s string, size int) (uint64, error) {
	s = strings.TrimLeft(s, blanks)
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 0, size)
	if err != nil || strings.Contains(s, "_") {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func parseInt32(s string) (int32, error) {
	n, err := parseSigned(s, 32)
	return int32(n), err
}

func parseUint32(s string) (uint32, error) {
	n, err := parseUnsigned(s, 32)
	return uint32(n), err
}

func parseUint64(s string) (uint64, error) { return parseUnsigned(s, 64) }

func formatInt32(v int32) string   { return strconv.Itoa(int(v)) }
func formatUint32(v uint32) string { return strconv.FormatUint(uint64(v), 10) }

// within reads a number of a range.
func within(low, high int32) func(string) (int32, error) {
	return func(s string) (int32, error) {
		n, err := parseInt32(s)
		if err == nil && (n < low || n > high) {
			err = fmt.Errorf("%d is not within %d and %d", n, low, high)
		}
		return n, err
	}
}

func parseMode(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, fmt.Errorf("%q is not an octal mode", s)
	}
	return uint32(n), nil
}

// parseStatus reads an exit status for SuccessActionExitStatus=; empty: none, which is -1.
func parseStatus(s string) (int32, error) {
	if s == "" {
		return -1, nil
	}
	n, err := parseUnsigned(s, 8)
	return int32(n), err
}

func formatStatus(v int32) string {
	if v < 0 {
		return ""
	}
	return formatInt32(v)
}

// parseWeight reads a weight of cgroups v2; empty: the default, which the bus knows as infinity.
func parseWeight(s string) (uint64, error) {
	if s == "" {
		return infinite, nil
	}
	n, err := parseUint64(s)
	if err == nil && (n < 1 || n > 10_000) {
		err = fmt.Errorf("%d is not within 1 and 10000", n)
	}
	return n, err
}

// parseCPUWeight also reads "idle", which is 0.
func parseCPUWeight(s string) (uint64, error) {
	if s == "idle" {
		return 0, nil
	}
	return parseWeight(s)
}

func formatWeight(v uint64) string {
	switch v {
	case infinite:
		return ""
	case 0:
		return "idle"
	}
	return formatCount(v)
}

func formatCount(v uint64) string {
	if v == infinite {
		return "infinity"
	}
	return strconv.FormatUint(v, 10)
}

// Share is a part of what there is, of memory or of tasks, in hundredths of a percent.
type Share uint32

// parseShare reads a percentage with at most two decimals, or per mille, or per ten thousand.
func parseShare(s string) (Share, error) {
	n, err := parsePermyriad(s)
	if err == nil && n > 10_000 {
		err = fmt.Errorf("%q is more than 100%%", s)
	}
	return Share(n), err
}

func parsePermyriad(s string) (uint64, error) {
	for _, unit := range []struct {
		suffix   string
		decimals int
	}{{"%", 2}, {"‰", 1}, {"‱", 0}} {
		digits, found := strings.CutSuffix(s, unit.suffix)
		if !found {
			continue
		}
		whole, fraction, point := strings.Cut(digits, ".")
		if point && (fraction == "" || len(fraction) > unit.decimals) || strings.Trim(whole+fraction, "0123456789") != "" || whole == "" {
			break
		}
		n, err := strconv.ParseUint(whole+fraction+strings.Repeat("0", unit.decimals-len(fraction)), 10, 31)
		if err != nil {
			break
		}
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a percentage", s)
}

func formatShare(s Share) string {
	return strconv.FormatFloat(float64(s)/100, 'f', -1, 64) + "%"
}

// scale gives the share as the bus takes it: a fraction of 2³²-1.
func (s Share) scale() uint32 { return uint32((uint64(s)*math.MaxUint32 + 5_000) / 10_000) }

func shareProperty(directive string, v any) []Property {
	return []Property{{directive, v.(Share).scale()}}
}

// amountOf reads an amount, a share or infinity; what is empty is the default.
func amountOf(parse func(string) (uint64, error), none uint64) func(string) (any, error) {
	return func(s string) (any, error) {
		switch s {
		case "":
			return none, nil
		case "infinity":
			return uint64(infinite), nil
		}
		if share, err := parseShare(s); err == nil {
			return share, nil
		}
		return parse(s)
	}
}

func formatAmount(v any) string {
	if share, relative := v.(Share); relative {
		return formatShare(share)
	}
	return formatCount(v.(uint64))
}

func amountProperty(directive string, v any) []Property {
	if share, relative := v.(Share); relative {
		return []Property{{directive + "Scale", share.scale()}}
	}
	return []Property{{directive, v}}
}

// parseQuota reads CPUQuota= and gives µs of CPU time a second; empty: no limit.
func parseQuota(s string) (uint64, error) {
	if s == "" {
		return infinite, nil
	}
	n, err := parsePermyriad(s)
	if err == nil && n == 0 {
		err = fmt.Errorf("%q is no CPU time at all", s)
	}
	return n * 100, err
}

func formatQuota(v uint64) string {
	if v == infinite {
		return ""
	}
	return formatShare(Share(v / 100))
}

// DirectoryQuota limits what a directory of the service may take (tus).
type DirectoryQuota struct {
	Bytes   uint64
	Scale   uint32
	Enforce string
}

type directoryLimit struct{ amount any } // uint64, Share, or nil: none

func parseDirectoryQuota(s string) (directoryLimit, error) {
	if s == "" || s == "off" {
		return directoryLimit{}, nil
	}
	if share, err := parseShare(s); err == nil {
		return directoryLimit{share}, nil
	}
	n, err := ParseSize(s)
	return directoryLimit{n}, err
}

func formatDirectoryQuota(q directoryLimit) string {
	if q.amount == nil {
		return "off"
	}
	return formatAmount(q.amount)
}

func directoryQuotaProperty(directive string, v any) []Property {
	q := DirectoryQuota{math.MaxUint64, math.MaxUint32, "no"}
	switch amount := v.(directoryLimit).amount.(type) {
	case uint64:
		q.Bytes, q.Enforce = amount, "yes"
	case Share:
		q.Scale, q.Enforce = amount.scale(), "yes"
	}
	return []Property{{directive, q}}
}

// ParseSize reads bytes with systemd's suffixes, base 1024: "1G 500M", "1.5K".
func ParseSize(s string) (uint64, error) { return parseBytes(s, 1024) }

func parseBytes(s string, base uint64) (uint64, error) {
	bad := fmt.Errorf("%q is not a size", s)
	const suffixes = "EPTGMKB" // in the order in which they may follow each other
	next := 0
	var total uint64
	rest := strings.TrimLeft(s, blanks)
	for first := true; first || rest != ""; first = false {
		whole, fraction, after, err := cutNumber(rest)
		if err != nil {
			return 0, bad
		}
		rest = strings.TrimLeft(after, blanks)
		i := len(suffixes) // no suffix
		if rest != "" {
			if at := strings.IndexByte(suffixes, rest[0]); at >= 0 {
				i, rest = at, rest[1:]
			}
		}
		if i < next {
			return 0, bad
		}
		next = i + 1
		factor := uint64(1)
		for range max(len(suffixes)-1-i, 0) {
			factor *= base
		}
		high, low := bits.Mul64(whole, factor)
		part := low + uint64(fraction*float64(factor))
		if high != 0 || part < low || total+part < total {
			return 0, fmt.Errorf("%q is too large", s)
		}
		total += part
		rest = strings.TrimLeft(rest, blanks)
	}
	return total, nil
}

// cutNumber reads a decimal number at the start of s.
func cutNumber(s string) (whole uint64, fraction float64, rest string, err error) {
	rest = strings.TrimLeft(s, "0123456789")
	digits := s[:len(s)-len(rest)]
	if after, point := strings.CutPrefix(rest, "."); point {
		rest = strings.TrimLeft(after, "0123456789")
		decimals := after[:len(after)-len(rest)]
		if fraction, err = strconv.ParseFloat("0."+decimals, 64); err != nil || decimals == "" {
			return 0, 0, s, strconv.ErrSyntax
		}
	} else if digits == "" {
		return 0, 0, s, strconv.ErrSyntax
	}
	if digits != "" {
		whole, err = strconv.ParseUint(digits, 10, 64)
	}
	return whole, fraction, rest, err
}

// timeUnits in ns, the longer name before one that it begins with (systemd.time(7)).
var timeUnits = []struct {
	name string
	ns   uint64
}{
	{"seconds", 1e9}, {"second", 1e9}, {"sec", 1e9}, {"s", 1e9},
	{"minutes", 60e9}, {"minute", 60e9}, {"min", 60e9},
	{"months", 2_629_800e9}, {"month", 2_629_800e9}, {"M", 2_629_800e9},
	{"msec", 1e6}, {"ms", 1e6}, {"m", 60e9},
	{"hours", 3600e9}, {"hour", 3600e9}, {"hr", 3600e9}, {"h", 3600e9},
	{"days", 86400e9}, {"day", 86400e9}, {"d", 86400e9},
	{"weeks", 604800e9}, {"week", 604800e9}, {"w", 604800e9},
	{"years", 31_557_600e9}, {"year", 31_557_600e9}, {"y", 31_557_600e9},
	{"usec", 1e3}, {"us", 1e3}, {"µs", 1e3}, {"μs", 1e3},
	{"nsec", 1}, {"ns", 1},
}

// parseTime reads a time span of systemd.time(7), like "1min 30s". unit is that of a number without one, resolution that of the
// result, both in ns.
func parseTime(s string, unit, resolution uint64) (uint64, error) {
	if strings.Trim(s, blanks) == "infinity" {
		return infinite, nil
	}
	bad := fmt.Errorf("%q is not a time span", s)
	rest := strings.TrimLeft(s, blanks)
	var total uint64
	for first := true; first || rest != ""; first = false {
		whole, fraction, after, err := cutNumber(rest)
		if err != nil {
			return 0, bad
		}
		rest = strings.TrimLeft(after, blanks)
		ns := unit
		i := slices.IndexFunc(timeUnits, func(u struct {
			name string
			ns   uint64
		}) bool {
			return strings.HasPrefix(rest, u.name) && u.ns >= resolution
		})
		if i >= 0 {
			ns, rest = timeUnits[i].ns, rest[len(timeUnits[i].name):]
		}
		high, part := bits.Mul64(whole, ns/resolution)
		part += uint64(fraction*float64(ns/resolution) + 1e-6)
		if total += part; high != 0 || total < part || total == infinite {
			return 0, fmt.Errorf("%q is too long", s)
		}
		rest = strings.TrimLeft(rest, blanks)
	}
	return total, nil
}

const (
	microsecond = 1_000
	second      = 1_000_000_000
)

func parseSpan(s string) (uint64, error)         { return parseTime(s, second, microsecond) }
func parseNanoseconds(s string) (uint64, error)  { return parseTime(s, 1, 1) }
func parseMicroseconds(s string) (uint64, error) { return parseTime(s, microsecond, microsecond) }

// parseSpanOrNone reads a span whose empty value is the default, which the bus knows as infinity.
func parseSpanOrNone(s string) (uint64, error) {
	if s == "" {
		return infinite, nil
	}
	return parseSpan(s)
}

func formatSpanOrNone(v uint64) string {
	if v == infinite {
		return ""
	}
	return formatSpan(v)
}

func formatSpan(v uint64) string {
	switch {
	case v == infinite:
		return "infinity"
	case v%1_000_000 == 0:
		return strconv.FormatUint(v/1_000_000, 10) + "s"
	}
	return strconv.FormatUint(v, 10) + "us"
}

// spanProperty: on the bus, spans are in µs, and their properties are named for it.
func spanProperty(directive string, v any) []Property {
	return []Property{{strings.TrimSuffix(directive, "Sec") + "USec", v}}
}

// elapseProperty sends when a timer elapses (a(st)).
func elapseProperty(directive string, v any) []Property {
	return []Property{{"TimersMonotonic", []struct {
		Base string
		Span uint64
	}{{directive, v.(uint64)}}}}
}

// Limit is a resource limit, soft and hard (LimitNOFILE= and its like).
type Limit struct{ Soft, Hard uint64 }

// limitOf reads SOFT[:HARD] of systemd.exec(5), "Process Properties".
func limitOf(parse func(string) (uint64, error)) func(string) (Limit, error) {
	value := func(s string) (uint64, error) {
		if s == "infinity" {
			return infinite, nil
		}
		n, err := parse(s)
		if err == nil && n == infinite {
			err = fmt.Errorf("%q is too large", s)
		}
		return n, err
	}
	return func(s string) (Limit, error) {
		soft, hard, both := strings.Cut(s, ":")
		if !both {
			hard = soft
		}
		l := Limit{}
		var err error
		if l.Soft, err = value(soft); err != nil {
			return l, err
		}
		if l.Hard, err = value(hard); err != nil {
			return l, err
		}
		if l.Soft > l.Hard {
			return l, fmt.Errorf("%q: the soft limit is above the hard one", s)
		}
		return l, nil
	}
}

// parseSeconds reads a span for a limit that the kernel keeps in whole seconds.
func parseSeconds(s string) (uint64, error) {
	micros, err := parseSpan(s)
	if err != nil || micros == infinite {
		return micros, err
	}
	return (micros + 999_999) / 1_000_000, nil
}

// parseNiceLimit reads a nice level with its sign, or the kernel's own form of the limit, which is 20 less the level.
func parseNiceLimit(s string) (uint64, error) {
	if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		level, err := within(-20, 19)(s)
		return uint64(20 - level), err
	}
	n, err := parseUint64(s)
	if err == nil && n > 40 {
		err = fmt.Errorf("%d is not within 0 and 40", n)
	}
	return n, err
}

// parseNiceLimits reads limits on the nice level, of which none is infinite.
func parseNiceLimits(s string) (Limit, error) {
	if strings.Contains(s, "infinity") {
		return Limit{}, fmt.Errorf("%q is not a nice level", s)
	}
	return limitOf(parseNiceLimit)(s)
}

func formatLimit(l Limit) string { return formatCount(l.Soft) + ":" + formatCount(l.Hard) }

func limitProperties(directive string, v any) []Property {
	l := v.(Limit)
	return []Property{{directive, l.Hard}, {directive + "Soft", l.Soft}}
}

// DeviceLimit is a value for one device (st).
type DeviceLimit struct {
	Device string
	Value  uint64
}

// deviceOf reads DEVICE VALUE.
func deviceOf(parse func(string) (uint64, error)) func(string) (DeviceLimit, error) {
	return func(s string) (DeviceLimit, error) {
		device, value, found := strings.Cut(s, " ")
		if !found {
			return DeviceLimit{}, fmt.Errorf("%q is not DEVICE VALUE", s)
		}
		n, err := parse(value)
		return DeviceLimit{device, n}, err
	}
}

// parseDeviceRate reads bytes or operations a second, with suffixes to the base 1000.
func parseDeviceRate(s string) (uint64, error) {
	if s == "infinity" {
		return infinite, nil
	}
	return parseBytes(s, 1000)
}

func formatDeviceLimit(l DeviceLimit) string {
	return escapeSpecifiers(l.Device) + " " + formatCount(l.Value)
}
func formatDeviceSpan(l DeviceLimit) string {
	return escapeSpecifiers(l.Device) + " " + formatSpan(l.Value)
}

// parseDevice reads NODE [ACCESS].
func parseDevice(s string) (Pair, error) {
	node, access, _ := strings.Cut(s, " ")
	return Pair{node, access}, nil
}

func formatDevice(d Pair) string {
	return strings.TrimSuffix(escapeSpecifiers(d.First)+" "+d.Second, " ")
}

// maxCPU is the first number of a CPU or memory node that the manager does not take.
const maxCPU = 8192

// parseBitmap reads numbers and ranges, "0-3,5 7", into a bitmap whose first byte has 0 to 7.
func parseBitmap(s string) ([]byte, error) {
	entries, err := syntax{separators: "," + blanks, quotes: true}.split(s)
	if err != nil {
		return nil, err
	}
	bitmap := []byte{}
	for _, e := range entries {
		low, high, isRange := strings.Cut(e, "-")
		if !isRange {
			high = low
		}
		first, err := parseUnsigned(low, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is not a list of numbers and ranges", s)
		}
		last, err := parseUnsigned(high, 32)
		if err != nil || last >= maxCPU || last < first {
			return nil, fmt.Errorf("%q is not a list of numbers below %d and ranges", s, maxCPU)
		}
		for n := first; n <= last; n++ {
			for uint64(len(bitmap)) <= n/8 {
				bitmap = append(bitmap, make([]byte, 8)...) // the manager takes whole words
			}
			bitmap[n/8] |= 1 << (n % 8)
		}
	}
	return bitmap, nil
}

func formatBitmap(bitmap []byte) string {
	has := func(n int) bool { return n/8 < len(bitmap) && bitmap[n/8]&(1<<(n%8)) != 0 }
	var out []string
	for n := 0; n < 8*len(bitmap); n++ {
		if !has(n) {
			continue
		}
		first := n
		for has(n + 1) {
			n++
		}
		if n > first {
			out = append(out, fmt.Sprintf("%d-%d", first, n))
		} else {
			out = append(out, strconv.Itoa(n))
		}
	}
	return strings.Join(out, " ")
}

func mergeBitmaps(before, added any) any {
	b, _ := parseBitmap(formatBitmap(before.([]byte)) + " " + formatBitmap(added.([]byte)))
	return b
}

// parseNodes reads NUMAMask=.
func parseNodes(s string) ([]byte, error) {
	if s == "all" {
		return nil, fmt.Errorf("%q is known to systemd-run alone; write the nodes, like 0-3", s)
	}
	return parseBitmap(s)
}

// parseAffinity reads CPUAffinity=. "numa", the CPUs of NUMAMask=, is a nil bitmap.
func parseAffinity(s string) ([]byte, error) {
	if s == "numa" {
		return nil, nil
	}
	return parseBitmap(s)
}

func formatAffinity(bitmap []byte) string {
	if bitmap == nil {
		return "numa"
	}
	return formatBitmap(bitmap)
}

func affinityProperty(directive string, v any) []Property {
	if v.([]byte) == nil {
		return []Property{{"CPUAffinityFromNUMA", true}}
	}
	return []Property{{directive, v}}
}
