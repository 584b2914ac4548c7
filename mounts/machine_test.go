package mounts

import (
	"strings"
	"testing"
)

// TestWarnOfMachine: a node that is a container and in the machine's own cgroup namespace serves all of the machine.
func TestWarnOfMachine(t *testing.T) {
	for _, tc := range []struct {
		name  string
		host  Host
		state CgroupState
		want  bool
	}{
		{"a machine", Host{topCgroup: true}, CgroupPureV2, false},
		{"a node in its own cgroup namespace", Host{container: true}, CgroupPureV2, false},
		{"a node in the machine's", Host{container: true, topCgroup: true}, CgroupHybrid, true},
		{"where it is to be mounted", Host{container: true, topCgroup: true}, CgroupNotMounted, true},
		{"where it can't be used anyway", Host{container: true, topCgroup: true}, CgroupUnreachable, false},
	} {
		g := Cgroup2{State: tc.state}
		g.warnOfMachine(&tc.host)
		if got := strings.Contains(strings.Join(g.Warnings, ""), "the whole machine is served"); got != tc.want {
			t.Errorf("%s: warnings %q", tc.name, g.Warnings)
		}
	}
	if got := unifiedCgroup("12:cpu:/x\n0::/docker/1\n"); got != "/docker/1" {
		t.Errorf("its cgroup is %q", got)
	}
}
