// Command machinectl-lite sees and steers what runs and what is stored: machines and images. Verbs that machinectl has take
// the same arguments and print the same columns.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nspawnd/cmd/internal/version"
	"nspawnd/image"
	"nspawnd/internal/buserror"
)

// options are the flags that verbs share.
var options flags

type flags struct {
	noPager      bool
	noLegend     bool
	all          bool
	full         bool
	lines        number
	output       outputMode
	maxAddresses addressLimit
	json         jsonMode
	jsonAuto     bool
	machine      string
	host         remote
	noAsk        bool
	user, system bool
}

// jsonLayout names the JSON that tables are printed as (jsonLayouts), "" for none. As in machinectl, --output=json asks for it
// too.
func (f *flags) jsonLayout() string {
	output, isJSON := strings.CutPrefix(string(f.output), "json")
	switch {
	case f.json != "off":
		return string(f.json)
	case f.jsonAuto && term.IsTerminal(int(os.Stdout.Fd())):
		return "pretty"
	case f.jsonAuto:
		return "short"
	case isJSON:
		return cmp.Or(strings.TrimPrefix(output, "-"), "short")
	}
	return ""
}

// program is who speaks: nspawnd-run when it is that which has us pull an image.
var program = filepath.Base(os.Args[0])

// storeRoot is the directory of the image store.
var storeRoot string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends us at once, but not the one that nspawnd-run passes on when Ctrl-C has reached us both.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	root := newRootCommand()
	root.SetArgs(verbFirst(root, os.Args[1:]))
	err := root.ExecuteContext(ctx)
	stopAgent()
	os.Exit(exitStatus(err))
}

