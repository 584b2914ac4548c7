package diagnose

import (
	"fmt"

	"github.com/firsthop/firsthop/bootstrap"
)

// Grade is how a check came out. Every command has these four.
type Grade string

// The grades.
const (
	OK   Grade = "ok"
	Warn Grade = "warn" // works, but somebody should do something
	Fail Grade = "fail" // an invariant does not hold, or init would fail
	Skip Grade = "skip" // not looked at, as something that it needs is broken
)

// Finding is what one check of check, status or doctor found.
type Finding struct {
	Check    string             `json:"check"`
	Grade    Grade              `json:"grade"`
	Sentence string             `json:"sentence"`
	Details  []string           `json:"details,omitempty"`
	Evidence []string           `json:"evidence,omitempty"` // what the sentence was made from
	Remedy   string             `json:"remedy,omitempty"`   // what to do, where something is to be done
	ExitCode bootstrap.ExitCode `json:"exit_code"`          // what the command ends with because of this
}

// Findings are what a command found, in the order of its checks.
type Findings []Finding

// ExitCode is what a command ends with: that of the first finding that failed.
func (l Findings) ExitCode() bootstrap.ExitCode {
	for _, f := range l {
		if f.Grade == Fail {
			return f.ExitCode
		}
	}
	return bootstrap.ExitOK
}

// Worst is the worst of ok, warn and fail that was found.
func (l Findings) Worst() Grade {
	for _, g := range []Grade{Fail, Warn} {
		if l.Count(g) > 0 {
			return g
		}
	}
	return OK
}

// Count counts the findings of a grade.
func (l Findings) Count(g Grade) int {
	n := 0
	for _, f := range l {
		if f.Grade == g {
			n++
		}
	}
	return n
}

// add names a finding after its check, and says what the command ends with if it failed.
func (l *Findings) add(check string, code bootstrap.ExitCode, f Finding) {
	f.Check = check
	if f.Grade == Fail && f.ExitCode == bootstrap.ExitOK {
		f.ExitCode = code
	}
	*l = append(*l, f)
}

func ok(format string, args ...any) Finding {
	return Finding{Grade: OK, Sentence: fmt.Sprintf(format, args...)}
}

func warn(remedy, format string, args ...any) Finding {
	return Finding{Grade: Warn, Sentence: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(remedy, format string, args ...any) Finding {
	return Finding{Grade: Fail, Sentence: fmt.Sprintf(format, args...), Remedy: remedy}
}

// unseen is for what can't be checked as something that it needs is broken,
// which another check has said.
func unseen(what string, err error) Finding {
	return Finding{Grade: Skip, Sentence: fmt.Sprintf("could not look at %s: %s", what, err), Remedy: "repair what is above first"}
}

// because adds what a finding was made from.
func (f Finding) because(evidence ...string) Finding {
	f.Evidence = append(f.Evidence, evidence...)
	return f
}
