package bootstrap

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/proof"
)

func goodConfig() Config {
	return Config{
		Shared: Shared{
			Services:  []discover.Given{{Name: apiserver.VarServices, Value: "10.96.0.1:443"}},
			Endpoints: []discover.Given{{Name: apiserver.VarEndpoints, Value: "10.0.0.1:6443"}},
			Scope:     "all",
		},
		Prove: "answered", Persist: "auto", UDP: true, Timeout: time.Second,
	}
}

func TestConfigParse(t *testing.T) {
	s, err := goodConfig().parse()
	if err != nil {
		t.Fatal(err)
	}
	if s.prove != proof.Answered || s.scope != ScopeAll || s.persist != PersistAuto || len(s.given.Services) != 1 || len(s.given.Endpoints) != 1 || len(s.extra) != 0 {
		t.Errorf("%+v", s)
	}
	for _, tc := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"no strength", func(c *Config) { c.Prove = "" }, `--prove "": want auto, translated, answered, verified, ready`},
		{"a strength in capitals", func(c *Config) { c.Prove = "Ready" }, `--prove "Ready"`},
		{"no scope", func(c *Config) { c.Scope = "" }, `--scope ""`},
		{"no choice for the next boot", func(c *Config) { c.Persist = "" }, `--persist ""`},
		{"an unknown feature", func(c *Config) { c.Forbid = []string{"batch", "warp"} }, `"warp"`},
		{"a relative directory", func(c *Config) { c.RunDir = "run" }, `--run-dir "run": want an absolute path`},
		{"a directory with a line break", func(c *Config) { c.StateDir = "/var\n/lib" }, `--state-dir`},
		{"a bad address", func(c *Config) { c.Endpoints[0].Value = "10.0.0.1:0" }, `KUBERNETES_APISERVER_ENDPOINTS: entry 1 "10.0.0.1:0"`},
		{"a bad extra service", func(c *Config) { c.Extra = []string{"udp/10.96.0.10:53"} }, `--extra-service "udp/10.96.0.10:53": no =`},
		{"ports that can't be matched", func(c *Config) {
			c.Services[0].Value, c.Endpoints[0].Value = "10.96.0.1:443,10.96.0.1:80", "10.0.0.1:6443,10.0.0.1:8080"
		}, "KUBERNETES_SERVICE_IPS_PORTS has ports [80 443]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := goodConfig()
			tc.spoil(&c)
			_, err := c.parse()
			var usage *UsageError
			if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want a UsageError with %q", err, tc.want)
			}
		})
	}
	c := goodConfig()
	c.Prove, c.Scope = "x", "y"
	if _, err := c.parse(); err == nil || strings.Count(err.Error(), "want") != 2 {
		t.Errorf("two bad values: %v, want both named", err)
	}
}

