package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

func TestMain(m *testing.M) {
	if os.Getenv("FH_KERNEL_CHILD") != "" {
		os.Exit(child(os.Getenv("FH_KERNEL_CHILD")))
	}
	os.Exit(m.Run())
}

// child is what the tests start again with fewer rights.
func child(as string) int {
	if as == "nobody" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	c := Config{All: true}
	if f := os.Getenv("FH_KERNEL_FORBID"); f != "" {
		c.Forbid = strings.Split(f, ",")
	}
	report, err := Check(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// reduced starts this test binary again and returns its report. The
// preparation runs on the thread that forks, which then ends: capability
// bounding sets and seccomp filters belong to threads.
func reduced(t *testing.T, as string, prepare func() error, forbid ...string) Report {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), "FH_KERNEL_CHILD="+as, "FH_KERNEL_FORBID="+strings.Join(forbid, ","))
	cmd.Stderr = os.Stderr
	var out []byte
	if err := ns.Do(func() error { // whose thread prepare may spoil
		if err := prepare(); err != nil {
			return err
		}
		var err error
		out, err = cmd.Output()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var report Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("read the child's report: %v\n%s", err, out)
	}
	return report
}

// keepOnly drops every capability but the given ones from the bounding set,
// so that even root has no others after exec.
func keepOnly(keep ...int) func() error {
	return func() error {
		for c := 0; c <= unix.CAP_LAST_CAP; c++ {
			if slices.Contains(keep, c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
		}
		return nil
	}
}

// forbidBPF installs a seccomp filter that answers bpf(2) with an errno.
func forbidBPF(errno syscall.Errno) func() error {
	return func() error {
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	}
}

func TestCheckWithoutRights(t *testing.T) {
	needRoot(t)
	nothing := func() error { return nil }
	here, err := Check(Config{All: true})
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	for _, result := range here.Results {
		there[result.Name] = result.Answer == Yes
	}
	// Before 5.8 there is no CAP_BPF.
	load, toLoad, twoAreEnough := unix.CAP_BPF, "CAP_BPF", Supported
	if !here.Host.Privileges.HasCapBPF() {
		load, toLoad, twoAreEnough = unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", NoRights
	}
	for _, test := range []struct {
		sentence string
		as       string
		prepare  func() error
		verdict  Verdict
		advice   []string
	}{
		{"a user without capabilities is told to add both", "nobody", nothing, NoRights, []string{toLoad, "CAP_NET_ADMIN", "root"}},
		{"root without capabilities, as in a container, is told the same", "root", keepOnly(), NoRights, []string{toLoad, "CAP_NET_ADMIN"}},
		{"with the one to load alone, CAP_NET_ADMIN is what is missing", "root", keepOnly(load), NoRights, []string{"add CAP_NET_ADMIN"}},
		{"with CAP_NET_ADMIN alone, CAP_BPF is what is missing", "root", keepOnly(unix.CAP_NET_ADMIN), NoRights, []string{"add " + toLoad}},
		{"the two capabilities are enough where there is a CAP_BPF", "root", keepOnly(unix.CAP_BPF, unix.CAP_NET_ADMIN), twoAreEnough, nil},
		{"CAP_SYS_ADMIN stands in for CAP_BPF", "root", keepOnly(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN), Supported, nil},
		{"a seccomp filter that says EPERM is no lack of support", "root", forbidBPF(unix.EPERM), NoRights, []string{"seccomp"}},
		{"a seccomp filter that says ENOSYS is no lack of support", "root", forbidBPF(unix.ENOSYS), Undetermined, nil},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			report := reduced(t, test.as, test.prepare)
			if report.Verdict != test.verdict {
				t.Errorf("the verdict is %s, want %s: %s", report.Verdict, test.verdict, report.Sentence)
			}
			for _, result := range report.Results {
				if result.Answer == No && there[result.Name] {
					t.Errorf("%s: no (%s); this kernel has it", result.Name, result.Detail)
				}
			}
			for _, word := range test.advice {
				if !strings.Contains(report.Advice, word) || !strings.Contains(report.Sentence, word) {
					t.Errorf("%q is not in the advice %q and the sentence %q", word, report.Advice, report.Sentence)
				}
			}
		})
	}
}
