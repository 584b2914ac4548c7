package main

import (
	"fmt"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// findingColumn is where the text of a finding begins.
const findingColumn = 18

// verdict writes the first line of an output, which is the result of all.
func (p *printer) verdict(g diagnose.Grade, format string, args ...any) {
	p.item(p.paint(g, 0)+": ", len(g)+2, fmt.Sprintf(format, args...))
}

// findings writes what check, status or doctor found; what it was found by only if verbose.
func (p *printer) findings(list diagnose.Findings, verbose bool) {
	for _, f := range list {
		p.item(p.paint(f.Grade, 4)+"  "+fmt.Sprintf("%-12s", f.Check), findingColumn, f.Sentence)
		for _, d := range f.Details {
			p.say(findingColumn, "%s", d)
		}
		if verbose {
			for _, e := range f.Evidence {
				p.say(findingColumn, "%s", e)
			}
		}
		if f.Remedy != "" {
			p.say(findingColumn, "remedy: %s", f.Remedy)
		}
	}
}
