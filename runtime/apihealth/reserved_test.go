package apihealth

import (
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

// reservations are what OnKnown was told last.
type reservations struct {
	mu   sync.Mutex
	last Addresses
}

func (k *reservations) set(a Addresses) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = a
}

func (k *reservations) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return text(k.last.Reserved)
}

func (k *reservations) anywhere(a string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.last.Anywhere, netip.MustParseAddr(a))
}

func TestOnKnownReservesWhatClientsUse(t *testing.T) {
	r := newRig(t)
	k := &reservations{}
	r.cfg.OnKnown = k.set
	r.cfg.Adopted = addrs(a1)
	save(t, r, endpoints(t, a2)[0])
	r.kubeletConf("api.example:8443", r.ca)
	r.file("etc/hosts", "192.0.2.13 api.example\n")
	r.serve(a1)
	r.run()
	lab.Await(t, "the table's, the saved and the file's address", func() bool { return k.text() == a1+" "+a2+" 192.0.2.13:8443" })

	// The API's word ends what is known from the past only, but not what the kubelet uses.
	r.m.SetEndpoints(addrs(a1))
	lab.Await(t, "the API's and the file's address", func() bool { return k.text() == a1+" 192.0.2.13:8443" })
	if !k.anywhere("192.0.2.12") {
		t.Error("a saved address counts nowhere any more")
	}
	r.m.SetEndpoints(addrs(a1, a3))
	lab.Await(t, "the new API server's address", func() bool { return k.text() == a1+" "+a3+" 192.0.2.13:8443" })

	// The file's name leads elsewhere, while all is well.
	r.file("etc/hosts", "192.0.2.12 api.example\n")
	r.lookNow()
	lab.Await(t, "the name's new address", func() bool { return k.text() == a1+" 192.0.2.12:8443 "+a3 })
}

func TestOnKnownReservesFilesBesideExplicitEndpoints(t *testing.T) {
	r := newRig(t)
	k := &reservations{}
	r.cfg.OnKnown = k.set
	r.cfg.Explicit = endpoints(t, a1)
	r.kubeletConf("192.0.2.12:6443", r.ca)
	r.serve(a1)
	r.run()
	lab.Await(t, "given and the file's address", func() bool { return k.text() == a1+" "+a2 })
	r.await(a1)
	if got := len(r.m.Status().Endpoints); got != 1 {
		t.Errorf("%d endpoints are asked, want the given one", got)
	}
}

// Former API servers may have been given to others: an outage reserves nothing anew.
func TestOnKnownForgetsFormerServers(t *testing.T) {
	r := newRig(t)
	k := &reservations{}
	r.cfg.OnKnown = k.set
	r.run()
	s1, _ := r.serve(a1), r.serve(a2)
	r.m.SetEndpoints(addrs(a1))
	r.await(a1)
	r.m.SetEndpoints(addrs(a2))
	lab.Await(t, "the new one only", func() bool { return k.text() == a2 })
	s1.Close()
	if !k.anywhere("192.0.2.11") {
		t.Error("a former API server counts nowhere any more")
	}
}
