package main

import (
	"path/filepath"
	"strings"
	"testing"
)

const events = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"    a_test.go:1: fine\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestBad","Output":"    a_test.go:2: got 1, want 2\n"}
{"Action":"output","Package":"m/a","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"m/a","Test":"TestBad"}
{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"    a_test.go:3: needs root\n"}
{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"--- SKIP: TestRoot (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestRoot"}
{"Action":"output","Package":"m/a","Test":"TestMachine","Output":"    a_test.go:4: needs a virtual machine: make test-boot\n"}
{"Action":"skip","Package":"m/a","Test":"TestMachine"}
{"Action":"output","Package":"m/a","Test":"TestKube","Output":"    a_test.go:4: needs FIRSTHOP_TEST_KUBE_BIN, a directory\n"}
{"Action":"skip","Package":"m/a","Test":"TestKube"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a\t0.1s\n"}
{"Action":"fail","Package":"m/a"}
{"Action":"output","Package":"m/b","Output":"?   \tm/b\t[no test files]\n"}
{"Action":"skip","Package":"m/b"}
{"Action":"output","Package":"m/c","Test":"TestHangs","Output":"panic: test timed out\n"}
{"Action":"output","Package":"m/c","Output":"FAIL\tm/c\t9.9s\n"}
{"Action":"fail","Package":"m/c"}
{"Action":"output","Package":"m/e","Output":"-test.shuffle 1\n"}
{"Action":"output","Package":"m/e","Output":"PASS\n"}
{"Action":"output","Package":"m/e","Output":"ok  \tm/e\t0.2s\n"}
{"Action":"pass","Package":"m/e"}
# m/d
{"ImportPath":"m/d","Action":"build-output","Output":"d.go:1:1: undefined: x\n"}
`

func report(t *testing.T, events, notes string) string {
	t.Helper()
	var out strings.Builder
	if err := run(strings.NewReader(events), &out, notes, false); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestReport(t *testing.T) {
	want := `    a_test.go:2: got 1, want 2
--- FAIL: TestBad (0.00s)
FAIL	m/a	0.1s
panic: test timed out
FAIL	m/c	9.9s
ok  	m/e	0.2s
# m/d
d.go:1:1: undefined: x

2 tests ran, 3 were left out:
     1  needs FIRSTHOP_TEST_KUBE_BIN, a directory: make test (m/a)
     1  needs a virtual machine: make test-boot (m/a)
     1  needs root: sudo env PATH=$PATH make test (m/a)
`
	if got := report(t, events, ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReportAddsUpRuns(t *testing.T) {
	notes := filepath.Join(t.TempDir(), "notes")
	if got := report(t, events, notes); strings.Contains(got, "left out") {
		t.Errorf("one of several runs sums up: %s", got)
	}
	report(t, `{"Action":"pass","Package":"m/a","Test":"TestKube"}`, notes)
	var out strings.Builder
	if err := run(nil, &out, notes, true); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "\n3 tests ran, 2 were left out:\n") || strings.Contains(got, "KUBE_BIN") {
		t.Errorf("got %s, want what was left out of both runs", got)
	}
}
