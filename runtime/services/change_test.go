package services

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestStaleBackends(t *testing.T) {
	dns := func(more ...func(*corev1.Service)) *corev1.Service {
		return service("dns", "dns:53/udp tcp:53/tcp", append([]func(*corev1.Service){clusterIPs("172.30.0.10")}, more...)...)
	}
	const ports = "dns:53/udp tcp:5353/tcp"
	for _, tc := range []struct {
		name   string
		change func(*Table) []Change
		want   string
	}{
		{"a pod goes", func(tb *Table) []Change { return tb.SetSlice(slice("1", "dns", ports, "10.0.0.1")) }, "ns/dns:dns (IPv4) 10.0.0.2:53, ns/dns:tcp (IPv4) 10.0.0.2:5353"},
		{"a pod serves no longer", func(tb *Table) []Change { return tb.SetSlice(slice("1", "dns", ports, "10.0.0.1", "10.0.0.2 gone")) }, "ns/dns:dns (IPv4) 10.0.0.2:53, ns/dns:tcp (IPv4) 10.0.0.2:5353"},
		{"a pod terminates and serves", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "dns", ports, "10.0.0.1", "10.0.0.2 terminating"))
		}, ""},
		{"hints leave a pod out", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "dns", ports, "10.0.0.1 zone=a", "10.0.0.2 zone=b"))
		}, ""},
		{"a policy leaves pods out", func(tb *Table) []Change { return tb.SetService(dns(internalLocal)) }, ""},
		{"a port goes", func(tb *Table) []Change {
			return tb.SetService(service("dns", "dns:53/udp", clusterIPs("172.30.0.10")))
		}, "ns/dns:tcp (IPv4) 10.0.0.1:5353 10.0.0.2:5353"},
		{"the Service goes", func(tb *Table) []Change { return tb.DeleteService(named("dns")) }, "ns/dns:dns (IPv4) 10.0.0.1:53 10.0.0.2:53, ns/dns:tcp (IPv4) 10.0.0.1:5353 10.0.0.2:5353"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := tableOf(thisNode(), dns(), slice("1", "dns", ports, "10.0.0.1", "10.0.0.2"))
			changes := tc.change(table)
			if len(changes) != 1 {
				t.Fatalf("changes: %v", changes)
			}
			got := ""
			for i, s := range changes[0].Stale() {
				if i > 0 {
					got += ", "
				}
				got += s.Port.String() + " " + list(s.Backends)
				if len(s.Former) != 1 {
					t.Errorf("by the frontends %v", s.Former)
				}
			}
			if got != tc.want {
				t.Errorf("stale are %s, want %s", got, tc.want)
			}
		})
	}
}

func TestGoneFrontends(t *testing.T) {
	first := service("a", "http:80/tcp", clusterIPs("172.30.0.1"), externalIPs("192.168.99.1", "192.168.99.2"))
	second := service("b", "http:80/tcp", clusterIPs("172.30.0.2"), externalIPs("192.168.99.1"))
	table := tableOf(thisNode(), first, second)
	if got := fmt.Sprint(Gone(table.DeleteService(named("a")))); got != "[tcp/172.30.0.1:80 tcp/192.168.99.2:80]" {
		t.Errorf("gone are %s", got)
	}
	if got := Gone(table.SetService(first)); len(got) > 0 {
		t.Errorf("gone by its return are %v", got)
	}
	changes := table.DeleteService(named("a"))
	if got := Gone(append(changes, changes...)); len(got) != 2 {
		t.Errorf("gone by changes that come twice are %v", got)
	}
	if got := Gone(nil); got != nil {
		t.Errorf("gone by nothing are %v", got)
	}
}
