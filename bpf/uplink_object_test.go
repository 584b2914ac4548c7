package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/firsthop/firsthop/test/lab"
)

// uplinkHelpers are what programs at uplinks may call on the floor, and which kernel brought each to tc programs.
var uplinkHelpers = map[asm.BuiltinFunc]string{
	asm.FnMapLookupElem: "4.1", asm.FnMapUpdateElem: "4.1", asm.FnMapDeleteElem: "4.1", asm.FnKtimeGetNs: "4.1", asm.FnGetPrandomU32: "4.1",
	asm.FnSkbStoreBytes: "4.1", asm.FnL3CsumReplace: "4.1", asm.FnL4CsumReplace: "4.1", asm.FnSkbLoadBytes: "4.5",
	asm.FnCsumDiff: "4.6", asm.FnRedirect: "4.2", asm.FnSkbChangeTail: "4.9", asm.FnSkbPullData: "4.9",
	asm.FnCsumUpdate: "4.9", asm.FnRingbufOutput: "5.8; replaced below (withoutEvents)", asm.FnSkbAdjustRoom: "4.13; between the link's header and the network's 5.2",
}

func TestUplinksCallOnlyHelpersOfTheFloor(t *testing.T) {
	used := map[asm.BuiltinFunc]bool{}
	for _, h := range UplinkHooks() {
		spec, _, err := uplinkObject(h)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range spec.Programs {
			for _, ins := range p.Instructions {
				if !ins.IsBuiltinCall() {
					continue
				}
				fn := asm.BuiltinFunc(ins.Constant)
				used[fn] = true
				if _, ok := uplinkHelpers[fn]; !ok {
					t.Errorf("%s calls %v, which the floor may lack", h.Program(), fn)
				}
			}
		}
	}
	for fn := range uplinkHelpers {
		if !used[fn] {
			t.Errorf("nothing calls %v", fn)
		}
	}
}

func TestUplinkHooksTranslateTheWayBackFirst(t *testing.T) {
	names := []string{}
	for _, h := range UplinkHooks() {
		names = append(names, h.Name)
	}
	if !slices.Equal(names, []string{"to_uplink", "from_uplink"}) {
		t.Errorf("hooks are %v", names)
	}
}

// What Inspect reads of a program is its .rodata: nothing but settings may be in it.
func TestUplinksHaveNoConstantsButSettings(t *testing.T) {
	for _, h := range UplinkHooks() {
		spec, _, err := uplinkObject(h)
		if err != nil {
			t.Fatal(err)
		}
		if m := spec.Maps[".rodata"]; m == nil || int(m.ValueSize) != binary.Size(UplinkSettings{}) {
			t.Errorf("%s: .rodata is %+v", h.Program(), m)
		}
	}
}

func TestUplinkKnowsItsPrograms(t *testing.T) {
	r, other := newUplinkRig(t, Uplink{}), newUplinkRig(t, Uplink{})
	for hook, p := range r.progs {
		if l, current, err := r.uplink.Inspect(p, r.table, r.packet); err != nil || !l.Ours || !current {
			t.Errorf("%s: %+v, current %v, %v", hook, l, current, err)
		}
		if l, current, err := (Uplink{L3: true}).Inspect(p, r.table, r.packet); err != nil || !l.Ours || current {
			t.Errorf("%s for other devices: %+v, current %v, %v", hook, l, current, err)
		}
		if l, current, err := r.uplink.Inspect(p, other.table, r.packet); err != nil || !l.Ours || current != (hook == "to_uplink") {
			t.Errorf("%s on another table: %+v, current %v, %v", hook, l, current, err)
		}
		if l, current, err := r.uplink.Inspect(p, other.table, other.packet); err != nil || l.Ours || current {
			t.Errorf("%s of another instance: %+v, current %v, %v", hook, l, current, err)
		}
	}
}

func TestUplinkTellsWhoListens(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "ring buffers")
	r, f := newUplinkRig(t, Uplink{}), families[1]
	events, err := ringbuf.NewReader(r.packet.Map(MapEvents))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	syn := segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}
	r.in(t, syn.bytes(t)) // nobody listens
	if err := r.packet.Map(MapMonitor).Put(uint32(0), ^uint64(0)); err != nil {
		t.Fatal(err)
	}
	syn.src = netip.AddrPortFrom(f.client.Addr(), 40001)
	r.in(t, syn.bytes(t))
	record, err := events.Read()
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &got); err != nil {
		t.Fatal(err)
	}
	got.At = 0
	want := Event{Key: FlowKeyOf(syn.src, f.vip, TCP, WayIn), To: AddressOf(f.backend.Addr()), Port: PortOf(f.backend.Port()), What: uint16(CountFlow)}
	if got != want {
		t.Errorf("told %+v, want %+v", got, want)
	}
}

func TestUplinksLoadWithoutRingBuffers(t *testing.T) {
	r := newUplinkRig(t, Uplink{})
	if m := r.packet.byName[MapEvents]; m != nil {
		m.Close()
		delete(r.packet.byName, MapEvents)
	}
	progs, err := r.uplink.Load(r.table, r.packet)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range progs {
		if _, current, err := r.uplink.Inspect(p, r.table, r.packet); err != nil || current {
			t.Errorf("current %v, %v: it uses a map that is none of the packet path's", current, err)
		}
		p.Close()
	}
}