// exitStatus reports an error, one line for each thing that went wrong.
func exitStatus(err error) int {
	var failed failures
	var own *statusError
	switch {
	case errors.As(err, &own):
		if own.err != nil {
			exitStatus(own.err)
		}
		return own.status
	case err == nil:
		return 0
	case errors.Is(err, errOutputHelp):
		fmt.Println(strings.Join(outputModes, "\n"))
		return 0
	case !errors.As(err, &failed):
		failed = failures{err}
	}
	for _, err := range failed {
		if os.Geteuid() != 0 && options.host.name == "" && (errors.Is(err, fs.ErrPermission) || buserror.Denied(err)) {
			err = fmt.Errorf("%s; try: sudo machinectl-lite …", strings.TrimSuffix(err.Error(), "."))
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", program, printableLines(err.Error()))
	}
	return 1
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "machinectl-lite [OPTIONS...] VERB",
		Short: "See and steer machines and images",
		Long: `See and steer the machines that run on this host, and the images that they are started from.

Verbs and options that machinectl has too do the same here. Machines of every origin are shown; those that nspawnd-run
started are the units nspawnd-NAME.service, so systemctl and journalctl know them too. Without a verb, machines are listed.

Exit status: 0 when everything asked for was done, 1 otherwise, with the reason on standard error.`,
		Example: `  machinectl-lite
  machinectl-lite status web
  machinectl-lite pull-oci registry.example/team/web:1`,
		Version:                    version.String(),
		Args:                       knownVerb,
		RunE:                       runList,
		SilenceErrors:              true,
		SilenceUsage:               true,
		DisableFlagsInUseLine:      true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
	})

	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if err := options.reaches(cmd, args); err != nil {
			return err
		}
		if overBus[verbOf(cmd)]&asks != 0 && options.own() && !options.noAsk {
			startAgent()
		}
		if options.output == wide && cmd != root && verbOf(cmd) != "list" {
			return fmt.Errorf("%s: --output=%s is for list", verbOf(cmd), wide)
		}
		return nil
	}

	options = flags{lines: 10, output: "short", maxAddresses: 1, json: "off"}
	persistent := root.PersistentFlags()
	persistent.StringVarP(&options.machine, "machine", "M", "", "Ask the systemd in this `container`, not this host's")
	persistent.VarP(&options.host, "host", "H", "Ask the systemd of another `host`, or in a container there, by ssh: [USER@]HOST[:PORT][/CONTAINER]")
	persistent.BoolVar(&options.user, "user", false, "Ask the calling user's own systemd (259)")
	persistent.BoolVar(&options.system, "system", false, "Ask the system's, which is the default")
	persistent.BoolVar(&options.noPager, "no-pager", false, "Do not pipe output into a pager")
	persistent.BoolVar(&options.noAsk, "no-ask-password", false, "Do not ask for the password of who may do it")
	persistent.BoolP("quiet", "q", false, "Say less")
	_ = persistent.MarkHidden("quiet") // of some verbs; machinectl takes it for any
	persistent.BoolVar(&options.noLegend, "no-legend", false, "Do not show the headers and footers")
	persistent.BoolVarP(&options.all, "all", "a", false, "Show hidden machines and images, and long or unprintable log fields too")
	persistent.BoolVarP(&options.full, "full", "l", false, "Do not ellipsize output")
	persistent.VarP(&options.lines, "lines", "n", "Show at most `number` journal entries")
	persistent.VarP(&options.output, "output", "o", "Show journal entries, and with json tables too, in `mode`; help lists them; wide shows more in list")
	persistent.Var(&options.maxAddresses, "max-addresses", "Show at most `number` addresses of a machine, or all")
	persistent.Var(&options.json, "json", "Print tables as JSON: short, pretty or off")
	persistent.BoolVarP(&options.jsonAuto, "j", "j", false, "Same as --json=pretty on a terminal, --json=short otherwise")
	persistent.StringVar(&storeRoot, "root", image.DefaultRoot, "The image store is in `directory`")

	completeFlag(root, "json", "short", "pretty", "off")
	completeFlag(root, "output", append(slices.Clone(outputModes), wide)...)
	if err := root.RegisterFlagCompletionFunc("machine", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		options.machine = "" // as typed so far it is none
		return completeMachines(cmd, nil, "")
	}); err != nil {
		panic(err)
	}

	for _, group := range []struct {
		title string
		verbs []*cobra.Command
	}{
		{"Machine verbs:", []*cobra.Command{
			listCommand(), statusCommand(), showCommand(), inspectCommand(), logsCommand(), statsCommand(), execCommand(), shellCommand(), loginCommand(), waitCommand(), stopCommand(), restartCommand(), killCommand(), pauseCommand(), resumeCommand(), terminateCommand(),
			bindCommand(), copyToCommand(), copyFromCommand(), attachCommand(), startCommand(), listKeptCommand(), removeMachineCommand(),
			diffCommand(), exportCommand(), commitCommand(),
			topCommand(), eventsCommand(),
		}},
		{"Image verbs:", []*cobra.Command{
			pullOCICommand(), pullACICommand(), importOCICommand(), exportOCICommand(), exportMStackCommand(),
			listImagesCommand(), imageStatusCommand(), showImageCommand(), inspectImageCommand(),
			tagCommand(), cloneCommand(), renameCommand(), readOnlyCommand(), removeCommand(), cleanCommand(), dfCommand(),
			verifyImageCommand(), trustCommand(),
		}},
		{"Verbs for images of systemd-nspawn:", []*cobra.Command{enableCommand(), disableCommand(), editCommand(), catCommand(), setLimitCommand()}},
		{"Verbs for transfers of such images by systemd-importd:", []*cobra.Command{
			pullTarCommand(), pullRawCommand(), importTarCommand(), importRawCommand(), importFSCommand(), exportTarCommand(), exportRawCommand(), listTransfersCommand(), cancelTransferCommand(),
		}},
		{"Volume verbs:", []*cobra.Command{listVolumesCommand(), volumeStatusCommand(), createVolumeCommand(), removeVolumeCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, verb := range group.verbs {
			verb.GroupID = group.title
			verb.DisableFlagsInUseLine = true
			root.AddCommand(verb)
		}
	}
	return root
}

// completeFlag offers the values of a flag.
func completeFlag(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag
	}
}

// verbOf is what a user types to have a command run: a verb, with another one for those that have some.
func verbOf(cmd *cobra.Command) string {
	_, verb, _ := strings.Cut(cmd.CommandPath(), " ")
	return verb
}

// verbFirst puts the verb before the options that are before it, as machinectl takes them: options belong to verbs here.
func verbFirst(root *cobra.Command, args []string) []string {
	for i, arg := range args {
		for _, verb := range root.Commands() {
			if (arg == verb.Name() || verb.HasAlias(arg)) && firstArgument(verb, args) == i {
				return slices.Concat(args[i:i+1], args[:i], args[i+1:])
			}
		}
	}
	return args
}

