package vm

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nspawnd/units"

	"github.com/godbus/dbus/v5"
)

// propertyValues are what each directive is given, beside the empty value and one that hardly any takes. Words before the colon are
// directives, or ends of their names after "*".
var propertyValues = []struct {
	directives string
	values     []string
}{
	// systemd.unit(5)
	{"Description", []string{"some text", "100% \"of\" it\\", "%n"}},
	{"SourcePath", []string{"/etc/hostname", "relative"}},
	{"OnFailureJobMode", []string{"replace", "fail", "isolate"}},
	{"JobTimeoutAction StartLimitAction FailureAction", []string{"none", "reboot", "exit-force"}},
	{"SuccessAction", []string{"none", "reboot"}},
	{"JobTimeoutRebootArgument RebootArgument", []string{"a b"}},
	{"CollectMode", []string{"inactive", "inactive-or-failed"}},
	{"SuccessActionExitStatus FailureActionExitStatus", []string{"0", "255", "256", "-1", "0x10"}},
	{"Documentation", []string{"man:systemd(1) https://example.test/a%20b", `"man:a(1)"`, "no-url"}},
	{"RequiresMountsFor WantsMountsFor", []string{"/srv /tmp", `"/srv/a b"`, "relative"}},
	{"Markers", []string{"needs-restart", "needs-restart needs-reload"}},
	{"Wants Before After Conflicts OnSuccess OnFailure PropagatesReloadTo ReloadPropagatedFrom PropagatesStopTo StopPropagatedFrom JoinsNamespaceOf",
		[]string{"a.service b.service", `a\\x2db.service`, `a\x2db.service`, `"c.service"`, "no/name"}},
	{"Requires Requisite BindsTo PartOf Upholds", []string{"basic.target", "basic.target sysinit.target", "no-such.service"}},
	{"BoundBy ConflictedBy ConsistsOf InSlice OnFailureOf OnSuccessOf ReferencedBy References RequiredBy RequisiteOf SliceOf TriggeredBy Triggers UpheldBy WantedBy",
		[]string{"basic.target"}},
	{"*Architecture", []string{"x86-64", "!native"}},
	{"*Firmware", []string{"uefi"}},
	{"*Virtualization", []string{"container", "|!vm"}},
	{"*Host", []string{"lab", "*.test"}},
	{"*Fraction", []string{"50%", "salt 10%"}},
	{"*KernelCommandLine", []string{"quiet", "a=b c"}},
	{"*Version", []string{">=6.1", "systemd >257"}},
	{"*Credential *MachineTag *ControlGroupController *KernelModuleLoaded *CPUFeature", []string{"memory", "|!x"}},
	{"*Security", []string{"selinux", "!uefi-secureboot"}},
	{"ConditionCapability AssertCapability", []string{"CAP_SYS_ADMIN"}},
	{"*ACPower *FirstBoot", []string{"true", "|no"}},
	{"ConditionMemory AssertMemory", []string{">=1G", "1024"}},
	{"*CPUs", []string{">1"}},
	{"ConditionEnvironment AssertEnvironment", []string{"A=b", "PATH"}},
	{"*OSRelease", []string{"ID=debian", "VERSION_ID>=12"}},
	{"*MemoryPressure *CPUPressure *IOPressure", []string{"10%", "system.slice:10%/5min"}},
	{"*NeedsUpdate", []string{"/etc", "|!/var", "etc"}},
	{"*PathExists *PathExistsGlob *PathIsDirectory *PathIsSymbolicLink *PathIsMountPoint *PathIsReadWrite *PathIsEncrypted *PathIsSocket *DirectoryNotEmpty *FileNotEmpty *FileIsExecutable",
		[]string{"/etc/hostname", "|!/no such", "!/a/100%", "relative"}},
	{"ConditionUser AssertUser ConditionGroup AssertGroup", []string{"root", "0", "!@system"}},

	// systemd.service(5), systemd.kill(5)
	{"Type", []string{"simple", "exec", "oneshot", "notify", "notify-reload", "idle"}},
	{"ExitType", []string{"main", "cgroup"}},
	{"Restart", []string{"no", "on-failure", "on-abnormal"}},
	{"RestartMode", []string{"normal", "direct", "debug"}},
	{"BusName", []string{"org.example.UNIT", "1"}},
	{"PIDFile", []string{"/run/x.pid", "y.pid"}},
	{"NotifyAccess", []string{"none", "main", "exec", "all"}},
	{"OOMPolicy", []string{"continue", "stop", "kill"}},
	{"TimeoutStartFailureMode TimeoutStopFailureMode", []string{"terminate", "abort", "kill"}},
	{"FileDescriptorStorePreserve", []string{"no", "yes", "restart"}},
	{"USBFunctionDescriptors USBFunctionStrings", []string{"/dev/null"}},
	{"LUOSession", []string{"yes", "name"}},
	{"SuccessExitStatus RestartPreventExitStatus RestartForceExitStatus", []string{"3", "0 255 TEMPFAIL CONFIG SIGUSR1 SIGRTMIN+2 KILL", "256", "sigterm"}},
	{"ExecCondition ExecStartPre ExecStartPost ExecReload ExecReloadPost ExecStop ExecStopPost", []string{"/bin/true", "-/bin/false a 'b c' \"d\\te\" ;",
		"@/bin/sh argv0 -c true", ":/bin/echo $HOME $$ %n", "+/bin/true", "!/bin/true", "!!/bin/true", "-+:/bin/true", "+!/bin/true", "|exit 0", "-|@id -u", "@/bin/true", "true",
		"bin/true x", "-", `/bin/true \q`, "/bin/true 'open"}},
	{"ExecStart", []string{"/bin/false"}},
	{"OpenFile", []string{"/etc/hostname", "/etc/hostname:host", "/etc/hostname:host:read-only,graceful", "/dev/null::append", "/a:b:append,truncate", "/a:b:nope", "relative", "/a b",
		`/a\x3ab:c`}},
	{"RefreshOnReload", []string{"yes", "no", "extensions credentials", "~extensions"}},
	{"KillMode", []string{"control-group", "mixed", "process", "none"}},
	{"KillSignal RestartKillSignal FinalKillSignal WatchdogSignal ReloadSignal", []string{"SIGTERM", "TERM", "9", "SIGRTMIN+3", "RTMAX-1", "64", "0", "65", "sigterm", "RTMIN+31", "SIGRTMAX"}},
	{"TimeoutSec", []string{"5s", "infinity", "0", "x"}},

	// systemd.exec(5): paths, mounts, isolation
	{"RootDirectory RootImage RootVerity RootMStack", []string{"/srv"}},
	{"RootHash", []string{strings.Repeat("ab", 32), "/srv/x.roothash"}},
	{"RootHashSignature", []string{"base64:QUJD"}},
	{"RootImageOptions", []string{"root:ro"}},
	{"RootEphemeral", []string{"yes"}},
	{"WorkingDirectory", []string{"/srv", "-/srv", "~", "relative"}},
	{"RootImagePolicy MountImagePolicy ExtensionImagePolicy", []string{"root=verity+signed", "*", "~", "x=y"}},
	{"RuntimeDirectoryPreserve", []string{"yes", "no", "restart"}},
	{"MountFlags", []string{"shared", "slave", "private"}},
	{"BindPaths BindReadOnlyPaths", []string{"/srv", "/srv:/mnt", "-/no:/mnt:norbind /tmp:/a:rbind", `"/a b:/c d"`, `/a\:b:/c`, "/a::", "/a:/b:", "/a:/b:nope", "relative", "/a:relative", "/a  /b"}},
	{"TemporaryFileSystem", []string{"/mnt", "/mnt:ro,mode=0755 /a:size=10%", `"/a b"`, "relative", ":ro"}},
	{"MountImages", []string{"/a.raw:/b", "-/a.raw:/b:ro", "/a.raw:/b:root:ro,nosuid:usr:ro /c.raw:/d", `/a\:b:/c`, `"/a b:/c"`, "/a.raw", "/a.raw:relative"}},
	{"ExtensionImages", []string{"/a.raw", "-/a.raw:ro", "/a.raw:root:ro:usr:nodev /b.raw", "relative"}},
	{"*Paths *Directories", []string{"/srv", "/srv /tmp", "-/no", "+/srv", "-+/no", `"/a b" '/c'`, `/a\x41`, "relative", "'open"}},
	{"ExtensionDirectories", []string{"/srv", "-/srv /tmp", "relative"}},
	{"ExecSearchPath", []string{"/bin", "/usr/bin /bin", "relative"}},
	{"ConfigurationDirectory", []string{"a b/c", "/abs", "../x"}},
	{"RuntimeDirectory StateDirectory CacheDirectory LogsDirectory", []string{"a", "a b/c", "a:b", "a:b:ro c", "a::ro", "/abs", "../x", "a:b:rw"}},
	{"*Mode", []string{"0755", "700", "7777", "10000", "8"}},
	{"*Quota", []string{"10M", "50%", "off", "x"}},
	{"NetworkNamespacePath UserNamespacePath IPCNamespacePath", []string{"/run/ns", "relative"}},
	{"PrivatePIDs", []string{"yes", "no"}},
	{"PrivateBPF", []string{"yes", "no"}},
	{"BPFDelegateCommands", []string{"any", "BPFMapCreate BPFProgLoad"}},
	{"BPFDelegateMaps BPFDelegatePrograms BPFDelegateAttachments", []string{"any"}},
	{"ProtectSystem", []string{"yes", "no", "full", "strict"}},
	{"ProtectHome", []string{"yes", "no", "read-only", "tmpfs"}},
	{"ProtectProc", []string{"default", "noaccess", "invisible", "ptraceable"}},
	{"ProcSubset", []string{"all", "pid"}},
	{"KeyringMode", []string{"inherit", "private", "shared"}},
	{"Personality", []string{"x86-64", "x86", "native"}},
	{"SELinuxContext", []string{"system_u:x", "-x"}},
	{"AppArmorProfile SmackProcessLabel", []string{"x", "-x"}},
	{"PrivateTmp", []string{"yes", "no", "disconnected"}},
	{"PrivateUsers", []string{"yes", "no", "self", "identity", "full", "managed"}},
	{"ProtectControlGroups", []string{"yes", "no", "private", "strict"}},
	{"ProtectHostname", []string{"yes", "no", "private", "private:name", "private:", "yes:name"}},
	{"CapabilityBoundingSet AmbientCapabilities", []string{"CAP_CHOWN", "CAP_CHOWN cap_kill", "~CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"}},
	{"SecureBits", []string{"noroot", "keep-caps keep-caps-locked no-setuid-fixup no-setuid-fixup-locked noroot-locked"}},
	{"RestrictNamespaces", []string{"yes", "no", "mnt", "cgroup ipc net mnt pid user uts", "~mnt net", "~user"}},
	{"DelegateNamespaces", []string{"yes", "no", "mnt net", "~mnt"}},
	{"SystemCallFilter SystemCallLog", []string{"@system-service", "~@mount reboot", "read write", "nosuchcall"}},
	{"SystemCallFilter", []string{"~reboot:EPERM mount:kill"}},
	{"RestrictAddressFamilies", []string{"AF_INET AF_UNIX", "~AF_PACKET", "none"}},
	{"RestrictFileSystems", []string{"ext4 tmpfs", "~@network"}},
	{"RestrictNetworkInterfaces", []string{"lo eth0", "~lo"}},
	{"SystemCallErrorNumber", []string{"EPERM", "ENOSYS", "EAGAIN", "EWOULDBLOCK", "1", "4095", "4096", "kill", "0"}},
	{"SystemCallArchitectures", []string{"native", "native x86 x32"}},

	// systemd.exec(5): process
	{"User Group", []string{"root", "0", "65534", "no/name"}},
	{"SupplementaryGroups", []string{"adm audio", "0 1"}},
	{"PAMName", []string{"login"}},
	{"MemoryTHP", []string{"inherit", "disable", "madvise"}},
	{"UMask", []string{"0022", "077"}},
	{"Environment", []string{"A=b", `A=b "C=d e" 'F=$G%h'`, `A=\x41\n`, "noassignment", "a-b=c", "A=b\\q", "'open"}},
	{"PassEnvironment UnsetEnvironment", []string{"A", "A B", "A=b"}},
	{"EnvironmentFile", []string{"/etc/a b", "-/etc/x", "relative"}},
	{"Nice", []string{"-20", "19", "0", "-21", "20"}},
	{"OOMScoreAdjust", []string{"-1000", "1000", "0", "1001"}},
	{"CPUSchedulingPolicy", []string{"other", "batch", "idle", "fifo", "rr", "1"}},
	{"CPUSchedulingPriority", []string{"0", "1", "99", "100"}},
	{"IOSchedulingClass", []string{"none", "realtime", "best-effort", "idle", "2", "8"}},
	{"IOSchedulingPriority", []string{"0", "7", "8", "-1"}},
	{"CPUAffinity", []string{"0", "0-3,7 9", "numa", "0-", "8192", "3-1"}},
	{"NUMAPolicy", []string{"default", "preferred", "bind", "interleave", "local"}},
	{"NUMAMask", []string{"0", "0-1", "all"}},
	{"CoredumpFilter", []string{"default", "all", "private-anonymous shared-huge", "0x33", "ff"}},
	{"TimerSlackNSec", []string{"1", "50us", "1ms 5ns", "infinity"}},
	{"*FSIZE *DATA *STACK *CORE *RSS LimitAS *MEMLOCK *MSGQUEUE", []string{"0", "infinity", "4K", "1G:2G", "1.5M", "2:1", "1M:infinity", "-1"}},
	{"LimitNOFILE LimitNPROC LimitLOCKS LimitSIGPENDING LimitRTPRIO", []string{"0", "infinity", "1024", "10:20", "4K", "2:1", "18446744073709551615", "0x10"}},
	{"LimitCPU", []string{"10", "1min:2min", "1500ms", "infinity"}},
	{"LimitRTTIME", []string{"10", "1ms:1s", "infinity"}},
	{"LimitNICE", []string{"0", "40", "-5", "+19:-20", "41", "-21", "infinity"}},

	// systemd.exec(5): credentials, input, output, logging
	{"SetCredential", []string{"id:value", `id:a\x00b\n100%`, "id:", "id", ":x", "a/b:c"}},
	{"SetCredentialEncrypted", []string{"id:QUJD", "id:*"}},
	{"LoadCredential LoadCredentialEncrypted", []string{"id", "id:/srv/x", "id:name", "id:/a b", "a/b:/c"}},
	{"ImportCredential", []string{"foo.*", "foo.*:bar.", "a/b"}},
	{"StandardInput", []string{"null", "tty", "data", "file:/dev/null", "fd:name", "socket", "file:relative"}},
	{"StandardOutput StandardError", []string{"inherit", "null", "journal", "kmsg+console", "tty", "file:/tmp/x", "append:/tmp/x", "truncate:/tmp/x", "fd:name", "append:relative"}},
	{"StandardInputText", []string{"some text", `a\tb\x41 100%`, `a\q`}},
	{"StandardInputData", []string{"QUJD", "QUJDRA==", "Q U J D", "*"}},
	{"TTYPath", []string{"/dev/tty1", "relative"}},
	{"UtmpIdentifier", []string{"x"}},
	{"UtmpMode", []string{"init", "login", "user"}},
	{"SyslogIdentifier LogNamespace", []string{"x", "a-b.c"}},
	{"SyslogLevel LogLevelMax", []string{"emerg", "debug", "3", "8"}},
	{"SyslogFacility", []string{"kern", "local7", "3", "128"}},
	{"LogExtraFields", []string{"A=b", "A=b c=d", "x"}},
	{"LogFilterPatterns", []string{"a.*b", "~ x", "(", "100%"}},

	// systemd.resource-control(5)
	{"Slice", []string{"system.slice", "a-b.slice", "x.service"}},
	{"Delegate", []string{"yes", "no", "cpu memory", "nosuch"}},
	{"DelegateSubgroup", []string{"payload", "a/b"}},
	{"DisableControllers", []string{"io", "cpu memory"}},
	{"DevicePolicy", []string{"auto", "closed", "strict"}},
	{"*PressureWatch", []string{"auto", "on", "off", "skip"}},
	{"ManagedOOMSwap ManagedOOMMemoryPressure", []string{"auto", "kill"}},
	{"ManagedOOMPreference", []string{"none", "avoid", "omit"}},
	{"ManagedOOMMemoryPressureLimit", []string{"0%", "100%", "12.34%", "5‰", "101%", "5"}},
	{"OOMRules", []string{"a b"}},
	{"CPUSetPartition", []string{"member", "root", "isolated"}},
	{"BindNetworkInterface", []string{"lo", "a/b"}},
	{"CPUWeight StartupCPUWeight", []string{"idle", "1", "10000", "0", "10001"}},
	{"IOWeight StartupIOWeight", []string{"1", "10000", "0", "10001", "idle"}},
	{"CPUQuota", []string{"1%", "150%", "33.33%", "0%", "20", "12.345%", "5‰", "1000000%"}},
	{"CPUQuotaPeriodSec", []string{"1ms", "1s", "100us", "10s", "infinity"}},
	{"AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes", []string{"0", "0-3", "0,2 5-6", "8191", "8192", "x-y"}},
	{"MemoryMin MemoryLow MemoryHigh MemoryMax MemorySwapMax MemoryZSwapMax", []string{"0", "64M", "1.5G", "infinity", "50%", "0.01%", "100%", "101%", "1G 500M", "500M 1G", "1T", "-1",
		"18446744073709551614", "18446744073709551616", "64 M", "64X"}},
	{"TasksMax", []string{"1", "infinity", "50%", "0", "4K", "100"}},
	{"DeviceAllow", []string{"/dev/null", "/dev/null rw", "char-pts rwm", "block-*", "/dev/null  rw", "relative r", "/dev/null x"}},
	{"IODeviceWeight", []string{"/dev/null 200", "/ 1", "/dev/null 0", "/dev/null", "/dev/null 10001"}},
	{"IODeviceLatencyTargetSec", []string{"/dev/null 20ms", "/ infinity", "/dev/null"}},
	{"IOReadBandwidthMax IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax", []string{"/dev/null 1M", "/ 100", "/dev/null infinity", "/dev/null 1.5K", "/dev/null", "relative 1"}},
	{"IPAddressAllow IPAddressDeny", []string{"any", "localhost", "link-local", "multicast", "10.0.0.0/8 fd00::/8", "10.1.2.3", "10.1.2.3/24", "::1", "10.0.0.0/33", "any localhost", "1.2.3"}},
	{"IPIngressFilterPath IPEgressFilterPath", []string{"/sys/fs/bpf/x", "relative"}},
	{"SocketBindAllow SocketBindDeny", []string{"any", "80", "tcp:80", "ipv6:udp:1000-2000", "ipv4", "udp", "ipv4:tcp", "ipv6:any", "tcp:any", "0", "65535", "65536", "80-80", "90-80", "tcp:x", "x:80", "ipv4:ipv6:1"}},
	{"BPFProgram", []string{"egress:/sys/fs/bpf/x", "nope:/a", "egress"}},
	{"NFTSet", []string{"cgroup:inet:t:s", "user:ip6:a_b:c1 group:netdev:x:y", "cgroup:inet:t", "cgroup:nope:t:s", "ifindex:inet:t:s", "cgroup:inet:1t:s"}},

	// What has one form for many.
	{"*Sec", []string{"0", "1", "1500ms", "1min 30s", "1h30m", "2.5s", "1M", "1y", "infinity", "1 parsec", "-1", "1us", "5 s", "1.s", "100years 5d", "999999999999years"}},
	{"StartLimitBurst RestartSteps FileDescriptorStoreMax TTYRows TTYColumns LogRateLimitBurst", []string{"0", "10", "4294967295", "4294967296", "-1", "0x10", "010", "+5"}},
	{"StopWhenUnneeded RefuseManualStart RefuseManualStop AllowIsolate IgnoreOnIsolate SurviveFinalKillSignal DefaultDependencies RemainAfterExit GuessMainPID RootDirectoryStartOnly PermissionsStartOnly " +
		"SendSIGHUP SendSIGKILL MountAPIVFS BindLogSockets PrivateMounts *Accounting PrivateIPC PrivateNetwork PrivateDevices ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectClock " +
		"NoNewPrivileges RestrictSUIDSGID RestrictRealtime LockPersonality MemoryDenyWriteExecute RemoveIPC DynamicUser SetLoginEnvironment IgnoreSIGPIPE CPUSchedulingResetOnFork MemoryKSM TTYReset TTYVHangup " +
		"TTYVTDisallocate SyslogLevelPrefix MemoryZSwapWriteback CoredumpReceive", []string{"yes", "no", "1", "f", "ON", "maybe"}},
}

