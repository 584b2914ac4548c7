package kernel

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
)

// With everything forbidden that is newer than the floor, this kernel is the floor.
func TestAboveFloorForbidden(t *testing.T) {
	needRoot(t)
	floor := Config{All: true, Forbid: AboveFloor()}
	report, err := Check(floor)
	if err != nil || report.Err() != nil {
		t.Fatal(err, report.Err())
	}
	if f := report.Features(); f != (bpf.Features{ContextSock: true}) {
		t.Errorf("the features are %+v, want those of Linux 5.3", f)
	}
	for _, r := range report.Results {
		if want := slices.Contains(floor.Forbid, r.Name); r.Forbidden != want || want != (r.Since.Compare(mainlineFloor) > 0) {
			t.Errorf("%s, since %s: forbidden %t", r.Name, r.Since, r.Forbidden)
		}
	}
	if _, err := floor.Links().IDs(); !errors.Is(err, objects.ErrNotSupported) {
		t.Errorf("links are listed: %v", err)
	}
	if floor.IntoCgroup() {
		t.Error("processes are born in a cgroup")
	}
	if report.Host.Privileges.HasCapBPF() || !report.Memlock.Needed {
		t.Errorf("the newest capability is %d, RLIMIT_MEMLOCK is needed: %t", report.Host.Privileges.LastCap, report.Memlock.Needed)
	}
	if _, err := (Config{}).Links().IDs(); err != nil && !errors.Is(err, objects.ErrNotSupported) {
		t.Errorf("nothing is forbidden, and links are not listed: %v", err)
	}
}

// Below 5.8 CAP_SYS_ADMIN is needed, on any kernel where CAP_BPF is forbidden too.
func TestCapBPFForbidden(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		keep    []int
		verdict Verdict
		missing string
	}{
		{[]int{unix.CAP_BPF, unix.CAP_NET_ADMIN}, NoRights, "CAP_SYS_ADMIN (before Linux 5.8 there is no CAP_BPF)"},
		{[]int{unix.CAP_NET_ADMIN}, NoRights, "CAP_SYS_ADMIN (before Linux 5.8 there is no CAP_BPF)"},
		{[]int{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}, Supported, ""},
	} {
		report := reduced(t, "root", keepOnly(tc.keep...), FeatureCapBPF)
		if report.Verdict != tc.verdict || !strings.Contains(report.Advice, tc.missing) {
			t.Errorf("with the capabilities %v: %s, %q; want %s, %q", tc.keep, report.Verdict, report.Advice, tc.verdict, tc.missing)
		}
		for _, r := range report.Results {
			if r.Answer == No && !r.Forbidden && report.Host.Release.AtLeast(r.Since) {
				t.Errorf("with the capabilities %v: %s is said not to be there: %s", tc.keep, r.Name, r.Detail)
			}
		}
	}
}

// docs/kernels.md has the list for people.
func TestAboveFloorIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "--forbid-feature ")
		if !ok {
			continue
		}
		got, want := strings.Split(list, ","), AboveFloor()
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("docs/kernels.md forbids %v, want %v", got, want)
		}
		return
	}
	t.Error("docs/kernels.md does not say how to forbid all that is above the floor")
}
