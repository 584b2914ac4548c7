package discover

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestExplicitIsUsedAloneAndNothingElseIsTouched(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443", "10.99.0.2:6443")
	w.kubelet(t, "10.99.0.2:6443")
	w.saved(t, "10.97.0.1:443", "10.99.0.2:6443")
	w.explicit(t, "10.96.0.1:443", "10.99.0.1:6443")
	w.cfg.Resolver = nil // asking it would panic
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	if len(res.Sources) != 2 || res.Sources[0].Source != apiserver.SourceFlags || !res.Sources[1].Used {
		t.Errorf("sources are %+v", res.Sources)
	}
	if r := w.Requests(); !slices.Equal(r, []string{"system:anonymous /readyz"}) {
		t.Errorf("the API was asked %q", r)
	}
}

func TestExplicitLoopbackAndBothFamilies(t *testing.T) {
	w := newWorld(t, "127.0.0.1:6443", "[::1]:6443")
	w.explicit(t, "10.96.0.1:443,[fd00:96::1]:443", "127.0.0.1:6443,[::1]:6443")
	w.check(t, "10.96.0.1:443 [fd00:96::1]:443", "127.0.0.1:6443 [::1]:6443")
}

func TestDeadOnesGetNoSlotUnlessAllAreDead(t *testing.T) {
	for name, tc := range map[string]struct{ endpoints, usable, first string }{
		"one dead":                       {"10.99.0.3:1,10.99.0.1:6443", "10.99.0.1:6443", "10.99.0.1:6443"},
		"one silent":                     {apitest.Silent4 + ":1,10.99.0.1:6443", "10.99.0.1:6443", "10.99.0.1:6443"},
		"all dead":                       {"10.99.0.3:1,10.99.0.3:2", "10.99.0.3:1 10.99.0.3:2", "10.99.0.3:1"},
		"one not ready beats the dead":   {"10.99.0.3:1,10.99.0.2:6443", "10.99.0.2:6443", "10.99.0.2:6443"},
		"a live one beats one not ready": {"10.99.0.2:6443,10.99.0.1:6443", "10.99.0.1:6443", "10.99.0.1:6443"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "10.99.0.1:6443")
			(&apitest.Cluster{CA: w.CA, Ready: 500}).Serve(t, "10.99.0.2:6443")
			w.explicit(t, "10.96.0.1:443", tc.endpoints)
			res := w.check(t, "10.96.0.1:443", tc.usable)
			if len(res.Endpoints) != 2 || res.Endpoints[0].String() != tc.first {
				t.Errorf("known are %v: none may be forgotten, and the best is first", res.Endpoints)
			}
		})
	}
}

func TestSlotsAreDecidedForEachFamily(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.explicit(t, "10.96.0.1:443,[fd00:96::1]:443", "10.99.0.3:1,10.99.0.1:6443,[fd00:99::3]:1")
	w.check(t, "10.96.0.1:443 [fd00:96::1]:443", "10.99.0.1:6443 [fd00:99::3]:1")
}

func TestTheAPIsOwnAnswerIsBest(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443", "10.99.0.2:6443")
	w.kubelet(t, "10.99.0.1:6443")
	// The saved address of a server that has gone is another cluster's by now.
	unknown := &apitest.Cluster{CA: apitest.NewCA(t)}
	at, _ := unknown.Serve(t, "10.99.0.4:6443")
	w.saved(t, "10.97.0.1:443", at.String())
	w.cfg.Probe.Strength = probe.TCP // it accepts connections
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443 10.99.0.2:6443")
	if !res.noted("cache says that the Service IP is 10.97.0.1:443") {
		t.Errorf("notes are %q", res.Notes)
	}
	var saved []string
	for _, e := range res.Known().Endpoints {
		saved = append(saved, e.String())
	}
	if slices.Contains(saved, at.String()) || len(saved) != 2 {
		t.Errorf("would save %q", saved)
	}
	if s := res.Known().Source; s != "api" {
		t.Errorf("found by %s", s)
	}
}

