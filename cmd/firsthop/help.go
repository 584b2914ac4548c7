package main

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// lineWidth is the width of all output for people: what fits beside another window.
const lineWidth = 100

// flagColumn is where the texts of flags begin at most. Longer names have a line of their own.
const flagColumn = 36

// wrapHelp makes cli's help fit into lineWidth.
func wrapHelp() {
	printDefault := func(w io.Writer, template string, data any) { cli.HelpPrinterCustom(w, template, data, nil) }
	cli.HelpPrinter = func(w io.Writer, template string, data any) {
		var b bytes.Buffer
		printDefault(&b, template, data)
		_, _ = io.WriteString(w, reflow(b.String())) // output remembers the error
	}
}

var (
	// flagLine is a flag or a command with its text, as cli aligns them.
	flagLine = regexp.MustCompile(`^   (\S.*?)  +(\S.*)$`)
	// repeated is how cli says that a flag can be given several times.
	repeated = regexp.MustCompile(` \[ --.* \]$`)
)

// reflow aligns each block of flags or commands anew, and wraps their texts.
func reflow(help string) string {
	var out strings.Builder
	var block [][2]string
	flush := func() {
		column := 0
		for _, row := range block {
			if n := 3 + utf8.RuneCountInString(row[0]) + 2; n <= flagColumn {
				column = max(column, n)
			}
		}
		column = max(column, 9)
		for _, row := range block {
			name := "   " + row[0]
			for i, line := range wrap(row[1], lineWidth-column) {
				switch {
				case i > 0:
					name = ""
				case utf8.RuneCountInString(name)+2 > column:
					fmt.Fprintln(&out, name)
					name = ""
				}
				fmt.Fprintf(&out, "%-*s%s\n", column, name, line)
			}
		}
		block = nil
	}
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, " \n")
		if m := flagLine.FindStringSubmatch(line); m != nil {
			block = append(block, [2]string{repeated.ReplaceAllString(m[1], ""), m[2]})
			continue
		}
		flush()
		for i, part := range wrap(strings.TrimLeft(line, " "), lineWidth-9) {
			indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
			if i > 0 {
				indent += "   "
			}
			fmt.Fprintln(&out, strings.TrimRight(indent+part, " "))
		}
	}
	flush()
	return out.String()
}

// wrap breaks a text at blanks into lines of at most width, where its words allow it.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
