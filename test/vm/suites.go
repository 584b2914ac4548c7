package vm

import (
	"fmt"
	"strings"
)

// Suite is a package of Go tests that is run in a machine.
type Suite struct {
	Name    string
	Package string // its directory below the repository
	Run     string // which tests, as go test -run; empty is all
	Seconds int    // it is ended after that; emulation is slow, so many times what it takes
	// Without are tests that can't be run here, and why. A test that skips itself fails, but for lab.NeedsLinux.
	Without map[string]string
	Env     []string // besides FIRSTHOP_VM_LIKE, which is the kernel's
	// Files are what its tests read besides testdata: files and directories below the repository.
	Files []string
}

const fillsMaps = "fills maps of sockets, or copies them: minutes in an emulated machine"

// Suites are run on every kernel, in this order.
var Suites = []Suite{
	{Name: "node", Package: "test/vm/inside", Seconds: 600},
	{Name: "bpf", Package: "bpf", Seconds: 600, Files: []string{"bpf/lib", "bpf/include"}},
	{Name: "nat", Package: "bpf/nat", Seconds: 600, Without: map[string]string{
		"TestPlannerWithRandomHistories": "long, and no matter of the kernel's",
	}},
	{Name: "natinit", Package: "natinit", Seconds: 1200, Without: map[string]string{
		"TestGrowKeepsSockets":             fillsMaps,
		"TestGrowThatIsKilledKeepsSockets": fillsMaps,
		"TestUDPSocketsOverflow":           fillsMaps,
	}},
	{Name: "attach", Package: "natinit/attach", Seconds: 900},
	{Name: "runtime", Package: "runtime", Seconds: 600, Without: map[string]string{
		"TestSetConntrack":               "needs nf_conntrack, which the machines don't load",
		"TestSetConntrackFromAContainer": "needs nf_conntrack, which the machines don't load",
	}},
	{Name: "netns", Package: "runtime/netns", Seconds: 240},
	{Name: "workloads", Package: "runtime/workloads", Seconds: 480},
	{Name: "sockets", Package: "runtime/sockets", Seconds: 480},
	{Name: "sockdiag", Package: "kernel/sockdiag", Seconds: 120},
	{Name: "kernel", Package: "kernel", Seconds: 240, Files: []string{"docs/kernels.md"}},
	{Name: "mounts", Package: "mounts", Seconds: 240},
	{Name: "ns", Package: "mounts/ns", Seconds: 60},
	{Name: "lab", Package: "test/lab", Seconds: 240},
}

// refusal is what is run on a kernel that firsthop must refuse.
var refusal = []Suite{
	{Name: "refusal", Package: "test/vm/inside", Run: "Refuses", Seconds: 240, Env: []string{"FIRSTHOP_VM_REFUSED=1"}},
}

// programs are what tests run or build, by the name that their package's path ends in.
var programs = map[string]string{
	"firsthop": "./cmd/firsthop",
	"client":   "./test/clients/client",
}

// selectSuites returns the suites of a comma-separated list, all for an empty one.
func selectSuites(list string) ([]Suite, error) {
	if list == "" {
		return Suites, nil
	}
	var selected []Suite
	var names []string
	for _, s := range Suites {
		names = append(names, s.Name)
	}
	for name := range strings.SplitSeq(list, ",") {
		known := len(selected)
		for _, s := range Suites {
			if s.Name == strings.TrimSpace(name) {
				selected = append(selected, s)
			}
		}
		if len(selected) == known {
			return nil, fmt.Errorf("find the suite %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	return selected, nil
}