func TestAnotherClustersServerIsDeadAsSoonAsTheCAIsKnown(t *testing.T) {
	w := newWorld(t)
	w.kubelet(t, "10.99.0.4:6443")
	w.saved(t, "10.96.0.1:443", "10.99.0.5:6443")
	(&apitest.Cluster{CA: apitest.NewCA(t)}).Serve(t, "10.99.0.4:6443") // has taken over the address
	w.Serve(t, "10.99.0.5:6443")
	w.Services = nil // and ours does not say what it has
	res := w.check(t, "10.96.0.1:443", "10.99.0.5:6443")
	if e := res.Endpoints[1]; e.Kind != apiserver.KindTLS || !res.Endpoints[0].Verified {
		t.Errorf("got %+v", e)
	}
}

func TestTheCAOfTheNodeIsEnoughToKnowAnUnknownServer(t *testing.T) {
	w := newWorld(t)
	w.kubelet(t, "10.99.0.4:6443")
	w.manifest(t, "10.99.0.4", "10.96.0.0/16")
	(&apitest.Cluster{CA: apitest.NewCA(t)}).Serve(t, "10.99.0.4:6443")
	res, err := w.run(t) // it is all that is known, and still no server of ours
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "10.99.0.4:6443: not an API server of this cluster") || len(res.Usable()) != 0 {
		t.Errorf("got %v, %v", res.Usable(), err)
	}
	if e := res.Endpoints[0]; e.State != apiserver.Dead || e.Kind != apiserver.KindTLS {
		t.Errorf("got %+v", e)
	}
}

func TestDiscoveredFamiliesWithoutPartner(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.kubelet(t, "10.99.0.1:6443")
	w.Services = append(w.Services, netip.MustParseAddrPort("[fd00:96::1]:443"))
	if res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443"); !res.noted("no endpoint of its family") {
		t.Errorf("notes are %q", res.Notes)
	}
	w.Services = w.Services[1:]
	if _, err := w.run(t); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "no endpoint for the Service IP [fd00:96::1]:443") {
		t.Errorf("got %v", err)
	}
}

func TestALoadBalancerIsUsedWhenTheAPIsEndpointsCannotBeReached(t *testing.T) {
	w := newWorld(t, "10.99.0.5:6443")
	w.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(apitest.Silent4 + ":6443")} // behind NAT
	w.names["api.example"] = []string{"10.99.0.5"}
	w.kubelet(t, "api.example:6443")
	res := w.check(t, "10.96.0.1:443", "10.99.0.5:6443 (api.example)")
	if k := res.Known(); len(k.Endpoints) != 2 || k.Endpoints[0].Host != "api.example" {
		t.Errorf("would save %+v", k)
	}
}

func TestAKubeadmNodeWithoutLiveCredentials(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.manifest(t, "10.99.0.1", "10.96.0.0/12,fd00:96::/112")
	w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
}

func TestLoopbackOnlyHelpsToAsk(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	proxy, _ := w.Serve(t, "127.0.0.1:6444", "127.0.0.1")
	w.file(t, "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", w.CA.Kubeconfig(t, "https://"+proxy.String(), node, nodes))
	w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
}

func TestLoopbackAloneIsNoEndpoint(t *testing.T) {
	w := newWorld(t)
	w.file(t, "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", w.CA.Kubeconfig(t, "https://127.0.0.1:6444", node, nodes))
	w.Serve(t, "127.0.0.1:6444", "127.0.0.1")
	w.names["cp"] = []string{"127.0.1.1"} // Debian's own name of a host
	w.file(t, "/var/lib/kubelet/kubeconfig", w.CA.Kubeconfig(t, "https://cp:6444", node, nodes))
	if res, err := w.run(t); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, %v", res.Endpoints, err)
	}
}

func TestAKubeletPointedAtTheServiceIP(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.kubelet(t, "10.96.0.1:443")
	w.saved(t, "10.96.0.1:443", "10.99.0.1:6443,10.99.0.7:6443")
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	if !res.noted("kubeadm gives 10.96.0.1:443, the Service IP itself; not used") {
		t.Errorf("notes are %q", res.Notes)
	}
}

func TestAfterARebootOneOfTheSavedAddressesIsEnough(t *testing.T) {
	w := newWorld(t, "10.99.0.3:6443")
	w.kubelet(t, "10.99.0.8:6443") // has moved
	w.saved(t, "10.96.0.1:443", "10.99.0.1:6443,10.99.0.2:6443,10.99.0.3:6443")
	res := w.check(t, "10.96.0.1:443", "10.99.0.3:6443")
	if !res.Endpoints[0].Preferred || res.Services[0].Source != apiserver.SourceAPI {
		t.Errorf("the saved address was not used to ask the API: %+v", res.Endpoints[0])
	}
}

