package sockets

import (
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
)

// Directory knows, by frontend, which backends the table leads to: what was
// written, not what is wanted. It is given what is wanted of each Service as
// that changes, and what became of the writes:
//
//	Set …, Begin, Done(nil): all that was Set before Begin is written.
//
// While a write is on its way the table may hold either, so a backend that only
// the next version of a Service has is not stale. Safe for concurrent use.
type Directory struct {
	tcp bool // TCP ports are of interest, too

	mu       sync.RWMutex
	frontend map[bpf.FrontendKey]*services.Port       // written
	services map[types.NamespacedName][]services.Port // likewise
	queued   []change                                 // since the last Begin
	writing  []change                                 // since the last Done(nil)
	changing map[types.NamespacedName]int             // how often a Service is in these two
	coming   map[bpf.FrontendKey][]*services.Port     // of queued and writing
	api      map[netip.AddrPort]bool                  // of the API service, whose sockets are not ours to judge
	ranges   [2][]netip.Prefix                        // of Services' addresses: written, and to be
	ready    bool                                     // there was a Done(nil)
}

// change is what a Service should have.
type change struct {
	service types.NamespacedName
	ports   []services.Port
}

// Effect is what a write did to sockets that exist.
type Effect struct {
	Stale  bool // some may be on a backend that their frontend does not have any more
	Usable bool // a frontend that had no usable backend has one
	Gone   bool // a frontend for clients outside may have lost a backend of UDP
}

func (e Effect) plus(o Effect) Effect {
	return Effect{e.Stale || o.Stale, e.Usable || o.Usable, e.Gone || o.Gone}
}

// NewDirectory makes an empty one. With tcp it knows TCP ports, too.
func NewDirectory(tcp bool) *Directory {
	return &Directory{
		tcp: tcp, frontend: map[bpf.FrontendKey]*services.Port{}, services: map[types.NamespacedName][]services.Port{},
		changing: map[types.NamespacedName]int{}, coming: map[bpf.FrontendKey][]*services.Port{}, api: map[netip.AddrPort]bool{},
	}
}

// Set says what a Service should have from now on. The list is shared, and not changed.
func (d *Directory) Set(service types.NamespacedName, ports []services.Port) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := change{service, nil}
	for i := range ports {
		if p := ports[i].Key.Proto; p == bpf.UDP || p == bpf.TCP && d.tcp {
			c.ports = append(c.ports, ports[i])
		}
	}
	if len(c.ports) == 0 && len(d.services[service]) == 0 && d.changing[service] == 0 {
		return
	}
	d.queued = append(d.queued, c)
	d.changing[service]++
	d.expect(c)
}

func (d *Directory) expect(c change) {
	for i := range c.ports {
		p := &c.ports[i]
		for _, f := range p.Frontends {
			d.coming[f] = append(d.coming[f], p)
		}
	}
}

// SetAPI gives the addresses of the API service: connections there are not
// judged, as it is led by which API servers are alive, not by its endpoints.
func (d *Directory) SetAPI(addrs []netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addrs { // a former one may still have connections
		d.api[a] = true
	}
}

// SetRange says that addresses in these ranges are Services' from now on. The list is shared, and not changed.
func (d *Directory) SetRange(ranges []netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ranges[1] = ranges
}

// Begin says that all that was Set is being written.
func (d *Directory) Begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writing = append(d.writing, d.queued...)
	d.queued = nil
}

