package uninstall

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/natinit"
)

func TestServedByRules(t *testing.T) {
	service := func(owner natinit.Owner, frontends ...string) diagnose.TableService {
		return diagnose.TableService{Owner: owner, Frontends: frontends}
	}
	api, dns, extra := service(natinit.OwnerRuntime, "tcp/10.96.0.1:443"), service(natinit.OwnerRuntime, "tcp/10.96.0.10:53", "udp/10.96.0.10:53"), service(natinit.OwnerInit, "tcp/10.96.0.20:53")
	for _, tt := range []struct {
		name  string
		table []diagnose.TableService
		known string // address of the API service
		rules []string
		want  bool
	}{
		{"rules serve the API service", []diagnose.TableService{api, dns}, "10.96.0.1:443", []string{"10.96.0.1:443"}, true},
		{"rules serve another Service", []diagnose.TableService{api, dns}, "10.96.0.1:443", []string{"10.96.0.10:53"}, false},
		{"what init was given beside is not served", []diagnose.TableService{api, extra}, "10.96.0.1:443", []string{"10.96.0.1:443"}, false},
		{"there are no rules", []diagnose.TableService{api, dns}, "10.96.0.1:443", nil, false},
		{"the known address is of another time", []diagnose.TableService{api, dns}, "10.97.0.1:443", nil, false},
		{"the known address is of another time, and rules serve all", []diagnose.TableService{api, dns}, "10.97.0.1:443", []string{"10.96.0.1:443", "10.96.0.10:53"}, true},
	} {
		serves := func(a netip.AddrPort) (bool, bool) { return slices.Contains(tt.rules, a.String()), true }
		if got := servedByRules(serves, tt.table, []netip.AddrPort{netip.MustParseAddrPort(tt.known)}); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