func TestEverythingDownLeavesTheSavedAddresses(t *testing.T) {
	w := newWorld(t)
	w.saved(t, "10.96.0.1:443", "10.99.0.1:6443,10.99.0.2:6443")
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443 10.99.0.2:6443")
	if len(res.Known().Endpoints) != 2 {
		t.Errorf("would save %+v", res.Known())
	}
}

func TestWhatIsMissingIsDiscovered(t *testing.T) {
	t.Run("endpoints", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443")
		w.kubelet(t, "10.99.0.1:6443")
		w.explicit(t, "10.50.0.1:443", "")
		res := w.check(t, "10.50.0.1:443", "10.99.0.1:6443")
		if !res.noted("api says that the Service IP is 10.96.0.1:443; used is what flags says") {
			t.Errorf("notes are %q", res.Notes)
		}
	})
	t.Run("services", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443", "10.99.0.2:6443")
		w.kubelet(t, "10.99.0.9:6443")
		w.explicit(t, "", "10.99.0.2:6443")
		w.check(t, "10.96.0.1:443", "10.99.0.2:6443") // alone, though the API knows two
	})
	t.Run("an IPv6 Service IP has no endpoint to be found", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443")
		w.kubelet(t, "10.99.0.1:6443")
		w.explicit(t, "10.96.0.1:443,[fd00:96::1]:443", "")
		_, err := w.run(t)
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "no endpoint for the Service IP [fd00:96::1]:443") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	t.Run("of both families", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443", "[fd00:99::1]:6443")
		w.names["api.example"] = []string{"10.99.0.1", "fd00:99::1"}
		w.explicit(t, "10.96.0.1:443,[fd00:96::1]:443", "api.example:6443")
		w.check(t, "10.96.0.1:443 [fd00:96::1]:443", "10.99.0.1:6443 (api.example) [fd00:99::1]:6443 (api.example)")
	})
	t.Run("of a family without Service IP", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443", "[fd00:99::1]:6443")
		w.names["api.example"] = []string{"10.99.0.1", "fd00:99::1"}
		w.explicit(t, "10.96.0.1:443", "api.example:6443")
		if res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443 (api.example)"); !res.noted("no Service IP of its family") {
			t.Errorf("notes are %q", res.Notes)
		}
	})
	t.Run("without a name server the saved addresses are used", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443")
		w.names["api.example"] = []string{"10.99.0.1"}
		w.explicit(t, "10.96.0.1:443", "api.example:6443")
		res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443 (api.example)")
		if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: w.cfg.StateDir}, res.Known()); err != nil {
			t.Fatal(err)
		}
		delete(w.names, "api.example")
		if res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443 (api.example)"); !res.noted("used are the addresses saved") {
			t.Errorf("notes are %q", res.Notes)
		}
	})
	t.Run("a name that leads to the Service IP", func(t *testing.T) {
		w := newWorld(t)
		w.names["kubernetes.example"] = []string{"10.96.0.1"}
		w.explicit(t, "10.96.0.1:443", "kubernetes.example:443")
		if _, err := w.run(t); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "the Service IP itself") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNotFoundListsEverySource(t *testing.T) {
	w := newWorld(t)
	res, err := w.run(t)
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	all := []apiserver.Source{"flags", "environment", "api", "kubeadm", "kubelet", "k3s", "rke2", "microk8s", "canonical", "k0s", "kube-apiserver", "balancer", "pod", "cluster-info", "kubeadm-config", "kube-proxy", "services-endpoint", "cache"}
	for i, s := range all {
		if !strings.Contains(err.Error(), "\n  "+string(s)+": ") {
			t.Errorf("message lacks %s", s)
		}
		if res.Sources[i].Source != s || len(res.Sources[i].Notes) == 0 {
			t.Errorf("source %d is %+v, want %s with a reason", i, res.Sources[i], s)
		}
	}
	for _, want := range []string{"no Service IP", "no kubeadm files in /etc/kubernetes", "no addresses have been saved yet", apiserver.VarEndpoints} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message lacks %q:\n%v", want, err)
		}
	}
}