func TestCheckCapacity(t *testing.T) {
	for n, want := range map[uint64]bool{0: true, 1: false, minEntries: true, maxEntries: true, maxEntries + 1: false, 1 << 32: false} {
		if err := CheckCapacity("--max-services", n); (err == nil) != want {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// TestCheckPortsOfEachFamily: two ports are only ambiguous within one family.
func TestCheckPortsOfEachFamily(t *testing.T) {
	for _, tc := range []struct {
		name, services, endpoints string
		ok                        bool
	}{
		{"one of each", "10.96.0.1:443", "10.0.0.1:6443,10.0.0.2:6443", true},
		{"two endpoint ports", "10.96.0.1:443", "10.0.0.1:6443,10.0.0.2:7443", true},
		{"two Service ports", "10.96.0.1:443,10.96.0.1:6443", "10.0.0.1:6443", true},
		{"one of each in each family", "10.96.0.1:443,[fd00::1]:6443", "10.0.0.1:6443,[fd01::1]:7443", true},
		{"two of each", "10.96.0.1:443,10.96.0.1:80", "10.0.0.1:6443,10.0.0.1:8080", false},
		{"two of each, one by name", "10.96.0.1:443,10.96.0.1:80", "10.0.0.1:6443,api.example:8080", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := goodConfig()
			c.Services[0].Value, c.Endpoints[0].Value = tc.services, tc.endpoints
			if _, err := c.parse(); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestParseExtra(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, tc := range []struct {
		text string
		want ExtraService
	}{
		{"udp/10.96.0.10:53=10.0.0.5:53", ExtraService{bpf.UDP, ap("10.96.0.10:53"), []netip.AddrPort{ap("10.0.0.5:53")}}},
		{"tcp/[fd00::a]:53=[fd01::1]:53,[fd01::2]:5353", ExtraService{bpf.TCP, ap("[fd00::a]:53"), []netip.AddrPort{ap("[fd01::1]:53"), ap("[fd01::2]:5353")}}},
		{" sctp / 10.96.0.10:53 = 10.0.0.5:53 , 10.0.0.5:53 ", ExtraService{bpf.SCTP, ap("10.96.0.10:53"), []netip.AddrPort{ap("10.0.0.5:53")}}},
		{"udp/[::ffff:10.96.0.10]:53=10.0.0.5:53", ExtraService{bpf.UDP, ap("10.96.0.10:53"), []netip.AddrPort{ap("10.0.0.5:53")}}},
	} {
		got, err := ParseExtra(tc.text)
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		if got.Proto != tc.want.Proto || got.Frontend != tc.want.Frontend || !cmp.Equal(got.Backends, tc.want.Backends, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) {
			t.Errorf("%q: %+v, want %+v", tc.text, got, tc.want)
		}
	}
	for text, want := range map[string]string{
		"":                                     "no =",
		"udp/10.96.0.10:53":                    "no =",
		"10.96.0.10:53=10.0.0.5:53":            "no /",
		"UDP/10.96.0.10:53=10.0.0.5:53":        `protocol "UDP"`,
		"udp/10.96.0.10=10.0.0.5:53":           "not IP:PORT",
		"udp/10.96.0.10:53=10.0.0.5":           "not IP:PORT",
		"udp/10.96.0.10:53=10.0.0.5:53,":       "not IP:PORT",
		"udp/10.96.0.10:0=10.0.0.5:53":         "port 0",
		"udp/[fe80::1%1]:53=[fe80::2]:53":      "zone",
		"udp/0.0.0.0:53=10.0.0.5:53":           "no address to connect to",
		"udp/10.96.0.10:53=224.0.0.1:53":       "no address to connect to",
		"udp/10.96.0.10:53=255.255.255.255:53": "no address to connect to",
		"udp/10.96.0.10:53=[fd00::1]:53":       "another family",
		"udp/10.96.0.10:53=10.96.0.10:53":      "the Service itself",
		"udp/10.96.0.10:53=" + strings.Repeat("10.0.0.5:53,", 3) + manyBackends(101): "101 backends, at most 100",
	} {
		if _, err := ParseExtra(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--extra-service") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func manyBackends(n int) string {
	var b []string
	for i := range n {
		b = append(b, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 5}), uint16(53+i)).String())
	}
	return strings.Join(b, ",")
}

func FuzzParseExtra(f *testing.F) {
	for _, seed := range []string{"udp/10.96.0.10:53=10.0.0.5:53", "tcp/[fd00::a]:53=[fd01::1]:53,[fd01::2]:53", "=", "/", "udp/=", "sctp/1.2.3.4:1=1.2.3.5:1,", "tcp/[::ffff:1.2.3.4]:9=1.2.3.5:9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseExtra(text)
		if err != nil {
			return
		}
		if len(e.Backends) == 0 || len(e.Backends) > maxExtraBackends {
			t.Fatalf("%q gives %d backends", text, len(e.Backends))
		}
		var parts []string
		for _, b := range append([]netip.AddrPort{e.Frontend}, e.Backends...) {
			if b.Port() == 0 || b.Addr().Zone() != "" || b.Addr().Is4In6() || b.Addr().IsUnspecified() || b.Addr().IsMulticast() || b.Addr().Is4() != e.Frontend.Addr().Is4() {
				t.Fatalf("%q gives %s", text, b)
			}
			parts = append(parts, b.String())
		}
		again, err := ParseExtra(e.Proto.String() + "/" + parts[0] + "=" + strings.Join(parts[1:], ","))
		if err != nil || again.Frontend != e.Frontend || len(again.Backends) != len(e.Backends) {
			t.Fatalf("%q gives %+v, which reads as %+v, %v", text, e, again, err)
		}
		if err := e.service().Validate(); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	})
}
