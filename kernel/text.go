package kernel

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// String writes the report for people: the sentence first, then what led to
// it, then every feature on a line.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.Sentence)
	for _, reason := range r.Reasons {
		fmt.Fprintln(&b, "  -", reason)
	}
	if r.Advice != "" && !strings.Contains(r.Sentence, r.Advice) {
		fmt.Fprintln(&b, "  advice:", r.Advice)
	}
	fmt.Fprintln(&b, "host:", r.Host)
	fmt.Fprintf(&b, "minimum: %s (%s)", r.Floor.Minimum, r.Floor.Family)
	if r.Floor.Why != "" {
		fmt.Fprint(&b, ", because ", r.Floor.Why)
	}
	fmt.Fprintln(&b)
	if r.Memlock != nil {
		fmt.Fprintln(&b, "RLIMIT_MEMLOCK:", r.Memlock)
	}
	for _, problem := range r.Host.Problems {
		fmt.Fprintln(&b, "note:", problem)
	}
	table := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, group := range []struct {
		title  string
		needed bool
	}{{"needed", true}, {"optional", false}} {
		fmt.Fprintf(table, "%s:\t\t\t\n", group.title)
		for _, result := range r.Results {
			if result.Needed == group.needed {
				fmt.Fprintf(table, "  %s\t%s\tLinux %s\t%s\n", result.Name, result.Answer, result.Since, result.remark())
			}
		}
	}
	table.Flush()
	return b.String()
}

// remark is the last column: what it is when it is there, what is lost and
// why when it is not.
func (r Result) remark() string {
	switch {
	case r.Answer == Yes:
		return r.Sentence
	case r.Forbidden:
		return "forbidden by configuration; " + r.WithoutIt
	case r.Anomaly != "":
		return r.Anomaly + "; " + r.WithoutIt
	case r.Answer == Unknown:
		return r.Detail
	}
	return r.WithoutIt
}