// valuesOf gives the values for a directive: all of a row for the first directive that has it, two for the others.
func valuesOf(directive string, taken map[int]bool) []string {
	var values []string
	for i, row := range propertyValues {
		for _, name := range strings.Fields(row.directives) {
			suffix, many := strings.CutPrefix(name, "*")
			if name != directive && !(many && strings.HasSuffix(directive, suffix)) {
				continue
			}
			if taken[i] {
				values = append(values, row.values[:min(2, len(row.values))]...)
			} else {
				values = append(values, row.values...)
			}
			taken[i] = true
			break
		}
	}
	return values
}

// explainedProperties are the differences from systemd-run that are meant, or its own, by regular expressions for assignments.
var explainedProperties = map[string]string{
	`Root(Directory|Image|Verity|MStack|Hash|HashSignature|ImageOptions|ImagePolicy|Ephemeral)=.*|ExecStart=.*`: "they would make another machine",
	`(CapabilityBoundingSet|AmbientCapabilities|SecureBits)=zzz`:                                                "systemd-run takes unknown names and forgets them, which leaves a machine with other privileges than was typed",
	`NUMAMask=all`: "systemd-run looks up the host's nodes",
	`(BindPaths|BindReadOnlyPaths|LogExtraFields|OpenFile)=`: "the empty value takes back what was before, as in unit files; systemd-run takes it for an item, which is refused",
	// What only the systemd-run of 257 can't spell; the manager takes it.
	`IODeviceLatencyTargetSec=|ImportCredential=.*:.*|StandardInputText=.*|PrivateTmp=disconnected|ProtectControlGroups=(private|strict)|PrivateUsers=(self|identity)`: "systemd-run of 257",
	`CPUAffinity=3-1`:    "257 ignores an empty range, 262 refuses it",
	`Exec.*=-?\|.*`:      "257 takes \"|\" for a part of the path, which nothing has",
	`StandardInputText=`: "as in unit files; systemd-run adds an empty line",
}

