package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

func mustSpecs(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := specs()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// goTwins are the Go types of this package and the C structs of lib/types.h and lib/config.h that they mirror.
var goTwins = map[string]any{
	"address":      Address{},
	"frontend_key": FrontendKey{},
	"frontend":     Frontend{},
	"backend_key":  BackendKey{},
	"backend":      Backend{},
	"counters":     Counters{},
	"peer":         Peer{},
	"reverse_key":  ReverseKey{},
	"reverse":      Reverse{},
	"flow_key":     FlowKey{},
	"flow":         Flow{},
	"meta":         Meta{},
	"config":       Settings{},
	"range_key":    RangeKey{},
	"affinity_key": AffinityKey{},
	"workload":     Workload{},
}

func TestGoTypesHaveTheLayoutOfTheCompiledObject(t *testing.T) {
	types := mustSpecs(t).Types
	for name, twin := range goTwins {
		t.Run(name, func(t *testing.T) {
			var c *btf.Struct
			if err := types.TypeByName(name, &c); err != nil {
				t.Fatal(err)
			}
			g := reflect.TypeOf(twin)
			if uintptr(c.Size) != g.Size() || int(c.Size) != binary.Size(twin) {
				t.Errorf("C has %d bytes, Go %d in memory and %d packed", c.Size, g.Size(), binary.Size(twin))
			}
			if g.Kind() != reflect.Struct {
				return // Address: one member, all of it
			}
			if len(c.Members) != g.NumField() {
				t.Fatalf("C has %d members, Go %d fields", len(c.Members), g.NumField())
			}
			for i, member := range c.Members {
				compareMember(t, member, g.Field(i))
			}
		})
	}
}

func compareMember(t *testing.T, c btf.Member, g reflect.StructField) {
	t.Helper()
	if plain := strings.ReplaceAll(c.Name, "_", ""); !strings.EqualFold(plain, g.Name) {
		t.Errorf("C member %s is Go field %s", c.Name, g.Name)
	}
	if c.Offset.Bytes() != uint32(g.Offset) || c.BitfieldSize != 0 {
		t.Errorf("%s is at %d in C and at %d in Go", c.Name, c.Offset.Bytes(), g.Offset)
	}
	size, err := btf.Sizeof(c.Type)
	if err != nil {
		t.Fatal(err)
	}
	if uintptr(size) != g.Type.Size() {
		t.Errorf("%s has %d bytes in C and %d in Go", c.Name, size, g.Type.Size())
	}
}

// Whoever adds a struct to a map adds its twin, or this fails.
func TestEverySharedStructHasATwin(t *testing.T) {
	for name, m := range mustSpecs(t).Maps {
		for what, typ := range map[string]btf.Type{"key": m.Key, "value": m.Value} {
			s, ok := btf.As[*btf.Struct](typ)
			if !ok {
				continue
			}
			if _, ok := goTwins[s.Name]; !ok {
				t.Errorf("the %s of %s, struct %s, has no Go twin", what, name, s.Name)
			}
		}
	}
}

func TestMapsHaveTheShapeOfTheirTypes(t *testing.T) {
	const array, hash, lru, trie = ebpf.Array, ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie
	spec := mustSpecs(t)
	want := map[MapName]struct {
		typ        ebpf.MapType
		key, value any
		flags      uint32
		entries    uint32
	}{
		MapMeta:     {array, uint32(0), Meta{}, 0, 1},
		MapFrontend: {hash, FrontendKey{}, Frontend{}, 1, 131072},
		MapService:  {array, uint32(0), Word(0), 0, 131072},
		MapBackend:  {hash, BackendKey{}, Backend{}, 1, 131072},
		MapRange:    {trie, RangeKey{}, uint8(0), 1, 65536},
		MapControl:  {array, uint32(0), Control(0), 0, 1},
		MapWorkload: {hash, uint64(0), Workload{}, 1, 16384},
		MapAffinity: {lru, AffinityKey{}, AffinityValue{}, 0, 16384},
		MapCounter:  {array, uint32(0), Counters{}, 0, 65536},
		MapPeer:     {array, uint32(0), Peer{}, 0, 65536},
		MapReverse:  {lru, ReverseKey{}, Reverse{}, 0, 16384},
		MapFlow:     {lru, FlowKey{}, Flow{}, 0, 16384},
	}
	for _, name := range MapNames() {
		w, m := want[name], spec.Maps[name.Kernel()]
		if m == nil {
			t.Fatalf("the object has no map %s", name.Kernel())
		}
		if m.Type != w.typ || int(m.KeySize) != binary.Size(w.key) || int(m.ValueSize) != binary.Size(w.value) {
			t.Errorf("%s: %v with %d and %d bytes, want %v with %d and %d",
				name, m.Type, m.KeySize, m.ValueSize, w.typ, binary.Size(w.key), binary.Size(w.value))
		}
		if m.Flags != w.flags || m.MaxEntries != w.entries {
			t.Errorf("%s: flags %d, %d entries, want %d, %d", name, m.Flags, m.MaxEntries, w.flags, w.entries)
		}
	}
	own := len(want) + 1 // and .rodata
	if len(spec.Maps) != own {
		t.Errorf("the object has %d maps, want %d: the list above is not whole", len(spec.Maps), own)
	}
	if n := spec.Maps[MapPeer.Kernel()].MaxEntries; n&(n-1) != 0 {
		t.Errorf("peer has %d entries: the programs index it with a mask", n)
	}
}

// Constants are no part of an object's BTF: they are read from the headers that it is compiled of.
func TestConstantsAreThoseOfTheHeaders(t *testing.T) {
	c := headerConstants(t, "lib/types.h", "lib/config.h", "include/bpf.h")
	for name, got := range map[string]uint64{
		"FRONTEND_VIP":       uint64(FrontendVIP),
		"FRONTEND_LOCAL":     uint64(FrontendLocal),
		"FRONTEND_STICKY":    uint64(FrontendSticky),
		"FRONTEND_LIMITED":   uint64(FrontendLimited),
		"CONFIG_UDP":         uint64(SettingsUDP),
		"CONFIG_HOST_SCOPE":  uint64(SettingsHostScope),
		"BACKEND_MEMBER":     BackendMember,
		"SET_DROP":           SetDrop,
		"SET_AFFINITY":       SetAffinity,
		"SLOT_AFFINITY":      SlotAffinity,
		"CONTROL_OPT_OUT":    uint64(ControlOptOut),
		"WORKLOAD_OPTED_OUT": uint64(WorkloadOptedOut),
		"IPPROTO_TCP":        uint64(TCP),
		"IPPROTO_UDP":        uint64(UDP),
	} {
		want, ok := c[name]
		if !ok || want != got {
			t.Errorf("%s is %#x in C (there: %v) and %#x in Go", name, want, ok, got)
		}
		delete(c, name)
	}
	for name := range c {
		if slices.ContainsFunc([]string{"FRONTEND_", "CONFIG_", "CONTROL_", "WORKLOAD_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			t.Errorf("%s has no Go twin in this test", name)
		}
	}
}

// headerConstants reads `NAME = 1 << 2,` of enums and `#define NAME 0x80u`.
func headerConstants(t *testing.T, paths ...string) map[string]uint64 {
	t.Helper()
	constants := map[string]uint64{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			line, _, _ = strings.Cut(line, "/*")
			line = strings.TrimSpace(line)
			name, value, ok := strings.Cut(line, " = ")
			if def, isDef := strings.CutPrefix(line, "#define "); isDef {
				name, value, ok = strings.Cut(def, " ")
			}
			if n, err := evaluate(strings.TrimSuffix(value, ",")); ok && err == nil {
				constants[name] = n
			}
		}
	}
	return constants
}

func evaluate(s string) (uint64, error) {
	base, shift, shifted := strings.Cut(s, " << ")
	n, err := strconv.ParseUint(strings.TrimSuffix(base, "u"), 0, 64)
	if err != nil || !shifted {
		return n, err
	}
	by, err := strconv.ParseUint(shift, 0, 6)
	return n << by, err
}

func TestAWordIsWhatTheProgramsTakeApart(t *testing.T) {
	w := WordOf(0x11223344, 0x55667788)
	if w.Set() != 0x11223344 || w.Count() != 0x55667788 {
		t.Errorf("%#x: set %#x, count %#x", uint64(w), w.Set(), w.Count())
	}
	if uint64(w) != 0x5566778811223344 {
		t.Errorf("word is %#x: lib/types.h has the set in the low half", uint64(w))
	}
	if WordAt(7, false) != 14 || WordAt(7, true) != 15 {
		t.Errorf("words of service 7 at %d and %d, want 14 and 15", WordAt(7, false), WordAt(7, true))
	}
}

func TestAddressesAndPortsAreInNetworkByteOrder(t *testing.T) {
	k := FrontendKeyOf(netip.MustParseAddrPort("10.96.0.1:443"), TCP)
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, k); err != nil {
		t.Fatal(err)
	}
	want := append(make([]byte, 10), 0xff, 0xff, 10, 96, 0, 1, 0x01, 0xbb, 6, 0)
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the key of %v is % x, want % x", k, b.Bytes(), want)
	}
	for _, s := range []string{"10.96.0.1:443", "[fd00:96::1]:443", "[::1]:1", "255.255.255.255:65535"} {
		ap := netip.MustParseAddrPort(s)
		if got := FrontendKeyOf(ap, UDP).AddrPort(); got != ap {
			t.Errorf("%v comes back as %v", ap, got)
		}
		if got := (Backend{Addr: AddressOf(ap.Addr()), Port: PortOf(ap.Port())}).AddrPort(); got != ap {
			t.Errorf("backend %v comes back as %v", ap, got)
		}
	}
	mapped := netip.MustParseAddrPort("[::ffff:10.96.0.1]:443")
	if FrontendKeyOf(mapped, TCP) != k {
		t.Error("a v4-mapped address has another key than its IPv4 address")
	}
}

