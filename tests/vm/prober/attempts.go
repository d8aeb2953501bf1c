package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

func raw(number uintptr, args ...uintptr) error {
	args = append(args, make([]uintptr, 6)...)
	if _, _, errno := syscall.RawSyscall6(number, args[0], args[1], args[2], args[3], args[4], args[5]); errno != 0 {
		return errno
	}
	return nil
}

func closing(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// attempts are what a process that wants out, or more, would try, with arguments that work where nothing forbids it.
func attempts() map[string]func() error {
	all := map[string]func() error{
		"mknod /tmp: memory": func() error { return unix.Mknod("/tmp/prober-mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) },
		"mknod /tmp: a disk": func() error { return unix.Mknod("/tmp/prober-disk", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))) },
		"mount tmpfs":        func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
		"mount proc":         func() error { return unix.Mount("proc", "/tmp", "proc", 0, "") },
		"remount / writable": func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
		"unmount /proc/sys":  func() error { return unix.Unmount("/proc/sys", unix.MNT_DETACH) },
		"fsopen tmpfs":       func() error { return closing(unix.Fsopen("tmpfs", 0)) },
		"open_tree clone":    func() error { return closing(unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)) },
		"pivot_root":         func() error { return unix.PivotRoot("/", "/tmp") },
		"chroot":             func() error { return unix.Chroot("/tmp") },
		"chroot out":         func() error { return unix.Chroot("/proc/1/root") },
		"sethostname":        func() error { return unix.Sethostname([]byte("prober")) },
		"setdomainname":      func() error { return unix.Setdomainname([]byte("prober")) },
		"settimeofday":       func() error { return unix.Settimeofday(&unix.Timeval{Sec: -1}) },
		"adjtimex":           func() error { _, err := unix.Adjtimex(&unix.Timex{Modes: 1 << 14}); return err },
		"reboot":             func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) },
		"init_module":        func() error { return unix.InitModule([]byte("x"), "") },
		"delete_module":      func() error { return unix.DeleteModule("nspawnd_no_such", unix.O_NONBLOCK) },
		"bpf map":            func() error { return raw(unix.SYS_BPF, 0, 0, 0) },
		"userfaultfd":        func() error { return raw(unix.SYS_USERFAULTFD, 0) },
		"io_uring":           func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0) },
		"open_by_handle_at":  func() error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0) },
		"ptrace attach to 1": func() error { return unix.PtraceSeize(1) },
		"syslog read":        func() error { _, err := unix.Klogctl(3, make([]byte, 10)); return err },
		"swapon":             func() error { return raw(unix.SYS_SWAPON, 0, 0) },
		"acct":               func() error { return unix.Acct("") },
		"nice -20":           func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
		"real-time": func() error {
			return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		},
		"ioprio real-time":    func() error { return raw(unix.SYS_IOPRIO_SET, 1, 0, 1<<13) },
		"oom_score_adj -1000": func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) },
		"raise a limit": func() error {
			return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
		},
		"raise RLIMIT_NOFILE": func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 21, Max: 1 << 21}) },
		"trusted attribute":   func() error { return setxattr("trusted.prober") },
		"file capability":     fileCapability,
		"set-user-ID file": func() error {
			os.WriteFile("/tmp/prober-suid", nil, 0o755)
			return os.Chmod("/tmp/prober-suid", 0o4755|os.ModeSetuid)
		},
		"add_key": func() error {
			_, err := unix.AddKey("user", "prober", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
			return err
		},
		"join the session":    func() error { _, err := unix.KeyctlJoinSessionKeyring("_ses"); return err },
		"memfd_secret":        func() error { return raw(unix.SYS_MEMFD_SECRET, 0) },
		"fanotify mount mark": func() error { return closing(unix.FanotifyInit(unix.FAN_CLASS_CONTENT, 0)) },
		"perf_event": func() error {
			return closing(unix.PerfEventOpen(&unix.PerfEventAttr{Type: 1, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, 0, -1, -1, 0))
		},
		"kcmp":           func() error { return raw(unix.SYS_KCMP, 1, 1, 0, 0, 0) },
		"vhangup":        func() error { return raw(unix.SYS_VHANGUP) },
		"mlock 16 MiB":   func() error { return unix.Mlock(make([]byte, 16<<20)) },
		"bind to port 1": bindPort,
		"ping socket":    func() error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)) },
		"write sysctl":   func() error { return writable("/proc/sys/kernel/panic_on_oops") },
		"network sysctl": func() error {
			f, err := os.OpenFile("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY, 0)
			f.Close()
			return err
		},
		"sysrq": func() error { return writable("/proc/sysrq-trigger") },
		"make a cgroup": func() error {
			defer os.Remove("/sys/fs/cgroup/prober")
			return os.Mkdir("/sys/fs/cgroup/prober", 0o755)
		},
		"leave the cgroup": func() error { return os.WriteFile("/sys/fs/cgroup/../cgroup.procs", []byte("0"), 0) },
		"core_pattern": func() error {
			f, err := os.OpenFile("/proc/sys/kernel/core_pattern", os.O_WRONLY, 0)
			f.Close()
			return err
		},
		"write to /":        func() error { return os.WriteFile("/prober-file", nil, 0o600) },
		"write to /dev":     func() error { return os.WriteFile("/dev/prober-file", nil, 0o600) },
		"run from /dev/shm": func() error { return runFrom("/dev/shm") },
		"run from /run":     func() error { return runFrom("/run") },
		"run from /dev":     func() error { return runFrom("/dev") },
	}
	for _, ns := range []struct {
		name string
		flag uintptr
	}{{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"mnt", unix.CLONE_NEWNS}, {"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID},
		{"time", unix.CLONE_NEWTIME}, {"user", unix.CLONE_NEWUSER}, {"uts", unix.CLONE_NEWUTS}} {
		all["unshare "+ns.name] = func() error { return raw(unix.SYS_UNSHARE, ns.flag) }
		all["setns "+ns.name] = func() error {
			fd, err := unix.Open("/proc/1/ns/"+ns.name, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return raw(unix.SYS_SETNS, uintptr(fd), ns.flag)
		}
		if ns.name != "time" {
			all["clone "+ns.name] = func() error {
				cmd := exec.Command("/proc/self/exe", "call", "-1")
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: ns.flag}
				return cmd.Run()
			}
		}
	}
	for _, value := range []uintptr{0, 8, 0x20000, 0x20008, 0xffffffff, 0x0040000, 0x0400000, 0x0100000, 0x4000000} {
		all[fmt.Sprintf("personality %#x", value)] = func() error { return raw(unix.SYS_PERSONALITY, value) }
	}
	for family := range unix.AF_MAX + 1 {
		for name, kind := range map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM, "raw": unix.SOCK_RAW, "seqpacket": unix.SOCK_SEQPACKET} {
			if family == unix.AF_NETLINK {
				continue
			}
			all[fmt.Sprintf("socket family %d %s", family, name)] = func() error { return closing(unix.Socket(family, kind, 0)) }
		}
	}
	for protocol := range 23 {
		all[fmt.Sprintf("socket netlink %d", protocol)] = func() error { return closing(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, protocol)) }
	}
	return all
}

// writable opens a file of the kernel's for writing, and leaves it at that.
func writable(path string) error { return closing(unix.Open(path, unix.O_WRONLY, 0)) }

func setxattr(name string) error {
	if err := os.WriteFile("/tmp/prober-xattr", nil, 0o644); err != nil {
		return err
	}
	return unix.Setxattr("/tmp/prober-xattr", name, []byte("x"), 0)
}

func fileCapability() error {
	if err := os.WriteFile("/tmp/prober-cap", nil, 0o644); err != nil {
		return err
	}
	// VFS_CAP_REVISION_2, permitted: CAP_CHOWN (capabilities(7))
	return unix.Setxattr("/tmp/prober-cap", "security.capability", append([]byte{0, 0, 0, 2, 1}, make([]byte, 15)...), 0)
}

func bindPort() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
}

// runFrom runs a copy of this program from a directory, which noexec forbids.
func runFrom(dir string) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	path := dir + "/prober-copy"
	if err := os.WriteFile(path, program, 0o755); err != nil {
		return err
	}
	defer os.Remove(path)
	return exec.Command(path, "call", "-1").Run()
}
