package kernel

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/firsthop/firsthop/bpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestEveryFeatureIsFoundHere(t *testing.T) {
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
	if want := (bpf.Features{Link: true, Batch: true, NetnsCookie: true, GetPeername: true, SetRetval: true}); report.Host.Release.AtLeast(Version{Major: 6, Minor: 1}) && report.Features() != want {
		t.Errorf("the features for the programs are %+v, want %+v", report.Features(), want)
	}
	if len(report.Host.Problems) > 0 {
		t.Errorf("this machine can't be read: %q", report.Host.Problems)
	}
}

func TestInitAsksWhatItNeeds(t *testing.T) {
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

// The probes are only as good as their "no". Each of these asks for what no
// kernel has, in the same way as the probe named.
func TestTheKernelSaysNoToWhatDoesNotExist(t *testing.T) {
	needRoot(t)
	for sentence, ask := range map[string]func(Config) error{
		"connect4: an attach type that is not for sock_addr":        sockAddr(ebpf.AttachCGroupInetIngress),
		"connect4: an attach type beyond any kernel's":              sockAddr(9999),
		"helper: a helper beyond any kernel's":                      helper(ebpf.CGroupSockAddr, unknownHelper),
		"helper: a helper that sock_addr programs don't have":       helper(ebpf.CGroupSockAddr, asm.FnRedirectPeer),
		"sched-cls: a helper that sched_cls programs don't have":    helper(ebpf.SchedCLS, asm.FnSetRetval),
		"cgroup-attach: a flag beyond any kernel's":                 attachNowhere(1<<30, false),
		"dead-branch: the same call where the constant leads there": func(Config) error { return withFrozenZero(asm.JNE.Imm(asm.R2, 0, "allow"), unknownHelper.Call()) },
		"bpffs: a file system that nobody has":                      fileSystem("firsthopfs"),
		"cgroup-link: a link to a cgroup for a tc program": func(Config) error {
			prog, err := load(ebpf.SchedCLS, ebpf.AttachNone, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
			if err != nil {
				return err
			}
			defer prog.Close()
			return linkNowhere(prog)
		},
		"spin-lock: a lock in a kind of map that takes none": func(Config) error { return takeLock(ebpf.LRUHash, asm.FnSpinUnlock.Call()) },
		"spin-lock: a lock that is not given back":           func(Config) error { return takeLock(ebpf.Array) },
	} {
		if err := ask(Config{}); !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v, want ErrNotSupported", sentence, err)
		}
	}
	err := helper(ebpf.CGroupSockAddr, unknownHelper)(Config{})
	if !strings.Contains(err.Error(), "9999") {
		t.Errorf("the verifier's reason is lost: %v", err)
	}
}

func TestRodataIsReallyReadOnly(t *testing.T) {
	needRoot(t)
	m, err := frozenZero()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := loads(atConnect(asm.LoadMapValue(asm.R1, m.FD(), 0), asm.StoreImm(asm.R1, 0, 1, asm.Word))); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a program that writes the frozen map: %v, want a no", err)
	}
	if err := m.Put(uint32(0), uint32(7)); !errors.Is(err, unix.EPERM) {
		t.Errorf("user space writes the frozen map: %v, want EPERM", err)
	}
}

func TestForbid(t *testing.T) {
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
	if !strings.Contains(report.String(), "forbidden by configuration") {
		t.Errorf("the report does not say what is forbidden:\n%s", report)
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

func TestReportSurvivesJSON(t *testing.T) {
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

// Linux 5.7 makes links and describes none; a pod without CAP_SYS_ADMIN may not list those of newer kernels.
func TestLinksThatAreNotDescribedAreNone(t *testing.T) {
	failed := func(errno syscall.Errno) error { return absent(errno) }
	for _, tc := range []struct {
		name         string
		made, listed error
		none         bool
	}{
		{"5.8", nil, nil, false},
		{"5.8, without CAP_SYS_ADMIN", nil, failed(unix.EPERM), false},
		{"5.7", nil, failed(unix.EINVAL), true},
		{"5.3", failed(unix.EINVAL), failed(unix.EINVAL), true},
	} {
		err := usableLinks(tc.made, tc.listed)
		if none := errors.Is(err, ErrNotSupported); none != tc.none || !none && err != nil {
			t.Errorf("Linux %s: %v, want no links: %t", tc.name, err, tc.none)
		}
	}
}
