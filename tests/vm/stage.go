package vm

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// A stage is this program started again, with stagePrefix and the stage's name as argv[0]. Not an environment variable: a
// test that sets a command's Env must not turn it into a second run of all tests.
const stagePrefix = "nspawnd-lab-"

var stages = map[string]func(args []string) error{
	"supervise": supervise,
	"init":      initStage,
	"enter":     enterStage,
}

func init() {
	name, found := strings.CutPrefix(os.Args[0], stagePrefix)
	if !found || stages[name] == nil {
		return
	}
	// Namespaces belong to threads. Locked in init, this goroutine is the main thread for good.
	runtime.LockOSThread()
	if err := stages[name](os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(255)
	}
	os.Exit(0)
}

// stage is the command that runs a stage of this program.
func stage(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe",
		Args: append([]string{stagePrefix + name}, args...),
	}
}
