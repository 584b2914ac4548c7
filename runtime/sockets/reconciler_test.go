package sockets

import (
	"fmt"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
)

// way is a kind of socket, and where it connects to.
type way struct{ name, kind, vip, direct string }

func ways(protos ...string) (list []way) {
	for _, p := range protos {
		list = append(list,
			way{p + " over IPv4", p + "4", vip4, backend4(0).String()},
			way{p + " over IPv6", p + "6", vip6, backend6(0).String()},
			way{p + " to a v4-mapped address", p + "6", vip4, backend4(0).String()})
	}
	return list
}

type client struct {
	way
	*app
}

// clientsOf opens a socket of each kind on each machine, bound to ports from a number on; 0: to none.
func (n *node) clientsOf(machines []clients.Machine, protocol string, port int) (list []client) {
	n.t.Helper()
	for _, m := range machines {
		for _, w := range ways(protocol) {
			list = append(list, client{w, open(n.t, m, w.kind, port)})
			if port != 0 {
				port++
			}
		}
	}
	return list
}

// A connected socket goes on after its backend went: by the same port, and the application sees nothing of it.
func TestReconcilerMovesConnectedUDP(t *testing.T) {
	n := newNode(t)
	machines := []clients.Machine{n.l, n.addPod(1), n.addPod(2)}
	r := n.reconciler()
	all := append(n.clientsOf(machines, "udp", 0), n.clientsOf(machines, "udp", 40000)...)
	direct := n.clientsOf(machines, "udp", 0)
	before := map[int]string{}
	for i, c := range all {
		if got := c.connects(c.vip); got != name(0) {
			t.Fatalf("%s: answered by %s", c.name, got)
		}
		before[i] = c.do("local")
	}
	for _, c := range direct {
		c.connects(c.direct)
	}
	if st := r.step(0); st.Counts != (Counts{}) || st.Searches != 0 {
		t.Errorf("while nothing went: %+v", st)
	}
	waiting := all[:3]
	for _, c := range waiting {
		c.begin("recv")
	}
	r.lead(1)
	st := r.step(0)
	if want := (Counts{Moved: uint64(len(all))}); st.Counts != want || st.Services[dns] != want || st.Left != 0 {
		t.Errorf("%+v, want %+v", st, want)
	}
	for i, c := range all {
		if i >= len(waiting) { // the others wait for an answer still
			if got := c.do("local"); got != before[i] {
				t.Errorf("%s: its address was %s, is %s", c.name, before[i], got)
			}
			c.want(c.vip, "peer")
			if got := c.exchange(); got != name(1) {
				t.Errorf("%s: answered by %s", c.name, got)
			}
		}
	}
	for _, c := range direct {
		if got := c.exchange(); got != name(0) {
			t.Errorf("%s: one that connected to the backend itself: %s", c.name, got)
		}
	}
	searches := r.Status().Searches
	r.lead(0) // what is known of them is enough
	if st := r.step(0); st.Moved != uint64(2*len(all)) || st.Searches != searches {
		t.Errorf("back again: %+v, want %d moved and no search", st, 2*len(all))
	}
	for _, c := range all[len(waiting):] {
		if got := c.exchange(); got != name(0) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
	}
}

// What went while no runtime was there, nobody has seen going.
func TestReconcilerBeginsWithTheWholeTruth(t *testing.T) {
	n := newNode(t)
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	for _, c := range all {
		c.connects(c.vip)
	}
	n.serve(1)
	r := n.reconciler()
	if st := r.step(0); st.Moved != uint64(len(all)) {
		t.Errorf("%+v, want %d moved", st, len(all))
	}
	for _, c := range all {
		c.want(c.vip, "peer")
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
	}
}

// Two sockets of one process, and processes that share one.
func TestReconcilerEndsWhatItCannotMove(t *testing.T) {
	n := newNode(t)
	r := n.reconciler(func(c *Config) { c.Forbid = true })
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	for _, c := range all {
		c.connects(c.vip)
	}
	r.lead(1)
	if st := r.step(0); st.Counts != (Counts{}) {
		t.Errorf("before a second has passed: %+v", st)
	}
	r.tell(0) // its backend is back
	r.step(0)
	r.tell(1)
	r.step(0)
	if st := r.step(goneTime - time.Millisecond); st.Counts != (Counts{}) {
		t.Errorf("a short absence: %+v", st)
	}
	st := r.step(time.Millisecond)
	if want := (Counts{EndedUDP: uint64(len(all))}); st.Counts != want || st.Services[dns] != want {
		t.Errorf("%+v, want %+v", st, want)
	}
	for _, c := range all {
		c.want("ECONNABORTED", "peek")
		if got := c.connects(c.vip); got != name(1) {
			t.Errorf("%s: connected anew, answered by %s", c.name, got)
		}
	}
	if st := r.step(time.Minute); st.EndedUDP != uint64(len(all)) || st.Left != 0 {
		t.Errorf("a minute later: %+v", st)
	}
}

