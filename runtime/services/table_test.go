package services

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// changed are the names of the Services of changes.
func changed(list []Change) string {
	var out []string
	for _, c := range list {
		out = append(out, c.Service.Name)
	}
	return strings.Join(out, " ")
}

func TestChangesOfObjects(t *testing.T) {
	web := func(more ...func(*corev1.Service)) *corev1.Service {
		return service("web", "http:80/tcp", append([]func(*corev1.Service){clusterIPs("172.30.0.41")}, more...)...)
	}
	start := func() *Table {
		return tableOf(thisNode(), web(), slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2"),
			service("other", "http:80/tcp", clusterIPs("172.30.0.42")), slice("9", "other", "http:80/tcp", "10.0.0.9"))
	}
	for _, tc := range []struct {
		name   string
		change func(*Table) []Change
		want   string // Services that change
		reach  string // 172.30.0.41:80 then
	}{
		{"nothing", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the order of endpoints", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.2", "10.0.0.1")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a hint that doesn't matter", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1 zone=b", "10.0.0.2 zone=b"))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the same Service again", func(tb *Table) []Change { return tb.SetService(web()) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"an annotation", func(tb *Table) []Change {
			return tb.SetService(web(func(s *corev1.Service) { s.Annotations = map[string]string{"a": "b"} }))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"an IP comes", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		}, "web", "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80"},
		{"an IP goes", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1")) }, "web", "10.0.0.1:80"},
		{"a port comes that the Service hasn't", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp x:81/tcp", "10.0.0.1", "10.0.0.2"))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a port goes", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "", "10.0.0.1", "10.0.0.2")) }, "web", "rejected"},
		{"an IP and a port come", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp http:81/tcp", "10.0.0.1", "10.0.0.3"))
		}, "web", "10.0.0.1:80 10.0.0.1:81 10.0.0.3:80 10.0.0.3:81"},
		{"a slice comes", func(tb *Table) []Change { return tb.SetSlice(slice("2", "web", "http:80/tcp", "10.0.0.5")) }, "web", "10.0.0.1:80 10.0.0.2:80 10.0.0.5:80"},
		{"a slice goes", func(tb *Table) []Change { return tb.DeleteSlice(named("1")) }, "web", "rejected"},
		{"a slice goes that was never there", func(tb *Table) []Change { return tb.DeleteSlice(named("77")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a slice moves to another Service", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "other", "http:80/tcp", "10.0.0.1", "10.0.0.2"))
		}, "other web", "rejected"},
		{"a slice loses its Service", func(tb *Table) []Change { return tb.SetSlice(slice("1", "", "http:80/tcp", "10.0.0.1")) }, "web", "rejected"},
		{"a slice goes to another proxy", func(tb *Table) []Change {
			return tb.SetSlice(labelled(slice("1", "web", "http:80/tcp", "10.0.0.1"), LabelProxyName, "x"))
		}, "web", "rejected"},
		{"a port of the slice is renamed", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "web:80/tcp", "10.0.0.1", "10.0.0.2")) }, "web", "rejected"},
		{"a port of the slice is renumbered", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:81/tcp", "10.0.0.1", "10.0.0.2")) }, "web", "10.0.0.1:81 10.0.0.2:81"},
		{"a mixture", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "x:1/tcp http:81/tcp", "10.0.0.2 terminating", "10.0.0.7", "10.0.0.8 notready"))
		}, "web", "10.0.0.7:81"},
		{"an endpoint starts to terminate", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1 terminating", "10.0.0.2"))
		}, "web", "10.0.0.2:80"},
		{"the Service goes to another proxy", func(tb *Table) []Change { return tb.SetService(web(svcLabel(LabelProxyName, "x"))) }, "web", "not ours"},
		{"the Service becomes headless", func(tb *Table) []Change { return tb.SetService(web(clusterIPs("None"))) }, "web", "not ours"},
		{"the Service goes", func(tb *Table) []Change { return tb.DeleteService(named("web")) }, "web", "not ours"},
		{"a Service goes that was never there", func(tb *Table) []Change { return tb.DeleteService(named("none")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the node moves to another zone, without hints", func(tb *Table) []Change {
			n := thisNode()
			n.Zone = "zone-b"
			return tb.SetNode(n)
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"nil objects", func(tb *Table) []Change { return append(tb.SetService(nil), tb.SetSlice(nil)...) }, "", "10.0.0.1:80 10.0.0.2:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := start()
			changes := tc.change(table)
			if got := changed(changes); got != tc.want {
				t.Errorf("changed are %q, want %q", got, tc.want)
			}
			for _, c := range changes {
				if EqualPorts(c.Before, c.After) || !EqualPorts(c.After, table.Desired(c.Service)) {
					t.Errorf("the change of %v is from %v to %v, wanted is %v", c.Service, c.Before, c.After, table.Desired(c.Service))
				}
			}
			tries{{"", pod, "172.30.0.41:80/tcp", tc.reach}}.run(t, table)
		})
	}
}

