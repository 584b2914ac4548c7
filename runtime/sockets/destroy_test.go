package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
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

func TestDestroyConnectedUDP(t *testing.T) {
	n := newNode(t)
	machines := []clients.Machine{n.l, n.addPod(1), n.addPod(2)}
	type client struct {
		way
		*app
		bound bool
	}
	var served, direct, waiting []client
	for i, m := range machines {
		for j, w := range ways("udp") {
			bound := 40000 + 10*i + j
			served = append(served, client{w, open(t, m, w.kind, 0), false}, client{w, open(t, m, w.kind, bound), true})
			waiting = append(waiting, client{w, open(t, m, w.kind, 0), false})
			direct = append(direct, client{w, open(t, m, w.kind, 0), false})
		}
	}
	for _, c := range append(served, waiting...) {
		if got := c.connects(c.vip); got != name(0) {
			t.Fatalf("%s: answered by %s", c.name, got)
		}
	}
	for _, c := range direct {
		c.connects(c.direct)
	}
	for _, c := range waiting {
		c.begin("recv")
	}

	n.serve(1)
	if res := n.destroy(n.config(), gone(1, bpf.UDP)); res != (Result{}) {
		t.Errorf("for a backend that nobody used: %+v", res)
	}
	if res := n.destroy(n.config(), gone(0, bpf.TCP)); res != (Result{}) {
		t.Errorf("for another protocol: %+v", res)
	}
	res := n.destroy(n.config(), gone(0, bpf.UDP))
	if want := len(served) + len(waiting); res.UDP != want || res.TCP != 0 || res.Candidates != want {
		t.Errorf("%+v, want %d", res, want)
	}
	for _, c := range waiting {
		if got := c.end(); got != "ECONNABORTED" {
			t.Errorf("%s: a receive that waits ends with %s", c.name, got)
		}
	}
	for _, c := range served {
		if c.bound { // an application that sends first
			c.want("EDESTADDRREQ", "send")
		}
		c.want("ECONNABORTED", "peek")
		if got := c.connects(c.vip); got != name(1) {
			t.Errorf("%s: connected anew, answered by %s", c.name, got)
		}
	}
	for _, c := range direct {
		if got := c.exchange(); got != name(0) {
			t.Errorf("%s: one that connected to the backend itself: %s", c.name, got)
		}
	}
	if res := n.destroy(n.config(), gone(0, bpf.UDP)); res.UDP != 0 {
		t.Errorf("the second time: %+v", res)
	}
	for _, c := range served {
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestDestroyTCPOnDemand(t *testing.T) {
	n := newNode(t)
	var served, direct []*app
	pod := n.addPod(1)
	for _, m := range []clients.Machine{n.l, pod} {
		for _, w := range ways("tcp") {
			served = append(served, open(t, m, w.kind, 0))
			direct = append(direct, open(t, m, w.kind, 0))
			if got := served[len(served)-1].connects(w.vip); got != name(0) {
				t.Fatal(w.name, got)
			}
			direct[len(direct)-1].connects(w.direct)
		}
	}
	n.serve(1)
	cfg := n.config()
	if res := n.destroy(cfg, gone(0, bpf.UDP, bpf.TCP)); res != (Result{}) {
		t.Errorf("without TCP: %+v", res)
	}
	cfg.TCP = true
	if res := n.destroy(cfg, gone(0, bpf.UDP, bpf.TCP)); res.TCP != len(served) || res.UDP != 0 {
		t.Errorf("%+v, want %d", res, len(served))
	}
	for i, a := range served {
		a.want("ECONNABORTED", "peek")
		if got := direct[i].exchange(); got != name(0) {
			t.Errorf("one that connected to the backend itself: %s", got)
		}
	}
}

// A frontend may have lost a backend that another one still has.
func TestDestroyOfOneService(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	var index uint32
	var key bpf.UDPRevNatKey
	var value bpf.UDPRevNat
	for it := n.maps.Map(bpf.MapUDPSockRevNat).Iterate(); it.Next(&key, &value); {
		index = value.Index
	}
	for _, other := range []uint32{index + 1, index} {
		res := n.destroy(n.config(), []Backend{{Proto: bpf.UDP, Addr: backend4(0), Index: other}})
		if want := map[bool]int{true: 1}[other == index]; res.UDP != want || index == 0 {
			t.Errorf("index %d, the socket's is %d: %+v, want %d", other, index, res, want)
		}
	}
}

// Unconnected sockets choose for each datagram; nothing is to be destroyed, or forgotten.
func TestDestroySparesUnconnectedUDP(t *testing.T) {
	n := newNode(t)
	for _, w := range ways("udp") {
		n.serve(0)
		a := open(t, n.l, w.kind, 0)
		exchange := func(want string) {
			t.Helper()
			a.want("ok", "sendto %s", w.vip)
			a.want(want, "recv")
		}
		exchange(name(0))
		n.serve(0, 1)
		exchange(name(0))
		n.serve(1)
		if res := n.destroy(n.config(), gone(0, bpf.UDP)); res.UDP != 0 || res.Candidates == 0 {
			t.Errorf("%s: %+v", w.name, res)
		}
		exchange(name(1))
	}
}

// The kernel sees but one of two sockets that share their addresses.
func TestDestroySocketsThatHideEachOther(t *testing.T) {
	n := newNode(t)
	var all []*app
	for range 3 {
		a := open(t, n.l, "udp4", 40000)
		a.want("EDESTADDRREQ", "send") // it is bound by now
		all = append(all, a)
	}
	for _, i := range []int{1, 2, 0} { // the kernel lists them in the order of bind, and finds them in that of connect
		all[i].want("ok", "connect %s", vip4)
	}
	n.serve(1)
	if res := n.destroy(n.config(), gone(0, bpf.UDP)); res.UDP != len(all) {
		t.Errorf("%+v, want %d", res, len(all))
	}
	for _, a := range all {
		a.want("ECONNABORTED", "peek")
	}
}

func TestDestroyWithoutBatches(t *testing.T) {
	n := newNode(t)
	udp, tcp := open(t, n.l, "udp6", 0), open(t, n.l, "tcp6", 0)
	udp.connects(vip6)
	tcp.connects(vip4)
	cfg := n.config()
	cfg.Batch, cfg.TCP = false, true
	if res := n.destroy(cfg, gone(0, bpf.UDP, bpf.TCP)); res.UDP != 1 || res.TCP != 1 {
		t.Errorf("%+v, want one of each", res)
	}
}

func TestDestroyEndsWithItsContext(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if res, err := Destroy(ctx, n.config(), gone(0, bpf.UDP)); !errors.Is(err, context.Canceled) || res.UDP != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

// Two at once, and sockets that come and go meanwhile.
func TestDestroyConcurrently(t *testing.T) {
	n := newNode(t)
	const sockets = 20
	var all []*app
	for i := range sockets {
		w := ways("udp")[i%3]
		a := open(t, n.l, w.kind, 0)
		a.connects(w.vip)
		all = append(all, a)
	}
	n.serve(1)
	files := openFiles(t)
	type result struct {
		Result
		error
	}
	results := make(chan result)
	for range 4 {
		go func() {
			res, err := Destroy(t.Context(), n.config(), gone(0, bpf.UDP))
			results <- result{res, err}
		}()
	}
	destroyed := 0
	for range 4 {
		res := <-results
		if res.error != nil {
			t.Error(res.error)
		}
		destroyed += res.UDP
	}
	if destroyed < sockets { // the kernel lets two at a time end one, and both were told so
		t.Errorf("%d sockets were destroyed, want each of %d", destroyed, sockets)
	}
	if now := openFiles(t); now > files { // one would keep a pod's namespace alive
		t.Errorf("%d files are open, before it were %d", now, files)
	}
	for _, a := range all {
		a.want("ECONNABORTED", "peek")
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestDestroySkipsNamespacesWithoutSockets(t *testing.T) {
	n := newNode(t)
	var pods []clients.Machine
	for i := range 5 {
		pods = append(pods, n.addPod(i+1))
	}
	pod := n.addPod(9)
	a, other := open(t, pod, "udp4", 0), open(t, n.l, "udp4", 0)
	a.connects(vip4)
	other.connects(fmt.Sprint(backend4(0)))
	cfg := n.config()
	root := t.TempDir() // with this lab's namespaces alone
	must(t, os.MkdirAll(filepath.Join(root, "run/netns"), 0o755))
	for i, p := range append(pods, pod) {
		at := filepath.Join(root, "run/netns", fmt.Sprint(i))
		must(t, os.WriteFile(at, nil, 0o600))
		must(t, unix.Mount(p.(*lab.Pod).Netns, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
	}
	cfg.Namespaces = netns.Config{Host: n.l.Netns, Proc: t.TempDir(), Root: root}
	if res := n.destroy(cfg, gone(0, bpf.UDP)); res.UDP != 1 || res.Looked > 2 {
		t.Errorf("%+v: want the pod looked at, and perhaps the node", res)
	}
}
