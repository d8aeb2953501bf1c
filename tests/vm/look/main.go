// Command look says what a process in a machine is, sees and may do: the same for two processes that are confined alike. It leaves nothing changed.
package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range regexp.MustCompile(`(?m)^(Uid|Gid|Groups|Cap.*|NoNewPrivs|Seccomp|Cpus_allowed_list):.*$`).FindAll(status, -1) {
		fmt.Printf("%s\n", line)
	}
	for _, space := range strings.Fields("cgroup ipc mnt net pid time user uts") {
		fmt.Println(os.Readlink("/proc/self/ns/" + space))
	}
	for _, dir := range []string{"/", ".", "/dev/shm", "/proc"} {
		var stat unix.Stat_t
		fmt.Println(dir, unix.Stat(dir, &stat), stat.Dev, stat.Ino)
	}
	fmt.Println(os.Getwd())
	fmt.Println(unix.Getpriority(unix.PRIO_PROCESS, 0))
	environment := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PWD=") || strings.HasPrefix(e, "OLDPWD=") || strings.HasPrefix(e, "_=") || strings.HasPrefix(e, "JOURNAL_STREAM=")
	})
	slices.Sort(environment)
	fmt.Printf("%q\n", environment)
	for _, path := range []string{"/proc/1/comm", "/proc/self/limits", "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj"} {
		data, err := os.ReadFile(path)
		fmt.Printf("%s %v\n", bytes.TrimSpace(data), err)
	}
	for _, dir := range []string{"/run", "/dev", "/proc/self/fd"} {
		entries, err := os.ReadDir(dir)
		fmt.Println(dir, entries, err)
	}
	for name, call := range map[string]func() error{
		"mount":       func() error { return unix.Mount("x", "/tmp", "no-such", 0, "") },
		"umount":      func() error { return unix.Unmount("/no/such", unix.MNT_DETACH) },
		"unshare":     func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"unshare fs":  func() error { return unix.Unshare(unix.CLONE_FS) },
		"setns":       func() error { return unix.Setns(-1, 0) },
		"sethostname": func() error { return unix.Sethostname(make([]byte, 100)) },
		"mknod":       func() error { defer os.Remove("/tmp/node"); return unix.Mknod("/tmp/node", unix.S_IFCHR|0o600, 0x101) },
		"chroot":      func() error { return unix.Chroot("/no/such") },
		"keyctl":      func() error { _, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, -3, 0, 0, 0); return err },
		"bpf":         func() error { _, _, errno := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return errno },
		"ptrace":      func() error { return unix.PtraceSeize(1) },
		"settime":     func() error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: -1}) },
		"kexec":       func() error { _, _, errno := unix.Syscall(unix.SYS_KEXEC_LOAD, 0, 0, 0); return errno },
		"module":      func() error { return unix.DeleteModule("no-such", 0) },
		"packet":      func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err },
		"netlink":     func() error { _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); return err },
		"chown":       func() error { return unix.Chown("/tmp", 0, 0) },
	} {
		defer func() { fmt.Println(name, call()) }()
	}
	for _, path := range []string{"/dev/kmsg", "/dev/mem", "/dev/null", "/proc/sysrq-trigger", "/proc/kcore", "/proc/sys/kernel/panic", "/sys/kernel/uevent_helper", "/etc/hostname", "/proc/1/mem"} {
		_, err := os.OpenFile(path, os.O_RDWR, 0)
		fmt.Println(path, err)
	}
}
