package vm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/vm/wire"
)

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name    string
		outcome wire.Outcome
		output  string
		want    Verdict
		detail  string
	}{
		{"all passed", wire.Outcome{}, "--- PASS: TestA (0s)\n--- PASS: TestB (0s)\nPASS", Passed, "2 tests"},
		{"one failed", wire.Outcome{Code: 1}, "--- FAIL: TestA (0s)\n    --- FAIL: TestA/x (0s)\nFAIL", Failed, "TestA"},
		{"a test that skips itself", wire.Outcome{}, "--- PASS: TestA (0s)\n    a.go:1: no root\n--- SKIP: TestB (0s)\nPASS", Failed, "skipped: TestB"},
		{"one that is of a newer kernel", wire.Outcome{}, "--- PASS: TestA (0s)\n    a.go:1: needs Linux 5.14: x\n--- SKIP: TestB (0s)\nPASS", Passed, "1 tests"},
		{"no test at all", wire.Outcome{}, "PASS", Failed, "no test was run"},
		{"a crash between tests", wire.Outcome{Code: 2}, "--- PASS: TestA (0s)\npanic: x", Failed, "exit code 2"},
		{"a test that hangs", wire.Outcome{Code: 2, Late: true}, "=== RUN TestA", Hung, "time was over"},
		{"a binary that isn't there", wire.Outcome{Code: 127, Error: "no such file"}, "", Failed, "no such file"},
	} {
		got := judge(tc.outcome, strings.Split(tc.output, "\n"))
		if got.Verdict != tc.want || !strings.Contains(got.Detail, tc.detail) {
			t.Errorf("%s: %s %q, want %s with %q", tc.name, got.Verdict, got.Detail, tc.want, tc.detail)
		}
	}
}

func TestTooOld(t *testing.T) {
	for release, want := range map[string]bool{
		"5.3.0": false, "5.2.21": true, "4.19.0-27-amd64": true, "6.18.0-rc3": false, "10.0.1": false,
		"4.18.0-193.el8.x86_64": false, "4.18.0-147.el8.x86_64": true, "4.18.0-513.5.1.el8_9.x86_64": false, "4.18.0-20-generic": true,
	} {
		if got := TooOld(release); got != want {
			t.Errorf("%s: %v, want %v", release, got, want)
		}
	}
}

func TestReportGreenOnlyIfAllPassed(t *testing.T) {
	passed := Result{Kernel: "6.1", Suite: "bpf", Verdict: Passed, Detail: "36 tests", Took: 1500 * time.Millisecond}
	for _, tc := range []struct {
		name    string
		results []Result
		ok      bool
		says    string
	}{
		{"all passed", []Result{passed}, true, "bpf    pass    1.5      36 tests"},
		{"one hung", []Result{passed, {Kernel: "6.1", Suite: "nat", Verdict: Hung, Log: "/logs/nat.log", Console: "/logs/console-nat.log"}}, false, "see /logs/nat.log and /logs/console-nat.log"},
		{"a boot that failed", []Result{{Verdict: Failed, Log: "/logs/a.log", Console: "/logs/console-a.log"}}, false, "see /logs/a.log and /logs/console-a.log"},
		{"nothing was run", nil, false, "KERNEL"},
	} {
		var out strings.Builder
		if ok := Report(&out, tc.results); ok != tc.ok || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: %v, want %v and %q in\n%s", tc.name, ok, tc.ok, tc.says, &out)
		}
	}
}

func TestReportKeepsLogsOfOtherSuites(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "5.3.0")
	files := func() (names []string) {
		entries, err := os.ReadDir(logs)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if err := clearLogs(logs, "nat"); err != nil || len(files()) > 0 {
		t.Fatal(err)
	}
	for _, name := range []string{"boot.log", "bpf.log", "console-bpf.log", "console-nat.log", "nat.log"} {
		if err := os.WriteFile(filepath.Join(logs, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := clearLogs(logs, "nat"); err != nil || !slices.Equal(files(), []string{"bpf.log", "console-bpf.log"}) {
		t.Errorf("%v, left are %v", err, files())
	}
}

func TestSelect(t *testing.T) {
	if all, err := Select(""); err != nil || len(all) != len(Kernels) {
		t.Errorf("nothing selects %v, %v", all, err)
	}
	if two, err := Select("6.1, 5.10"); err != nil || len(two) != 2 || two[1].Name != "5.10" {
		t.Errorf("two are %v, %v", two, err)
	}
	if _, err := Select("6.1,5.3"); err == nil || !strings.Contains(err.Error(), "5.3") || !strings.Contains(err.Error(), "VM_KERNEL") {
		t.Errorf("an unknown one: %v", err)
	}
	if _, err := selectSuites("nat,no"); err == nil {
		t.Error("an unknown suite is accepted")
	}
	if all, err := SelectSystems(""); err != nil || len(all) != len(Systems) {
		t.Errorf("nothing selects %v, %v", all, err)
	}
	if _, err := SelectSystems("debian12,no"); err == nil || !strings.Contains(err.Error(), `"no"`) {
		t.Errorf("an unknown system: %v", err)
	}
}

// TestSystemsAndPaths keeps the tables to what is there: a misspelt test would only be noticed after minutes of booting.
func TestSystemsAndPaths(t *testing.T) {
	for _, s := range Systems {
		if _, err := Select(s.Kernel); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	for _, s := range Systems {
		if !slices.ContainsFunc(ShortPaths(), func(p Path) bool { return p.On(s.Name) }) {
			t.Errorf("%s is on no short path: CI would never boot it", s.Name)
		}
	}
	for _, p := range Paths {
		for _, name := range p.Systems {
			if _, err := SelectSystems(name); err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
		}
		for _, s := range p.Stages {
			for _, file := range s.Put {
				// What is not in the repository is built below bin.
				if _, err := os.Stat(filepath.Join("../..", file)); err != nil && !strings.HasPrefix(file, "bin/") {
					t.Errorf("%s/%s: %v", p.Name, s.Name, err)
				}
			}
			source := sourceOf(t, s.Package)
			names := strings.TrimSuffix(strings.TrimPrefix(s.Run, "^Test("), ")$")
			for name := range strings.SplitSeq(names, "|") {
				if !strings.Contains(source, "func Test"+name+"(") {
					t.Errorf("%s/%s runs Test%s, which is not there", p.Name, s.Name, name)
				}
			}
		}
	}
}

// sourceOf is all tests of a package.
func sourceOf(t *testing.T, pkg string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(data)
	}
	return source.String()
}