func TestALabelThatGoesBringsTheServiceBack(t *testing.T) {
	hidden := service("web", "http:80/tcp", clusterIPs("172.30.0.41"), svcLabel(LabelProxyName, "x"))
	table := tableOf(thisNode(), hidden, slice("1", "web", "http:80/tcp", "10.0.0.1"))
	if got := table.Desired(named("web")); got != nil {
		t.Errorf("served is %v", got)
	}
	if got := changed(table.SetService(service("web", "http:80/tcp", clusterIPs("172.30.0.41")))); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{{"", pod, "172.30.0.41:80/tcp", "10.0.0.1:80"}}.run(t, table)
}

func TestTheNodeChanges(t *testing.T) {
	table := tableOf(thisNode(), everyKind(), slice("1", "web", "http:80/tcp", "10.0.0.1 zone=a", "10.0.0.2 zone=b"),
		service("other", "http:80/tcp", clusterIPs("172.30.0.42")), slice("2", "other", "http:80/tcp", "10.0.0.3"))
	n := thisNode()
	n.NodePortAddrs = ips("192.168.0.7")
	if got := changed(table.SetNode(n)); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{
		{"the new address", pod, "192.168.0.7:3001/tcp", "10.0.0.1:80"},
		{"the former one", pod, "192.168.0.2:3001/tcp", "not ours"},
		{"loopback", onNode, "127.0.0.1:3001/tcp", "not ours"},
	}.run(t, table)
	n.Zone = "zone-b"
	if got := changed(table.SetNode(n)); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{{"the new zone", pod, "172.30.0.41:80/tcp", "10.0.0.2:80"}}.run(t, table)
	n.NodePortAddrs = slices.Concat(n.NodePortAddrs, n.NodePortAddrs)
	if got := table.SetNode(n); got != nil {
		t.Errorf("addresses twice change %v", got)
	}
}

