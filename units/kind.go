package units

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

// kind is how the values of a directive are read from text, written to a unit file and sent over the bus.
//
// Text is read as systemd-run(1) reads --property, for a manager of the given version: quotes and backslashes are taken
// away where that does so, and specifiers ("%") are nothing special. What only the manager can tell it may refuse itself.
type kind struct {
	parse func(value string, manager int) (any, error)
	text  func(any) []string // the right-hand sides of one assignment or more
	wire  func(directive string, v any) []Property
	merge func(before, added any) any // for lists: what a second assignment does; nil: it replaces
}

// one is the wire form of kinds whose property has the directive's name and whose Go value has its D-Bus type already.
func one(directive string, v any) []Property { return []Property{{directive, v}} }

// suffixed is the wire form of kinds whose property has a longer name than the directive.
func suffixed(suffix string) func(string, any) []Property {
	return func(directive string, v any) []Property { return []Property{{directive + suffix, v}} }
}

// line is the text form of kinds that take one assignment.
func line[T any](format func(T) string) func(any) []string {
	return func(v any) []string { return []string{format(v.(T))} }
}

// each is the text form of lists of which each item is better read on a line of its own. An empty list is an
// assignment too: it takes back all before it.
func each[T any](format func(T) string) func(any) []string {
	return func(v any) []string {
		items := v.([]T)
		if len(items) == 0 {
			return []string{""}
		}
		out := make([]string, len(items))
		for i := range items {
			out[i] = format(items[i])
		}
		return out
	}
}

func parser[T any](parse func(string) (T, error)) func(string, int) (any, error) {
	return func(s string, _ int) (any, error) { return parse(s) }
}

// item reads a value that is one item of a list. An empty value is the empty list.
func item[T any](parse func(string) (T, error)) func(string, int) (any, error) {
	return func(s string, _ int) (any, error) {
		if s == "" {
			return []T{}, nil
		}
		v, err := parse(s)
		return []T{v}, err
	}
}

// eachProperty is the wire form of lists that the bus takes one by one.
func eachProperty[T any](directive string, v any) []Property {
	var out []Property
	for _, item := range v.([]T) {
		out = append(out, Property{directive, item})
	}
	return out
}

func extend[T any](before, added any) any {
	return append(slices.Clone(before.([]T)), added.([]T)...)
}

