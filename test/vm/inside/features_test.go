package inside

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// since is the mainline version from which on a feature must be there, "" for those that every supported kernel must
// have. It is written down once more here, from measurements on these kernels, so that a probe that is wrong can't agree
// with itself.
var since = map[string]string{
	"bpf-syscall": "", "connect4": "", "connect6": "", "sendmsg4": "", "sendmsg6": "", "recvmsg4": "", "recvmsg6": "",
	"cgroup-attach": "", "map-hash": "", "map-array": "", "map-lru-hash": "", "rodata": "",
	"btf": "", "spin-lock": "", "helper-map": "", "helper-prandom": "", "helper-socket-cookie": "",
	"jmp32": "", "cgroup2": "", "bpffs": "", "sched-cls": "", "map-lpm-trie": "",

	"context-sock": "5.3", "dead-branch": "5.5", "map-mmapable": "5.5", "batch": "5.6", "attach-replace": "5.6",
	"cgroup-link": "5.8", "netns-cookie": "5.7", "getpeername": "5.8", "ring-buffer": "5.8", "cap-bpf": "5.8",
	"clone-into-cgroup": "5.7", "link-list": "5.8",
	"redirect-neigh": "5.10", "redirect-peer": "5.10", "memcg-accounting": "5.11", "so-netns-cookie": "5.14",
	"set-retval": "6.1", "socket-destroy": "6.5", "tcx": "6.6",
}

// aboveFloor are all features that Linux 5.3 lacks.
func aboveFloor() string {
	var names []string
	for name, first := range since {
		if first != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// undecided are features that a version says nothing about.
var undecided = map[string]string{
	"jit": "a choice of the build and a sysctl",
}

// like is the mainline version that this kernel must equal, "" if it follows no mainline version.
func like() string { return os.Getenv("FIRSTHOP_VM_LIKE") }

// has tells whether this kernel must have a feature, and whether that is known.
func has(feature string) (yes, known bool) {
	first, listed := since[feature]
	if !listed || first != "" && like() == "" {
		return false, false
	}
	return first == "" || !older(like(), first), true
}

// older tells whether the version a is before b. Versions are two numbers.
func older(a, b string) bool {
	var aMajor, aMinor, bMajor, bMinor int
	if n, _ := fmt.Sscanf(a+" "+b, "%d.%d %d.%d", &aMajor, &aMinor, &bMajor, &bMinor); n != 4 {
		panic(fmt.Sprintf("%q and %q are not versions", a, b))
	}
	return aMajor < bMajor || aMajor == bMajor && aMinor < bMinor
}

// checked is what we read of `firsthop check -o json`.
type checked struct {
	Ready  bool `json:"ready"`
	Kernel struct {
		Verdict  string `json:"verdict"`
		Sentence string `json:"sentence"`
		Features []struct {
			Name    string `json:"name"`
			Needed  bool   `json:"needed"`
			Answer  string `json:"answer"`
			Detail  string `json:"detail"`
			Anomaly string `json:"anomaly"`
		} `json:"features"`
	} `json:"kernel"`
}

func check(t *testing.T) (c checked) {
	t.Helper()
	firsthop(t, "check", "-o", "json").decode(&c)
	return c
}

// answers are those of firsthop's own probes, for kernels that follow no mainline version.
var answers = sync.OnceValue(func() map[string]bool { return map[string]bool{} })

// there tells whether a feature is to be expected: by the table, or where the table can't know, by the probe.
func there(t *testing.T, feature string) bool {
	t.Helper()
	if yes, known := has(feature); known {
		return yes
	}
	if len(answers()) == 0 {
		for _, f := range check(t).Kernel.Features {
			answers()[f.Name] = f.Answer == "yes"
		}
	}
	return answers()[feature]
}

// TestFeaturesOfTheVersion fails when a probe says no to what the kernel has, or yes to what it hasn't.
func TestFeaturesOfTheVersion(t *testing.T) {
	needsMachine(t)
	c := check(t)
	if c.Kernel.Verdict != "supported" {
		t.Errorf("the verdict is %s: %s", c.Kernel.Verdict, c.Kernel.Sentence)
	}
	seen := map[string]bool{}
	for _, f := range c.Kernel.Features {
		seen[f.Name] = true
		yes, known := has(f.Name)
		want := map[bool]string{true: "yes", false: "no"}[yes]
		switch {
		case known && f.Answer != want:
			t.Errorf("%s: the probe says %s (%s), but a kernel like %q has to say %s", f.Name, f.Answer, f.Detail, like(), want)
		case f.Anomaly != "":
			t.Errorf("%s: %s", f.Name, f.Anomaly)
		case f.Answer != "yes" && f.Answer != "no":
			t.Errorf("%s: %s: %s", f.Name, f.Answer, f.Detail)
		case !known && undecided[f.Name] == "" && like() != "":
			t.Errorf("the feature %s has no row in the table", f.Name)
		}
		if f.Needed && since[f.Name] != "" {
			t.Errorf("%s is needed, but the table has it since %s only", f.Name, since[f.Name])
		}
	}
	for name := range since {
		if !seen[name] {
			t.Errorf("there is no probe for %s", name)
		}
	}
}

func TestOlder(t *testing.T) {
	for _, versions := range []string{"5.3 5.10", "5.10 6.1", "4.18 5.3"} {
		a, b, _ := strings.Cut(versions, " ")
		if !older(a, b) || older(b, a) || older(a, a) {
			t.Errorf("%s and %s are out of order", a, b)
		}
	}
}
