package discover

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestMergeNeverReplacesWhatTheAPISaidByGuesses(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.Services = []netip.AddrPort{netip.MustParseAddrPort("10.45.0.1:443")}
	w.k3sServer(t, "cluster-init: true\n")
	w.file(t, "/etc/rancher/k3s/k3s.yaml", w.CA.Kubeconfig(t, "https://10.99.0.1:6443", node, nodes))
	w.save(t, w.check(t, "10.45.0.1:443", "10.99.0.1:6443"))
	w.stops["10.99.0.1:6443"]()
	w.save(t, w.boot(t, "10.45.0.1:443", "10.99.0.1:6443"))
	if got := w.onDisk(t); got != "10.45.0.1:443 10.99.0.1:6443" {
		t.Errorf("saved is %s", got)
	}
}

func TestMergePrefersWhatTheAPISaid(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.Services = []netip.AddrPort{netip.MustParseAddrPort("10.45.0.1:443")}
	w.k3sServer(t, "service-cidr: 10.44.0.0/16\n") // not the file that k3s was started with
	w.file(t, "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", w.CA.Kubeconfig(t, "https://10.99.0.1:6443", node, nodes))
	w.save(t, w.check(t, "10.45.0.1:443", "10.99.0.1:6443"))
	w.stops["10.99.0.1:6443"]()
	w.save(t, w.boot(t, "10.45.0.1:443", "10.99.0.1:6443"))
	if got := w.onDisk(t); got != "10.45.0.1:443 10.99.0.1:6443" {
		t.Errorf("saved is %s", got)
	}
}

func TestMergeKeepsWhatWasGivenOverAReboot(t *testing.T) {
	for sentence, prepare := range map[string]func(*testing.T, *world){
		"beside a product's default":     func(t *testing.T, w *world) { w.k3sServer(t, "cluster-init: true\n") },
		"beside a configured range":      func(t *testing.T, w *world) { w.k3sServer(t, "service-cidr: 10.44.0.0/16\nnode-ip: 10.99.0.9\n") },
		"beside a manifest":              func(t *testing.T, w *world) { w.manifest(t, "10.99.0.9", "10.96.0.0/12") },
		"beside an API that says others": func(t *testing.T, w *world) { w.kubelet(t, "10.99.0.2:6443"); w.Serve(t, "10.99.0.2:6443") },
	} {
		t.Run(sentence, func(t *testing.T) {
			w := newWorld(t, "10.99.0.1:6443")
			prepare(t, w)
			w.explicit(t, "10.50.0.1:443", "10.99.0.1:6443")
			w.save(t, w.check(t, "10.50.0.1:443", "10.99.0.1:6443"))
			for range 2 {
				w.save(t, w.boot(t, "10.50.0.1:443", "10.99.0.1:6443"))
				if got := w.onDisk(t); got != "10.50.0.1:443 10.99.0.1:6443" {
					t.Errorf("saved is %s", got)
				}
			}
		})
	}
	t.Run("and is taken back by a run without it", func(t *testing.T) {
		w := newWorld(t, "10.99.0.1:6443")
		w.explicit(t, "10.50.0.1:443", "10.99.0.7:6443")
		w.save(t, w.check(t, "10.50.0.1:443", "10.99.0.7:6443"))
		w.cfg.Explicit = Explicit{}
		w.kubelet(t, "10.99.0.1:6443")
		w.save(t, w.check(t, "10.96.0.1:443", "10.99.0.1:6443"))
		if got := w.onDisk(t); got != "10.96.0.1:443 10.99.0.1:6443" {
			t.Errorf("saved is %s", got)
		}
	})
}

func TestMergeUsesNoDefaultAlone(t *testing.T) {
	start := func(t *testing.T, names ...string) *world {
		w := newWorld(t)
		w.Services = nil // the API says nothing of it
		at, _ := w.Serve(t, "10.99.0.1:6443", names...)
		w.Endpoints = []netip.AddrPort{at}
		w.k3sServer(t, "node-ip: 10.99.0.1\n")
		w.file(t, "/etc/rancher/k3s/k3s.yaml", w.CA.Kubeconfig(t, "https://127.0.0.1:6443", node, nodes))
		return w
	}
	t.Run("alone", func(t *testing.T) {
		res, err := start(t).run(t)
		if !errors.Is(err, ErrNotFound) || !res.noted("10.43.0.1:443 is only the default of k3s") {
			t.Errorf("got %v, notes %q", err, res.Notes)
		}
	})
	t.Run("in the certificate of an API server", func(t *testing.T) {
		start(t, "10.43.0.1").check(t, "10.43.0.1:443", "10.99.0.1:6443")
	})
	t.Run("in the certificate of another cluster's", func(t *testing.T) {
		w := start(t)
		w.CA = apitest.NewCA(t)
		w.file(t, "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", w.CA.Kubeconfig(t, "https://127.0.0.1:6443", node, nodes))
		if _, err := w.run(t); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

func TestProbeTakesASlowReadyzForNotReady(t *testing.T) {
	w := newWorld(t)
	w.kubelet(t, "10.99.0.1:6443")
	slow := &apitest.Cluster{CA: w.CA, Services: w.Services, ReadyAfter: time.Minute}
	at, _ := slow.Serve(t, "10.99.0.1:6443")
	slow.Endpoints = []netip.AddrPort{at, netip.MustParseAddrPort("10.99.0.3:1")}
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	if e := res.Endpoints[0]; e.State != apiserver.NotReady || !e.Verified {
		t.Errorf("got %+v", e)
	}
}

func TestFamiliesWithoutIPv6(t *testing.T) {
	was := noIPv6
	noIPv6 = func() string { return "the kernel has no IPv6" }
	t.Cleanup(func() { noIPv6 = was })
	w := newWorld(t, "10.99.0.1:6443")
	t.Run("given", func(t *testing.T) {
		w.explicit(t, "10.96.0.1:443,[fd00:96::1]:443", "10.99.0.1:6443,[2001:db8::11]:6443")
		res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
		if !res.noted("[fd00:96::1]:443 is skipped: the kernel has no IPv6") {
			t.Errorf("notes are %q", res.Notes)
		}
		if k := res.Known(); len(k.Services) != 2 || len(k.Endpoints) != 2 {
			t.Errorf("would save %+v: IPv6 may be back after a reboot", k)
		}
	})
	t.Run("found", func(t *testing.T) {
		w.cfg.Explicit = Explicit{}
		w.kubelet(t, "10.99.0.1:6443")
		w.Services = append(w.Services, netip.MustParseAddrPort("[fd00:96::1]:443"))
		w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	})
	t.Run("nothing else", func(t *testing.T) {
		w.explicit(t, "[fd00:96::1]:443", "[2001:db8::11]:6443")
		if _, err := w.run(t); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "the kernel has no IPv6") {
			t.Errorf("got %v", err)
		}
	})
}

func TestLoopbackGivenIsNoted(t *testing.T) {
	w := newWorld(t, "127.0.0.1:6443")
	w.explicit(t, "10.96.0.1:443", "127.0.0.1:6443")
	if res := w.check(t, "10.96.0.1:443", "127.0.0.1:6443"); !res.noted("127.0.0.1:6443 is on loopback: processes of the host reach it, but pods can't") {
		t.Errorf("notes are %q", res.Notes)
	}
}