var (
	boolean = kind{parser(parseBool), line(formatBool), one, nil}
	text    = kind{parser(asTyped), line(escapeSpecifiers), one, nil}
	words   = kind{parser(splitWords), line(joinWords), one, extend[string]}
	// unitNames are written as they are: in these lists systemd takes a backslash for part of the name.
	unitNames = kind{parser(splitWords), line(func(v []string) string { return strings.Join(v, " ") }), one, extend[string]}
	// names are words with C's escapes, as systemd-run reads all that is about the environment.
	names = kind{parser(splitCWords), line(joinWords), one, extend[string]}
	// assignments are such words, of which each is better read on a line of its own.
	assignments = kind{parser(splitCWords), each(quoteWord), one, extend[string]}
	// patterns and paths that are taken as they are typed, blanks too.
	whole = kind{item(asTyped), each(escapeSpecifiers), one, extend[string]}
	// paths may also be separated by colons, as in $PATH.
	searchPath = kind{parser(syntax{separators: ":" + blanks, quotes: true}.split), line(joinWords), one, extend[string]}

	integer   = kind{parser(parseInt32), line(formatInt32), one, nil}
	nice      = kind{parser(within(-20, 19)), line(formatInt32), one, nil}
	priority  = kind{parser(within(0, 7)), line(formatInt32), one, nil}
	number    = kind{parser(parseUint32), line(formatUint32), one, nil}
	mode      = kind{parser(parseMode), line(func(v uint32) string { return fmt.Sprintf("%04o", v) }), one, nil}
	status    = kind{parser(parseStatus), line(formatStatus), one, nil}
	weight    = kind{parser(parseWeight), line(formatWeight), one, nil}
	cpuWeight = kind{parser(parseCPUWeight), line(formatWeight), one, nil}

	tasks   = kind{parser(amountOf(parseUint64, infinite)), line(formatAmount), amountProperty, nil}
	size    = kind{parser(amountOf(ParseSize, infinite)), line(formatAmount), amountProperty, nil}
	reserve = kind{parser(amountOf(ParseSize, 0)), line(formatAmount), amountProperty, nil}
	share   = kind{parser(parseShare), line(formatShare), shareProperty, nil}
	quota   = kind{parser(parseQuota), line(formatQuota), suffixed("PerSecUSec"), nil}
	// A directory's quota has its own type on the bus (tus).
	directoryQuota = kind{parser(parseDirectoryQuota), line(formatDirectoryQuota), directoryQuotaProperty, nil}

	span         = kind{parser(parseSpan), line(formatSpan), spanProperty, nil}
	spanOrNone   = kind{parser(parseSpanOrNone), line(formatSpanOrNone), spanProperty, nil}
	nanoseconds  = kind{parser(parseNanoseconds), line(formatCount), one, nil}
	elapse       = kind{nil, line(formatSpan), elapseProperty, nil}
	startAndStop = kind{parse: parser(parseSpan)} // stands for two directives

	limit        = kind{parser(limitOf(parseUint64)), line(formatLimit), limitProperties, nil}
	sizeLimit    = kind{parser(limitOf(ParseSize)), line(formatLimit), limitProperties, nil}
	secondsLimit = kind{parser(limitOf(parseSeconds)), line(formatLimit), limitProperties, nil}
	microsLimit  = kind{parser(limitOf(parseMicroseconds)), line(formatLimit), limitProperties, nil}
	niceLimit    = kind{parser(parseNiceLimits), line(formatLimit), limitProperties, nil}

	signal       = kind{parser(parseSignalExactly), line(SignalName), one, nil}
	statuses     = kind{parser(parseStatuses), line(formatStatuses), one, mergeStatuses}
	logLevel     = enumeration(logLevels, 7)
	facility     = enumeration(facilities, 127)
	scheduler    = enumeration(schedulers, 1<<31-1)
	ioClass      = enumeration(ioClasses, 7)
	memoryPolicy = enumeration(memoryPolicies, -1)
	errorNumber  = kind{parser(parseErrno), line(formatErrno), one, nil}
	propagation  = kind{parser(parsePropagation), line(formatPropagation), one, nil}
	coreFilter   = kind{parser(parseCoreFilter), line(func(v uint64) string { return fmt.Sprintf("%#x", v) }), one, nil}

	cpus     = kind{parser(parseBitmap), line(formatBitmap), one, nil}
	affinity = kind{parser(parseAffinity), line(formatAffinity), affinityProperty, mergeBitmaps}
	nodes    = kind{parser(parseNodes), line(formatBitmap), one, mergeBitmaps}

	caps          = kind{parser(parseCapabilityMask), line(formatCapabilities), one, nil}
	secureBits    = kind{parser(parseSecureBits), line(formatSecureBits), one, nil}
	retained      = kind{parseRetainedNamespaces, line(formatRetainedNamespaces), one, nil}
	delegated     = kind{parseDelegatedNamespaces, line(formatNamespaces), one, nil}
	filters       = kind{parser(parseFilter), each(formatFilter), eachProperty[Filter], extend[Filter]}
	profile       = kind{parser(asTyped), line(escapeSpecifiers), profileProperty, nil}
	booleanOrName = kind{parser(asTyped), line(escapeSpecifiers), booleanOrNameProperty, nil}
	hostname      = kind{parseHostname, line(formatPair), hostnameProperty, nil}
	delegate      = kind{parser(asTyped), line(escapeSpecifiers), delegateProperty, mergeDelegates}

	command     = kind{nil, line(formatCommand), commandProperty, nil}
	commands    = kind{parseCommands, each(formatCommand), suffixed("Ex"), extend[Command]}
	openFiles   = kind{item(parseOpenFile), each(formatOpenFile), one, extend[OpenFile]}
	stream      = kind{parser(asTyped), line(escapeSpecifiers), streamProperty, nil}
	inputText   = kind{parser(parseInputText), line(formatInputText), inputTextProperty, extend[byte]}
	inputData   = kind{parser(parseBase64), line(base64.StdEncoding.EncodeToString), one, extend[byte]}
	fields      = kind{item(asTyped), each(quoteWord), bytesProperty, extend[string]}
	logPatterns = kind{item(parseLogPattern), each(formatLogPattern), one, extend[Flagged]}
	refreshes   = kind{parser(parseRefreshes), each(formatRefresh), one, extend[Flagged]}
	envFiles    = kind{item(parseEnvFile), each(formatEnvFile), renamed("EnvironmentFiles"), extend[EnvFile]}
	condition   = kind{item(parseCondition), each(formatCondition), conditionProperty, extend[Condition]}

	credentials          = kind{item(parseCredential), each(formatCredential), one, extend[Credential]}
	encryptedCredentials = kind{item(parseEncryptedCredential), each(formatEncryptedCredential), one, extend[Credential]}
	loadedCredentials    = kind{item(parseLoadedCredential), each(formatPair), one, extend[Pair]}
	importedCredentials  = kind{item(parseImportedCredential), each(formatPair), importedCredentialProperty, extend[Pair]}

	binds          = kind{parser(parseBinds), each(formatBind), one, extend[Bind]}
	tmpfs          = kind{parser(parseTmpfs), each(formatTmpfs), one, extend[Tmpfs]}
	mountImages    = kind{parser(parseMountImages), each(formatMountImage), one, extend[MountImage]}
	extensions     = kind{parser(parseExtensionImages), each(formatExtensionImage), one, extend[ExtensionImage]}
	ownDirectories = kind{parser(parseDirectories), each(formatDirectory), directoryProperties, extend[Directory]}

	devices       = kind{item(parseDevice), each(formatDevice), one, extend[Pair]}
	deviceWeights = kind{item(deviceOf(parseUint64)), each(formatDeviceLimit), one, extend[DeviceLimit]}
	deviceLimits  = kind{item(deviceOf(parseDeviceRate)), each(formatDeviceLimit), one, extend[DeviceLimit]}
	deviceSpans   = kind{item(deviceOf(parseSpan)), each(formatDeviceSpan), spanProperty, extend[DeviceLimit]}
	prefixes      = kind{parser(parsePrefixes), each(formatPrefix), one, extend[Prefix]}
	binding       = kind{item(parseSocketBind), each(formatSocketBind), one, extend[SocketBind]}
	programs      = kind{item(parseProgram), each(formatPair), one, extend[Pair]}
	nftSets       = kind{parser(parseNFTSets), each(formatNFTSet), one, extend[NFTSet]}
)

