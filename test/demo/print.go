package main

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// width is how long a line may be.
const width = 100

// indent is before everything within a step.
const indent = "   "

// title begins a step.
func (t *teller) title(title string) {
	t.step++
	fmt.Fprintf(t.out, "\n%d/%d  %s\n\n", t.step, t.steps, title)
}

// say prints an explanation.
func (t *teller) say(format string, args ...any) { t.print(indent, fmt.Sprintf(format, args...), "") }

// conclude prints the one sentence that matters in a step.
func (t *teller) conclude(format string, args ...any) {
	fmt.Fprintln(t.out)
	t.print(indent+"=> ", fmt.Sprintf(format, args...), "")
}

// typed prints a command as a user types it.
func (t *teller) typed(line string) { t.print(indent+"$ ", line, "  ") }

// show prints output of a command.
func (t *teller) show(text string) {
	text = strings.TrimRight(text, "\n")
	switch {
	case text == "":
	case t.verbose: // firsthop breaks its lines itself
		fmt.Fprintln(t.out, text)
	default:
		t.print(indent+"  ", text, "  ")
	}
}

// print prints lines, the first one behind a prefix and the others as far to the right, and breaks those that are too
// long, whose further parts are indented by more.
func (t *teller) print(prefix, text, more string) {
	rest := strings.Repeat(" ", len(prefix))
	for line := range strings.SplitSeq(text, "\n") {
		for _, part := range wrap(line, width-len(prefix), more) {
			fmt.Fprintln(t.out, strings.TrimRight(prefix+part, " "))
			prefix = rest
		}
	}
}

// wrap breaks a line at spaces. What follows the first part is indented as the line was, and by more. A word that is
// too long stays whole.
func wrap(line string, width int, more string) []string {
	body := strings.TrimLeft(line, " ")
	start := line[:len(line)-len(body)]
	var parts []string
	for utf8.RuneCountInString(start+body) > width {
		room := string([]rune(start + body)[:width+1])
		at := strings.LastIndex(room, " ")
		if at <= len(start) { // the first word is longer
			next := strings.Index(body, " ")
			if next < 0 {
				break
			}
			at = len(start) + next
		}
		parts = append(parts, strings.TrimRight((start + body)[:at], " "))
		body = strings.TrimLeft((start + body)[at:], " ")
		if len(parts) == 1 {
			start += more
		}
	}
	return append(parts, start+body)
}

// showClipped shows lines, of which the end is cut off where they are too long.
func (t *teller) showClipped(text string) {
	if t.verbose {
		t.show(text)
		return
	}
	room := width - len(indent) - 2
	for line := range strings.SplitSeq(text, "\n") {
		if r := []rune(line); len(r) > room {
			line = string(r[:room-1]) + "…"
		}
		fmt.Fprintln(t.out, strings.TrimRight(indent+"  "+line, " "))
	}
}

// showFirst shows the first lines of an output, and how many more there are.
func (t *teller) showFirst(text string, n int) {
	lines := strings.Split(text, "\n")
	if t.verbose || len(lines) <= n {
		t.show(text)
		return
	}
	t.showClipped(strings.Join(lines[:n], "\n"))
	t.show(fmt.Sprintf("… %d more lines", len(lines)-n))
}

// linesWith returns the lines that contain one of some words. One that goes on, below and further to the right, ends with
// an ellipsis.
func linesWith(text string, words ...string) string {
	var kept []string
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			continue
		}
		short := strings.TrimSpace(line)
		if i+1 < len(lines) && indentOf(lines[i+1]) > indentOf(line) {
			short += " …"
		}
		kept = append(kept, short)
	}
	return strings.Join(kept, "\n")
}

func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
