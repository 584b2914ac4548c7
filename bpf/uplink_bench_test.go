package bpf

import (
	"net/netip"
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
