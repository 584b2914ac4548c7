package apiserver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/apitest"
)

// zone is a name server of a kind: it looks up in a table. A family that is
// listed as "drop" never answers.
type zone map[string][]string

func (z zone) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range z[host] {
		if s == "drop "+network {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if a, err := netip.ParseAddr(s); err == nil && (network == "ip4") == a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

func TestResolve(t *testing.T) {
	names := zone{
		"api.example":  {"10.0.0.2", "fd00::2", "10.0.0.1"},
		"v4.example":   {"10.0.0.9"},
		"v6.example":   {"fd00::9"},
		"localhost":    {"127.0.0.1", "::1"},
		"debian":       {"127.0.1.1"},
		"mixed":        {"127.0.1.1", "10.0.0.7"},
		"vip.example":  {"10.96.0.1"},
		"half.example": {"10.96.0.1", "10.0.0.8"},
		"odd.example":  {"0.0.0.0", "fe80::1"},
		"slow6":        {"10.0.0.5", "drop ip6"},
		"silent":       {"drop ip4", "drop ip6"},
	}
	services := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443")}
	for name, tc := range map[string]struct {
		in       string
		byHand   bool
		want     []string
		err      string // of the first name
		droppped string
	}{
		"both families, in numeric order":                  {"api.example:6443", true, []string{"10.0.0.1:6443 (api.example)", "10.0.0.2:6443 (api.example)", "[fd00::2]:6443 (api.example)"}, "", ""},
		"addresses pass, the order stays":                  {"10.0.0.3:1,v4.example:6443,[fd00::3]:1", true, []string{"10.0.0.3:1", "10.0.0.9:6443 (v4.example)", "[fd00::3]:1"}, "", ""},
		"an address given and found counts once":           {"10.0.0.9:6443,v4.example:6443", true, []string{"10.0.0.9:6443"}, "", ""},
		"one family only":                                  {"v6.example:6443", true, []string{"[fd00::9]:6443 (v6.example)"}, "", ""},
		"no such name: it stays, unresolved":               {"nosuch.example:6443,10.0.0.1:1", true, []string{"nosuch.example:6443", "10.0.0.1:1"}, "no such name", ""},
		"localhost by hand":                                {"localhost:6443", true, []string{"127.0.0.1:6443 (localhost)", "[::1]:6443 (localhost)"}, "", ""},
		"localhost, discovered":                            {"localhost:6443", false, []string{"localhost:6443"}, "no usable address", "loopback"},
		"a name that is loopback only, by hand":            {"debian:6443", true, []string{"127.0.1.1:6443 (debian)"}, "", ""},
		"a name that is loopback only, discovered":         {"debian:6443", false, []string{"debian:6443"}, "no usable address", "loopback"},
		"loopback beside a real address goes, by hand too": {"mixed:6443", true, []string{"10.0.0.7:6443 (mixed)"}, "", "loopback"},
		"a name that is the Service IP: a deadlock":        {"vip.example:443", true, []string{"vip.example:443"}, "the Service IP itself", "Service IP"},
		"the Service IP among others":                      {"half.example:443", true, []string{"10.0.0.8:443 (half.example)"}, "", "Service IP"},
		"addresses that cannot be used":                    {"odd.example:443", true, []string{"odd.example:443"}, "unspecified", "link-local"},
		"a name server that drops AAAA":                    {"slow6:6443", true, []string{"10.0.0.5:6443 (slow6)"}, "", ""},
		"a silent name server":                             {"silent:6443", true, []string{"silent:6443"}, "no answer from the name server in time", ""},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := ParseEndpoints(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			limit := 10 * time.Second // slow6 must not need it
			if strings.Contains(tc.in, "silent") {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			start := time.Now()
			got, res := Resolve(ctx, ResolveConfig{Resolver: names, Services: services, Loopback: tc.byHand}, in)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			if s := apitest.Strings(got); !slices.Equal(s, tc.want) {
				t.Errorf("got %q, want %q", s, tc.want)
			}
			if (res[0].Err != nil) != (tc.err != "") || tc.err != "" && !strings.Contains(res[0].Err.Error(), tc.err) {
				t.Errorf("error %v, want %q", res[0].Err, tc.err)
			}
			if !strings.Contains(strings.Join(res[0].Dropped, " "), tc.droppped) {
				t.Errorf("dropped %q, want %q", res[0].Dropped, tc.droppped)
			}
		})
	}
}

func TestResolveWithoutNamesAsksNobody(t *testing.T) {
	in := []Endpoint{ep("10.0.0.1:1")}
	got, res := Resolve(context.Background(), ResolveConfig{}, in) // a nil Resolver would panic
	if !slices.Equal(got, in) || res != nil {
		t.Errorf("got %v, %v", got, res)
	}
}

func TestHostsOfTheHostComeFirst(t *testing.T) {
	root := t.TempDir()
	apitest.Write(t, root, "/etc/hosts", "# the host's\n127.0.0.1 localhost\n10.0.0.1\tAPI.example. api  # here\nnonsense api.example\nfd00::1 api.example\n")
	r := NewResolver(root, zone{"api.example": {"192.0.2.1"}, "other.example": {"192.0.2.2"}})
	got, _ := Resolve(context.Background(), ResolveConfig{Resolver: r}, []Endpoint{ep("api.example:1"), ep("api:1"), ep("other.example:1")})
	want := []string{"10.0.0.1:1 (api.example)", "[fd00::1]:1 (api.example)", "192.0.2.2:1 (other.example)"}
	if s := apitest.Strings(got); !slices.Equal(s, want) {
		t.Errorf("got %q, want %q", s, want)
	}
}

func TestRealResolverReadsEtcHosts(t *testing.T) {
	got, res := Resolve(context.Background(), ResolveConfig{Resolver: NewResolver("", nil), Loopback: true}, []Endpoint{ep("localhost:1")})
	if !slices.Contains(apitest.Strings(got), "127.0.0.1:1 (localhost)") {
		t.Errorf("got %v, %+v", got, res)
	}
}

func FuzzLookupHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost\n::1 a localhost\n")
	f.Fuzz(func(t *testing.T, in string) {
		for _, a := range lookupHosts([]byte(in), "localhost") {
			if !a.IsValid() {
				t.Fatal("invalid address from a hosts file")
			}
		}
	})
}
