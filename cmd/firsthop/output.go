package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
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
		text(p)
		return nil
	}
	enc := json.NewEncoder(p.w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (p *printer) linef(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

// table writes rows of cells in aligned columns.
func (p *printer) table(rows [][]string) {
	t := tabwriter.NewWriter(p.w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// paint colours a word by what it means and fills it up to a width; on anything
// but a terminal there is no colour.
func (p *printer) paint(word string, width int) string {
	padded := fmt.Sprintf("%-*s", width, word)
	if !p.color {
		return padded
	}
	colors := map[string]string{
		"ok": "32", "good": "32", "live": "32", "yes": "32",
		"failed": "31", "fail": "31", "bad": "31", "dead": "31",
		"skipped": "33", "warn": "33", "not ready": "33",
	}
	code, known := colors[word]
	if !known {
		return padded
	}
	return "\x1b[" + code + "m" + padded + "\x1b[0m"
}
