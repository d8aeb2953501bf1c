package main

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setHostname gives this thread a UTS namespace with the name.
func setHostname(name string) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return err
	}
	return unix.Sethostname([]byte(name))
}

// refuseNames has sethostname(2) fail as it did before it was let through the unit's filter for the launcher, and with it what sets the domain.
func refuseNames() error { return errors.Join(refuse("sethostname"), refuse("setdomainname")) }

// numbers are those of system calls, for all architectures that the kernel runs programs of, as seccomp(2) sees these.
var numbers = map[string]map[string][]abiCall{
	"amd64": {
		"sethostname":   {{unix.AUDIT_ARCH_X86_64, 170}, {unix.AUDIT_ARCH_I386, 74}},
		"setdomainname": {{unix.AUDIT_ARCH_X86_64, 171}, {unix.AUDIT_ARCH_I386, 121}},
		"setns":         {{unix.AUDIT_ARCH_X86_64, 308}, {unix.AUDIT_ARCH_I386, 346}},
		"unshare":       {{unix.AUDIT_ARCH_X86_64, 272}, {unix.AUDIT_ARCH_I386, 310}},
	},
	"arm64": {
		"sethostname":   {{unix.AUDIT_ARCH_AARCH64, 161}, {unix.AUDIT_ARCH_ARM, 74}},
		"setdomainname": {{unix.AUDIT_ARCH_AARCH64, 162}, {unix.AUDIT_ARCH_ARM, 121}},
		"setns":         {{unix.AUDIT_ARCH_AARCH64, 268}, {unix.AUDIT_ARCH_ARM, 375}},
		"unshare":       {{unix.AUDIT_ARCH_AARCH64, 97}, {unix.AUDIT_ARCH_ARM, 337}},
	},
}[runtime.GOARCH]

type abiCall struct{ arch, number uint32 }

// refuse adds a system call filter to this thread and what it starts: EPERM for this call.
func refuse(call string) error {
	filter, err := refusal(call)
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0)
}

// refusal is a system call filter (seccomp(2)): EPERM for this call.
func refusal(call string) (unix.SockFprog, error) {
	abis := numbers[call]
	if abis == nil {
		return unix.SockFprog{}, errors.New("no number is known for " + call)
	}
	const number, arch = 0, 4 // offsets in struct seccomp_data
	var program []unix.SockFilter
	add := func(code uint16, k uint32, yes, no uint8) {
		program = append(program, unix.SockFilter{Code: code, Jt: yes, Jf: no, K: k})
	}
	for _, a := range abis {
		add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, arch, 0, 0)
		add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, a.arch, 0, 4)
		add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, number, 0, 0)
		add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, ^uint32(1<<30), 0, 0) // x32 is x86-64 with this bit
		add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, a.number, 0, 1)
		add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM), 0, 0)
	}
	add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW, 0, 0)
	return unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}, nil
}

// setSysctls writes NAME=VALUE each below a procfs of its own, which nobody else sees: the machine's is read-only there.
func setSysctls(list []string) error {
	if len(list) == 0 {
		return nil
	}
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	proc, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	for _, s := range list {
		name, value, _ := strings.Cut(s, "=")
		if !strings.Contains(name, "/") {
			name = strings.ReplaceAll(name, ".", "/")
		}
		fd, err := unix.Openat(proc, "sys/"+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return errors.New(name + ": " + err.Error())
		}
		file := os.NewFile(uintptr(fd), name)
		_, err = file.WriteString(value)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// setBounding drops all capabilities but those in mask from the bounding set: what the payload, also as root, can have after execve(2).
// That takes CAP_SETPCAP in the effective set, which stays as it is.
func setBounding(mask uint64) error {
	for bit := range 64 {
		if mask&(1<<bit) != 0 {
			continue
		}
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0); err {
		case nil, unix.EINVAL: // the kernel has no capability of this number
		default:
			return err
		}
	}
	return nil
}

// limitCapabilities drops all but those in mask from this thread's other sets.
func limitCapabilities(mask uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for i := range data {
		keep := uint32(mask >> (32 * i))
		data[i].Effective &= keep
		data[i].Permitted &= keep
		data[i].Inheritable &= keep // and the kernel takes it from the ambient set
	}
	return unix.Capset(&header, &data[0])
}

// setCapabilities makes a mask the permitted, effective, inheritable and ambient set of this thread.
func setCapabilities(mask uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(mask), uint32(mask>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low, Inheritable: low}, {Effective: high, Permitted: high, Inheritable: high}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	for bit := range 64 {
		if mask&(1<<bit) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bit), 0, 0); err != nil {
			return err
		}
	}
	return nil
}
