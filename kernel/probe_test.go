package kernel

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsthop/firsthop/bpf"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestCheckFindsEveryFeature(t *testing.T) {
	needRoot(t)
	report, err := Check(Config{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if report.Host.Release.Version.IsZero() {
		t.Fatalf("the release of this machine was not read: %+v", report.Host)
	}
	for _, result := range report.Results {
		t.Logf("%-22s %-14v %v %s", result.Name, result.Answer, result.Took, result.Detail)
		// A version that has the feature and a machine that lacks it is a
		// wrong probe, until somebody shows a build that left it out.
		if report.Host.Release.AtLeast(result.Since) && result.Answer != Yes {
			t.Errorf("%s (since %s): %v on %s: %s", result.Name, result.Since, result.Answer, report.Host.Release, result.Detail)
		}
	}
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if want := (bpf.Features{Link: true, Batch: true, NetnsCookie: true, GetPeername: true, ContextSock: true, SetRetval: true}); report.Host.Release.AtLeast(Version{Major: 6, Minor: 1}) && report.Features() != want {
		t.Errorf("the features for the programs are %+v, want %+v", report.Features(), want)
	}
	if len(report.Host.Problems) > 0 {
		t.Errorf("this machine can't be read: %q", report.Host.Problems)
	}
}

func TestRunAsksWhatInitNeeds(t *testing.T) {
	needRoot(t)
	report, err := Check(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Probes() {
		asked := slices.ContainsFunc(report.Results, func(r Result) bool { return r.Name == p.Name })
		if asked != (p.Needed || p.atInit) {
			t.Errorf("%s: asked %v; needed %v, for bpf.Features %v", p.Name, asked, p.Needed, p.atInit)
		}
	}
	all, err := Check(Config{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if report.Features() != all.Features() {
		t.Errorf("init knows %+v, check %+v: the programs must get the same", report.Features(), all.Features())
	}
}

func TestCheckForbid(t *testing.T) {
	needRoot(t)
	all, err := Check(Config{})
	if err != nil || all.Err() != nil {
		t.Fatal(err, all.Err())
	}
	report, err := Check(Config{Forbid: []string{FeatureLink, FeatureBatch}})
	if err != nil || report.Err() != nil {
		t.Fatal(err, report.Err())
	}
	want := all.Features()
	want.Link, want.Batch = false, false
	if f := report.Features(); f != want {
		t.Errorf("with links and batches forbidden the features are %+v, want %+v", f, want)
	}
	link := slices.IndexFunc(report.Results, func(r Result) bool { return r.Name == FeatureLink })
	if got := report.Results[link].Remark(); !strings.HasPrefix(got, "forbidden by configuration; ") {
		t.Errorf("the report does not say what is forbidden: %s", got)
	}
	report, err = Check(Config{Forbid: []string{FeatureRecvmsg4}})
	if err != nil || !errors.Is(report.Err(), ErrUnsupported) || !strings.Contains(report.Sentence, FeatureRecvmsg4) {
		t.Errorf("a needed feature is forbidden: %v, %v; want ErrUnsupported that names it", err, report.Err())
	}
	_, err = Check(Config{Forbid: []string{"cgroup_link"}})
	if err == nil || !strings.Contains(err.Error(), `"cgroup_link"`) || !strings.Contains(err.Error(), FeatureLink+", ") {
		t.Errorf("an unknown feature is forbidden: %v; want an error that quotes it and lists the known ones", err)
	}
}

func TestReportJSON(t *testing.T) {
	report, err := Check(Config{All: true})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var again Report
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	for i := range report.Results {
		report.Results[i].RHELBuild = nil // for judging only
	}
	if diff := cmp.Diff(report, again, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the report does not survive JSON (-want +got)\n%s", diff)
	}
}

func BenchmarkInit(b *testing.B) {
	for b.Loop() {
		if _, err := Check(Config{}); err != nil {
			b.Fatal(err)
		}
	}
}
