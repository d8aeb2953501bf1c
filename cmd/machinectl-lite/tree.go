package main

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"nspawnd/cmd/internal/printable"
	"nspawnd/dbus"
)

// group is a control group with what is in it.
type group struct {
	processes []dbus.Process
	children  map[string]*group
}

// groups sorts processes into a tree of the control groups below root. Those elsewhere are given apart: a unit's own
// processes may have been moved out of its control group.
func groups(root string, processes []dbus.Process) (tree group, elsewhere []dbus.Process) {
	for _, p := range processes {
		inside, ok := strings.CutPrefix(path.Clean("/"+p.ControlGroup)+"/", strings.TrimSuffix(path.Clean("/"+root), "/")+"/")
		if !ok {
			elsewhere = append(elsewhere, p)
			continue
		}
		at := &tree
		for name := range strings.SplitSeq(inside, "/") {
			if name == "" {
				continue
			}
			if at.children[name] == nil {
				if at.children == nil {
					at.children = map[string]*group{}
				}
				at.children[name] = &group{}
			}
			at = at.children[name]
		}
		at.processes = append(at.processes, p)
	}
	return tree, elsewhere
}

// treePrinter draws a tree of processes.
type treePrinter struct {
	strings.Builder
	out *output
}

// processTree draws the processes below a control group, and if wanted the others as a list, each line after prefix and, unless
// the output is wide, cut to width columns.
func processTree(out *output, prefix string, width int, root string, processes []dbus.Process, others bool) string {
	t := &treePrinter{out: out}
	if out.wide {
		width = 0
	}
	tree, elsewhere := groups(root, processes)
	t.group(tree, prefix, width)
	if others {
		t.processes(elsewhere, func(int) string { return prefix + t.glyph("‣", ">") + " " }, "", width)
	}
	return t.String()
}

func (t *treePrinter) glyph(utf8, ascii string) string {
	if t.out.utf8 {
		return utf8
	}
	return ascii
}

func (t *treePrinter) branch(last bool) string {
	if last {
		return t.glyph("└─", "`-")
	}
	return t.glyph("├─", "|-")
}

func (t *treePrinter) group(g group, prefix string, width int) {
	t.processes(g.processes, func(i int) string {
		return prefix + t.branch(i == len(g.processes)-1 && len(g.children) == 0)
	}, grey, width)
	names := slices.Sorted(maps.Keys(g.children))
	if width > 0 {
		width = max(width-2, minCommand)
	}
	for i, name := range names {
		last := i == len(names)-1
		t.WriteString(prefix + t.branch(last) + printable.Line(name) + "\n")
		stem := "  "
		if !last {
			stem = t.glyph("│ ", "| ")
		}
		t.group(*g.children[name], prefix+stem, width)
	}
}

// minCommand is how many columns of a command are shown however narrow the terminal is.
const minCommand = 20

func (t *treePrinter) processes(processes []dbus.Process, prefix func(int) string, color string, width int) {
	slices.SortFunc(processes, func(a, b dbus.Process) int { return int(a.PID) - int(b.PID) })
	digits := 0
	for _, p := range processes {
		digits = len(strconv.Itoa(int(p.PID))) // of the highest
	}
	for i, p := range processes {
		command := printable.Line(p.Command)
		if width > 0 {
			command = t.out.ellipsize(command, max(width-2-digits-1, minCommand))
		}
		t.WriteString(prefix(i) + t.out.paint(color, fmt.Sprintf("%*d %s", digits, p.PID, command)) + "\n")
	}
}
