package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

func fullReport() *Report {
	ap := netip.MustParseAddrPort
	return &Report{
		Version: "v1", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Millis: 12.345, Result: Failed, ExitCode: ExitProof,
		Steps: []StepReport{
			{Step: "seed", Result: OK, Reason: "done", Millis: 1.5, Changes: []string{"a"}, Warnings: []string{"b"}},
			{Step: "prove", Result: Failed, Reason: "no", ExitCode: ExitProof},
		},
		Instance: InstanceDirs{BPFFS: "/sys/fs/bpf", Cgroup: "/sys/fs/cgroup", CgroupID: 1, StateDir: "/var/lib/firsthop", RunDir: "/run/firsthop"},
		Services: []natinit.SeededService{{Name: "default/kubernetes (IPv4)", Index: 1, Frontends: []string{"tcp/10.96.0.1:443"},
			Backends: []netip.AddrPort{ap("10.0.0.1:6443")}, Former: []netip.AddrPort{ap("10.0.0.2:6443")}, Change: attach.Changed, Owner: natinit.OwnerInit}},
		Servers: []Server{{Endpoint: apiserver.Endpoint{Host: "api.example", Addr: ap("10.0.0.1:6443")}, State: "dead", Millis: 3, Reason: "refused", Sources: []string{"flags"}, Used: true}},
		Hooks:   []attach.Result{{Hook: "connect4", Change: attach.Added, By: attach.ByLink, Program: 7, Note: "x"}},
		Proofs: []proof.Proof{{Service: ap("10.96.0.1:443"), Asked: proof.Ready, Got: proof.Answered, Direct: true, Backend: ap("10.0.0.1:6443"), Cookie: 9, Millis: 2, Attempts: 3,
			Reason: "y", Time: time.Date(2026, 1, 2, 3, 4, 6, 7, time.UTC)}},
		AfterReboot: "nothing",
	}
}

var byText = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func TestReportSurvivesItsFile(t *testing.T) {
	for name, want := range map[string]*Report{"full": fullReport(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := saveReport(dir, want); err != nil {
				t.Fatal(err)
			}
			got, err := LoadReport(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, byText, cmpopts.IgnoreUnexported(attach.Result{})); diff != "" {
				t.Errorf("(- saved, + loaded):\n%s", diff)
			}
		})
	}
}

func TestLoadReport(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadReport(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no report: %v, want ErrNotExist", err)
	}
	if err := os.WriteFile(filepath.Join(dir, instance.StatusName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadReport(dir); err == nil || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged report: %v", err)
	}
}

func TestReportSaysWhatFailedAndWhatIsProven(t *testing.T) {
	r := fullReport()
	if f := r.Failure(); f == nil || f.Step != "prove" {
		t.Errorf("failure %+v, want prove", f)
	}
	if r.Proven() {
		t.Error("a proof that failed is taken for one")
	}
	r.Proofs[0].OK = true
	if !r.Proven() {
		t.Error("a proof isn't taken for one")
	}
	if (&Report{}).Proven() {
		t.Error("no proof is taken for one")
	}
	if f := (&Report{Steps: []StepReport{{Result: OK}, {Result: Skipped}}}).Failure(); f != nil {
		t.Errorf("failure %+v, want none", f)
	}
}

// TestSteps pins the steps, their order and their exit codes, which are interface (design and README name them).
func TestSteps(t *testing.T) {
	describe := func(steps []step) (out []string) {
		for _, s := range steps {
			out = append(out, fmt.Sprintf("%s %d", s.name, s.fail))
		}
		return out
	}
	want := []string{"settings 64", "lock 1", "kernel 5", "bpffs 2", "cgroup2 3", "discover 7", "seed 4", "attach 4", "prove 6", "persist 1"}
	if diff := cmp.Diff(want, describe(initSteps())); diff != "" {
		t.Errorf("init (- wanted, + got):\n%s", diff)
	}
	want = []string{"settings 64", "lock 1", "kernel 5", "discover 1", "persist 1"}
	if diff := cmp.Diff(want, describe(installSteps())); diff != "" {
		t.Errorf("install (- wanted, + got):\n%s", diff)
	}
}

func TestCodeOf(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want ExitCode
	}{
		"a step's own":               {errors.New("x"), ExitAttach},
		"a bad setting":              {&UsageError{errors.New("x")}, ExitUsage},
		"a bad setting, found late":  {fmt.Errorf("y: %w", &UsageError{errors.New("x")}), ExitUsage},
		"another than the step's":    {&ExitError{ExitInternal, errors.New("x")}, ExitInternal},
		"another, deep in the chain": {fmt.Errorf("y: %w", &ExitError{ExitProof, errors.New("x")}), ExitProof},
	} {
		if got := codeOf(tc.err, ExitAttach); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// TestStageReportsEveryStep runs steps of its own: after a failure and after a stop, the rest is reported as skipped.
func TestStageReportsEveryStep(t *testing.T) {
	good := func(*stage, context.Context) (outcome, error) { return outcome{reason: "fine"}, nil }
	stop := func(*stage, context.Context) (outcome, error) {
		return outcome{result: Skipped, reason: "kube-proxy is there", stop: true}, nil
	}
	bad := func(*stage, context.Context) (outcome, error) { return outcome{}, errors.New("broken") }
	for _, tc := range []struct {
		name   string
		steps  []step
		want   string
		result Result
		code   ExitCode
	}{
		{"all goes well", []step{{"a", 1, good}, {"b", 2, good}}, "a ok fine, b ok fine", OK, 0},
		{"a failure", []step{{"a", 1, good}, {"b", 2, bad}, {"c", 3, good}}, "a ok fine, b failed broken, c skipped b failed", Failed, 2},
		{"a stop", []step{{"a", 1, stop}, {"b", 2, bad}}, "a skipped kube-proxy is there, b skipped not needed: kube-proxy is there", Skipped, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := runStage(t.Context(), &stage{}, tc.steps, keepReport)
			var got []string
			for _, s := range r.Steps {
				got = append(got, fmt.Sprintf("%s %s %s", s.Step, s.Result, s.Reason))
			}
			if strings.Join(got, ", ") != tc.want || r.Result != tc.result || r.ExitCode != tc.code {
				t.Errorf("%q, %s, %d; want %q, %s, %d", got, r.Result, r.ExitCode, tc.want, tc.result, tc.code)
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		})
	}
}
