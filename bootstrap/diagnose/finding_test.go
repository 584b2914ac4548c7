package diagnose

import (
	"errors"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
)

func TestFindings(t *testing.T) {
	kernel := fail("", "too old")
	kernel.ExitCode = bootstrap.ExitInternal
	for _, tc := range []struct {
		name  string
		found []Finding // of the checks bpffs, cgroup2 …
		code  bootstrap.ExitCode
		worst Grade
	}{
		{"nothing", nil, bootstrap.ExitOK, OK},
		{"all is well", []Finding{ok("a"), ok("b")}, bootstrap.ExitOK, OK},
		{"a warning ends no command", []Finding{ok("a"), warn("do", "b")}, bootstrap.ExitOK, Warn},
		{"what was not looked at is no failure", []Finding{unseen("a", errors.New("b"))}, bootstrap.ExitOK, OK},
		{"the first that failed counts", []Finding{warn("do", "a"), fail("do", "b"), kernel}, bootstrap.ExitCgroup, Fail},
		{"a finding may have a code of its own", []Finding{kernel, fail("do", "b")}, bootstrap.ExitInternal, Fail},
	} {
		var l Findings
		for i, f := range tc.found {
			l.add("check", bootstrap.ExitBPFFS+bootstrap.ExitCode(i), f)
		}
		if l.ExitCode() != tc.code || l.Worst() != tc.worst {
			t.Errorf("%s: exit code %d, worst %s; want %d, %s", tc.name, l.ExitCode(), l.Worst(), tc.code, tc.worst)
		}
	}
}