// Done says how every write since the last Done went, and returns what that did. With an error nothing changes: the next
// write has all of it again.
func (d *Directory) Done(err error) (did Effect) {
	if err != nil {
		return Effect{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	first := !d.ready
	d.ready = true
	d.ranges[0] = d.ranges[1]
	for _, c := range d.writing {
		did = did.plus(d.write(c))
	}
	d.writing = nil
	d.changing = map[types.NamespacedName]int{}
	d.coming = map[bpf.FrontendKey][]*services.Port{}
	for _, c := range d.queued {
		d.changing[c.service]++
		d.expect(c)
	}
	if first { // what went while no runtime was there, nobody has seen going
		did = Effect{Stale: true, Usable: true, Gone: true}
	}
	return did
}

// write takes a change that the table has now.
func (d *Directory) write(c change) (did Effect) {
	had := map[bpf.FrontendKey]*services.Port{}
	for i := range d.services[c.service] {
		p := &d.services[c.service][i]
		for _, f := range p.Frontends {
			if d.frontend[f] == p { // else another Service has it by now
				had[f] = p
				delete(d.frontend, f)
			}
		}
	}
	if len(c.ports) == 0 {
		delete(d.services, c.service)
	} else {
		d.services[c.service] = c.ports
	}
	for i := range c.ports {
		p := &c.ports[i]
		for _, f := range p.Frontends {
			before := d.frontend[f] // another Service's
			if before == nil {
				before = had[f]
			}
			d.frontend[f] = p
			delete(had, f)
			did.Usable = did.Usable || usable(p, f) && (before == nil || !usable(before, f))
			if before != nil && losesBackends(before, p) {
				did = did.plus(loss(before, f))
			}
		}
	}
	for f, p := range had {
		did = did.plus(loss(p, f))
	}
	return did
}

// loss is what it does that a frontend of a port loses backends.
func loss(p *services.Port, f bpf.FrontendKey) Effect {
	return Effect{Stale: true, Gone: f.Proto == bpf.UDP && p.Flags[f]&bpf.FrontendExternal != 0}
}

// losesBackends reports whether some sockets of a port would be stale after a change of it.
func losesBackends(before, after *services.Port) bool {
	if slices.Equal(before.Serving, after.Serving) && slices.Equal(before.Backends, after.Backends) && slices.Equal(before.Local, after.Local) {
		return false
	}
	for _, list := range [][]netip.AddrPort{before.Serving, before.Backends, before.Local} {
		if slices.ContainsFunc(list, func(b netip.AddrPort) bool { return !serves(after, b) }) {
			return true
		}
	}
	return false
}

// Ready reports whether anything was written: before that, nothing is stale.
func (d *Directory) Ready() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ready
}

// Verdict is what the Directory says of a socket.
type Verdict uint8

// The verdicts.
const (
	Fresh   Verdict = iota // it is where it should be, or that is not known
	Stale                  // its frontend has other backends
	Starved                // its frontend has no usable backend at all, or no Service has it now, as one may have it again
	Orphan                 // nothing has its frontend any more
	Waiting                // it was led nowhere, and its frontend has a usable backend
)

// Judge says what is to be done about a socket that asked for a frontend and is connected to a backend (bpf.Nowhere: it
// waits for one), and for which Service; none where no Service has the frontend.
func (d *Directory) Judge(at netip.AddrPort, proto bpf.Proto, backend netip.AddrPort) (Verdict, types.NamespacedName) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.judge(at, proto, backend)
}

func (d *Directory) judge(at netip.AddrPort, proto bpf.Proto, backend netip.AddrPort) (Verdict, types.NamespacedName) {
	nowhere := proto == bpf.UDP && isNowhere(backend)
	for _, key := range keysOf(at, proto) {
		for _, p := range d.coming[key] {
			if serves(p, backend) {
				return Fresh, types.NamespacedName{}
			}
		}
		p := d.frontend[key]
		switch {
		case p == nil && len(d.coming[key]) > 0: // the table may be ahead
			return Fresh, types.NamespacedName{}
		case p == nil:
			continue
		case nowhere && usable(p, key):
			return Waiting, p.Key.Service
		case nowhere, serves(p, backend):
			return Fresh, types.NamespacedName{}
		case usable(p, key):
			return Stale, p.Key.Service
		}
		return Starved, p.Key.Service
	}
	if nowhere || d.api[at] && proto == bpf.TCP {
		return Fresh, types.NamespacedName{}
	}
	inRange := func(p netip.Prefix) bool { return p.Contains(at.Addr().Unmap()) }
	if proto == bpf.UDP && slices.ContainsFunc(d.ranges[0], inRange) {
		return Starved, types.NamespacedName{}
	}
	return Orphan, types.NamespacedName{}
}

// Gone reports whether a frontend's backend serves no more: a flow there, which no socket of this node has, is to be forgotten.
func (d *Directory) Gone(frontend netip.AddrPort, proto bpf.Proto, backend netip.AddrPort) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.ready {
		return false
	}
	verdict, _ := d.judge(frontend, proto, backend)
	return verdict == Stale || verdict == Starved || verdict == Orphan
}

// Has reports whether a Service has ports that are written or to be written.
func (d *Directory) Has(service types.NamespacedName) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.services[service]) > 0 || d.changing[service] > 0
}

// keysOf are the keys under which the programs look for what a socket asks, in their order (find_frontend in bpf/lib/lb.h).
func keysOf(at netip.AddrPort, p bpf.Proto) []bpf.FrontendKey {
	addr := at.Addr().Unmap()
	keys := []bpf.FrontendKey{bpf.FrontendKeyOf(netip.AddrPortFrom(addr, at.Port()), p)}
	if addr.IsLoopback() {
		return append(keys, bpf.LoopbackKey(addr.Is4(), at.Port(), p))
	}
	return append(keys, bpf.NodePortKey(addr.Is4(), at.Port(), p))
}

// serves reports whether connections to a backend may continue.
func serves(p *services.Port, backend netip.AddrPort) bool {
	return has(p.Serving, backend) || has(p.Backends, backend) || has(p.Local, backend)
}

// has is for a sorted list.
func has(list []netip.AddrPort, b netip.AddrPort) bool {
	if len(list) < 8 {
		return slices.Contains(list, b)
	}
	_, found := slices.BinarySearchFunc(list, b, netip.AddrPort.Compare)
	return found
}

// usable reports whether a new connection to a frontend gets a backend, as far as that depends on the Service.
func usable(p *services.Port, f bpf.FrontendKey) bool {
	if p.Flags[f]&bpf.FrontendLocalPolicy != 0 {
		return len(p.Local) > 0
	}
	return len(p.Backends) > 0
}
