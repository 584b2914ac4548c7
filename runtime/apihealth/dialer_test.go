package apihealth

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

func (r *rig) dialer(cfg DialerConfig) *Dialer {
	r.t.Helper()
	cfg.Log, cfg.Monitor = r.cfg.Log, r.m
	if cfg.Dial == nil {
		cfg.Dial = r.l.DialContext
	}
	d, err := NewDialer(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// reached dials and says where the connection went.
func reached(t *testing.T, d *Dialer, address string) string {
	t.Helper()
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.RemoteAddr().String()
}

func TestDialerTriesTheConfiguredAddressFirst(t *testing.T) {
	r := newRig(t)
	if err := r.l.AddAddr("10.96.0.1/32"); err != nil {
		t.Fatal(err)
	}
	behind := r.serve(vip)
	r.serve(a1)
	r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	var unproven atomic.Bool
	d := r.dialer(DialerConfig{Proven: func() bool { return !unproven.Load() }})
	for range 3 {
		if at := reached(t, d, vip); at != vip {
			t.Errorf("reached %s", at)
		}
	}
	unproven.Store(true)
	seen := map[string]int{}
	for range 10 {
		seen[reached(t, d, vip)]++
	}
	if seen[a1] != 5 || seen[a2] != 5 {
		t.Errorf("not in turn: %v", seen)
	}
	unproven.Store(false)
	if at := reached(t, d, vip); at != vip {
		t.Errorf("reached %s", at)
	}
	behind.Close()
	if at := reached(t, d, vip); at != a1 && at != a2 {
		t.Errorf("reached %s", at)
	}
	if s := d.Status(); s.Configured != 4 || s.Direct != 11 || s.Failed != 0 {
		t.Errorf("status is %+v", s)
	}
	for want, times := range map[string]int{"not proven": 1, "reached directly": 2, "at the configured address again": 1, "10.96.0.1:443: connection refused": 1} {
		if n := strings.Count(r.logs.String(), want); n != times {
			t.Errorf("the log says %q %d times, want %d", want, n, times)
		}
	}
}

func TestDialerLosesNoTimeToASilentServiceIP(t *testing.T) {
	r := newRig(t)
	if err := r.l.Drop("10.96.0.1/32"); err != nil {
		t.Fatal(err)
	}
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	start := time.Now()
	if at := reached(t, r.dialer(DialerConfig{}), vip); at != a1 {
		t.Errorf("reached %s", at)
	}
	if d := time.Since(start); d < dialStagger || d > dialStagger+promised {
		t.Errorf("after %v", d)
	}
}

// An unknown server at the configured address accepts connections, and is no API server of this cluster.
func TestDialerAvoidsAnUnknownServer(t *testing.T) {
	r := newRig(t)
	other, err := standin.NewAuthority(netip.MustParseAddr("10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	r.serveAs(a1, other)
	r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a2)
	r.until("the unknown server is dead", func(s Status) bool { return s.endpoint(a1).State == apiserver.Dead })
	if at := reached(t, r.dialer(DialerConfig{}), a1); at != a2 {
		t.Errorf("reached %s, want %s", at, a2)
	}
}

func TestDialerTriesTheServiceIPLast(t *testing.T) {
	r := newRig(t)
	if err := r.l.AddAddr("10.96.0.1/32"); err != nil {
		t.Fatal(err)
	}
	r.serve(vip)
	r.run().SetEndpoints(addrs(a1, a2)) // where nothing listens
	if at := reached(t, r.dialer(DialerConfig{}), a1); at != vip {
		t.Errorf("reached %s, want %s", at, vip)
	}
}

// API servers are dialled past the programs, a Service IP through them.
func TestDialerBypassesTheProgramsToServersOnly(t *testing.T) {
	r := newRig(t)
	if err := r.l.AddAddr("10.96.0.1/32", "10.96.0.9/32"); err != nil {
		t.Fatal(err)
	}
	r.cfg.IsService = func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("10.96.0.9:443") }
	r.serve(vip)
	r.serve("10.96.0.9:443")
	s1 := r.serve(a1)
	r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	d := r.dialer(DialerConfig{})
	var past []string
	d.past = func(ctx context.Context, network, address string) (net.Conn, error) {
		past = append(past, address)
		return r.l.DialContext(ctx, network, address)
	}
	for _, service := range []string{vip, "10.96.0.9:443"} {
		if at := reached(t, d, service); at != service || len(past) > 0 {
			t.Errorf("%s: reached %s, past the programs: %v", service, at, past)
		}
	}
	if at := reached(t, d, a1); at != a1 || !slices.Equal(past, []string{a1}) {
		t.Errorf("reached %s, past the programs: %v", at, past)
	}
	s1.Close()
	r.until("it is dead", func(s Status) bool { return s.endpoint(a1).State == apiserver.Dead })
	past = nil
	if at := reached(t, d, a1); at != a2 || !slices.Equal(past, []string{a2}) {
		t.Errorf("reached %s, past the programs: %v", at, past)
	}
}

// The client of the runtime speaks TLS to the name of its configuration, wherever the connection goes.
func TestDialerKeepsTheNameOfTheCertificate(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	transport := &http.Transport{TLSClientConfig: r.ca.ClientConfig(), DialContext: r.dialer(DialerConfig{}).DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + vip + "/version")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if by := resp.Header.Get(standin.ServedBy); by != a1 {
		t.Errorf("served by %q", by)
	}
	_, err = (&http.Client{Transport: transport}).Get("https://10.96.0.2:443/version")
	var bad *tls.CertificateVerificationError
	if !errors.As(err, &bad) {
		t.Errorf("another name's certificate: %v", err)
	}
}

func TestDialerTriesDeadServersLast(t *testing.T) {
	r := newRig(t)
	s := r.serve(a1)
	r.serve(a2)
	r.serve(a3).SetReady(false)
	r.run().SetEndpoints(addrs(a1, a2, a3))
	r.await(a1, a2)
	s.Close()
	r.await(a2)
	var dialled []string
	d := r.dialer(DialerConfig{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = append(dialled, address) // each begins when the one before has failed
		return nil, syscall.ECONNREFUSED
	}})
	_, err := d.DialContext(t.Context(), "tcp", vip)
	if err == nil || len(dialled) != 4 || dialled[0] != vip || dialled[1] != a2 {
		t.Fatalf("dialled %v: %v", dialled, err)
	}
	for _, a := range dialled {
		if !strings.Contains(err.Error(), a+": connection refused") {
			t.Errorf("%v does not name %s", err, a)
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v hides its causes", err)
	}
}

func TestDialerTriesSavedAddressesWhenAllAreDown(t *testing.T) {
	r := newRig(t)
	save(t, r, endpoints(t, a3)...)
	r.cfg.Adopted = addrs(a1)
	r.run()
	r.until("asked", func(s Status) bool { return s.endpoint(a3).State == apiserver.Dead })
	d := r.dialer(DialerConfig{})
	_, err := d.DialContext(t.Context(), "tcp", vip)
	var de *DialError
	if !errors.As(err, &de) || len(de.Tries) != 3 || de.Tries[0].Address != vip || de.Tries[1].Address != a1 || de.Tries[2].Address != a3 {
		t.Fatalf("got %v", err)
	}
	r.serve(a3)
	if at := reached(t, d, vip); at != a3 {
		t.Errorf("reached %s", at)
	}
}

func TestDialerLooksUpAHostNameEachTime(t *testing.T) {
	r := newRig(t)
	z := &zone{}
	z.set("api.example", "192.0.2.11", "2001:db8::11")
	r.serve(a1)
	r.serve(a2)
	six := r.serve(b1)
	r.cfg.Adopted = addrs(a3)
	r.run()
	d := r.dialer(DialerConfig{Resolver: z})
	if at := reached(t, d, "api.example:6443"); at != a1 {
		t.Errorf("reached %s", at)
	}
	z.set("api.example", "192.0.2.12")
	if at := reached(t, d, "api.example:6443"); at != a2 {
		t.Errorf("reached %s", at)
	}
	z.set("api.example", "192.0.2.13", "2001:db8::11")
	if at := reached(t, d, "api.example:6443"); at != b1 {
		t.Errorf("reached %s", at)
	}
	six.Close()
	_, err := d.DialContext(t.Context(), "tcp", "api.example:6443")
	want := "api.example:6443 (" + a3 + ": connection refused, " + b1 + ": connection refused); " + a3 + ": connection refused"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	z.setDown(true)
	if _, err := d.DialContext(t.Context(), "tcp", "api.example:6443"); err == nil || !strings.Contains(err.Error(), "no answer from the name server") {
		t.Errorf("got %v", err)
	}
}

func TestDialerEndsWithItsContextAndClosesLateConnections(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	var open, made atomic.Int32
	release := make(chan struct{})
	d := r.dialer(DialerConfig{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == vip {
			<-release // comes late, and does not heed ctx
		}
		conn, err := r.l.DialContext(context.Background(), network, a1)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		made.Add(1)
		return closeCounter{conn, &open}, nil
	}})
	conn, err := d.DialContext(t.Context(), "tcp", vip)
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	lab.Await(t, "the late one is made", func() bool { return made.Load() == 2 })
	lab.Await(t, "the late one is closed", func() bool { return open.Load() == 1 })
	conn.Close()
	lab.Await(t, "both are closed", func() bool { return open.Load() == 0 })

	if err := r.l.Drop("10.96.0.1/32"); err != nil {
		t.Fatal(err)
	}
	r.silence(a1)
	d = r.dialer(DialerConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = d.DialContext(ctx, "tcp", vip)
	if err == nil || !strings.Contains(err.Error(), vip+": no answer in time") || !strings.Contains(err.Error(), a1+": no answer in time") {
		t.Errorf("got %v", err)
	}
}

type closeCounter struct {
	net.Conn
	n *atomic.Int32
}

func (c closeCounter) Close() error {
	c.n.Add(-1)
	return c.Conn.Close()
}

func TestDialerNoticesDeadPeers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := newRig(t)
	r.cfg.Adopted = addrs(a1)
	r.run()
	d, err := NewDialer(DialerConfig{Log: r.cfg.Log, Monitor: r.m})
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	conn, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(at.Addr(), at.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if ms := sockopt(t, conn, syscall.IPPROTO_TCP, 18 /* TCP_USER_TIMEOUT */); ms != int(deadPeer.Milliseconds()) {
		t.Errorf("TCP_USER_TIMEOUT is %d ms", ms)
	}
	if s := sockopt(t, conn, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE); s != int(deadPeer.Seconds())/2 {
		t.Errorf("TCP_KEEPIDLE is %d s", s)
	}
}

func sockopt(t *testing.T, conn net.Conn, level, opt int) (v int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) { v, sockErr = syscall.GetsockoptInt(int(fd), level, opt) }); err != nil || sockErr != nil {
		t.Fatal(err, sockErr)
	}
	return v
}

