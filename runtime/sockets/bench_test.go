package sockets

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// fullMaps are those of the way back, full of sockets of many backends.
func fullMaps(b *testing.B) (reverse, peer *ebpf.Map) {
	b.Helper()
	l := newNode(b)
	reverse, peer = l.maps.Map(bpf.MapUDPSockRevNat), l.maps.Map(bpf.MapSockRevNat)
	for i := range uint64(reverse.MaxEntries()) {
		at := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		must(b, reverse.Put(bpf.UDPRevNatKey{Cookie: 1<<40 + i, Backend: bpf.AddressOf(at), Port: bpf.PortOf(53)}, bpf.UDPRevNat{Index: 5}))
	}
	return reverse, peer
}

// cpuOf reports the processor time of a benchmark: other processes disturb it less than the time on the wall.
func cpuOf(b *testing.B) func() {
	b.Helper()
	now := func() int64 {
		var u unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := now()
	return func() { b.ReportMetric(float64(now()-before)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkScan is what a change costs when no socket is led to the backend: 16,384 entries for UDP, 65,536 for TCP.
func BenchmarkScan(b *testing.B) {
	reverse, peer := fullMaps(b)
	w := lostOf([]Backend{{Proto: bpf.UDP, Addr: netip.MustParseAddrPort("192.0.2.1:53")}}, bpf.UDP)
	for _, batch := range []bool{true, false} {
		b.Run(fmt.Sprintf("udp/batch=%v", batch), func(b *testing.B) {
			defer cpuOf(b)()
			for b.Loop() {
				if _, err := findUDP(reverse, batch, w); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("tcp/batch=%v", batch), func(b *testing.B) {
			defer cpuOf(b)()
			for b.Loop() {
				if _, err := findTCP(peer, batch, w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDestroy is a look in 30 namespaces for a socket that none of them has.
func BenchmarkDestroy(b *testing.B) {
	n := newNode(b)
	for _, sockets := range []bool{false, true} {
		b.Run(fmt.Sprintf("sockets=%v", sockets), func(b *testing.B) {
			for i := range 30 {
				name := fmt.Sprintf("%v%d", sockets, i)
				p, err := n.l.AddPod(name, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
				must(b, err)
				if sockets {
					for _, to := range []string{"192.0.2.11:5353", "[::1]:5353"} {
						c, err := p.DialContext(b.Context(), "udp", to)
						must(b, err)
						defer c.Close()
					}
				}
			}
			reverse := n.maps.Map(bpf.MapUDPSockRevNat)
			must(b, reverse.Put(bpf.UDPRevNatKey{Cookie: 1 << 40, Backend: bpf.AddressOf(backend4(0).Addr()), Port: bpf.PortOf(port)}, bpf.UDPRevNat{}))
			defer cpuOf(b)()
			for b.Loop() {
				if _, err := Destroy(b.Context(), n.config(), gone(0, bpf.UDP)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
