package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
)

// TestFailureIsJSON: with -o json, what fails before there is a report is JSON too, and stderr has only the log.
func TestFailureIsJSON(t *testing.T) {
	for line, code := range map[string]bootstrap.ExitCode{
		"status -o json --bogus":                           bootstrap.ExitUsage,
		"inti --output=json":                               bootstrap.ExitUsage,
		"FIRSTHOP_OUTPUT=json version extra":               bootstrap.ExitUsage,
		"FIRSTHOP_PORVE=x version -o json":                 bootstrap.ExitUsage,
		"help bogus -o json":                               bootstrap.ExitUsage,
		"nat -o json --bpffs relative":                     bootstrap.ExitUsage,
		"nat -o json --bpffs /nonexistent --cgroup /":      bootstrap.ExitInternal,
		"nat lookup nonsense -o json":                      bootstrap.ExitUsage,
		"completion -o json tcsh":                          bootstrap.ExitUsage,
		"uninstall -o json --run-dir relative":             bootstrap.ExitUsage,
		"discover -o json --service-ips 10.96.0.1":         bootstrap.ExitUsage,
		"run -o json":                                      bootstrap.ExitUsage,
		"FIRSTHOP_OUTPUT=json doctor --forbid-feature wap": bootstrap.ExitUsage,
	} {
		r := plain(t, strings.Fields(line)...).exits(code)
		var f failure
		if err := json.Unmarshal([]byte(r.stdout), &f); err != nil || f.Error == "" || f.ExitCode != code || r.stderr != "" {
			t.Errorf("%s: %v\nstdout: %s\nstderr: %s", line, err, r.stdout, r.stderr)
		}
	}
	// The format that was asked for last counts, and the command line before the environment.
	if r := plain(t, "FIRSTHOP_OUTPUT=json", "version", "-o", "text", "extra").exits(bootstrap.ExitUsage); r.stdout != "" {
		t.Errorf("text was asked for, but it prints %s", r.stdout)
	}
}

// TestVariablesOfServiceLinksAreNoSettings: the kubelet gives a pod variables of every Service in its namespace.
func TestVariablesOfServiceLinksAreNoSettings(t *testing.T) {
	plain(t, "FIRSTHOP_SERVICE_HOST=10.96.7.7", "FIRSTHOP_SERVICE_PORT=10249", "FIRSTHOP_SERVICE_PORT_METRICS=10249",
		"FIRSTHOP_PORT=tcp://10.96.7.7:10249", "FIRSTHOP_PORT_10249_TCP=tcp://10.96.7.7:10249", "FIRSTHOP_PORT_10249_TCP_PROTO=tcp",
		"FIRSTHOP_PORT_10249_TCP_PORT=10249", "FIRSTHOP_PORT_10249_TCP_ADDR=10.96.7.7",
		"FIRSTHOP_METRICS_SERVICE_HOST=fd00:96::7", "FIRSTHOP_METRICS_PORT_53_UDP=udp://[fd00:96::7]:53", "version").exits(0)
	plain(t, "FIRSTHOP_BOGUS=", "version").exits(0)                                                      // as unset
	plain(t, "FIRSTHOP_TEST_LONG=1", "FIRSTHOP_VM_LIKE=6.1", "FIRSTHOP_LAB_JOIN=/x", "version").exits(0) // of tests
	plain(t, "FIRSTHOP_PERSIST=off", "FIRSTHOP_FORCE=true", "version").exits(0)
}

func TestVersionFlag(t *testing.T) {
	want := plain(t, "version").exits(0).stdout
	for _, flag := range []string{"--version", "-v"} {
		if got := plain(t, flag).exits(0).stdout; got != want {
			t.Errorf("%s prints %q, want %q", flag, got, want)
		}
	}
}

// TestOutputThatCannotBeWrittenFails: nobody must take half an output for all of it.
func TestOutputThatCannotBeWrittenFails(t *testing.T) {
	for _, line := range []string{"version", "version -o json", "help", "init --help", "completion bash", "--version", "units", "discover --timeout 10ms"} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), firsthop, strings.Fields(line)...)
		cmd.Env = withEnv(nil)
		cmd.Stdout = full
		var said strings.Builder
		cmd.Stderr = &said
		err = cmd.Run()
		full.Close()
		if err == nil || !strings.Contains(said.String(), "no space left on device") {
			t.Errorf("%s: %v: %s", line, err, said.String())
		}
	}
}

// TestInitSucceedsWithoutAReader: a proven Service address matters more than the report about it.
func TestInitSucceedsWithoutAReader(t *testing.T) {
	n := newNode(t)
	n.serving()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, more := range [][]string{nil, {"-o", "json"}} {
		args := initArgs(more...)
		cmd := n.command(t.Context(), nil, args...)
		cmd.Stdout = full
		var said strings.Builder
		cmd.Stderr = &said
		if err := n.start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "no space left on device") {
			t.Errorf("%q: %v: %s", args, err, said.String())
		}
	}
	n.checkServes()
}
