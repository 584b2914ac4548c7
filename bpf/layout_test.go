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

// mustSpecs is a copy of the balancer's object.
func mustSpecs(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := parsedConnect()
	if err != nil {
		t.Fatal(err)
	}
	return spec.Copy()
}

func mustMapSpecs(t testing.TB) map[MapName]*ebpf.MapSpec {
	t.Helper()
	specs, err := specs(Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range PacketMapTable() {
		if specs[info.Name], err = packetSpec(info); err != nil {
			t.Fatal(err)
		}
	}
	return specs
}

// goTwins are the Go types of this package and the C structs of lib/*.h that they mirror.
var goTwins = map[string]any{
	"address":           Address{},
	"frontend_key":      FrontendKey{},
	"frontend":          Frontend{},
	"backend_key":       BackendKey{},
	"backend":           Backend{},
	"counters":          Counters{},
	"affinity_key":      AffinityKey{},
	"sock_rev_nat":      SockRevNat{},
	"udp_rev_nat_key":   UDPRevNatKey{},
	"udp_rev_nat":       UDPRevNat{},
	"udp_way_back":      UDPWayBack{},
	"sock_affinity_key": SockAffinityKey{},
	"sock_affinity":     SockAffinity{},
	"sock_usage":        SockUsage{},
	"source_range_key":  SourceRangeKey{},
	"workload":          Workload{},
	"meta":              Meta{},
	"config":            Settings{},
	"flow_key":          FlowKey{},
	"flow":              Flow{},
	"fragment_key":      FragmentKey{},
	"fragment":          Fragment{},
	"masquerade_key":    MasqueradeKey{},
	"packet_control":    PacketControl{},
	"reject_limit":      RejectLimit{},
	"uplink_config":     UplinkSettings{},
}

func TestLayoutOfGoTypesIsThatOfTheObjects(t *testing.T) {
	maps, err := parsedMaps()
	if err != nil {
		t.Fatal(err)
	}
	for name, twin := range goTwins {
		t.Run(name, func(t *testing.T) {
			var c *btf.Struct
			if err := maps.Types.TypeByName(name, &c); err != nil {
				uplink, uplinkErr := parsedFromUplink()
				if uplinkErr != nil {
					t.Fatal(uplinkErr)
				}
				if mustSpecs(t).Types.TypeByName(name, &c) != nil && uplink.Types.TypeByName(name, &c) != nil {
					t.Fatal(err)
				}
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

// A struct that is added to a map needs its twin.
func TestLayoutHasATwinOfEveryStruct(t *testing.T) {
	for name, m := range mustMapSpecs(t) {
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

func TestMapTableHasTheLayoutOfTheHeaders(t *testing.T) {
	const array, hash, lru, trie = ebpf.Array, ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie
	want := map[MapName]struct {
		typ     ebpf.MapType
		flags   uint32
		entries uint32
	}{
		MapMeta:            {array, 0, 1},
		MapFrontend:        {hash, 1, 131072},
		MapNodePorts:       {array, 0, 1},
		MapService:         {array, 0, 131072},
		MapBackend:         {hash, 1, 131072},
		MapCounter:         {array, 0, 65536},
		MapAffinity:        {lru, 0, 16384},
		MapSourceRange:     {trie, 1, 65536},
		MapControl:         {array, 0, 1},
		MapWorkload:        {hash, 1, 16384},
		MapSockRevNat:      {array, 0, 65536},
		MapUDPRevNat:       {lru, 0, 16384},
		MapSockAffinity:    {lru, 0, 16384},
		MapUDPSockRevNat:   {hash, 1, 65536},
		MapUDPSockAffinity: {hash, 1, 65536},
		MapSockUsage:       {array, 0, 2},
		MapUDPLog:          {ebpf.Queue, 0, 8192},
		MapConntrack:       {lru, 0, 65536},
		MapFragment:        {lru, 0, 8192},
		MapMasquerade:      {trie, 1, 65536},
		MapPacketControl:   {array, 0, 1},
		MapPackets:         {array, 0, uint32(packetCounts)},
		MapRejectLimit:     {ebpf.PerCPUArray, 0, 1},
		MapEvents:          {ebpf.RingBuf, 0, 1 << 18},
		MapMonitor:         {array, 0, 1},
	}
	specs := mustMapSpecs(t)
	for _, info := range slices.Concat(MapTable(), PacketMapTable()) {
		w, m := want[info.Name], specs[info.Name]
		if m.Type != w.typ || m.Flags != w.flags || m.MaxEntries != w.entries {
			t.Errorf("%s: %v, flags %d, %d entries, want %+v", info.Name, m.Type, m.Flags, m.MaxEntries, w)
		}
		if int(m.KeySize) != binary.Size(info.Key) || int(m.ValueSize) != binary.Size(info.Value) {
			t.Errorf("%s: keys of %d and values of %d bytes, those of %T and %T have %d and %d", info.Name,
				m.KeySize, m.ValueSize, info.Key, info.Value, binary.Size(info.Key), binary.Size(info.Value))
		}
	}
	object, err := parsedMaps()
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != len(object.Maps) || len(specs) != len(want) {
		t.Errorf("the table has %d maps, the object %d, this test %d", len(specs), len(object.Maps), len(want))
	}
	if n := specs[MapSockRevNat].MaxEntries; n&(n-1) != 0 {
		t.Errorf("sock_rev_nat has %d entries: the programs index it with a mask", n)
	}
}

func TestMapTableHasTheObjectsThatUseAMap(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"connect": loadConnect, "cookie": loadCookie, "from_uplink": loadFromUplink, "to_uplink": loadToUplink,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		for _, p := range spec.Programs {
			for _, ins := range p.Instructions {
				if ins.IsLoadFromMap() {
					used[ins.Reference()] = true
				}
			}
		}
		for kernel := range spec.Maps {
			if !used[kernel] {
				t.Errorf("the object %s has the map %s, which none of its programs uses", name, kernel)
			}
		}
		for _, info := range slices.Concat(MapTable(), PacketMapTable()) {
			if says := slices.Contains(info.Objects, name); says != used[info.Kernel] {
				t.Errorf("%s: the table says %v of its use by the object %s, it is %v", info.Name, says, name, used[info.Kernel])
			}
		}
	}
}

// Constants are no part of an object's BTF: they are read from the headers that it is compiled of.
func TestLayoutConstantsAreThoseOfTheHeaders(t *testing.T) {
	c := headerConstants(t, "lib/lb_maps.h", "lib/source_range_maps.h", "lib/workload_maps.h", "lib/config.h", "lib/nowhere.h",
		"lib/sock_usage_maps.h", "lib/conntrack_maps.h", "include/bpf.h")
	for name, got := range map[string]uint64{
		"FRONTEND_VIP":            uint64(FrontendVIP),
		"FRONTEND_LOCAL_POLICY":   uint64(FrontendLocalPolicy),
		"FRONTEND_STICKY":         uint64(FrontendSticky),
		"FRONTEND_SOURCE_RANGE":   uint64(FrontendSourceRange),
		"FRONTEND_NODE":           uint64(FrontendNode),
		"FRONTEND_EXTERNAL":       uint64(FrontendExternal),
		"FRONTEND_EXTERNAL_LOCAL": uint64(FrontendExternalLocal),
		"FRONTEND_MARK_PORT":      uint64(ExternalVIPKeyOf(netip.IPv6Loopback()).Port.Uint16()),
		"FRONTEND_EXTERNAL_RANGE": uint64(FrontendExternalRange),
		"BACKEND_LOCAL":           uint64(BackendLocal),
		"CONFIG_UDP":              uint64(SettingsUDP),
		"CONFIG_HOST_SCOPE":       uint64(SettingsHostScope),
		"BACKEND_MEMBER":          BackendMember,
		"SET_DROP":                SetDrop,
		"SET_AFFINITY":            SetAffinity,
		"SLOT_AFFINITY":           SlotAffinity,
		"CONTROL_OPT_OUT":         uint64(ControlOptOut),
		"INDEX_SERVICE_CIDR":      uint64(IndexServiceCIDR),
		"INDEX_SERVICE_EXCEPT":    uint64(IndexServiceExcept),
		"WORKLOAD_OPTED_OUT":      uint64(WorkloadOptedOut),
		"SOCK_USAGE_REV_NAT":      uint64(SockUsageRevNat),
		"SOCK_USAGE_AFFINITY":     uint64(SockUsageAffinity),
		"NOWHERE_IP4":             uint64(binary.BigEndian.Uint32(Nowhere(true).Addr().AsSlice())),
		"NOWHERE_PORT":            uint64(Nowhere(true).Port()),
		"FLOW_REPLIED":            uint64(FlowReplied),
		"FLOW_FIN":                uint64(FlowFin),
		"FLOW_FIN_OTHER":          uint64(FlowFinOther),
		"FLOW_RESET":              uint64(FlowReset),
		"FLOW_STACK":              uint64(FlowStack),
		"FLOW_MASQUERADE":         uint64(FlowMasquerade),
		"FLOW_CUT":                uint64(FlowCut),
		"WAY_IN":                  uint64(WayIn),
		"WAY_OUT":                 uint64(WayOut),
		"IPPROTO_SCTP":            uint64(SCTP),
		"IPPROTO_TCP":             uint64(TCP),
		"IPPROTO_UDP":             uint64(UDP),
	} {
		want, ok := c[name]
		if !ok || want != got {
			t.Errorf("%s is %#x in C (there: %v) and %#x in Go", name, want, ok, got)
		}
		delete(c, name)
	}
	for name := range c {
		if slices.ContainsFunc([]string{"FRONTEND_", "BACKEND_", "CONFIG_", "CONTROL_", "WORKLOAD_", "INDEX_", "SOCK_USAGE_", "NOWHERE_", "FLOW_", "WAY_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
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

func TestServiceStateIsWhatTheProgramsTakeApart(t *testing.T) {
	s := ServiceStateOf(0x11223344, 0x55667788)
	if s.Set() != 0x11223344 || s.Count() != 0x55667788 {
		t.Errorf("%#x: set %#x, count %#x", uint64(s), s.Set(), s.Count())
	}
	if uint64(s) != 0x5566778811223344 {
		t.Errorf("state is %#x: lib/lb_maps.h has the set in the low half", uint64(s))
	}
	if ServiceStateAt(7, false) != 14 || ServiceStateAt(7, true) != 15 {
		t.Errorf("states of service 7 at %d and %d, want 14 and 15", ServiceStateAt(7, false), ServiceStateAt(7, true))
	}
}

func TestFrontendKeyIsInNetworkByteOrder(t *testing.T) {
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

func TestFrontendKeyAndProtoString(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{FrontendKeyOf(netip.MustParseAddrPort("10.96.0.1:443"), TCP).String(), "tcp/10.96.0.1:443"},
		{FrontendKeyOf(netip.MustParseAddrPort("[fd00::1]:53"), UDP).String(), "udp/[fd00::1]:53"},
		{VIPKeyOf(netip.MustParseAddr("10.96.0.1")).String(), "any/10.96.0.1"},
		{ExternalVIPKeyOf(netip.MustParseAddr("203.0.113.1")).String(), "outside/203.0.113.1"},
		{NodeKeyOf(netip.MustParseAddr("192.0.2.7")).String(), "node/192.0.2.7"},
		{NodePortKey(true, 30080, TCP).String(), "tcp/nodes-ipv4:30080"},
		{NodePortKey(false, 30053, UDP).String(), "udp/nodes-ipv6:30053"},
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
