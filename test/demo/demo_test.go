package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

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

func build(t *testing.T, name, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
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

func TestTheStoryIsTrue(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	demo := build(t, "demo", ".")
	out, err := exec.Command(demo, "-firsthop", build(t, "firsthop", "../../cmd/firsthop")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"answered by a", "answered by b", "answered by c", "refused", "The machine is as it was."} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
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

func TestTheDemoFailsWhenTheProductDoes(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	demo := build(t, "demo", ".")
	for _, tc := range []struct{ name, script, want string }{
		{"a command that fails", "echo broken; exit 4", "step 3: firsthop init $HERE --persist off: exit status 4"},
		{"a success that is none", "exit 0", "step 4: "},
	} {
		out, err := exec.Command(demo, "-firsthop", fake(t, tc.script)).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) || strings.Contains(string(out), "as it was") {
			t.Errorf("%s: %v, want %q in\n%s", tc.name, err, tc.want, out)
		}
	}
}

func TestAnInterruptLeavesNothingBehind(t *testing.T) {
	needRoot(t)
	lab.VerifyNoLeaks(t)
	demo := exec.Command(build(t, "demo", "."), "-firsthop", fake(t, "sleep 1000"))
	stdout, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	demo.Stderr = &stderr
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(stdout)
	var said strings.Builder
	for !strings.Contains(said.String(), "$ firsthop init") {
		line, err := in.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			t.Fatalf("the demo ended early: %v\n%s%s", err, said.String(), stderr.String())
		}
	}
	if err := demo.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Wait(); err == nil || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("an interrupted demo ends with %v and says\n%s%s", err, rest, stderr.String())
	}
	// What a demo leaves is named after its process.
	left, err := filepath.Glob(fmt.Sprintf("/run/netns/fh-%d-*", demo.Process.Pid))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