// renamed is the wire form of kinds whose property has another name than the directive.
func renamed(property string) func(string, any) []Property {
	return func(_ string, v any) []Property { return []Property{{property, v}} }
}

func asTyped(s string) (string, error) { return s, nil }

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

// Pair is a value of two parts (ss), like ProtectHostname=private:NAME.
type Pair struct{ First, Second string }

func formatPair(p Pair) string {
	return escapeSpecifiers(strings.TrimSuffix(p.First+":"+p.Second, ":"))
}

// Flagged is a text with a flag before it (bs).
type Flagged struct {
	Flag bool
	Text string
}

// profileProperty sends "-NAME", a profile that need not exist, as the flag that stands for the dash (bs).
func profileProperty(directive string, v any) []Property {
	name, ignore := strings.CutPrefix(v.(string), "-")
	return []Property{{directive, Flagged{ignore, name}}}
}

// booleanOrNameProperty sends yes and no as the property that every version has, and other values as the newer one beside it.
func booleanOrNameProperty(directive string, v any) []Property {
	if yes, err := parseBool(v.(string)); err == nil {
		return []Property{{directive, yes}}
	}
	return []Property{{directive + "Ex", v}}
}

// parseHostname reads ProtectHostname=: a boolean, or private[:NAME].
func parseHostname(s string, manager int) (any, error) {
	if yes, err := parseBool(s); err == nil {
		return Pair{formatBool(yes), ""}, nil
	}
	if manager < hostnameSince {
		return nil, fmt.Errorf("%q needs systemd %d; this one is %d", s, hostnameSince, manager)
	}
	first, second, colon := strings.Cut(s, ":")
	if s == "" || colon && second == "" {
		return nil, fmt.Errorf("%q is not yes, no or private:NAME", s)
	}
	return Pair{first, second}, nil
}

// hostnameSince is the first version that gives a UTS namespace a name of its own.
const hostnameSince = 258

// hostnameProperty sends a boolean as every version takes it; only 258 and later know ProtectHostnameEx.
func hostnameProperty(directive string, v any) []Property {
	if yes, err := parseBool(v.(Pair).First); err == nil && v.(Pair).Second == "" {
		return []Property{{directive, yes}}
	}
	return []Property{{directive + "Ex", v}}
}

// delegateProperty sends a boolean, or the controllers to delegate.
func delegateProperty(directive string, v any) []Property {
	if yes, err := parseBool(v.(string)); err == nil {
		return []Property{{directive, yes}}
	}
	controllers, _ := splitWords(v.(string))
	return []Property{{"DelegateControllers", controllers}}
}

