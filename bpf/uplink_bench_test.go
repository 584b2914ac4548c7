package bpf

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// BenchmarkPacket is what a packet costs in a program, by PROG_TEST_RUN, which takes some time itself: see "nothing".
func BenchmarkPacket(b *testing.B) {
	for _, f := range families {
		r := newUplinkRig(b, Uplink{})
		r.service(b, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		r.service(b, testIndex+1, FrontendKeyOf(f.vip, UDP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		same := netip.AddrPortFrom(f.vip.Addr(), 8443) // its backend: the packet stays as it is, for the next round
		r.service(b, testIndex+2, FrontendKeyOf(same, TCP), FrontendExternal, []netip.AddrPort{same}, nil)
		r.in(b, segment{src: f.client, dst: same, proto: TCP, flags: flagSYN}.bytes(b))
		other := netip.AddrPortFrom(f.node.Addr(), 443)
		syn := segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}
		r.in(b, syn.bytes(b))
		nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { nothing.Close() })
		for _, bm := range []struct {
			name string
			prog *ebpf.Program
			in   segment
		}{
			{"nothing", nothing, syn},
			{"not ours, in", r.progs["from_uplink"], segment{src: f.client, dst: other, proto: TCP, flags: flagACK}},
			{"not ours, in, SYN", r.progs["from_uplink"], segment{src: f.client, dst: other, proto: TCP, flags: flagSYN}},
			{"not ours, in, UDP", r.progs["from_uplink"], segment{src: f.client, dst: other, proto: UDP}},
			{"not ours, out", r.progs["to_uplink"], segment{src: other, dst: f.client, proto: TCP, flags: flagACK}},
			{"established, in", r.progs["from_uplink"], segment{src: f.client, dst: same, proto: TCP, flags: flagACK}},
			{"established, out", r.progs["to_uplink"], segment{src: same, dst: f.client, proto: TCP, flags: flagACK}},
		} {
			b.Run(f.name+"/"+bm.name, func(b *testing.B) {
				in := bm.in.bytes(b)
				best := time.Hour
				for b.Loop() {
					_, took, err := bm.prog.Benchmark(in, 20_000, nil)
					if err != nil {
						b.Fatal(err)
					}
					best = min(best, took)
				}
				b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
			})
		}
	}
}

// BenchmarkNewFlow is what the first packet of a flow costs, by the kernel's clock around one run each: the median, as that of "nothing" tells
// what the clock and a single run add.
func BenchmarkNewFlow(b *testing.B) {
	for _, f := range families {
		r := newUplinkRig(b, Uplink{})
		r.service(b, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		other := netip.AddrPortFrom(f.node.Addr(), 443)
		for name, dst := range map[string]netip.AddrPort{"not ours": other, "new": f.vip} {
			b.Run(f.name+"/"+name, func(b *testing.B) {
				in := segment{src: f.client, dst: dst, proto: TCP, flags: flagSYN}.bytes(b)
				at := 14 + 20
				if f.client.Addr().Is6() {
					at = 14 + 40
				}
				var all []time.Duration
				port := uint16(1)
				for b.Loop() {
					port++
					in[at], in[at+1] = byte(port>>8), byte(port)
					_, took, err := r.progs["from_uplink"].Benchmark(in, 1, nil)
					if err != nil {
						b.Fatal(err)
					}
					all = append(all, took)
				}
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "ns/packet")
			})
		}
	}
}
