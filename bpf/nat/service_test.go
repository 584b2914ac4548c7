package nat

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

func TestServiceValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Service)
		want   string // in the error; "": valid
	}{
		{"the API service", func(*Service) {}, ""},
		{"no frontend", func(s *Service) { s.Frontends, s.VIPs = nil, nil }, "has no frontend"},
		{"no backend", func(s *Service) { s.Backends = nil }, "left without a backend"},
		{"no backend where that is meant", func(s *Service) { s.Backends, s.AllowEmpty = nil, true }, ""},
		{"frontends of two families", func(s *Service) { s.Frontends = append(s.Frontends, tcp("[fd00::1]:443")) }, "mixes families"},
		{"a backend of the other family", func(s *Service) { s.Backends = append(s.Backends, addrs("[fd00::7]:1")...) }, "not of the frontends' family"},
		{"a v4-mapped backend of an IPv4 service", func(s *Service) { s.Backends = addrs("[::ffff:192.0.2.1]:6443") }, ""},
		{"port 0", func(s *Service) { s.Frontends = []bpf.FrontendKey{tcp("10.96.0.1:0")} }, "no port or protocol"},
		{"protocol 0", func(s *Service) { s.Frontends = append(s.Frontends, bpf.VIPKeyOf(netip.MustParseAddr("10.96.0.1"))) }, "no port or protocol"},
		{"a VIP that isn't a frontend", func(s *Service) { s.VIPs = append(s.VIPs, netip.MustParseAddr("10.96.0.2")) }, "has no frontend"},
		{"a VIP for clients outside that isn't a frontend", func(s *Service) { s.ExternalVIPs = addrsOnly("10.96.0.2") }, "has no frontend"},
		{"what is for clients outside", func(s *Service) {
			*s = limitedOutside(external(*s, bpf.FrontendExternalLocal), "10.0.0.0/8")
		}, ""},
		{"a Local policy for clients outside at a frontend that is not theirs", func(s *Service) {
			s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{s.Frontends[0]: bpf.FrontendExternalLocal}
		}, "flags 0x40"},
		{"source ranges for clients outside at a frontend that is not theirs", func(s *Service) {
			s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{s.Frontends[0]: bpf.FrontendExternalRange}
		}, "flags 0x80"},
		{"the flag of a mark", func(s *Service) {
			s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{s.Frontends[0]: bpf.FrontendVIP}
		}, "flags 0x1"},
		{"an IPv6 service", func(s *Service) {
			s.Frontends, s.VIPs, s.Backends = []bpf.FrontendKey{tcp("[fd00::1]:443")}, []netip.Addr{netip.MustParseAddr("fd00::1")}, addrs("[::1]:6443")
		}, ""},
		{"TCP, UDP and SCTP at once", func(s *Service) {
			s.Frontends = append(s.Frontends, udp("10.96.0.1:443"), bpf.FrontendKeyOf(netip.MustParseAddrPort("10.96.0.1:443"), bpf.SCTP))
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := kubernetes("192.0.2.1:6443")
			tc.change(&svc)
			err := svc.Validate()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), svc.Name)):
				t.Errorf("got %v, want %q and the service's name", err, tc.want)
			}
		})
	}
}

// What Validate refuses, Ensure refuses, and plans nothing.
func TestEnsurePlansNothingForAnInvalidService(t *testing.T) {
	p := NewPlanner(NewState(2048), InitIndexes)
	if err := p.Ensure(kubernetes()); err == nil {
		t.Fatal("a service without a backend was planned")
	}
	if !p.Plan().Empty() {
		t.Errorf("planned %+v", p.Plan())
	}
	if err := p.Replace(1, nil); err == nil {
		t.Error("a service was planned to lose all backends")
	}
}

func TestIndexesMeetAndDoNotOverlap(t *testing.T) {
	for _, tc := range []struct {
		index uint32
		own   bool
	}{{0, false}, {1, true}, {1023, true}, {1024, false}, {1<<32 - 1, false}} {
		if InitIndexes.Contains(tc.index) != tc.own {
			t.Errorf("index %d: the init stage's own is %v, want %v", tc.index, !tc.own, tc.own)
		}
		if tc.index != 0 && InitIndexes.Contains(tc.index) == runtimeIndexes.Contains(tc.index) {
			t.Errorf("index %d belongs to both or none", tc.index)
		}
	}
}