// A client whose server hangs would wait for HTTP/2's own time-outs, 45 s, and follow nothing meanwhile.
func TestDialerClosesConnectionsToALostServer(t *testing.T) {
	r := newRig(t)
	for _, at := range []string{a1, a2} {
		r.serve(at)
	}
	var d atomic.Pointer[Dialer]
	r.cfg.OnLost = func(endpoint netip.AddrPort) { d.Load().Lost(endpoint) }
	r.run().SetEndpoints(addrs(a1, a2))
	d.Store(r.dialer(DialerConfig{Peer: func(c net.Conn) (netip.AddrPort, bool) {
		return netip.AddrPort{}, false
	}}))
	r.await(a1, a2)
	open := map[string]net.Conn{}
	for _, at := range []string{a1, a2} {
		conn, err := d.Load().DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open[at] = conn
	}
	ended := make(chan error, 1)
	go func() {
		_, err := open[a1].Read(make([]byte, 1))
		ended <- err
	}()
	r.silence(a1)
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("a connection to a server that is lost stays open")
	}
	if err := open[a2].SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := open[a2].Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the connection to the other server: %v", err)
	}
	open[a2].Close()
	if n := len(d.Load().kept.conns); n != 0 {
		t.Errorf("%d addresses are kept in mind of connections that are closed", n)
	}
}