func TestKeysAndProtocolsReadLikePeopleWriteThem(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{FrontendKeyOf(netip.MustParseAddrPort("10.96.0.1:443"), TCP).String(), "tcp/10.96.0.1:443"},
		{FrontendKeyOf(netip.MustParseAddrPort("[fd00::1]:53"), UDP).String(), "udp/[fd00::1]:53"},
		{VIPKeyOf(netip.MustParseAddr("10.96.0.1")).String(), "any/10.96.0.1"},
		{Proto(0).String(), "any"},
		{Proto(47).String(), "proto-47"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
	for _, p := range []Proto{TCP, UDP, SCTP} {
		if got, err := ParseProto(p.String()); err != nil || got != p {
			t.Errorf("ParseProto(%q) = %v, %v", p, got, err)
		}
		if text, err := p.MarshalText(); err != nil || string(text) != p.String() {
			t.Errorf("MarshalText of %v: %q, %v", p, text, err)
		}
	}
	for _, s := range []string{"", "TCP", "any", "icmp", "tcp "} {
		if p, err := ParseProto(s); err == nil {
			t.Errorf("ParseProto(%q) = %v, want an error", s, p)
		} else if !strings.Contains(err.Error(), strconv.Quote(s)) {
			t.Errorf("ParseProto(%q): %v doesn't quote it", s, err)
		}
	}
}