func TestReconcilerEndsSocketsOfAServiceThatWent(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	r.tell(-1)
	if st := r.step(0); st.Counts != (Counts{}) {
		t.Errorf("at once: %+v", st)
	}
	if st := r.step(goneTime); st.EndedUDP != 1 || st.Moved != 0 {
		t.Errorf("a second later: %+v", st)
	}
	a.want("ECONNABORTED", "peek")
}

func TestReconcilerEndsTCPOnDemand(t *testing.T) {
	n := newNode(t)
	machines := []clients.Machine{n.l, n.addPod(1)}
	served, direct := n.clientsOf(machines, "tcp", 0), n.clientsOf(machines, "tcp", 0)
	for i, c := range served {
		if got := c.connects(c.vip); got != name(0) {
			t.Fatal(c.name, got)
		}
		direct[i].connects(direct[i].direct)
	}
	n.serve(1)
	for _, tcp := range []bool{false, true} {
		r := n.reconciler(func(c *Config) { c.TCP = tcp })
		r.step(0)
		want := Counts{EndedTCP: map[bool]uint64{true: uint64(len(served))}[tcp]}
		if st := r.step(goneTime); st.Counts != want {
			t.Errorf("TCP %v: %+v, want %+v", tcp, st, want)
		}
	}
	for i, a := range served {
		a.want("ECONNABORTED", "peek")
		if got := direct[i].exchange(); got != name(0) {
			t.Errorf("one that connected to the backend itself: %s", got)
		}
	}
}

// The API service is led by which API servers are alive.
func TestReconcilerLeavesTheAPIService(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "tcp4", 0)
	a.connects(vip4)
	r := n.reconciler(func(c *Config) { c.TCP = true })
	r.SetAPI(addrPorts(vip4))
	r.tell(-1)
	r.step(0)
	if st := r.step(goneTime); st.Counts != (Counts{}) {
		t.Errorf("%+v", st)
	}
	if got := a.exchange(); got != name(0) {
		t.Errorf("answered by %s", got)
	}
}

// Unconnected sockets choose for each datagram; what they got from a backend that went is forgotten after a while.
func TestReconcilerSparesUnconnectedUDP(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	for i, w := range ways("udp") {
		r.lead(0)
		a := open(t, n.l, w.kind, 0)
		exchange := func(want string) {
			t.Helper()
			a.want("ok", "sendto %s", w.vip)
			a.want(want, "recv")
		}
		exchange(name(0))
		r.lead(0, 1)
		r.step(0)
		exchange(name(0))
		r.lead(1)
		r.step(0)
		r.step(interval)
		exchange(name(1))
		before := n.ways()
		r.step(lateTime)
		if st := r.Status(); st.Counts != (Counts{}) || n.ways() != before-1 {
			t.Errorf("%s, %d: %+v, %d ways back were there, %d are left: want one less", w.name, i, st, before, n.ways())
		}
		if searches := r.Status().Searches; r.step(interval).Searches != searches {
			t.Errorf("%s: it is looked for indefinitely", w.name)
		}
	}
}

// ways counts the ways back of UDP sockets.
func (n *node) ways() (count int) {
	var key bpf.UDPRevNatKey
	var value bpf.UDPRevNat
	for it := n.maps.Map(bpf.MapUDPSockRevNat).Iterate(); it.Next(&key, &value); {
		count++
	}
	return count
}

// The kernel sees but one of two sockets that share their addresses.
func TestReconcilerFindsSocketsThatHideEachOther(t *testing.T) {
	for _, forbid := range []bool{false, true} {
		t.Run(fmt.Sprintf("forbid=%v", forbid), func(t *testing.T) {
			n := newNode(t)
			r := n.reconciler(func(c *Config) { c.Forbid = forbid })
			var all []*app
			for range 3 {
				a := open(t, n.l, "udp4", 40000)
				a.want("EDESTADDRREQ", "send") // it is bound by now
				all = append(all, a)
			}
			for _, i := range []int{1, 2, 0} { // the kernel lists them in the order of bind, and finds them in that of connect
				all[i].want("ok", "connect %s", vip4)
			}
			r.lead(1)
			r.step(0)
			st := r.step(goneTime)
			for range 2 * len(all) {
				st = r.step(time.Second)
			}
			if st.Moved+st.EndedUDP != uint64(len(all)) || forbid != (st.Moved == 0) {
				t.Errorf("%+v, want %d", st, len(all))
			}
			for _, a := range all {
				if forbid {
					a.want("ECONNABORTED", "peek")
				} else {
					a.want(vip4, "peer")
				}
			}
		})
	}
}

func TestReconcilerWithoutBatches(t *testing.T) {
	n := newNode(t)
	udp, tcp := open(t, n.l, "udp6", 0), open(t, n.l, "tcp6", 0)
	udp.connects(vip6)
	tcp.connects(vip4)
	r := n.reconciler(func(c *Config) {
		c.TCP = true
		c.Maps = func() (Maps, error) {
			m := n.sockMaps()
			m.Batch = false
			return m, nil
		}
	})
	r.lead(1)
	r.step(0)
	if st := r.step(goneTime); st.Moved != 1 || st.EndedTCP != 1 {
		t.Errorf("%+v, want one of each", st)
	}
	if r.step(lateTime); n.ways() != 1 {
		t.Errorf("%d ways back, want one", n.ways())
	}
}