func TestADamagedCacheIsNamedAndDoesNotStopTheSearch(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.kubelet(t, "10.99.0.1:6443")
	apitest.Write(t, w.cfg.StateDir, "apiserver.json", "{")
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	last := res.Sources[len(res.Sources)-1]
	if last.Source != apiserver.SourceCache || !strings.Contains(last.Notes[0], "damaged") {
		t.Errorf("cache says %+v", last)
	}
}

func TestSilenceEverywhereKeepsTheBudget(t *testing.T) {
	w := newWorld(t)
	w.kubelet(t, apitest.Silent4+":6443")
	w.saved(t, "10.96.0.1:443", apitest.Silent4+":6443,"+apitest.Silent4+":6444")
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	start := time.Now()
	res, err := Run(ctx, w.cfg)
	if d := time.Since(start); err != nil || d > 2*time.Second || len(res.Usable()) != 2 {
		t.Errorf("after %v: %v, %v", d, res.Usable(), err)
	}
}

func TestThoroughChangesNothingButTheReport(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443", "10.99.0.2:6443")
	w.kubelet(t, "10.99.0.2:6443")
	w.explicit(t, "10.96.0.1:443", "10.99.0.1:6443")
	w.cfg.Thorough = true
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	if len(res.Sources) != 18 || len(res.Endpoints) != 1 {
		t.Errorf("%d sources, %d endpoints", len(res.Sources), len(res.Endpoints))
	}
}

func TestParseExplicit(t *testing.T) {
	flag, env := "--apiserver-endpoints", apiserver.VarEndpoints
	services := []Given{{"--service-ips", ""}, {apiserver.VarServices, "10.96.0.1:443"}}
	e, err := ParseExplicit(services, []Given{{flag, "10.0.0.1:1"}, {env, "10.0.0.2:0"}})
	if err != nil || len(e.Endpoints) != 1 || e.Endpoints[0].String() != "10.0.0.1:1" {
		t.Errorf("the flag does not win: %+v, %v", e, err)
	}
	for name, tc := range map[string]struct {
		endpoints []Given
		variable  string
	}{
		"a bad flag is named":      {[]Given{{flag, "10.0.0.1:0"}, {env, "10.0.0.1:1"}}, flag},
		"a bad variable is named":  {[]Given{{flag, " "}, {env, ","}}, env},
		"the family rule names it": {[]Given{{flag, "[fd00::1]:1"}}, flag},
	} {
		var ee *apiserver.EntryError
		if _, err := ParseExplicit(services, tc.endpoints); !errors.As(err, &ee) || ee.Variable != tc.variable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResultInJSON(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.explicit(t, "10.96.0.1:443", "10.99.0.1:6443,10.99.0.3:1")
	res, err := w.run(t)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"services":[{"address":"10.96.0.1:443","source":"flags"}]`, `"address":"10.99.0.1:6443","sources":["environment"],"preferred":true,"state":"live"`, `"state":"dead","kind":"refused"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("JSON lacks %s:\n%s", want, b)
		}
	}
}

// The way that a node's boot takes with both variables set.
func BenchmarkExplicit(b *testing.B) {
	l, err := net.Listen("tcp", "10.99.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for b.Loop() {
		e, err := ParseExplicit([]Given{{"s", "10.96.0.1:443"}}, []Given{{"e", l.Addr().String()}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Run(context.Background(), Config{Explicit: e, Root: b.TempDir()}); err != nil {
			b.Fatal(err)
		}
	}
}

// The way of a node that was given nothing: files, names, questions, probe.
func BenchmarkThroughTheAPI(b *testing.B) {
	c := &apitest.Cluster{CA: apitest.NewCA(b), Services: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443")}}
	at, _ := c.Serve(b, "10.99.0.1:6443")
	c.Endpoints = []netip.AddrPort{at}
	root := b.TempDir()
	apitest.Write(b, root, "/etc/kubernetes/kubelet.conf", c.CA.Kubeconfig(b, "https://"+at.String(), node, nodes))
	for b.Loop() {
		if _, err := Run(context.Background(), Config{Root: root, Probe: probe.Config{Strength: probe.TCP}}); err != nil {
			b.Fatal(err)
		}
	}
}
