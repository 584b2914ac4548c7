package bpf

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestPinsAreWhereTheDocumentationSays(t *testing.T) {
	p := PinsBelow("/sys/fs/bpf")
	for _, tc := range []struct{ got, want string }{
		{p.Dir, "/sys/fs/bpf/firsthop"},
		{p.Map(MapFrontend), "/sys/fs/bpf/firsthop/maps/frontend_v1"},
		{p.Map(MapMeta), "/sys/fs/bpf/firsthop/maps/meta_v1"},
		{p.Links(), "/sys/fs/bpf/firsthop/links"},
		{p.Progs(), "/sys/fs/bpf/firsthop/progs"},
		{p.Map(MapSourceRange), "/sys/fs/bpf/firsthop/maps/source_range_v1"},
		{strings.Join(p.MapPins(MapSockRevNat), " "), "/sys/fs/bpf/firsthop/maps/peer_v1 /sys/fs/bpf/firsthop/maps/sock_rev_nat_v1"},
		{MapUDPRevNat.Info().Kernel, "fh_udp_rev_nat"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %s, want %s", tc.got, tc.want)
		}
	}
}

// The kernel cuts names to 15 bytes (BPF_OBJ_NAME_LEN with its zero), and bpffs refuses names with a dot.
func TestMapTableNamesFitTheKernel(t *testing.T) {
	spec := mustSpecs(t)
	var names, pins []string
	for _, info := range MapTable() {
		names, pins = append(names, info.Kernel), append(pins, info.pins()...)
	}
	for _, h := range Hooks() {
		names, pins = append(names, h.Program()), append(pins, h.Name)
		if spec.Programs[h.Program()] == nil {
			t.Errorf("the object has no program %s", h.Program())
		}
	}
	if len(spec.Programs) != len(Hooks()) {
		t.Errorf("the object has %d programs for %d hooks", len(spec.Programs), len(Hooks()))
	}
	for _, n := range names {
		if len(n) > 15 || len(n) == 0 {
			t.Errorf("%q has %d bytes, the kernel keeps 15", n, len(n))
		}
	}
	for _, p := range pins {
		if strings.ContainsAny(p, "./") {
			t.Errorf("pin name %q has a character that bpffs refuses", p)
		}
	}
	for _, list := range [][]string{names, pins} {
		slices.Sort(list)
		if len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Errorf("a name is there twice: %v", list)
		}
	}
}

func TestMapTableHasMetaFirst(t *testing.T) {
	if MapNames()[0] != MapMeta {
		t.Errorf("%s is created first: meta says whose the others are", MapNames()[0])
	}
}

// A socket that is translated before its replies are would see answers from a stranger.
func TestHooksOfRepliesComeFirst(t *testing.T) {
	forward := false
	for _, h := range Hooks() {
		reply := strings.HasPrefix(h.Name, "getpeername") || strings.HasPrefix(h.Name, "recvmsg")
		if reply && forward {
			t.Errorf("%s comes after a hook of the way there", h.Name)
		}
		forward = forward || !reply
	}
}

func TestParseMapPin(t *testing.T) {
	for _, tc := range []struct {
		name   string
		pin    string
		want   MapName
		layout uint32
		ok     bool
	}{
		{"a pin of this layout", "frontend_v1", MapFrontend, 1, true},
		{"a pin of an older layout", "meta_v0", MapMeta, 0, true},
		{"a pin of a newer layout", "service_v4294967295", MapService, 4294967295, true},
		{"a layout that doesn't fit", "service_v4294967296", "", 0, false},
		{"no layout", "frontend", "", 0, false},
		{"an empty layout", "frontend_v", "", 0, false},
		{"a negative layout", "frontend_v-1", "", 0, false},
		{"a layout with a sign", "frontend_v+1", "", 0, false},
		{"a layout in hexadecimal", "frontend_v0x1", "", 0, false},
		{"two layouts", "frontend_v1_v2", "", 0, false},
		{"a map of the packet path", "conntrack_v1", MapConntrack, 1, true},
		{"a map that no layout has", "peers_v1", "", 0, false},
		{"nothing", "", "", 0, false},
		{"only a layout", "_v1", "", 0, false},
		{"a suffix", "frontend_v1_new", "", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, layout, ok := ParseMapPin(tc.pin)
			if m != tc.want || layout != tc.layout || ok != tc.ok {
				t.Errorf("ParseMapPin(%q) = %q, %d, %v, want %q, %d, %v", tc.pin, m, layout, ok, tc.want, tc.layout, tc.ok)
			}
		})
	}
	for _, n := range MapNames() {
		if m, layout, ok := ParseMapPin(n.Info().Pin()); m != n || layout != n.Info().Set.Version || !ok {
			t.Errorf("the pin of %s comes back as %s, %d, %v", n, m, layout, ok)
		}
	}
}

func FuzzParseMapPin(f *testing.F) {
	for _, s := range []string{"frontend_v1", "meta_v0", "flow_v99999999999", "_v", "peer_v01", "peer_v_v1", "a\x00_v1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, layout, ok := ParseMapPin(s)
		if !ok {
			if m != "" || layout != 0 {
				t.Errorf("%q is no pin, and yet %q, %d", s, m, layout)
			}
			return
		}
		if !slices.Contains(MapNames(), m) {
			t.Errorf("%q is of map %q, which doesn't exist", s, m)
		}
		again, same, ok := ParseMapPin(fmt.Sprintf("%s_v%d", m, layout))
		if !ok || again != m || same != layout {
			t.Errorf("%q: %s, %d doesn't come back: %s, %d, %v", s, m, layout, again, same, ok)
		}
	})
}