// firstArgument is where the first argument is that is neither an option of this verb nor the value of one. It is -1 when there is none, or an option that the verb has not.
func firstArgument(verb *cobra.Command, args []string) int {
	verb.InheritedFlags() // adds them to Flags
	verb.InitDefaultHelpFlag()
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		arg := args[i]
		switch {
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			return i
		case strings.HasPrefix(arg, "--"):
			name, _, withValue := strings.Cut(arg[2:], "=")
			option := verb.Flags().Lookup(name)
			if option == nil {
				return -1
			}
			if option.NoOptDefVal == "" && !withValue {
				i++
			}
		default: // letters, of which the first that takes a value has what follows
			for arg = arg[1:]; arg != ""; arg = arg[1:] {
				option := verb.Flags().ShorthandLookup(arg[:1])
				if option == nil {
					return -1
				}
				if option.NoOptDefVal == "" {
					if arg[1:] == "" {
						i++
					}
					break
				}
			}
		}
	}
	return -1
}

// knownVerb refuses whatever is left over as the first argument: no verb has that name.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		return fmt.Errorf("unknown verb %q, did you mean %s?", args[0], strings.Join(similar, " or "))
	}
	return fmt.Errorf("unknown verb %q (see machinectl-lite --help)", args[0])
}

// noArguments wants none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument (see %s --help)", cmd.Name(), cmd.CommandPath())
	}
	return nil
}

// machineNames wants at least one machine's name.
func machineNames(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: no machine named (see %s --help)", cmd.Name(), cmd.CommandPath())
	}
	if slices.Contains(args, "") {
		return fmt.Errorf("%s: a machine's name is never empty", cmd.Name())
	}
	return nil
}

// completeMachines offers the names of the machines that run.
func completeMachines(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if options.host.name != "" { // ssh may ask for a password
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	host, err := connect(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer host.close()
	machines, err := host.list(cmd.Context(), false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, m := range machines {
		if !slices.Contains(args, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// failures are errors about one thing each, such as a machine.
type failures []error

func (f failures) Error() string { return errors.Join(f...).Error() }

func (f failures) orNil() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// forEachMachine does something with every machine, also when it failed for one before.
func forEachMachine(ctx context.Context, names []string, do func(*host, string) error) error {
	host, err := connect(ctx)
	if err != nil {
		return err
	}
	defer host.close()
	var failed failures
	for _, name := range names {
		if ctx.Err() != nil {
			return append(failed, fmt.Errorf("interrupted before %s", name))
		}
		if err := do(host, name); err != nil {
			failed = append(failed, err)
		}
	}
	return failed.orNil()
}

// outputMode is a format of journalctl(1).
type outputMode string

var outputModes = []string{
	"short", "short-full", "short-iso", "short-iso-precise", "short-precise", "short-monotonic", "short-delta", "short-unix",
	"verbose", "export", "json", "json-pretty", "json-sse", "json-seq", "cat", "with-unit",
}

// wide is a mode of list alone.
const wide = "wide"

var errOutputHelp = errors.New("list the output modes")

func (m *outputMode) Set(value string) error {
	if value == "help" {
		return errOutputHelp
	}
	return oneOf((*string)(m), value, append(slices.Clone(outputModes), wide))
}

func (m *outputMode) String() string { return string(*m) }
func (m *outputMode) Type() string   { return "mode" }

// jsonMode is how a table is printed.
type jsonMode string

func (m *jsonMode) Set(value string) error {
	return oneOf((*string)(m), value, []string{"short", "pretty", "off"})
}

func (m *jsonMode) String() string { return string(*m) }
func (m *jsonMode) Type() string   { return "mode" }

func oneOf(target *string, value string, allowed []string) error {
	if !slices.Contains(allowed, value) {
		return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
	}
	*target = value
	return nil
}

// number is a number that is not negative.
type number uint32

func (n *number) Set(value string) error {
	parsed, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return errors.New("must be a number")
	}
	*n = number(parsed)
	return nil
}

func (n *number) String() string { return strconv.FormatUint(uint64(*n), 10) }
func (n *number) Type() string   { return "number" }

// addressLimit is a number of addresses; "all" is more than any machine has.
type addressLimit uint32

const allAddresses = 1<<32 - 1

func (l *addressLimit) Set(value string) error {
	if value == "all" {
		*l = allAddresses
		return nil
	}
	if err := (*number)(l).Set(value); err != nil {
		return fmt.Errorf("%w or all", err)
	}
	return nil
}

func (l *addressLimit) String() string {
	if *l == allAddresses {
		return "all"
	}
	return (*number)(l).String()
}

func (l *addressLimit) Type() string { return "number" }
