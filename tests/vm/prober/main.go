// Command prober says what a container lets a process do: one line, "GROUP KEY VALUE" separated by tabs, for each thing that it tried.
//
//	prober all              everything, for the architecture that it is built for
//	prober tries            of that, the attempts and each system call
//	prober call NUMBER      one system call with arguments that make no sense; writes how it ended
//	prober attempt NAME     one of the attempts, alone in its process: it may leave that in any state
//	prober plant            puts a key into root's keyring on the host, for a minute
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "all":
		all()
	case len(args) == 1 && args[0] == "tries":
		tries()
	case len(args) == 2 && args[0] == "call":
		call(args[1])
	case len(args) == 2 && args[0] == "attempt":
		err := attempts()[args[1]]()
		result := verdict(err)
		if err != nil && result == "allowed" && strings.HasPrefix(args[1], "socket ") { // its arguments are right
			result = "refused"
		}
		fmt.Println(result)
	case len(args) == 1 && args[0] == "plant":
		if err := plant(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: prober all|tries|call NUMBER|attempt NAME|plant")
		os.Exit(2)
	}
}

func say(group, key string, value any) {
	text := strings.NewReplacer("\t", " ", "\n", " ").Replace(fmt.Sprint(value))
	fmt.Printf("%s\t%s\t%s\n", group, key, strings.TrimSpace(text))
}

// verdict is "allowed" for all that the kernel did not refuse as such: arguments that it does not like are another matter.
func verdict(err error) string {
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "EPERM"
	case errors.Is(err, syscall.ENOSYS):
		return "ENOSYS"
	case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.ESOCKTNOSUPPORT):
		return "unsupported"
	case errors.Is(err, syscall.EROFS):
		return "EROFS"
	}
	return "allowed"
}

// alone runs this program with arguments in a process of its own, and says what it wrote or which signal killed it. One that
// says nothing within a second was allowed to do what takes that long, or to end.
func alone(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	line, _, _ := strings.Cut(out.String(), "\n")
	var exit *exec.ExitError
	if line == "" && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGSYS {
		return "killed"
	}
	if line == "" {
		return "allowed"
	}
	return line
}

// side runs f for each key, some at a time, and says the results in the order of the keys.
func side(group string, keys []string, f func(key string) string) {
	results := make([]string, len(keys))
	var wait sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, key := range keys {
		slots <- struct{}{}
		wait.Go(func() {
			results[i] = f(key)
			<-slots
		})
	}
	wait.Wait()
	for i, key := range keys {
		say(group, key, results[i])
	}
}

const lastCall = 480 // beyond what Linux 6.18 has

func calls() {
	var numbers []string
	for n := range lastCall {
		numbers = append(numbers, strconv.Itoa(n))
	}
	side("call "+runtime.GOARCH, numbers, func(n string) string { return alone("call", n) })
}

// call makes a system call whose arguments are no addresses, descriptors, processes or flags, and writes how it ended without the help of the
// runtime: after it this may be a copy of the process, or one that has lost something.
func call(number string) {
	n, err := strconv.Atoi(number)
	if err != nil {
		os.Exit(2)
	}
	runtime.LockOSThread()
	none := ^uintptr(0)
	_, _, errno := syscall.RawSyscall6(uintptr(n), none, none, none, none, none, none)
	word := []byte("allowed\n")
	switch errno {
	case syscall.EPERM:
		word = []byte("EPERM\n")
	case syscall.ENOSYS:
		word = []byte("ENOSYS\n")
	}
	syscall.RawSyscall(syscall.SYS_WRITE, 1, uintptr(pointer(word)), uintptr(len(word)))
	syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
}

func all() {
	process()
	namespaces()
	mounts()
	devices()
	for _, root := range []string{"/proc", "/sys"} {
		walk(root)
	}
	tries()
}

func tries() {
	var names []string
	for name := range attempts() {
		names = append(names, name)
	}
	slices.Sort(names)
	side("attempt "+runtime.GOARCH, names, func(name string) string { return alone("attempt", name) })
	calls()
}

