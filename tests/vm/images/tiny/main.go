// Command tiny is all that is in the test image demo/tiny: one static program that shows what a container was given and
// does what a misbehaving one would. The tool is argv[0]'s name or, as "tiny", the first argument.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var tools = map[string]struct {
	usage string
	run   func(args []string) error
}{
	"true":      {"", func([]string) error { return nil }},
	"false":     {"", func([]string) error { os.Exit(1); return nil }},
	"exit":      {"STATUS", exit},
	"echo":      {"[-n] [WORD...]: words, and a newline without -n", echo},
	"args":      {"[WORD...]: each argument in quotes on its own line", arguments},
	"stderr":    {"[WORD...]: words and a newline to standard error", complain},
	"cat":       {"[FILE...]: files, or standard input, to standard output", cat},
	"read":      {"FILE", cat},
	"write":     {"FILE [WORD...]: words, or standard input without any, into a file", write},
	"mkdir":     {"DIRECTORY...", mkdir},
	"ls":        {"[DIRECTORY]: type, mode, owner, size and name of each entry", list},
	"env":       {"the environment, sorted", environment},
	"pwd":       {"", func([]string) error { dir, err := os.Getwd(); fmt.Println(dir); return err }},
	"hostname":  {"", func([]string) error { name, err := os.Hostname(); fmt.Println(name); return err }},
	"id":        {"uid=N gid=N groups=N,N", id},
	"pid":       {"own and parent's process id", func([]string) error { fmt.Println(os.Getpid(), os.Getppid()); return nil }},
	"status":    {"/proc/self/status", show("/proc/self/status")},
	"mounts":    {"/proc/self/mountinfo", show("/proc/self/mountinfo")},
	"limits":    {"/proc/self/limits", show("/proc/self/limits")},
	"cgroup":    {"/proc/self/cgroup", show("/proc/self/cgroup")},
	"tty":       {"whether standard input, output and error are terminals, and their size", terminal},
	"ps":        {"id, parent and command line of all processes that can be seen", processes},
	"sleep":     {"SECONDS (\"infinity\" is one)", sleep},
	"kill-self": {"SIGNAL: by number or as KILL, SEGV, …", killSelf},
	"kill":      {"PID SIGNAL", kill},
	"trap":      {"[SIGNAL...]: says which signals come; ends with 0 at the first of these (default TERM, INT, QUIT)", trap},
	"hog":       {"MIB [SECONDS]: allocates and touches memory", hog},
	"burn":      {"SECONDS: spends processor time, and says how much it got", burn},
	"forks":     {"N [SECONDS]: starts processes, and says how many there could be", forks},
	"orphan":    {"the id of a grandchild that its parent leaves behind", orphan},
	"listen":    {"PORT [WORD...]: answers each TCP connection with words", listen},
	"connect":   {"ADDRESS: what a TCP server says", connect},
	"socket":    {"PATH: listens on a Unix socket, answers once", unixSocket},
	"addresses": {"network interfaces and their addresses", addresses},
	"notify":    {"[SECONDS]: READY=1 to $NOTIFY_SOCKET after a while, then waits for SIGTERM", notify},
	"reopen":    {"writes to standard output by opening /dev/stdout, as stock nginx does", reopen},
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if _, found := tools[name]; !found {
		if len(args) == 0 || args[0] == "help" {
			for _, name := range sortedTools() {
				fmt.Printf("%-10s %s\n", name, tools[name].usage)
			}
			return
		}
		name, args = args[0], args[1:]
	}
	tool, found := tools[name]
	if !found {
		fmt.Fprintf(os.Stderr, "tiny: no tool %s\n", name)
		os.Exit(127)
	}
	defer func() {
		if recover() != nil {
			fmt.Fprintf(os.Stderr, "usage: %s %s\n", name, tool.usage)
			os.Exit(2)
		}
	}()
	if err := tool.run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func sortedTools() []string {
	var names []string
	for name := range tools {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func exit(args []string) error {
	status, err := strconv.Atoi(args[0])
	if err == nil {
		os.Exit(status)
	}
	return err
}

func echo(args []string) error {
	end := "\n"
	if len(args) > 0 && args[0] == "-n" {
		args, end = args[1:], ""
	}
	_, err := io.WriteString(os.Stdout, strings.Join(args, " ")+end)
	return err
}

func arguments(args []string) error {
	for _, arg := range args {
		fmt.Printf("%q\n", arg)
	}
	return nil
}

func complain(args []string) error {
	fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	return nil
}

func cat(args []string) error {
	if len(args) == 0 {
		args = []string{"-"}
	}
	for _, name := range args {
		file := os.Stdin
		if name != "-" {
			var err error
			if file, err = os.Open(name); err != nil {
				return err
			}
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{os.Stdout}, file, make([]byte, 1<<20)); err != nil {
			return err
		}
		file.Close()
	}
	return nil
}

func write(args []string) error {
	var from io.Reader = os.Stdin
	if len(args) > 1 {
		from = strings.NewReader(strings.Join(args[1:], " ") + "\n")
	}
	file, err := os.Create(args[0])
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, from); err != nil {
		return err
	}
	return file.Close()
}

func mkdir(args []string) error {
	for _, dir := range args {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func list(args []string) error {
	dir := append(args, ".")[0]
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %d:%d %d %s", info.Mode(), stat.Uid, stat.Gid, info.Size(), entry.Name())
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			line += " -> " + target
		}
		fmt.Println(line)
	}
	return nil
}

func environment([]string) error {
	list := os.Environ()
	slices.Sort(list)
	for _, variable := range list {
		fmt.Println(variable)
	}
	return nil
}

func id([]string) error {
	groups, err := os.Getgroups()
	slices.Sort(groups)
	var list []string
	for _, group := range groups {
		list = append(list, strconv.Itoa(group))
	}
	fmt.Printf("uid=%d gid=%d groups=%s\n", os.Getuid(), os.Getgid(), strings.Join(list, ","))
	return err
}

func show(path string) func([]string) error {
	return func([]string) error { return cat([]string{path}) }
}

func sleep(args []string) error {
	if args[0] == "infinity" {
		args[0] = "1e8"
	}
	return wait(args[0])
}

func wait(seconds string) error {
	count, err := strconv.ParseFloat(seconds, 64)
	time.Sleep(time.Duration(count * float64(time.Second)))
	return err
}

var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "ILL": syscall.SIGILL, "ABRT": syscall.SIGABRT,
	"FPE": syscall.SIGFPE, "KILL": syscall.SIGKILL, "SEGV": syscall.SIGSEGV, "PIPE": syscall.SIGPIPE, "ALRM": syscall.SIGALRM,
	"TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	"WINCH": syscall.SIGWINCH, "SYS": syscall.SIGSYS, "PWR": syscall.SIGPWR,
}

func parseSignal(name string) (syscall.Signal, error) {
	if number, err := strconv.Atoi(name); err == nil {
		return syscall.Signal(number), nil
	}
	if s, found := signals[strings.TrimPrefix(name, "SIG")]; found {
		return s, nil
	}
	return 0, fmt.Errorf("no signal %s", name)
}

func signalName(s os.Signal) string {
	for name, known := range signals {
		if known == s {
			return name
		}
	}
	return strconv.Itoa(int(s.(syscall.Signal)))
}

func killSelf(args []string) error {
	s, err := parseSignal(args[0])
	if err != nil {
		return err
	}
	defaultAction(s)
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return fmt.Errorf("still here after signal %d", s)
}

func kill(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	s, err := parseSignal(args[1])
	if err != nil {
		return err
	}
	return syscall.Kill(pid, s)
}

func trap(args []string) error {
	if len(args) == 0 {
		args = []string{"TERM", "INT", "QUIT"}
	}
	var last []os.Signal
	for _, name := range args {
		s, err := parseSignal(name)
		if err != nil {
			return err
		}
		last = append(last, s)
	}
	received := make(chan os.Signal, 64)
	signal.Notify(received)
	fmt.Println("ready")
	for s := range received {
		if s == syscall.SIGURG { // Go's scheduler interrupts threads by it
			continue
		}
		fmt.Println(signalName(s))
		if slices.Contains(last, s) {
			break
		}
	}
	return nil
}

func hog(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var all [][]byte
	for i := range count {
		block := make([]byte, 1<<20)
		for at := 0; at < len(block); at += 4096 {
			block[at] = byte(i)
		}
		all = append(all, block)
	}
	fmt.Printf("holding %d MiB\n", len(all))
	if len(args) > 1 {
		err = wait(args[1])
	}
	all[0][0]++ // still needed
	return err
}

func burn(args []string) error {
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	for end := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(end); {
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return err
	}
	fmt.Printf("%d ms of processor time in %g s\n", (usage.Utime.Nano()+usage.Stime.Nano())/1e6, seconds)
	return nil
}

func forks(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	seconds := append(args[1:], "0")[0]
	started := 0
	var refused error
	for range count {
		child := exec.Command("/proc/self/exe", "sleep", "60")
		if refused = child.Start(); refused != nil {
			break
		}
		defer child.Process.Kill()
		started++
	}
	fmt.Printf("started %d of %d\n", started, count)
	if err := wait(seconds); err != nil {
		return err
	}
	return refused
}

// orphan prints the process id of a grandchild that lives longer than its parent.
func orphan(args []string) error {
	if len(args) == 0 {
		child := exec.Command("/proc/self/exe", "orphan", "child")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		return child.Run()
	}
	grandchild := exec.Command("/proc/self/exe", "sleep", "0.2")
	err := grandchild.Start()
	if err == nil {
		fmt.Println(grandchild.Process.Pid)
	}
	return err
}

func listen(args []string) error {
	listener, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	return answer(listener, strings.Join(args[1:], " "))
}

func unixSocket(args []string) error {
	listener, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	return answer(listener, "tiny")
}

// answer says the same to every connection, as an HTTP response where a request comes, or plain words.
func answer(listener net.Listener, words string) error {
	if words == "" {
		words = "hello from tiny"
	}
	fmt.Println("listening on", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			connection.SetDeadline(time.Now().Add(time.Second))
			line, _ := bufio.NewReader(connection).ReadString('\n')
			if strings.Contains(line, " HTTP/1") {
				fmt.Fprintf(connection, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nX-Peer: %s\r\n\r\n", connection.RemoteAddr())
			}
			fmt.Fprintln(connection, words)
		}()
	}
}

func connect(args []string) error {
	network := "tcp"
	if strings.HasPrefix(args[0], "/") {
		network = "unix"
	}
	connection, err := net.DialTimeout(network, args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, "hello\n"); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, connection)
	return err
}

func addresses([]string) error {
	interfaces, err := net.Interfaces()
	for _, i := range interfaces {
		list, _ := i.Addrs()
		fmt.Println(i.Name, i.Flags, list)
	}
	return err
}

func notify(args []string) error {
	if len(args) > 0 {
		if err := wait(args[0]); err != nil {
			return err
		}
	}
	connection, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := io.WriteString(connection, "READY=1\nSTATUS=as ready as can be"); err != nil {
		return err
	}
	return trap(nil)
}

func reopen([]string) error {
	for _, path := range []string{"/dev/stdout", "/dev/stderr"} {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		fmt.Fprintln(file, "by", path)
		file.Close()
	}
	return nil
}

func processes([]string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The name may have spaces and brackets: what counts follows the last bracket.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fmt.Println(pid, fields[1], strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
	}
	return nil
}
