package bpf

import "testing"

func TestNodeSizes(t *testing.T) {
	const kib, gib = 1 << 10, 1 << 30
	for _, tc := range []struct {
		name          string
		given         Sizes
		memory, limit uint64
		udp, tcp      uint32
	}{
		{"nothing is known", Sizes{}, 0, 0, 65536, 65536},
		{"a small node", Sizes{}, gib, 0, 65536, 65536},
		{"8 GiB, of which the kernel keeps some", Sizes{}, 8*gib - 300<<20, 0, 65536, 65536},
		{"16 GiB", Sizes{}, 16 * gib, 0, 131072, 65536},
		{"16 GiB, in a container of 64 MiB", Sizes{}, 16 * gib, 64 << 20, 65536, 65536},
		{"128 GiB, in a container of 512 MiB", Sizes{}, 128 * gib, 512 << 20, 262144, 262144},
		{"128 GiB", Sizes{}, 128 * gib, 0, 262144, 262144},
		{"a limit that is none", Sizes{}, 16 * gib, 1<<63 - 4*kib, 131072, 65536},
		{"no room at all", Sizes{}, 16 * gib, 4 * kib, 65536, 65536},
		{"4 TiB", Sizes{}, 4096 * gib, 0, 262144, 262144},
		{"given ones stay", Sizes{UDPSockets: 1000, UDPSessions: 1000, TCPSockets: 64}, 16 * gib, 0, 1000, 64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := NodeSizes(tc.given, tc.memory, tc.limit)
			if want := (Sizes{UDPSockets: tc.udp, UDPSessions: tc.udp, TCPSockets: tc.tcp}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
	for limit, want := range map[uint64][2]uint32{0: {1048576, 262144}, 4 * kib: {65536, 65536}, 512 << 20: {524288, 262144}} {
		if udp, tcp := MostSockets(limit); udp != want[0] || tcp != want[1] {
			t.Errorf("maps may grow to %d and %d within %d, want %v", udp, tcp, limit, want)
		}
	}
	if got := NodeSizes(Sizes{Frontends: 7}, 0, 0); got.Frontends != 7 {
		t.Errorf("%+v: other sizes are not its concern", got)
	}
}
