package apiserver

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestMergeNamesEachAddressOnce(t *testing.T) {
	named := func(at string, s Source, preferred bool) Named {
		return Named{Endpoint: ep(at), Source: s, Preferred: preferred}
	}
	byName := named("10.0.0.1:6443", SourceKubelet, false)
	byName.Host = "api.example"
	got := Merge([]Named{named("10.0.0.1:6443", SourceKubeadm, false), named("a.example:1", SourceK3s, false), byName,
		named("a.example:1", SourceAPI, true), named("b.example:1", SourceK3s, false), named("10.0.0.1:6443", SourceAPI, true)})
	var list []string
	for _, m := range got {
		list = append(list, fmt.Sprintf("%s %s %v %v", m.Endpoint, m.Name, m.Sources, m.Preferred))
	}
	want := "[10.0.0.1:6443 api.example [kubeadm kubelet api] true a.example:1 a.example [k3s api] true b.example:1 b.example [k3s] false]"
	if fmt.Sprint(list) != want {
		t.Errorf("got %v, want %s", list, want)
	}
}

func TestNamedRefused(t *testing.T) {
	service := func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("10.96.0.1:443") }
	for at, refused := range map[string]bool{"10.96.0.1:443": true, "10.96.0.1:6443": false, "127.0.0.1:6443": true, "localhost:6443": false} {
		if why := (Named{Endpoint: ep(at)}).Refused(service); (why != "") != refused {
			t.Errorf("%s: %q", at, why)
		}
	}
	if why := (Named{Endpoint: ep("127.0.0.1:6443"), ByHand: true}).Refused(service); why != "" {
		t.Errorf("given by hand: %q", why)
	}
}
