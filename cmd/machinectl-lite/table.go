package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"nspawnd/cmd/internal/printable"
)

// table is what a list verb prints. The header's words in lower case are the keys of its JSON form.
type table struct {
	header  []string
	rows    [][]string // an empty cell shows as "-", but not a size, and is null in JSON; a cell may have several lines
	lines   int        // lines of a cell that are shown, 0 for all
	footer  string     // instead of one that counts
	numbers int        // of how many columns at the left are numbers or percentages: flush right, and numbers in JSON
	size    int        // a column, from 1, of sizes: flush right; 0 for none
	texts   int        // of how many columns at the right an empty cell is an empty text
	values  []string   // columns of which a cell is JSON as it stands, but for a percent sign
}

// show prints the table the way the options say, with a footer that counts what it lists unless it has another.
func (t table) show(things string) (err error) {
	out := openOutput(options.noPager)
	defer func() { err = errors.Join(err, out.close()) }()
	switch {
	case options.jsonLayout() != "":
		return t.printJSON(out, options.jsonLayout())
	case len(t.rows) > 0:
		if err := t.print(out, !options.noLegend, options.full); err != nil {
			return err
		}
		if !options.noLegend {
			_, err = io.WriteString(out, "\n"+cmp.Or(t.footer, fmt.Sprintf("%d %s listed.\n", len(t.rows), things)))
		}
	case !options.noLegend:
		_, err = fmt.Fprintf(out, "No %s.\n", things)
	}
	return err
}

// column gives the cells of a column, from 0.
func (t table) column(i int) (cells []string) {
	for _, row := range t.rows {
		cells = append(cells, row[i])
	}
	return cells
}

// print writes the table as systemd's tools do: columns one space apart, the header underlined, and, in a terminal that is
// too narrow, long cells cut.
func (t table) print(out *output, header, full bool) error {
	rows := t.rows
	if header {
		rows = append([][]string{t.header}, rows...)
	}
	cells := make([][][]string, len(rows)) // row, column, line
	wanted := make([]int, len(t.header))
	for i, row := range rows {
		cells[i] = make([][]string, len(row))
		for j, value := range row {
			if value == "" && (t.isText(j) || j == t.size-1) {
				cells[i][j] = []string{""}
				continue
			}
			cells[i][j] = t.cell(value, out.ellipsis())
			for _, line := range cells[i][j] {
				wanted[j] = max(wanted[j], widths.StringWidth(line))
			}
		}
	}
	width := wanted
	if !full && !out.wide {
		width = fit(wanted, out.columns)
	}

	var b strings.Builder
	for i, row := range cells {
		color := ""
		if header && i == 0 {
			color = underline
		}
		for n, more := 0, true; more; n++ {
			more = false
			for j, lines := range row {
				line := ""
				if n < len(lines) {
					line = lines[n]
				}
				more = more || n+1 < len(lines)
				cellColor := color
				if rows[i][j] == "" && !t.isText(j) {
					cellColor = grey
				}
				if j > 0 {
					b.WriteString(out.paint(color, " "))
				}
				line = out.ellipsize(line, width[j])
				if j < t.numbers || j == t.size-1 {
					line = widths.FillLeft(line, width[j])
				} else {
					line = widths.FillRight(line, width[j])
				}
				if j == len(row)-1 && (cellColor == "" || !out.color) {
					line = strings.TrimRight(line, " ")
				}
				b.WriteString(out.paint(cellColor, line))
			}
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// isText says whether an empty cell of a column is an empty text.
func (t table) isText(column int) bool { return column >= len(t.header)-t.texts }

// cell gives the lines of a cell that are shown.
func (t table) cell(value, ellipsis string) []string {
	if value == "" {
		return []string{"-"}
	}
	lines := strings.Split(value, "\n")
	if t.lines > 0 && len(lines) > t.lines {
		lines = lines[:t.lines]
		lines[t.lines-1] += ellipsis
	}
	for i, line := range lines {
		lines[i] = printable.Line(line)
	}
	return lines
}

// fit shares a terminal's columns out: a column that wants no more than its even share gets what it wants, the others share
// the rest.
func fit(wanted []int, columns int) []int {
	width := make([]int, len(wanted))
	open := len(wanted) // columns of the table without a width
	rest := max(columns-(len(wanted)-1), len(wanted))
	for again := true; again; {
		again = false
		for i, want := range wanted {
			if width[i] == 0 && want <= rest/open {
				width[i] = want
				rest -= want
				open--
				again = open > 0
				break
			}
		}
	}
	for i := range wanted {
		if width[i] == 0 {
			width[i] = rest / open
			rest -= width[i]
			open--
		}
	}
	return width
}

// jsonLayouts are the white space and framing of JSON.
var jsonLayouts = map[string]struct{ start, row, field, colon, lastField, lastRow, end string }{
	"short":  {colon: ":", end: "\n"},
	"pretty": {row: "\n\t", field: "\n\t\t", colon: " : ", lastField: "\n\t", lastRow: "\n", end: "\n"},
	"sse":    {start: "data: ", colon: ":", end: "\n\n"},
	"seq":    {start: "\x1e", colon: ":", end: "\n"},
}

// printJSON writes the table as a list of objects whose keys are in the columns' order.
func (t table) printJSON(out *output, layout string) error {
	l := jsonLayouts[layout]
	text := func(s string) string { return `"` + out.paint(green, jsonText(s)) + `"` }
	rows := make([]string, len(t.rows))
	for i, row := range t.rows {
		fields := make([]string, len(row))
		for j, value := range row {
			fields[j] = l.field + text(strings.ToLower(t.header[j])) + l.colon
			switch {
			case value == "" && !t.isText(j):
				fields[j] += out.paint(bright, "null")
			case slices.Contains(t.values, t.header[j]) && (value == "true" || value == "false"):
				fields[j] += out.paint(bright, value)
			case j < t.numbers || slices.Contains(t.values, t.header[j]):
				fields[j] += out.paint(blue, strings.TrimSuffix(value, "%"))
			default:
				fields[j] += text(value)
			}
		}
		rows[i] = l.row + "{" + strings.Join(fields, ",") + l.lastField + "}"
	}
	if len(rows) == 0 {
		l.lastRow = ""
	}
	_, err := io.WriteString(out, l.start+"["+strings.Join(rows, ",")+l.lastRow+"]"+l.end)
	return err
}

// jsonText escapes s for use between quotation marks: what JSON asks for, and what could steer a terminal.
func jsonText(s string) string {
	quoted, _ := json.Marshal(s) // no string is an error
	return escapeUnprintable(string(quoted[1 : len(quoted)-1]))
}

// escapeUnprintable writes characters of a JSON text that could steer a terminal as JSON's escapes.
func escapeUnprintable(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch high, low := utf16.EncodeRune(r); {
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case high != utf8.RuneError:
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
