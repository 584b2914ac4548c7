package vm

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/firsthop/firsthop/test/vm/wire"
)

// Verdict is how a suite ended.
type Verdict string

// The verdicts.
const (
	Passed   Verdict = "pass"
	Failed   Verdict = "FAIL"
	Hung     Verdict = "HUNG"  // ended because its time was over
	Panicked Verdict = "PANIC" // it brought the kernel down
	Died     Verdict = "DIED"  // it brought the machine down
)

// Result is how a suite went on a kernel.
type Result struct {
	Kernel, Suite string
	Verdict       Verdict
	Detail        string
	Took          time.Duration
	Log           string // a file with the output
	Console       string // the console's log
}

// judge makes a verdict of an exit code and the output of go test -v. A skipped test is a failure: in a machine of its
// own a test has all that it needs, or is left out by name or by lab.NeedsLinux.
func judge(o wire.Outcome, output []string) Result {
	var passed int
	var failed, skipped []string
	for i, line := range output { // of subtests, which are indented, the test they belong to says enough
		for mark, list := range map[string]*[]string{"--- FAIL: ": &failed, "--- SKIP: ": &skipped} {
			if mark == "--- SKIP: " && i > 0 && strings.Contains(output[i-1], ": needs Linux ") {
				continue // lab.NeedsLinux
			}
			if name, ok := strings.CutPrefix(line, mark); ok {
				*list = append(*list, strings.Fields(name)[0])
			}
		}
		if strings.HasPrefix(line, "--- PASS: ") {
			passed++
		}
	}
	r := Result{Verdict: Passed, Detail: fmt.Sprintf("%d tests", passed)}
	switch {
	case o.Late:
		r.Verdict, r.Detail = Hung, "ended after its time was over"
	case o.Error != "":
		r.Verdict, r.Detail = Failed, o.Error
	case len(failed) > 0:
		r.Verdict, r.Detail = Failed, some(failed)
	case o.Code != 0:
		r.Verdict, r.Detail = Failed, fmt.Sprintf("exit code %d", o.Code)
	case len(skipped) > 0:
		r.Verdict, r.Detail = Failed, "skipped: "+some(skipped)
	case passed == 0:
		r.Verdict, r.Detail = Failed, "no test was run"
	}
	return r
}

// some names the first few of a list.
func some(names []string) string {
	const few = 4
	if len(names) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], " "), len(names)-few)
	}
	return strings.Join(names, " ")
}

func (r Result) line() string {
	return fmt.Sprintf("%-10s %-6s %5.1f s  %s", r.Suite, r.Verdict, r.Took.Seconds(), r.Detail)
}

// Report prints the table of results and returns whether all is well.
func Report(w io.Writer, results []Result) (ok bool) {
	ok = len(results) > 0
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KERNEL OR SYSTEM\tSUITE\tRESULT\tSECONDS\tDETAIL")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%s\n", r.Kernel, r.Suite, r.Verdict, r.Took.Seconds(), r.Detail)
		ok = ok && r.Verdict == Passed
	}
	_ = t.Flush() // to a terminal or a buffer
	for _, r := range results {
		if r.Verdict != Passed {
			fmt.Fprintf(w, "see %s and %s\n", r.Log, r.Console)
		}
	}
	return ok
}

// excerpt leaves out what went well.
func excerpt(output []string) []string {
	var kept []string
	for _, line := range output {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "=== "), strings.HasPrefix(trimmed, "--- PASS"):
			continue
		}
		kept = append(kept, line)
	}
	const most = 120
	if len(kept) > most {
		kept = append(append(kept[:most/2:most/2], "…"), kept[len(kept)-most/2:]...)
	}
	return kept
}

// tail returns the last lines of a file.
func tail(path string, n int) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return []string{err.Error()}
	}
	lines := strings.Split(strings.ReplaceAll(strings.TrimSpace(string(data)), "\r", ""), "\n")
	return lines[max(0, len(lines)-n):]
}
