package discover

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// another is an API server of another cluster, with answers that look right.
func another(t *testing.T, at ...string) *apitest.Cluster {
	t.Helper()
	c := &apitest.Cluster{CA: apitest.NewCA(t), Services: []netip.AddrPort{netip.MustParseAddrPort("10.66.0.1:443")}}
	for _, a := range at {
		addr, _ := c.Serve(t, a)
		c.Endpoints = append(c.Endpoints, addr)
	}
	return c
}

// save keeps what a run has found, as init does.
func (w *world) save(t *testing.T, res *Result) {
	t.Helper()
	if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: w.cfg.StateDir}, res.Known()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) onDisk(t *testing.T) string {
	t.Helper()
	k, err := apiserver.Load(w.cfg.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, e := range k.Endpoints {
		at = append(at, e.String())
	}
	slices.Sort(at)
	return k.Services[0].String() + " " + strings.Join(at, " ")
}

// boot is a run at boot, with the addresses that were saved.
func (w *world) boot(t *testing.T, services, usable string) *Result {
	t.Helper()
	w.cfg.Boot, w.cfg.Explicit = true, Explicit{}
	defer func() { w.cfg.Boot = false }()
	return w.check(t, services, usable)
}

func (w *world) k3sServer(t *testing.T, config string) {
	w.file(t, "/etc/rancher/k3s/config.yaml", config)
	w.file(t, "/var/lib/rancher/k3s/server/token", "t")
}

func TestIdentityAnotherClusterIsAtEveryAddress(t *testing.T) {
	w := newWorld(t)
	w.kubelet(t, "10.99.0.1:6443")
	w.manifest(t, "10.99.0.2", "10.96.0.0/12")
	theirs := another(t, "10.99.0.1:6443", "10.99.0.2:6443", "10.99.0.3:6443")
	w.file(t, "/etc/kubernetes/admin.conf", theirs.CA.Kubeconfig(t, "https://10.99.0.3:6443", node, nodes))
	res, err := w.run(t)
	if !errors.Is(err, ErrNotFound) || len(res.Usable()) != 0 || slices.Contains(res.ServiceAddrs(), theirs.Services[0]) {
		t.Errorf("got %v, %v, %v", res.ServiceAddrs(), res.Usable(), err)
	}
	if slices.ContainsFunc(theirs.Requests(), func(r string) bool { return strings.Contains(r, "/api/") }) {
		t.Errorf("it was asked %q", theirs.Requests())
	}
}

func TestIdentityAdminConfOfAnotherCluster(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	theirs := another(t, "10.99.0.3:6443")
	w.kubelet(t, "10.99.0.1:6443")
	w.manifest(t, "10.99.0.1", "10.96.0.0/12")
	w.file(t, "/etc/kubernetes/admin.conf", theirs.CA.Kubeconfig(t, "https://10.99.0.3:6443", node, nodes))
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	if !res.noted("/etc/kubernetes/admin.conf is of another cluster") {
		t.Errorf("notes are %q", res.Notes)
	}
	w.save(t, res)
	w.stops["10.99.0.1:6443"]() // a single control plane boots: its own API server is not up
	w.save(t, w.boot(t, "10.96.0.1:443", "10.99.0.1:6443"))
	if got := w.onDisk(t); got != "10.96.0.1:443 10.99.0.1:6443" {
		t.Errorf("saved is %s", got)
	}
}

func TestIdentityTheAPINamesServersOfAnotherCluster(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	theirs := another(t, "10.99.0.3:6443", "10.99.0.4:6443")
	w.kubelet(t, "10.99.0.1:6443")
	w.Endpoints = theirs.Endpoints
	res := w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	for _, e := range res.Endpoints[1:] {
		if e.State != apiserver.Dead || e.Kind != apiserver.KindTLS {
			t.Errorf("got %+v", e)
		}
	}
}

func TestIdentityAnUnknownServerAtAnOldAddressGetsNoSlot(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443", "10.99.0.2:6443")
	w.kubelet(t, "10.99.0.1:6443")
	w.save(t, w.check(t, "10.96.0.1:443", "10.99.0.1:6443 10.99.0.2:6443"))
	w.stops["10.99.0.1:6443"]()
	w.stops["10.99.0.2:6443"]()
	another(t, "10.99.0.2:6443")
	w.manifest(t, "10.99.0.1", "10.96.0.0/12")
	for _, boot := range []bool{true, false} {
		w.cfg.Boot = boot
		w.check(t, "10.96.0.1:443", "10.99.0.1:6443")
	}
}

func TestIdentityASavedFileOfAnotherCluster(t *testing.T) {
	w, former := newWorld(t, "10.99.0.1:6443"), another(t, "10.99.0.3:6443")
	w.file(t, "/etc/kubernetes/kubelet.conf", former.CA.Kubeconfig(t, "https://10.99.0.3:6443", node, nodes))
	w.explicit(t, "10.66.0.1:443", "10.99.0.3:6443")
	w.save(t, w.check(t, "10.66.0.1:443", "10.99.0.3:6443"))
	w.kubelet(t, "10.99.0.1:6443") // reset, and joined to ours
	res := w.boot(t, "10.96.0.1:443", "10.99.0.1:6443")
	if !res.noted("the saved addresses are not used: they are of another cluster") {
		t.Errorf("notes are %q", res.Notes)
	}
	w.save(t, res)
	if got := w.onDisk(t); got != "10.96.0.1:443 10.99.0.1:6443" {
		t.Errorf("saved is %s", got)
	}
}

func TestIdentityASavedFileOfAnotherMachine(t *testing.T) {
	w := newWorld(t)
	w.cfg.Machine = apiserver.Machine{ID: "there"}
	w.explicit(t, "10.50.0.1:443", "10.99.0.7:6443")
	w.save(t, w.check(t, "10.50.0.1:443", "10.99.0.7:6443"))
	w.cfg.Machine = apiserver.Machine{ID: "here"}
	w.cfg.Boot, w.cfg.Explicit = true, Explicit{}
	res, err := w.run(t)
	if !errors.Is(err, ErrNotFound) || len(res.Usable()) > 0 || !res.noted("they were saved on another machine") {
		t.Errorf("got %v, %v, notes %q", res.Usable(), err, res.Notes)
	}
}

// A node whose kubelet itself uses the Service IP, and whose machine-id is made
// anew at each boot, has nothing else.
func TestIdentityASavedFileOfAnotherMachineIsTheLastResortInItsCluster(t *testing.T) {
	w := newWorld(t, "10.99.0.1:6443")
	w.cfg.Machine = apiserver.Machine{ID: "there"}
	w.kubelet(t, "10.99.0.1:6443")
	w.save(t, w.check(t, "10.96.0.1:443", "10.99.0.1:6443"))
	w.cfg.Machine = apiserver.Machine{ID: "here"}
	w.kubelet(t, "127.0.0.1:1")
	if res := w.boot(t, "10.96.0.1:443", "10.99.0.1:6443"); !res.noted("saved on another machine, as nothing else is known") {
		t.Errorf("notes are %q", res.Notes)
	}
}
