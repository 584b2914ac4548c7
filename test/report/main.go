// Command report makes of `go test -json` what a person reads: a line for each package, the output of what failed, and
// at the end how many tests were left out, why, and what runs them.
//
//	go test -json ./... | report [-notes FILE]   appends to FILE, if it is given, what ran and what was left out
//	report -total -notes FILE                    says what was left out of several runs, and ran in none of them
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() {
	notes := flag.String("notes", "", "a `FILE` that several runs share")
	total := flag.Bool("total", false, "only say what the notes have")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *notes, *total); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, notes string, total bool) error {
	if total {
		all, err := readNotes(notes)
		if err != nil {
			return err
		}
		summarize(out, all)
		return nil
	}
	r := &reporter{out: out, output: make(map[string][]string)}
	if err := r.read(in); err != nil {
		return err
	}
	if notes == "" {
		summarize(out, r.notes)
		return nil
	}
	return appendNotes(notes, r.notes)
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// note says that a test ran, or why it was left out.
type note struct {
	Package, Test string
	LeftOut       bool
	Why           string
}

// reporter reads events.
type reporter struct {
	out    io.Writer
	output map[string][]string // of what runs, by package and test; of the package itself, without a test
	notes  []note
}

func (r *reporter) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var ev event
			if json.Unmarshal([]byte(line), &ev) != nil || ev.Action == "" {
				fmt.Fprint(r.out, line) // words of go's own
			} else {
				r.take(ev)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reporter) take(ev event) {
	key := ev.Package + " " + ev.Test
	switch ev.Action {
	case "build-output":
		fmt.Fprint(r.out, ev.Output)
	case "output":
		r.output[key] = append(r.output[key], ev.Output)
	case "pass", "skip":
		if ev.Test == "" {
			for _, line := range r.output[key] {
				if strings.HasPrefix(line, "ok ") {
					fmt.Fprint(r.out, line)
				}
			}
			delete(r.output, key)
		} else {
			n := note{Package: ev.Package, Test: ev.Test, LeftOut: ev.Action == "skip"}
			if n.LeftOut {
				n.Why = reason(r.output[key])
			}
			r.notes = append(r.notes, n)
			delete(r.output, key)
		}
	case "fail":
		if ev.Test != "" {
			r.notes = append(r.notes, note{Package: ev.Package, Test: ev.Test})
			r.flush(key)
			return
		}
		for other := range r.output { // of tests that a panic or the time limit ended
			if other != key && strings.HasPrefix(other, key) {
				r.flush(other)
			}
		}
		r.flush(key)
	}
}

// flush prints what a test printed.
func (r *reporter) flush(key string) {
	fmt.Fprint(r.out, strings.Join(r.output[key], ""))
	delete(r.output, key)
}

// skipped finds the message of t.Skip.
var skipped = regexp.MustCompile(`^\s*[^\s:]+\.go:\d+: (.*)`)

// reason is why a test was left out: what it printed last.
func reason(output []string) string {
	why := "it does not say why"
	for _, line := range output {
		if m := skipped.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			why = m[1]
		}
	}
	return why
}