func TestSeveralServicesClaimAFrontend(t *testing.T) {
	at := func(hour int) func(*corev1.Service) {
		return created(time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC))
	}
	older := service("older", "http:80/tcp", clusterIPs("172.30.0.1"), externalIPs("192.168.99.1"), at(1))
	newer := service("newer", "http:80/tcp https:443/tcp", clusterIPs("172.30.0.2"), externalIPs("192.168.99.1"), at(2))
	objects := []any{older, newer, slice("o", "older", "http:80/tcp", "10.0.0.1"), slice("n", "newer", "http:80/tcp https:443/tcp", "10.0.0.2")}
	for range 2 { // in either order
		table := tableOf(thisNode(), objects...)
		tries{
			{"the older one has it", pod, "192.168.99.1:80/tcp", "10.0.0.1:80"},
			{"the newer one has its others", pod, "172.30.0.2:80/tcp", "10.0.0.2:80"},
			{"and its other port there", pod, "192.168.99.1:443/tcp", "10.0.0.2:443"},
		}.run(t, table)
		problems := table.Problems(named("newer"))
		want := "Service ns/newer port http: its external IP tcp/192.168.99.1:80 is served for ns/older"
		if len(problems) != 1 || problems[0].String() != want || problems[0].Reason != FrontendTaken {
			t.Errorf("problems: %v, want %s", problems, want)
		}
		if got := table.Problems(named("older")); len(got) > 0 {
			t.Errorf("problems of the winner: %v", got)
		}
		if got := changed(table.DeleteService(named("older"))); got != "newer older" {
			t.Errorf("the winner's end changes %q", got)
		}
		tries{{"then the newer one has it", pod, "192.168.99.1:80/tcp", "10.0.0.2:80"}}.run(t, table)
		if got := table.Problems(named("newer")); len(got) > 0 {
			t.Errorf("problems then: %v", got)
		}
		if got := changed(table.SetService(older)); got != "newer older" {
			t.Errorf("the winner's return changes %q", got)
		}
		tries{{"then the older one has it again", pod, "192.168.99.1:80/tcp", "10.0.0.1:80"}}.run(t, table)
		slices.Reverse(objects)
	}

	t.Run("an endpoint of a loser changes only the loser", func(t *testing.T) {
		table := tableOf(thisNode(), objects...)
		if got := changed(table.SetSlice(slice("n", "newer", "http:80/tcp", "10.0.0.7"))); got != "newer" {
			t.Errorf("changed are %q", got)
		}
	})
	t.Run("made anew between two events, the older is the newer", func(t *testing.T) {
		table := tableOf(thisNode(), objects...)
		anew := older.DeepCopy()
		at(9)(anew)
		if got := changed(table.SetService(anew)); got != "newer older" {
			t.Errorf("changed are %q", got)
		}
		tries{{"", pod, "192.168.99.1:80/tcp", "10.0.0.2:80"}}.run(t, table)
	})
	t.Run("of equal age, the first by name", func(t *testing.T) {
		table := tableOf(thisNode(), service("b", "http:80/tcp@3001", clusterIPs("172.30.0.2")), service("a", "http:80/tcp@3001", clusterIPs("172.30.0.1")),
			slice("a", "a", "http:80/tcp", "10.0.0.1"), slice("b", "b", "http:80/tcp", "10.0.0.2"))
		tries{{"", pod, "192.168.0.2:3001/tcp", "10.0.0.1:80"}}.run(t, table)
	})
	t.Run("a cluster IP goes before an older external IP", func(t *testing.T) {
		dns := service("dns", "dns:80/tcp", clusterIPs("172.30.0.10"), at(9))
		thief := service("thief", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("172.30.0.10"), at(1))
		table := tableOf(thisNode(), thief, dns, slice("d", "dns", "dns:80/tcp", "10.0.0.10"), slice("t", "thief", "http:80/tcp", "10.0.0.66"))
		tries{{"", pod, "172.30.0.10:80/tcp", "10.0.0.10:80"}}.run(t, table)
	})
	t.Run("an external IP that is another's cluster IP, by another port", func(t *testing.T) {
		dns := service("dns", "dns:53/tcp", clusterIPs("172.30.0.10"))
		guest := service("guest", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("172.30.0.10"))
		table := tableOf(thisNode(), guest, slice("g", "guest", "http:80/tcp", "10.0.0.66"))
		tries{{"nobody's cluster IP", pod, "172.30.0.10:99/tcp", "not ours"}}.run(t, table)
		if got := changed(table.SetService(dns)); got != "dns guest" {
			t.Errorf("changed are %q", got)
		}
		tries{
			{"each has its port", pod, "172.30.0.10:80/tcp", "10.0.0.66:80"},
			{"what neither serves is refused", pod, "172.30.0.10:99/tcp", "rejected"},
		}.run(t, table)
		if got := changed(table.DeleteService(named("dns"))); got != "dns guest" {
			t.Errorf("changed are %q", got)
		}
		tries{{"nobody's cluster IP again", pod, "172.30.0.10:99/tcp", "not ours"}}.run(t, table)
		table.DeleteService(named("guest"))
		if len(table.claims.cluster)+len(table.claims.guests)+len(table.claims.holder) > 0 {
			t.Errorf("of nothing is left %+v", table.claims)
		}
	})
	t.Run("three of them, and the one in the middle goes", func(t *testing.T) {
		table := tableOf(thisNode(), older, newer, service("third", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("192.168.99.1"), at(3)))
		table.DeleteService(named("newer"))
		if len(table.Problems(named("third"))) != 1 || len(table.Problems(named("older"))) != 0 {
			t.Errorf("problems: %v", table.Problems(named("third")))
		}
		table.DeleteService(named("older"))
		if got := table.Problems(named("third")); len(got) > 0 || len(table.claims.rivals) > 0 {
			t.Errorf("problems: %v, rivals: %v", got, table.claims.rivals)
		}
	})
	t.Run("a port that loses every frontend is not there", func(t *testing.T) {
		table := tableOf(thisNode(), service("a", "http:80/tcp", clusterIPs("172.30.0.1")), service("b", "http:80/tcp", clusterIPs("172.30.0.1"), internalLocal))
		if got := table.Desired(named("b")); len(got) > 0 {
			t.Errorf("it is %v", got)
		}
	})
	t.Run("what follows from a lost frontend goes with it", func(t *testing.T) {
		table := tableOf(thisNode(), older, service("newest", "http:80/tcp", clusterIPs("172.30.0.9"), loadBalancer("192.168.99.1"),
			sourceRanges("10.0.0.0/8"), externalLocal, healthPort(32000), at(5)))
		p := table.Desired(named("newest"))[0]
		if len(p.SourceRanges)+len(p.Flags) > 0 || p.ExternalLocal || p.Local != nil || len(p.Frontends) != 1 || len(p.VIPs) != 1 {
			t.Errorf("it is %+v", p)
		}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	})
}

func TestProblemsDontDependOnTheOrderOfEvents(t *testing.T) {
	objects := []any{slice("2", "web", "http:80/tcp", "bad2"), slice("1", "web", "http:80/tcp", "bad1"), everyKind(), slice("3", "web", "http:80/tcp", "bad3")}
	want := fmt.Sprint(tableOf(thisNode(), objects...).Problems(named("web")))
	if strings.Count(want, "bad") != 3 {
		t.Errorf("problems are %v", want)
	}
	slices.Reverse(objects)
	table := tableOf(thisNode(), objects...)
	if got := fmt.Sprint(table.Problems(named("web"))); got != want {
		t.Errorf("problems are %v, in another order of events %v", want, got)
	}
	if got := table.SetSlice(slice("2", "web", "http:80/tcp", "bad")); len(got) != 1 || !EqualPorts(got[0].Before, got[0].After) || len(got[0].Problems) != 3 {
		t.Errorf("another problem changes %v", got)
	}
	if got := table.SetSlice(slice("2", "web", "http:80/tcp", "10.0.0.1")); len(got) != 1 || len(got[0].Problems) != 2 {
		t.Errorf("a problem less changes %v", got)
	}
}