// explainedFiles are assignments of which the bus makes something else than a unit file can say: "none" for an empty value or 0, a flag
// that only files have ("-"), an empty credential; files have no Markers= and no AssertFirmware=.
var explainedFiles = regexp.MustCompile(`^(Markers=.*|AssertFirmware=.+|CapabilityBoundingSet=~.*|(Memory|CPU|IO)PressureWatch=|SELinuxContext=-x|(Mount|Extension)ImagePolicy=|SetCredential=id:|RestrictAddressFamilies=|` +
	`(State|Cache|Logs)DirectoryQuota=|Timeout(Start|Stop|)Sec=0|WatchdogSec=1)$`)

// TestProperties gives each directive that systemd takes for a transient service many values, and compares what the unit then is
// when systemd-run made it, when our encoding for the bus made it, and when our unit file did: every property that "systemctl show" has.
func TestProperties(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		directives := strings.Fields(string(readTestdata(t, "transient-settings-262.txt")))
		if m.Suite == Forky {
			if now := strings.Fields(m.Must("systemd-analyze", "transient-settings", "service")); !slices.Equal(now, directives) {
				t.Fatalf("systemd-analyze transient-settings service has changed: %q", now)
			}
		}
		version, err := strconv.Atoi(strings.Fields(m.Must("systemctl", "--version"))[1])
		if err != nil {
			t.Fatal(err)
		}
		var assignments []string
		taken := map[int]bool{}
		for _, directive := range directives {
			values := valuesOf(directive, taken)
			if len(values) == 0 {
				t.Errorf("%s: no values to try", directive)
			}
			for _, v := range append(values, "", "zzz") {
				assignments = append(assignments, directive+"="+v)
			}
		}
		if only := os.Getenv("PROPERTY"); only != "" { // a regular expression, for who works at one
			pattern := regexp.MustCompile(only)
			assignments = slices.DeleteFunc(assignments, func(a string) bool { return !pattern.MatchString(a) })
		}
		p := &propertyTest{m: m, t: t, version: version, assignments: assignments}
		p.run()
	})
}