// process says what the process was given.
func process() {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			say("capabilities", key, value)
		case "Uid", "Gid", "Groups", "Umask", "SigIgn", "SigBlk", "NoNewPrivs", "Seccomp":
			say("process", key, value)
		}
	}
	for _, file := range []string{"oom_score_adj", "coredump_filter", "timerslack_ns", "loginuid", "setgroups", "uid_map", "gid_map", "attr/current", "personality", "timens_offsets"} {
		data, err := os.ReadFile("/proc/self/" + file)
		if err != nil {
			data = []byte("-")
		}
		say("process", file, strings.Join(strings.Fields(string(data)), " "))
	}
	groups, _ := os.ReadFile("/proc/self/cgroup")
	var places []string
	for line := range strings.Lines(string(groups)) {
		places = append(places, line[strings.LastIndexByte(line, ':')+1:])
	}
	slices.Sort(places)
	say("process", "control groups as it sees them", strings.Join(slices.Compact(places), " "))
	limits, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.Lines(string(limits)) {
		if len(line) > 66 && !strings.HasPrefix(line, "Limit") {
			say("limits", strings.TrimSpace(line[:26]), strings.Join(strings.Fields(line[26:66]), " "))
		}
	}
	first, _ := os.ReadFile("/proc/1/cmdline")
	say("process", "cmdline of process 1", filepath.Base(strings.ReplaceAll(string(first), "\x00", " ")))
	processes, _ := filepath.Glob("/proc/[0-9]*")
	say("process", "processes seen", len(processes))
	descriptors, _ := os.ReadDir("/proc/self/fd")
	for _, d := range descriptors {
		n, _ := strconv.Atoi(d.Name())
		target, err := os.Readlink("/proc/self/fd/" + d.Name())
		if err == nil && n > 2 && !strings.Contains(target, "anon_inode") && !strings.HasPrefix(target, "/proc/") {
			say("process", "descriptor "+d.Name(), target)
		}
	}
	priority, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	say("process", "nice", 20-priority)
	name, _ := os.Hostname()
	say("process", "hostname", name)
	var u unix.Utsname
	unix.Uname(&u)
	say("process", "domainname", unix.ByteSliceToString(u.Domainname[:]))
	mask := syscall.Umask(0)
	say("process", "umask", fmt.Sprintf("%04o", mask))
	dir, _ := os.Getwd()
	say("process", "working directory", dir)
	keys, _ := os.ReadFile("/proc/keys")
	say("keys", "/proc/keys", strconv.Itoa(bytes.Count(keys, []byte("\n")))+" keys")
	for name, id := range map[string]int{"session": unix.KEY_SPEC_SESSION_KEYRING, "user": unix.KEY_SPEC_USER_KEYRING, "user-session": unix.KEY_SPEC_USER_SESSION_KEYRING} {
		found := "not found"
		if _, err := unix.KeyctlSearch(id, "user", plantedKey, 0); err == nil {
			found = "found"
		} else if err == unix.EPERM || err == unix.ENOSYS {
			found = "refused"
		}
		say("keys", "the host root's key by the "+name+" keyring", found)
	}
	if description, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, unix.KEY_SPEC_SESSION_KEYRING); err == nil {
		parts := strings.Split(description, ";")
		say("keys", "session keyring", strings.Join(parts[:3], ";"))
	} else {
		say("keys", "session keyring", err)
	}
}

const plantedKey = "nspawnd-lab-key"

func plant() error {
	id, err := unix.AddKey("user", plantedKey, []byte("x"), unix.KEY_SPEC_USER_KEYRING)
	if err == nil {
		_, err = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, 60, 0, 0)
	}
	return err
}

// namespaces says the inode of each, for the caller to compare with the host's.
func namespaces() {
	entries, _ := os.ReadDir("/proc/self/ns")
	for _, e := range entries {
		link, _ := os.Readlink("/proc/self/ns/" + e.Name())
		say("namespaces", e.Name(), link)
	}
}

func mounts() {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	seen := map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if i < 6 || i+1 >= len(f) {
			continue
		}
		value := f[i+1]
		for option := range strings.SplitSeq(f[5], ",") {
			if slices.Contains([]string{"ro", "rw", "nosuid", "nodev", "noexec"}, option) {
				value += " " + option
			}
		}
		seen[f[4]] = value // the last one is what is seen
	}
	for path, value := range seen {
		say("mounts", path, value)
	}
}

// devices says, for each node below /dev, its kind, mode and numbers, and whether it opens.
func devices() {
	filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "/dev" {
			return nil
		}
		if strings.HasPrefix(path, "/dev/shm/") || strings.HasPrefix(path, "/dev/mqueue/") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		stat := info.Sys().(*syscall.Stat_t)
		value := fmt.Sprintf("%s %d:%d", info.Mode(), stat.Uid, stat.Gid)
		if target, err := os.Readlink(path); err == nil {
			value += " " + target
		}
		if info.Mode()&fs.ModeDevice != 0 {
			value += fmt.Sprintf(" %d,%d", unix.Major(uint64(stat.Rdev)), unix.Minor(uint64(stat.Rdev)))
			if fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
				unix.Close(fd)
				value += " opens"
			} else {
				value += " " + verdict(err)
			}
		}
		say("devices", path, value)
		return nil
	})
}

// walk says of what is below root to some depth whether it can be read and written. A file that opens and is empty is
// not readable: so masked ones look.
func walk(root string) {
	const depth = 4
	var paths []string
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		relative := strings.TrimPrefix(path, root+"/")
		parts := strings.Split(relative, "/")
		first := parts[0]
		if _, err := strconv.Atoi(first); root == "/proc" && (err == nil || first == "thread-self") {
			return fs.SkipDir
		}
		if path != root && d != nil && d.Type()&fs.ModeSymlink == 0 {
			paths = append(paths, path)
		}
		if d != nil && d.IsDir() && (len(parts) == depth || strings.HasPrefix(path, "/sys/fs/cgroup/")) && path != root {
			return fs.SkipDir
		}
		return nil
	})
	own, _ := os.ReadDir("/proc/self")
	for _, e := range own {
		if root == "/proc" && e.Type().IsRegular() {
			paths = append(paths, "/proc/self/"+e.Name())
		}
	}
	slices.Sort(paths)
	side("paths", paths, access)
}

func access(path string) string {
	done := make(chan string, 1)
	go func() {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			done <- "gone" // since it was listed
			return
		}
		if err != nil {
			done <- "-"
			return
		}
		rights := ""
		if info.IsDir() {
			if entries, err := os.ReadDir(path); err == nil && len(entries) > 0 {
				rights += "r"
			}
			if unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, 0) == nil {
				rights += "w"
			}
			done <- rights
			return
		}
		if !info.Mode().IsRegular() { // /dev/null as a mask
			done <- ""
			return
		}
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			if n, err := unix.Read(fd, make([]byte, 1)); err == nil && n == 1 {
				rights += "r"
			}
			unix.Close(fd)
		}
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			unix.Close(fd)
			rights += "w"
		}
		done <- rights
	}()
	select {
	case rights := <-done:
		return rights
	case <-time.After(time.Second):
		return "blocks"
	}
}
