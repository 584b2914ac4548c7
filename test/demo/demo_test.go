package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/firsthop/firsthop/test/lab"
)

// programs is a directory for what build builds.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("", "demo-programs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := lab.RunMain(m)
	os.RemoveAll(programs)
	os.Exit(code)
}

func TestFailuresReadsWhatGetPrints(t *testing.T) {
	for _, tc := range []struct {
		name     string
		outcomes []map[string]int
		want     int
	}{
		{"all are answered", []map[string]int{{"answered by a": 20, "answered by b": 25}}, 0},
		{"some are refused", []map[string]int{{"answered by a": 20, "refused": 7}}, 7},
		{"both families count", []map[string]int{{"answered by a": 2, "refused": 7}, {"refused": 4, "timed out": 1}}, 12},
		{"an answer that is no success is a failure", []map[string]int{{"503 Service Unavailable": 3}}, 3},
	} {
		var out strings.Builder
		for _, o := range tc.outcomes {
			out.WriteString("https://[fd00:96::1]:443/version: " + summary(o) + "\n")
		}
		if got := failures(out.String()); got != tc.want {
			t.Errorf("%s: %d failures, want %d, in\n%s", tc.name, got, tc.want, out.String())
		}
	}
}

// build builds a program, once.
func build(t *testing.T, name, pkg string) string {
	t.Helper()
	path := filepath.Join(programs, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func product(t *testing.T) string { return build(t, "firsthop", "../../cmd/firsthop") }

func TestDemo(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	cmd := exec.Command(build(t, "demo", "."), "-firsthop", product(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	verifyNothingLeft(t, cmd.Process.Pid)
	for _, want := range []string{
		"answered by a", "answered by b", "answered by c", "refused",
		"discover ", "prove ", "is dead", "no runtime", "would remove",
		"hello from pod shop-", "from pod shop-4", "no connection failed", "The machine is as it was.",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
	steps := bytes.Count(out, []byte("/10  "))
	if conclusions := bytes.Count(out, []byte("\n   => ")); steps != 10 || conclusions != steps {
		t.Errorf("%d steps with %d conclusions, want 10 of each:\n%s", steps, conclusions, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if utf8.RuneCountInString(line) > width {
			t.Errorf("a line is longer than %d columns: %s", width, line)
		}
	}
}

// fake is a firsthop that does what a shell script says.
func fake(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "firsthop")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDemoFailsWhenTheProductDoes(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	demo, real := build(t, "demo", "."), product(t)
	for _, tc := range []struct{ name, script, want string }{
		{"a command that fails", "echo broken; exit 4", "step 2: firsthop init --persist off: exit status 4"},
		{"a success that is none", "exit 0", "step 3: "},
		{"a runtime that detaches the programs when it is killed", `case $1 in
run) ` + real + ` "$@" & child=$!; (while kill -0 $$; do sleep 0.01; done; kill -9 $child; ` + real + ` uninstall --force) >/dev/null 2>&1 &
	wait ;;
*) exec ` + real + ` "$@" ;;
esac`, "step 7: a connection of the client failed"},
	} {
		cmd := exec.Command(demo, "-firsthop", fake(t, tc.script))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) || strings.Contains(string(out), "as it was") {
			t.Errorf("%s: %v, want %q in\n%s", tc.name, err, tc.want, out)
		}
		verifyNothingLeft(t, cmd.Process.Pid)
	}
}

// verifyNothingLeft wants everything gone that a demo made, whose names have the process's id in them.
func verifyNothingLeft(t *testing.T, pid int) {
	t.Helper()
	lab.Await(t, "nothing of the demo is left", func() bool {
		for _, place := range []string{"/run/netns", "/run", "/tmp", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			left, err := filepath.Glob(fmt.Sprintf("%s/fh-%d-*", place, pid))
			if err != nil || len(left) > 0 {
				return false
			}
		}
		return true
	})
}

func TestDemoCleansUpAfterASignal(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	demo, real := build(t, "demo", "."), product(t)
	for _, tc := range []struct {
		name     string
		firsthop string
		after    string // what the demo prints before the signal
		signal   os.Signal
		says     string
	}{
		{"Ctrl-C while init runs", fake(t, "sleep 1000"), "$ firsthop init", os.Interrupt, "interrupted"},
		{"SIGTERM while runtime and client run", real, "In the cluster, pod shop-3", syscall.SIGTERM, "interrupted"},
		{"SIGKILL while runtime and client run", real, "In the cluster, pod shop-3", os.Kill, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(demo, "-firsthop", tc.firsthop)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(stdout)
			var said strings.Builder
			for !strings.Contains(said.String(), tc.after) {
				line, err := in.ReadString('\n')
				said.WriteString(line)
				if err != nil {
					t.Fatalf("the demo ended early: %v\n%s%s", err, said.String(), stderr.String())
				}
			}
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), tc.says) {
				t.Errorf("it ends with %v and says\n%s%s", err, rest, stderr.String())
			}
			verifyNothingLeft(t, cmd.Process.Pid)
		})
	}
}

func TestWrap(t *testing.T) {
	for _, tc := range []struct {
		line string
		want []string
	}{
		{"", []string{""}},
		{"short", []string{"short"}},
		{"exactly 10", []string{"exactly 10"}},
		{"one two three four", []string{"one two", "  three", "  four"}},
		{"  one two three", []string{"  one two", "    three"}},
		{"a-word-that-is-too-long x", []string{"a-word-that-is-too-long", "  x"}},
		{"é é é é é é", []string{"é é é é é", "  é"}},
	} {
		if got := wrap(tc.line, 10, "  "); !slices.Equal(got, tc.want) {
			t.Errorf("wrap(%q) = %q, want %q", tc.line, got, tc.want)
		}
	}
}