// mergeDelegates: all controllers are more than some, and some more than none.
func mergeDelegates(before, added any) any {
	all, notBool := parseBool(before.(string))
	_, controllers := parseBool(added.(string))
	switch {
	case notBool != nil && controllers != nil:
		return before.(string) + " " + added.(string)
	case all && controllers != nil:
		return before
	}
	return added
}

// streamProperty sends StandardOutput=file:PATH and its like, which are properties of their own.
func streamProperty(directive string, v any) []Property {
	scheme, name, _ := strings.Cut(v.(string), ":")
	if suffix := streamSuffixes[scheme]; suffix != "" && len(scheme) < len(v.(string)) {
		return []Property{{directive + suffix, name}}
	}
	return []Property{{directive, v}}
}

var streamSuffixes = map[string]string{"fd": "FileDescriptorName", "file": "File", "append": "FileToAppend", "truncate": "FileToTruncate"}

// parseInputText reads StandardInputText=, whose lines the manager knows as data only.
func parseInputText(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	unescaped, err := unescape(s, false)
	return []byte(unescaped + "\n"), err
}

func inputTextProperty(_ string, v any) []Property { return []Property{{"StandardInputData", v}} }

func formatInputText(v []byte) string {
	return strings.ReplaceAll(cEscape(strings.TrimSuffix(string(v), "\n")), "%", "%%")
}

func parseBase64(s string) ([]byte, error) {
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune(blanks, r) {
			return -1
		}
		return r
	}, s)
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%.40q is not base64", s)
	}
	return data, nil
}

func bytesProperty(directive string, v any) []Property {
	out := [][]byte{}
	for _, w := range v.([]string) {
		out = append(out, []byte(w))
	}
	return []Property{{directive, out}}
}

// parseLogPattern reads a regular expression for log lines; "~" before it: lines that match are left out.
func parseLogPattern(s string) (Flagged, error) {
	pattern, deny := strings.CutPrefix(s, "~")
	return Flagged{!deny, pattern}, nil
}

func formatLogPattern(p Flagged) string {
	if !p.Flag {
		return "~" + oneLine(p.Text)
	}
	return oneLine(p.Text) // "%" stays: here are no specifiers
}

// parseRefreshes reads RefreshOnReload=: words, or "~" and those that are left out.
func parseRefreshes(s string) ([]Flagged, error) {
	s, invert := strings.CutPrefix(s, "~")
	out := []Flagged{}
	for _, w := range strings.FieldsFunc(s, isBlank) {
		out = append(out, Flagged{invert, w})
	}
	return out, nil
}

func formatRefresh(r Flagged) string {
	if r.Flag {
		return "~" + r.Text
	}
	return r.Text
}

// EnvFile is a file of the host with assignments (sb).
type EnvFile struct {
	Path          string
	IgnoreMissing bool
}

func parseEnvFile(s string) (EnvFile, error) {
	path, ignore := strings.CutPrefix(s, "-")
	return EnvFile{path, ignore}, nil
}

func formatEnvFile(f EnvFile) string {
	if f.IgnoreMissing {
		return "-" + escapeSpecifiers(f.Path)
	}
	return escapeSpecifiers(f.Path)
}

// Condition is a condition or an assertion without its type: "|" before it: one of those that have it must hold; "!": it must not.
type Condition struct {
	Trigger, Negate bool
	Parameter       string
}

func parseCondition(s string) (Condition, error) {
	c := Condition{}
	s, c.Trigger = strings.CutPrefix(s, "|")
	c.Parameter, c.Negate = strings.CutPrefix(s, "!")
	return c, nil
}

func formatCondition(c Condition) string {
	prefix := ""
	if c.Trigger {
		prefix = "|"
	}
	if c.Negate {
		prefix += "!"
	}
	return prefix + escapeSpecifiers(c.Parameter)
}

// conditionProperty sends all types of conditions as one property, a(sbbs).
func conditionProperty(directive string, v any) []Property {
	property := "Conditions"
	if strings.HasPrefix(directive, "Assert") {
		property = "Asserts"
	}
	type typed struct {
		Type            string
		Trigger, Negate bool
		Parameter       string
	}
	out := []typed{}
	for _, c := range v.([]Condition) {
		out = append(out, typed{directive, c.Trigger, c.Negate, c.Parameter})
	}
	return []Property{{property, out}}
}
