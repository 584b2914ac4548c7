package services

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

func fullPort() Port {
	key := bpf.FrontendKeyOf(backends("172.30.0.1:80")[0], bpf.TCP)
	return Port{
		Key: PortKey{Service: named("web"), Name: "http", Proto: bpf.TCP},
		Service: nat.Service{
			Name: "web", Frontends: []bpf.FrontendKey{key}, VIPs: ips("172.30.0.1"), Backends: backends("10.0.0.1:80"), AllowEmpty: true,
			Flags: map[bpf.FrontendKey]bpf.FrontendFlags{key: bpf.FrontendLocalPolicy},
		},
		Kinds: []Kind{ClusterIP}, Serving: backends("10.0.0.1:80"),
	}
}

// Whatever differs between two Ports is a change.
func TestPortEqualComparesEveryField(t *testing.T) {
	other := bpf.FrontendKeyOf(backends("172.30.0.2:80")[0], bpf.TCP)
	differences := map[string]func(*Port){
		"Key":                  func(p *Port) { p.Key.IPv6 = true },
		"Service.Name":         func(p *Port) { p.Service.Name = "x" },
		"Service.Frontends":    func(p *Port) { p.Frontends = append(p.Frontends, other) },
		"Service.VIPs":         func(p *Port) { p.VIPs = nil },
		"Service.ExternalVIPs": func(p *Port) { p.ExternalVIPs = ips("172.30.0.1") },
		"Service.OnNode":       func(p *Port) { p.OnNode = p.Backends },
		"Service.Backends":     func(p *Port) { p.Backends = backends("10.0.0.1:81") },
		"Service.Sticky":       func(p *Port) { p.Sticky = true },
		"Service.Flags":        func(p *Port) { p.Flags = nil },
		"Service.Local":        func(p *Port) { p.Local = []netip.AddrPort{} }, // which is a drop where nil is nothing
		"Service.Affinity":     func(p *Port) { p.Affinity = time.Second },
		"Service.SourceRanges": func(p *Port) { p.SourceRanges = append(p.SourceRanges, netip.MustParsePrefix("10.0.0.0/8")) },
		"Service.AllowEmpty":   func(p *Port) { p.AllowEmpty = false },
		"Kinds":                func(p *Port) { p.Kinds = []Kind{ExternalIP} },
		"ExternalLocal":        func(p *Port) { p.ExternalLocal = true },
		"Serving":              func(p *Port) { p.Serving = nil },
		"HealthCheckNodePort":  func(p *Port) { p.HealthCheckNodePort = 1 },
		"LocalReady":           func(p *Port) { p.LocalReady = 1 },
	}
	fields := map[string]bool{}
	for i := range reflect.TypeFor[Port]().NumField() {
		fields[reflect.TypeFor[Port]().Field(i).Name] = true
	}
	delete(fields, "Service")
	for i := range reflect.TypeFor[nat.Service]().NumField() {
		fields["Service."+reflect.TypeFor[nat.Service]().Field(i).Name] = true
	}
	for name := range fields {
		change := differences[name]
		if change == nil {
			t.Errorf("nobody asks whether Equal sees %s", name)
			continue
		}
		a, b := fullPort(), fullPort()
		if !a.Equal(&b) || !EqualPorts([]Port{a}, []Port{b}) {
			t.Fatal("a Port is not equal to its like")
		}
		if change(&b); a.Equal(&b) || EqualPorts([]Port{a}, []Port{b}) {
			t.Errorf("Equal doesn't see %s", name)
		}
	}
	if EqualPorts([]Port{fullPort()}, nil) || !EqualPorts(nil, []Port{}) {
		t.Error("lists of other lengths")
	}
}