// All nodes' connections at once, lost and made again, are what an API server needs least that is alone and slow.
func TestDialerKeepsConnectionsToTheOnlyServer(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	lost := make(chan netip.AddrPort, 10)
	r.cfg.OnLost = func(endpoint netip.AddrPort) { lost <- endpoint }
	r.hook = func(m *Monitor) { m.stale = time.Hour }
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	for range 2 {
		failures := r.m.Status().endpoint(a1).Failures
		r.silence(a1)
		r.until("the server to be silent", func(s Status) bool {
			return s.endpoint(a1).State != apiserver.Live && s.endpoint(a1).Failures > failures
		})
		r.unsilence(a1)
		r.until("the server to live again", func(s Status) bool { return s.endpoint(a1).State == apiserver.Live })
	}
	if len(lost) > 0 {
		t.Errorf("%v was given up %d times", <-lost, len(lost)+1)
	}

	r.silence(a1)
	r.until("the server to be silent", func(s Status) bool { return s.endpoint(a1).State != apiserver.Live })
	r.serve(a2)
	r.m.SetEndpoints(addrs(a1, a2))
	select {
	case got := <-lost:
		if got.String() != a1 {
			t.Errorf("%v was given up", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("connections to a server that is lost stay when another one lives")
	}
}

// It may have been started anew meanwhile, and know nothing of them.
func TestDialerClosesConnectionsToTheOnlyServerThatWasAwayForLong(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	lost := make(chan netip.AddrPort, 10)
	r.cfg.OnLost = func(endpoint netip.AddrPort) { lost <- endpoint }
	r.hook = func(m *Monitor) { m.stale = time.Nanosecond }
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	r.silence(a1)
	r.until("the server to be silent", func(s Status) bool { return s.endpoint(a1).State != apiserver.Live })
	if len(lost) > 0 {
		t.Error("it was given up while nobody else lives")
	}
	r.unsilence(a1)
	select {
	case <-lost:
	case <-time.After(30 * time.Second):
		t.Error("connections of before stay")
	}
}
