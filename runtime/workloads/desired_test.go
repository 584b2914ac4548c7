package workloads

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// newPod is a pod with addresses, changed as the test wants.
func newPod(name string, ips []string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-of-" + name)}}
	for i, ip := range ips {
		if i == 0 {
			p.Status.PodIP = ip
		}
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func says(value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{Annotation: value} }
}

func hostNetwork(p *corev1.Pod) { p.Spec.HostNetwork = true }
func ended(p *corev1.Pod)       { p.Status.Phase = corev1.PodFailed }

func ending(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }

func out(a4, a6 string) bpf.Workload {
	w := in(a4, a6)
	w.Flags = bpf.WorkloadOptedOut
	return w
}

func in(a4, a6 string) bpf.Workload {
	var four, six netip.Addr
	if a4 != "" {
		four = netip.MustParseAddr(a4)
	}
	if a6 != "" {
		six = netip.MustParseAddr(a6)
	}
	return workload(four, six)
}

// The fixture: a host, two pods, a container that is none, one without addresses.
func fixture() []namespace {
	return []namespace{
		{cookie: 1, host: true, addrs: addrs("192.0.2.9", "172.17.0.1", "2001:db8::9")},
		{cookie: 11, addrs: addrs("198.51.100.1", "2001:db8:1::1"), pids: []int{11}},
		{cookie: 12, addrs: addrs("198.51.100.2"), pids: []int{12}},
		{cookie: 13, addrs: addrs("172.17.0.5", "172.17.0.6")},
		{cookie: 14},
	}
}

func TestDesired(t *testing.T) {
	one, two := []string{"198.51.100.1", "2001:db8:1::1"}, []string{"198.51.100.2"}
	type table = map[uint64]bpf.Workload
	all := table{1: in("192.0.2.1", "2001:db8::9"), 11: in(one[0], one[1]), 12: in(two[0], ""), 13: in("172.17.0.5", "")}
	with := func(change table) table {
		out := table{}
		for c, w := range all {
			out[c] = w
		}
		for c, w := range change {
			if out[c] = w; w == (bpf.Workload{}) {
				delete(out, c)
			}
		}
		return out
	}
	for _, tc := range []struct {
		name     string
		pods     []*corev1.Pod
		change   func(*input)
		want     table
		problems []Reason
		missing  int
	}{
		{name: "no pod requests anything", pods: []*corev1.Pod{newPod("a", one), newPod("b", two, says("on"))}},
		{name: "a pod opts out", pods: []*corev1.Pod{newPod("a", one, says("off")), newPod("b", two)}, want: table{11: out(one[0], one[1])}},
		{name: "blanks and case don't matter", pods: []*corev1.Pod{newPod("b", two, says(" OFF "))}, want: table{12: out(two[0], "")}},
		{name: "its second address alone is there", pods: []*corev1.Pod{newPod("a", []string{"198.51.100.77", "2001:db8:1::1"}, says("off"))}, want: table{11: out("198.51.100.77", "2001:db8:1::1")}},
		{name: "two opt out", pods: []*corev1.Pod{newPod("a", one, says("off")), newPod("b", two, says("off"))}, want: table{11: out(one[0], one[1]), 12: out(two[0], "")}},
		{name: "an annotation that means nothing", pods: []*corev1.Pod{newPod("a", one, says("no"))}, problems: []Reason{BadAnnotation}},
		{name: "a pod with hostNetwork can't", pods: []*corev1.Pod{newPod("a", []string{"192.0.2.9"}, hostNetwork, says("off"))}, problems: []Reason{HostNetwork}},
		{name: "nor where nothing else serves", pods: []*corev1.Pod{newPod("a", one, says("off"))}, change: func(in *input) { in.fallback = false }, problems: []Reason{NothingElse}},
		{name: "nor where programs know no cookies", pods: []*corev1.Pod{newPod("a", one, says("off"))}, change: func(in *input) { in.programs = false }, problems: []Reason{NoCookies}},
		{name: "nor where we know none", pods: []*corev1.Pod{newPod("a", one, says("off"))}, change: func(in *input) { in.noCookie, in.namespaces = true, nil }, problems: []Reason{NoCookies}},
		{name: "a pod that has ended has no address", pods: []*corev1.Pod{newPod("a", one, says("off"), ended)}},
		{name: "a pod without an address yet", pods: []*corev1.Pod{newPod("a", nil, says("off"))}},
		{name: "a pod whose namespace isn't there", pods: []*corev1.Pod{newPod("a", []string{"198.51.100.9"}, says("off"))}, missing: 1, problems: []Reason{NoNamespace}},
		{name: "one that was seen before keeps its entry", pods: []*corev1.Pod{newPod("a", []string{"198.51.100.9"}, says("off"))},
			change: func(in *input) { in.lastSeen = map[types.NamespacedName]uint64{{Namespace: "default", Name: "a"}: 99} }, want: table{99: out("198.51.100.9", "")}},
		{name: "the host's own address is no pod's", pods: []*corev1.Pod{newPod("a", []string{"192.0.2.9"}, says("off"))}, missing: 1, problems: []Reason{NoNamespace}},
		{name: "of two pods with an address, the one that stays has it", pods: []*corev1.Pod{newPod("a", one, ending, says("off")), newPod("b", one, says("off"))}, want: table{11: out(one[0], one[1])}},

		{name: "source ranges: all namespaces", pods: []*corev1.Pod{newPod("a", one), newPod("b", two)}, change: ranges, want: all},
		{name: "source ranges, and one opts out", pods: []*corev1.Pod{newPod("a", one), newPod("b", two, says("off"))}, change: ranges, want: with(table{12: out(two[0], "")})},
		{name: "source ranges: a pod is judged by what the API says", pods: []*corev1.Pod{newPod("a", []string{"198.51.100.77", "2001:db8:1::1"}), newPod("b", two)}, change: ranges,
			want: with(table{11: in("198.51.100.77", "2001:db8:1::1")})},
		{name: "source ranges: a node that isn't known yet", pods: []*corev1.Pod{newPod("a", one), newPod("b", two)},
			change: func(in *input) { ranges(in); in.node = nil }, want: with(table{1: in("192.0.2.9", "2001:db8::9")})},
		{name: "source ranges: no pod takes the node's address", pods: []*corev1.Pod{newPod("a", one), newPod("b", two)},
			change: func(in *input) { ranges(in); in.namespaces[3].addrs = addrs("192.0.2.1", "172.17.0.6") }, want: with(table{13: in("172.17.0.6", "")})},
		{name: "source ranges: without cookies, all are the node", pods: []*corev1.Pod{newPod("a", one)}, change: func(in *input) { ranges(in); in.programs, in.namespaces = false, nil }, want: table{0: in("192.0.2.1", "")}},
		{name: "source ranges: programs know cookies, we don't", pods: []*corev1.Pod{newPod("a", one)}, change: func(in *input) { ranges(in); in.noCookie, in.namespaces = true, nil }},

		{name: "another namespace takes a pod's address", pods: []*corev1.Pod{newPod("a", one), newPod("b", two, says("off"))},
			change: func(in *input) { ranges(in); in.namespaces[3].addrs = addrs("198.51.100.2", "172.17.0.6") },
			want:   with(table{12: {}, 13: in("172.17.0.6", "")}), problems: []Reason{AddressConflict}},
		{name: "and is found out by its processes", pods: []*corev1.Pod{newPod("a", one), newPod("b", two, says("off"))},
			change: func(in *input) {
				ranges(in)
				in.namespaces[3].addrs = addrs("198.51.100.2", "172.17.0.6")
				in.isOf = func(pids []int, uid types.UID) bool { return uid == "uid-of-b" && slices.Contains(pids, 12) }
			},
			want: with(table{12: out(two[0], ""), 13: in("172.17.0.6", "")})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pods := map[types.NamespacedName]pod{}
			for _, p := range tc.pods {
				if p, ok := podOf(p); ok {
					pods[p.name] = p
				}
			}
			input := &input{pods: inOrder(pods), node: addrs("192.0.2.1"), fallback: true, programs: true, namespaces: fixture()}
			if tc.change != nil {
				tc.change(input)
			}
			got := desired(input)
			if tc.want == nil {
				tc.want = table{}
			}
			if diff := gocmp.Diff(tc.want, got.table.Workloads); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
			optedOut := bpf.Control(0)
			for _, w := range tc.want {
				optedOut |= bpf.Control(w.Flags & bpf.WorkloadOptedOut)
			}
			if got.table.Control != optedOut || bpf.ControlOptOut != bpf.Control(bpf.WorkloadOptedOut) {
				t.Errorf("control %d, want %d", got.table.Control, optedOut)
			}
			var reasons []Reason
			for _, p := range got.problems {
				reasons = append(reasons, p.Reason)
			}
			if !slices.Equal(reasons, tc.problems) || len(got.missing) != tc.missing {
				t.Errorf("problems %v, missing %v; want %v and %d", got.problems, got.missing, tc.problems, tc.missing)
			}
		})
	}
}

func ranges(in *input) { in.ranges = true }

func TestDesiredNeedsNoNamespaceWithoutRequest(t *testing.T) {
	a, _ := podOf(newPod("a", []string{"198.51.100.1"}, says("off")))
	for _, tc := range []struct {
		name string
		in   input
		want bool
	}{
		{"nothing at all", input{fallback: true, programs: true}, false},
		{"source ranges", input{programs: true, ranges: true}, true},
		{"source ranges, no cookies in programs", input{ranges: true}, false},
		{"source ranges, no cookies for us", input{programs: true, ranges: true, noCookie: true}, false},
		{"an opt-out", input{pods: []pod{a}, fallback: true, programs: true}, true},
		{"one that is refused", input{pods: []pod{a}, programs: true}, false},
	} {
		if got := tc.in.needsNamespaces(); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func isFull(err error) bool { return errors.Is(err, ErrFull) }
