package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// output is standard output. It remembers a write that failed: what was not said is no success.
type output struct {
	io.Writer
	failed error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if err != nil && o.failed == nil {
		o.failed = err
	}
	return n, err
}

func (o *output) err() error { return o.failed }

// printer writes a command's result in the form that was asked for.
type printer struct {
	w     io.Writer
	json  bool
	color bool
}

func newPrinter(e env, c *cli.Context) (*printer, error) {
	switch f := c.String("output"); f {
	case "text", "": // --version has no such flag
		return &printer{w: e.stdout, color: e.color}, nil
	case "json":
		return &printer{w: e.stdout, json: true}, nil
	default:
		return nil, usagef("--output %q: want text or json", f)
	}
}

// print writes v as JSON, or calls text.
func (p *printer) print(v any, text func(*printer)) error {
	if !p.json {
		b := bufio.NewWriter(p.w)
		text(&printer{w: b, color: p.color})
		return b.Flush()
	}
	enc := json.NewEncoder(p.w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (p *printer) linef(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

// item writes a text behind a prefix, and wraps it: its further lines begin below its first. width is that of the prefix as
// it is seen, without colours.
func (p *printer) item(prefix string, width int, text string) {
	for paragraph := range strings.SplitSeq(text, "\n") {
		for _, line := range wrap(paragraph, lineWidth-width) {
			p.linef("%s", strings.TrimRight(prefix+line, " "))
			prefix = strings.Repeat(" ", width)
		}
	}
}

// say writes a text in lines of their own.
func (p *printer) say(indent int, format string, args ...any) {
	p.item(strings.Repeat(" ", indent), indent, fmt.Sprintf(format, args...))
}

// columnGap is between the columns of a table.
const columnGap = 2

// table writes rows of cells in aligned columns. Where they don't fit into a line, the cells of the widest columns are
// wrapped.
func (p *printer) table(rows [][]string) {
	widths := columnWidths(rows)
	for _, row := range rows {
		cells := make([][]string, len(row))
		height := 1
		for i, cell := range row {
			cells[i] = wrap(cell, widths[i])
			height = max(height, len(cells[i]))
		}
		for n := range height {
			var line strings.Builder
			for i, cell := range cells {
				text := ""
				if n < len(cell) {
					text = cell[n]
				}
				fmt.Fprintf(&line, "%-*s", widths[i]+columnGap, text)
			}
			p.linef("%s", strings.TrimRight(line.String(), " "))
		}
	}
}

// lastColumn is what the last column of a table keeps at least, where its cells are longer.
const lastColumn = 20

// columnWidths gives every column what its cells need, and less to the widest while a line is too long. No column gets
// less than its longest word, but the last: there a long word runs over the end of its own line only.
func columnWidths(rows [][]string) []int {
	var widths, least []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths, least = append(widths, 0), append(least, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			for _, word := range strings.Fields(cell) {
				least[i] = max(least[i], utf8.RuneCountInString(word))
			}
		}
	}
	if last := len(least) - 1; last > 0 {
		least[last] = min(least[last], lastColumn)
	}
	for {
		total, widest := -columnGap, -1
		for i, w := range widths {
			total += w + columnGap
			if w > least[i] && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if total <= lineWidth || widest < 0 {
			return widths
		}
		widths[widest] = max(least[widest], widths[widest]-(total-lineWidth), secondWidest(widths, least, widest))
	}
}

// secondWidest is how far a column may shrink before another one that can shrink is wider.
func secondWidest(widths, least []int, widest int) int {
	second := 0
	for i, w := range widths {
		if i != widest && w > least[i] {
			second = max(second, w)
		}
	}
	return min(second, widths[widest]-1)
}

// paint colours a grade and fills it up to a width; on anything but a terminal there is no colour.
func (p *printer) paint(g diagnose.Grade, width int) string {
	padded := fmt.Sprintf("%-*s", width, g)
	if !p.color {
		return padded
	}
	colors := map[diagnose.Grade]string{diagnose.OK: "32", diagnose.Warn: "33", diagnose.Fail: "31", diagnose.Skip: "33"}
	return "\x1b[" + colors[g] + "m" + padded + "\x1b[0m"
}