func readTestdata(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(path.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type propertyTest struct {
	m           *Machine
	t           *testing.T
	version     int
	assignments []string
	bus         *dbus.Conn
}

// attempt is one way to make a unit of an assignment: why it was refused, or what the unit is.
type attempt struct {
	refused string
	unit    map[string]string
}

func (p *propertyTest) run() {
	p.connect()
	p.keep()
	started := time.Now()
	theirs, ours := p.systemdRun(), p.ours()
	for i := range p.assignments {
		if theirs[i].refused == "" {
			theirs[i].unit = p.properties("theirs", i)
		}
		if ours[i].refused == "" {
			ours[i].unit = p.properties("ours", i)
		}
	}
	p.asFiles(ours) // which makes the manager read the others again from files of its own, where some values are lost
	counts := map[string]int{}
	for i, a := range p.assignments {
		difference := differenceOf(theirs[i], ours[i])
		switch {
		case difference != "":
			why := ""
			for pattern, reason := range explainedProperties {
				if regexp.MustCompile("^(?:" + pattern + ")$").MatchString(a) {
					why = reason
				}
			}
			if why == "" {
				counts["differ"]++
				p.t.Errorf("%s: %s", a, difference)
			} else {
				counts["differ, explained"]++
			}
		case theirs[i].refused != "":
			counts["refused by both"]++
		default:
			counts["the same"]++
		}
		if ours[i].refused != "" {
			continue
		}
		if d := differenceOf(ours[i], attempt{unit: p.properties("file", i)}); d == "" || explainedFiles.MatchString(a) {
			counts["the same as a unit file"]++
		} else {
			counts["differ as a unit file"]++
			p.t.Errorf("as a unit file, %s: %s", a, d)
		}
	}
	p.t.Logf("systemd %d: %d directives with %d values: %v in %s", p.version, len(p.directives()), len(p.assignments), counts, time.Since(started).Round(time.Second))
}

func (p *propertyTest) directives() map[string]bool {
	all := map[string]bool{}
	for _, a := range p.assignments {
		name, _, _ := strings.Cut(a, "=")
		all[name] = true
	}
	return all
}

func differenceOf(want, got attempt) string {
	switch {
	case want.refused != "" && got.refused != "":
		return ""
	case want.refused != "":
		return "refused the one way: " + want.refused
	case got.refused != "":
		return "refused the other way: " + got.refused
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(want.unit)) {
		if w, g := want.unit[name], got.unit[name]; w != g {
			fmt.Fprintf(&b, "\n\t%s: %.200s\n\t%s: %.200s", name, w, strings.Repeat(" ", len(name)), g)
		}
	}
	return b.String()
}

// connect connects to the bus of the lab.
func (p *propertyTest) connect() {
	bus, err := dbus.Connect("unix:path=" + fmt.Sprintf("/proc/%d/root/run/dbus/system_bus_socket", p.m.state.Leader))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { bus.Close() })
	p.bus = bus
}

const systemd1 = "org.freedesktop.systemd1"

func (p *propertyTest) call(method string, args ...any) *dbus.Call {
	return p.bus.Object(systemd1, "/org/freedesktop/systemd1").Call(systemd1+".Manager."+method, 0, args...)
}

type busProperty struct {
	Name  string
	Value dbus.Variant
}

type busUnit struct {
	Name       string
	Properties []busProperty
}

func (p *propertyTest) start(name string, properties []busProperty) error {
	return p.call("StartTransientUnit", name, "fail", properties, []busUnit{}).Err
}

func unitName(way string, i int) string { return fmt.Sprintf("%s%d.service", way, i) }

// keep starts a unit that refers to all the others, which keeps them from being forgotten when they have ended.
func (p *propertyTest) keep() {
	var names []string
	for i := range p.assignments {
		names = append(names, unitName("theirs", i), unitName("ours", i), unitName("file", i))
	}
	err := p.start("keeper.service", []busProperty{{"After", dbus.MakeVariant(names)}, {"RemainAfterExit", dbus.MakeVariant(true)}, execTrue})
	if err != nil {
		p.t.Fatal(err)
	}
}

var execTrue = busProperty{"ExecStart", dbus.MakeVariant([]struct {
	Path   string
	Argv   []string
	Ignore bool
}{{"/usr/bin/true", []string{"/usr/bin/true"}, false}})}

// systemdRun starts a unit for each assignment with systemd-run.
func (p *propertyTest) systemdRun() []attempt {
	script := `i=0; while IFS= read -r -d '' a; do
		if out=$(systemd-run --quiet --no-block --unit=theirs$i --description=d --remain-after-exit --property="${a//UNIT/theirs$i}" /usr/bin/true 2>&1); then echo; else echo "refused: ${out//$'\n'/ }"; fi
		i=$((i+1)); done`
	cmd := p.m.Command("bash", "-c", script)
	cmd.Stdin = strings.NewReader(strings.Join(p.assignments, "\x00") + "\x00")
	result := run(cmd)
	lines := bufio.NewScanner(strings.NewReader(result.Stdout))
	attempts := make([]attempt, 0, len(p.assignments))
	for lines.Scan() {
		attempts = append(attempts, attempt{refused: lines.Text()})
	}
	if len(attempts) != len(p.assignments) {
		p.t.Fatalf("%d answers for %d assignments: %s", len(attempts), len(p.assignments), result.Stderr)
	}
	return attempts
}

// unit gives our unit for an assignment.
func (p *propertyTest) unit(way string, i int) (units.Unit, error) {
	u := units.Unit{}
	d, err := units.ParseDirective(strings.ReplaceAll(p.assignments[i], "UNIT", way+strconv.Itoa(i)), p.version)
	if err == nil {
		u.Lay(d)
	}
	return u, err
}

// ours starts a unit for each assignment over the bus.
func (p *propertyTest) ours() []attempt {
	attempts := make([]attempt, len(p.assignments))
	for i := range p.assignments {
		u, err := p.unit("ours", i)
		if err != nil {
			attempts[i].refused = err.Error()
			continue
		}
		properties := []busProperty{{"Description", dbus.MakeVariant("d")}}
		for _, property := range u.Properties() {
			properties = append(properties, busProperty{property.Name, dbus.MakeVariant(property.Value)})
		}
		properties = append(properties, busProperty{"RemainAfterExit", dbus.MakeVariant(true)}, execTrue)
		if err := p.start(unitName("ours", i), properties); err != nil {
			attempts[i].refused = err.Error()
		}
	}
	return attempts
}

// asFiles writes a unit file for each unit that there is, and lets the manager read them.
func (p *propertyTest) asFiles(ours []attempt) {
	var script strings.Builder
	for i := range p.assignments {
		u, err := p.unit("file", i)
		if err != nil || ours[i].refused != "" {
			continue
		}
		text := "[Unit]\nDescription=d\n" + u.Text() + "[Service]\nRemainAfterExit=yes\nExecStart=/usr/bin/true\n"
		fmt.Fprintf(&script, "cat > /run/systemd/system/%s <<'EndOfUnit'\n%sEndOfUnit\n", unitName("file", i), text)
	}
	script.WriteString("systemctl daemon-reload\n")
	cmd := p.m.Command("bash", "-e")
	cmd.Stdin = strings.NewReader(script.String())
	if result := run(cmd); result.Status != 0 {
		p.t.Fatal(result.Stderr)
	}
}

// passing are properties that say what a unit does or which one it is, not what it should be.
var passing = regexp.MustCompile(`Timestamp|PID$|^(Id|Names|InvocationID|ControlGroup|ControlGroupId|FragmentPath|DropInPaths|Transient|StateChange.*|Job|Result|NRestarts|Refs|After|UnitFileState|UnitFilePreset)$|` +
	`State$|Status(Text|Errno)?$|^Status|^ExecMain|CleanResult|ReloadResult|LiveMount|NFileDescriptorStore|NeedDaemonReload|UID$|GID$|` +
	`(Current|Peak|Kills|Available|Bytes|Packets|Operations|NSec|Count)$|Effective|Result$`)

// dependencies have no order.
var dependencies = regexp.MustCompile(`^(Requires|Requisite|Wants|BindsTo|PartOf|Upholds|Conflicts|Before|OnFailure|OnSuccess|.*Propagated?.*|JoinsNamespaceOf|TriggeredBy|ReferencedBy|References)$`)

// properties gives all that the manager says of a unit.
func (p *propertyTest) properties(way string, i int) map[string]string {
	name := unitName(way, i)
	var object dbus.ObjectPath
	if err := p.call("LoadUnit", name).Store(&object); err != nil {
		p.t.Fatalf("%s: %v", p.assignments[i], err)
	}
	var all map[string]dbus.Variant
	if err := p.bus.Object(systemd1, object).Call("org.freedesktop.DBus.Properties.GetAll", 0, "").Store(&all); err != nil {
		p.t.Fatalf("%s: %v", p.assignments[i], err)
	}
	out := map[string]string{}
	for property, v := range all {
		if passing.MatchString(property) && property != "TimerSlackNSec" {
			continue
		}
		if commands, ok := v.Value().([][]any); ok && strings.HasPrefix(property, "Exec") {
			for i := range commands {
				commands[i] = commands[i][:3] // what follows is when they ran
			}
		}
		if names, ok := v.Value().([]string); ok && dependencies.MatchString(property) {
			slices.Sort(names)
		}
		if addresses, ok := v.Value().([][]any); ok && strings.HasPrefix(property, "IPAddress") { // a set, in the order of its hashes
			slices.SortFunc(addresses, func(a, b []any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
		if conditions, ok := v.Value().([][]any); ok && (property == "Conditions" || property == "Asserts") {
			for i := range conditions {
				conditions[i] = conditions[i][:4] // what follows is whether it held
			}
		}
		if property == "WatchdogUSec" && v.Value() == uint64(1<<64-1) { // none, in a unit that has run
			v = dbus.MakeVariant(0)
		}
		out[property] = strings.ReplaceAll(fmt.Sprint(v.Value()), way+strconv.Itoa(i), "UNIT")
	}
	return out
}
