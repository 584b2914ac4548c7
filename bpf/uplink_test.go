package bpf

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// a family's addresses of a flow.
type family struct {
	name                            string
	client, vip, backend, node, any netip.AddrPort
}

var families = []family{
	{"IPv4", ap("203.0.113.2:40000"), ap("192.0.2.10:80"), ap("10.1.0.5:8080"), ap("198.51.100.1:0"), ap("0.0.0.0:0")},
	{"IPv6", ap("[2001:db8:c::2]:40000"), ap("[2001:db8:5::10]:80"), ap("[fd00:1::5]:8080"), ap("[2001:db8:1::1]:0"), ap("[::]:0")},
}

const testIndex = 3

// eachFamily runs a test for both families and the given protocols, on a service with one backend. The programs are loaded once:
// that takes seconds in an emulated machine.
func eachFamily(t *testing.T, u Uplink, protos []Proto, test func(t *testing.T, r *uplinkRig, f family, p Proto)) {
	r := newUplinkRig(t, u)
	for _, f := range families {
		for _, p := range protos {
			t.Run(fmt.Sprintf("%s/%s", f.name, p), func(t *testing.T) {
				r.reset(t)
				r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{f.backend}, nil)
				test(t, r, f, p)
			})
		}
	}
}

var allProtos = []Proto{TCP, UDP, SCTP}

func TestVerifierWalksThroughUplinks(t *testing.T) {
	lab.NeedsLinux(t, 5, 16, "says how many instructions were verified")
	for _, u := range []Uplink{{}, {L3: true}} {
		for name, p := range newUplinkRig(t, u).progs {
			info, err := p.Info()
			if err != nil {
				t.Fatal(err)
			}
			n, ok := info.VerifiedInstructions()
			if !ok || n == 0 || n > 200_000 {
				t.Errorf("%s of %+v: %d instructions, want 200,000 at most: a kernel takes a million", name, u, n)
			}
			t.Logf("%s of %+v: %d instructions", name, u, n)
		}
	}
}

func TestUplinkTranslatesInAndOut(t *testing.T) {
	eachFamily(t, Uplink{}, allProtos, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		for _, payload := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("firsthop"), 150)} {
			first := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN, payload: payload}
			v, out := r.in(t, first.bytes(t))
			wantVerdict(t, v, tcUnspec)
			first.dst = f.backend
			wantPacket(t, out, first)

			back := first.reply()
			v, out = r.out(t, back.bytes(t))
			wantVerdict(t, v, tcUnspec)
			back.src = f.vip
			wantPacket(t, out, back)
		}
	})
}

func (r *uplinkRig) masquerade(t testing.TB, f family) {
	t.Helper()
	prefix := netip.PrefixFrom(f.any.Addr(), 0)
	if err := r.packet.Map(MapMasquerade).Put(MasqueradeKeyOf(1, prefix), AddressOf(f.node.Addr())); err != nil { // PROG_TEST_RUN's device is lo
		t.Fatal(err)
	}
	if err := r.packet.Map(MapPacketControl).Put(uint32(0), PacketControl{FirstPort: 20000, Ports: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestUplinkMasqueradesWhatLeavesForABackend(t *testing.T) {
	eachFamily(t, Uplink{}, allProtos, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.masquerade(t, f)
		node := netip.AddrPortFrom(f.node.Addr(), 20000)
		for range 2 { // the second packet takes the way that the first one made
			s := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN, payload: []byte("hello")}
			v, out := r.in(t, s.bytes(t))
			wantVerdict(t, v, tcUnspec)
			v, out = r.out(t, out)
			wantVerdict(t, v, tcUnspec)
			s.src, s.dst = node, f.backend
			wantPacket(t, out, s)

			s = s.reply()
			v, out = r.in(t, s.bytes(t))
			wantVerdict(t, v, tcUnspec)
			s.dst = f.client
			wantPacket(t, out, s)
			v, out = r.out(t, out)
			wantVerdict(t, v, tcUnspec)
			s.src = f.vip
			wantPacket(t, out, s)
		}
		other := segment{src: netip.AddrPortFrom(f.client.Addr(), 40001), dst: f.vip, proto: p, flags: flagSYN}
		_, out := r.in(t, other.bytes(t))
		v, _ := r.out(t, out)
		wantVerdict(t, v, tcShot)
		if c := r.counts(t); c[CountNoPort] != 1 || c[CountFlow] != 2 {
			t.Errorf("counts are %v, want 2 flows and 1 without a port", c)
		}
	})
}

func TestUplinkTranslatesFragments(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		for _, part := range []part{firstFragment, laterFragment} {
			s := segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: part}
			v, out := r.in(t, s.bytes(t))
			wantVerdict(t, v, tcUnspec)
			s.dst = f.backend
			wantPacket(t, out, s)
			s = s.reply()
			v, out = r.out(t, s.bytes(t))
			wantVerdict(t, v, tcUnspec)
			s.src = f.vip
			wantPacket(t, out, s)
		}
	})
}

// The first fragment is lost between both hooks, where it is too large for the device by which it would leave.
func TestUplinkMasqueradesFragmentsWhoseFirstIsLost(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.masquerade(t, f)
		s := segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: firstFragment}
		r.in(t, s.bytes(t))
		s.fragment = laterFragment
		_, out := r.in(t, s.bytes(t))
		v, out := r.out(t, out)
		wantVerdict(t, v, tcUnspec)
		s.src, s.dst = netip.AddrPortFrom(f.node.Addr(), 20000), f.backend
		wantPacket(t, out, s)
	})
}

// Neither where it has none at all, nor where it has one of the other family.
func TestUplinkHasNoSourceForAnUnknownDevice(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		other := families[0]
		if f.name == other.name {
			other = families[1]
		}
		r.masquerade(t, other)
		_, out := r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		v, _ := r.out(t, out)
		wantVerdict(t, v, tcShot)
		if c := r.counts(t); c[CountNoSource] != 1 {
			t.Errorf("counts are %v", c)
		}
	})
}

// Who begins a flow: see rule 5 of docs/packet-path.md.
func TestUplinkLeavesTheMiddleOfConnectionsToTheStack(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP, SCTP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		for _, flags := range []uint8{flagACK, flagSYN | flagACK, flagFIN | flagACK, flagRST, flagSYN | flagFIN, 0} {
			s := segment{src: f.client, dst: f.vip, proto: p, flags: flags, chunk: 3}
			in := s.bytes(t)
			v, out := r.in(t, in)
			wantVerdict(t, v, tcUnspec)
			if !bytes.Equal(in, out) {
				t.Errorf("flags %#x: changed", flags)
			}
		}
	})
}

func TestUplinkBeginsAnewOnceAConnectionHasEnded(t *testing.T) {
	for _, end := range []struct {
		name    string
		in, out uint8
	}{{"FIN", flagFIN | flagACK, flagFIN | flagACK}, {"RST by the backend", 0, flagRST}} {
		t.Run(end.name, func(t *testing.T) {
			eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
				syn := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}
				r.in(t, syn.bytes(t))
				r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagSYN | flagACK}.bytes(t))
				next := netip.AddrPortFrom(f.backend.Addr(), 9090)
				r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{next}, nil)
				_, out := r.in(t, syn.bytes(t))
				syn.dst = f.backend
				wantPacket(t, out, syn) // not ended yet
				if end.in != 0 {
					r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: end.in}.bytes(t))
				}
				if end.out != 0 {
					r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: end.out}.bytes(t))
				}
				syn.dst = f.vip
				_, out = r.in(t, syn.bytes(t))
				syn.dst = next
				wantPacket(t, out, syn)
				ack := segment{src: f.client, dst: f.vip, proto: p, flags: flagACK}
				_, out = r.in(t, ack.bytes(t))
				ack.dst = next
				wantPacket(t, out, ack)
			})
		})
	}
}

// A client may connect to an endpoint directly, from a port that it had for a Service before.
func TestUplinkForgetsAnEndedFlowWhoseClientConnectsDirectly(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagFIN | flagACK}.bytes(t))
		fin := segment{src: f.backend, dst: f.client, proto: p, flags: flagFIN | flagACK}
		for range 2 { // one may be sent again
			_, out := r.out(t, fin.bytes(t))
			want := fin
			want.src = f.vip
			wantPacket(t, out, want)
		}
		for _, flags := range []uint8{flagSYN | flagACK, flagACK} {
			s := segment{src: f.backend, dst: f.client, proto: p, flags: flags}
			_, out := r.out(t, s.bytes(t))
			wantPacket(t, out, s)
		}
	})
}

// Who knows the addresses and ports of a connection can send a reset. That must neither lead the client to another endpoint, nor have
// the connection be forgotten while it is in use.
func TestUplinkDoesNotBelieveAResetFromOutside(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		syn := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}
		r.in(t, syn.bytes(t))
		r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagSYN | flagACK}.bytes(t))
		r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{netip.AddrPortFrom(f.backend.Addr(), 9090)}, nil)
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagRST}.bytes(t))
		_, out := r.in(t, syn.bytes(t))
		syn.dst = f.backend
		wantPacket(t, out, syn)

		halves := []FlowKey{FlowKeyOf(f.client, f.vip, p, WayIn), FlowKeyOf(f.backend, f.client, p, WayOut)}
		cut := func() (flags []FlowFlags) {
			for _, key := range halves {
				var half Flow
				if err := r.packet.Map(MapConntrack).Lookup(key, &half); err != nil {
					t.Fatal(err)
				}
				flags = append(flags, half.Flags&(FlowCut|FlowReset))
				half.Seen = 1 // long ago
				if err := r.packet.Map(MapConntrack).Put(key, half); err != nil {
					t.Fatal(err)
				}
			}
			return flags
		}
		if got := cut(); !slices.Equal(got, []FlowFlags{FlowCut, FlowCut}) {
			t.Errorf("after the reset: %v", got)
		}
		r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagACK}.bytes(t))
		if got := cut(); !slices.Equal(got, []FlowFlags{0, 0}) {
			t.Errorf("after a packet that came later: %v", got)
		}
	})
}

// A client that cut off a connection may use its port for another frontend of the endpoint, once nothing has come of the former for
// two seconds.
func TestUplinkGivesAPortBackThatWasCutOff(t *testing.T) {
	f := families[0]
	other := ap("192.0.2.11:80")
	r := newUplinkRig(t, Uplink{})
	r.service(t, 3, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	r.service(t, 4, FrontendKeyOf(other, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	r.in(t, segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}.bytes(t))
	r.out(t, segment{src: f.backend, dst: f.client, proto: TCP, flags: flagSYN | flagACK}.bytes(t))
	r.in(t, segment{src: f.client, dst: f.vip, proto: TCP, flags: flagRST}.bytes(t))
	syn := segment{src: f.client, dst: other, proto: TCP, flags: flagSYN}.bytes(t)
	v, _ := r.in(t, syn)
	wantVerdict(t, v, tcShot)
	key := FlowKeyOf(f.backend, f.client, TCP, WayOut)
	var half Flow
	if err := r.packet.Map(MapConntrack).Lookup(key, &half); err != nil {
		t.Fatal(err)
	}
	half.Seen = 1
	if err := r.packet.Map(MapConntrack).Put(key, half); err != nil {
		t.Fatal(err)
	}
	v, _ = r.in(t, syn)
	wantVerdict(t, v, tcUnspec)
}

// A reset of the connection before may come when the client has its port anew: from either side, before or after the answer.
func TestUplinkOutlivesALateReset(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		syn := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}
		answer := segment{src: f.backend, dst: f.client, proto: p, flags: flagSYN | flagACK}
		reset := segment{src: f.backend, dst: f.client, proto: p, flags: flagRST}
		wantAnswer := func() {
			t.Helper()
			_, out := r.out(t, answer.bytes(t))
			want := answer
			want.src = f.vip
			wantPacket(t, out, want)
		}
		r.in(t, syn.bytes(t))
		wantAnswer()
		r.out(t, reset.bytes(t))
		r.in(t, syn.bytes(t)) // anew
		r.out(t, reset.bytes(t))
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagRST}.bytes(t))
		wantAnswer()
		r.out(t, reset.bytes(t))
		wantAnswer() // again, as its first one was lost
		ack := segment{src: f.client, dst: f.vip, proto: p, flags: flagACK}
		_, out := r.in(t, ack.bytes(t))
		ack.dst = f.backend
		wantPacket(t, out, ack)
	})
}

func TestUplinkRejectsWhatNothingServes(t *testing.T) {
	eachFamily(t, Uplink{}, allProtos, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, nil, nil)
		if err := r.table.Map(MapFrontend).Put(ExternalVIPKeyOf(f.vip.Addr()), Frontend{Flags: FrontendVIP | FrontendExternal}); err != nil {
			t.Fatal(err)
		}
		for _, port := range []uint16{f.vip.Port(), 81} {
			s := segment{src: f.client, dst: netip.AddrPortFrom(f.vip.Addr(), port), proto: p, flags: flagSYN, payload: []byte("payload")}
			v, out := r.in(t, s.bytes(t))
			wantVerdict(t, v, tcRedirect)
			wantAnswer(t, out, s)
		}
	})
}

// wantAnswer checks that a packet is the answer to s that says that nothing serves it, with all its checksums.
func wantAnswer(t *testing.T, got []byte, s segment) {
	t.Helper()
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if s.l3 {
		first = layers.LayerTypeIPv4
		if s.src.Addr().Is6() {
			first = layers.LayerTypeIPv6
		}
	}
	p := gopacket.NewPacket(got, first, gopacket.Default)
	if !s.l3 {
		if eth := p.LinkLayer().(*layers.Ethernet); eth.DstMAC.String() != routerMAC.String() || eth.SrcMAC.String() != hostMAC.String() {
			t.Errorf("link addresses are %s", eth.LinkFlow())
		}
	}
	if n := p.NetworkLayer().NetworkFlow(); n.Src().String() != s.dst.Addr().String() || n.Dst().String() != s.src.Addr().String() {
		t.Errorf("goes %s", n)
	}
	if err := checksums(p); err != nil {
		t.Errorf("%v in %v", err, p)
	}
	if s.proto == TCP {
		tcp, ok := p.TransportLayer().(*layers.TCP)
		if !ok {
			t.Fatalf("no TCP: %v", p)
		}
		want := uint32(1001 + len(s.payload))
		if !tcp.RST || !tcp.ACK || tcp.SYN || tcp.Ack != want || uint16(tcp.SrcPort) != s.dst.Port() || uint16(tcp.DstPort) != s.src.Port() || len(tcp.Payload) > 0 {
			t.Errorf("answer is %v, want a reset of sequence %d", p, want)
		}
		return
	}
	request := s.bytes(t)
	var quoted []byte
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		if icmp.TypeCode.Type() != 3 || icmp.TypeCode.Code() != 3 {
			t.Errorf("answer is %v", p)
		}
		quoted = icmp.Payload
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		if icmp.TypeCode.Type() != 1 || icmp.TypeCode.Code() != 4 {
			t.Errorf("answer is %v", p)
		}
		quoted = icmp.Payload[4:]
	} else {
		t.Fatalf("no ICMP: %v", p)
	}
	at := 14
	if s.l3 {
		at = 0
	}
	if !bytes.HasPrefix(request[at:], quoted) || len(quoted) < 28 {
		t.Errorf("quotes %x of %x", quoted, request[at:])
	}
}

func checksums(p gopacket.Packet) error {
	for _, l := range p.Layers() {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
				return err
			}
		}
	}
	if err, results := p.VerifyChecksums(); err != nil || len(results) > 0 {
		return fmt.Errorf("checksums: %v %+v", err, results)
	}
	return nil
}

func TestUplinkLimitsAnswers(t *testing.T) {
	r, f := newUplinkRig(t, Uplink{}), families[0]
	r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, nil, nil)
	in := segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}.bytes(t)
	room := make([]byte, 256)
	for range 2000 {
		opts := ebpf.RunOptions{Data: in, DataOut: room, Repeat: 1}
		if _, err := r.progs["from_uplink"].Run(&opts); err != nil {
			t.Fatal(err)
		}
	}
	c := r.counts(t)
	if c[CountRejected]+c[CountRejectLimited] != 2000 || c[CountRejected] < 50 || c[CountRejectLimited] == 0 {
		t.Errorf("of 2,000: %v", c)
	}
}

func TestUplinkLeavesOthersAlone(t *testing.T) {
	f := families[0]
	r := newUplinkRig(t, Uplink{})
	r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	inside := ap("10.96.0.10:53")
	r.service(t, 4, FrontendKeyOf(inside, UDP), 0, []netip.AddrPort{f.backend}, nil)
	if err := r.table.Map(MapFrontend).Put(VIPKeyOf(inside.Addr()), Frontend{Flags: FrontendVIP}); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]segment{
		"another port of a node":   {src: f.client, dst: netip.AddrPortFrom(f.vip.Addr(), 22), proto: TCP, flags: flagSYN},
		"another protocol":         {src: f.client, dst: f.vip, proto: UDP},
		"a cluster IP":             {src: f.client, dst: inside, proto: UDP},
		"a cluster IP's other":     {src: f.client, dst: netip.AddrPortFrom(inside.Addr(), 54), proto: UDP},
		"another address":          {src: f.client, dst: f.node, proto: TCP, flags: flagSYN},
		"no protocol of Services":  {src: f.client, dst: f.vip, proto: 47, payload: make([]byte, 40)},
		"an answer to nobody":      {src: f.backend, dst: f.client, proto: TCP, flags: flagACK},
		"a packet with IP options": {src: f.client, dst: f.node, proto: TCP, flags: flagSYN, options: true},
	} {
		for _, hook := range []string{"from_uplink", "to_uplink"} {
			in := s.bytes(t)
			v, out := r.run(t, hook, in)
			wantVerdict(t, v, tcUnspec)
			if !bytes.Equal(in, out) {
				t.Errorf("%s at %s is changed", name, hook)
			}
		}
	}
	other := segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}.bytes(t)
	copy(other, []byte{2, 0, 0, 0, 0, 9}) // to another host
	if v, out := r.in(t, other); v != tcUnspec || !bytes.Equal(other, out) {
		t.Error("a frame to another host is translated")
	}
	if c := r.counts(t); c[CountFlow] != 0 {
		t.Errorf("counts are %v", c)
	}
}

func TestUplinkKeepsPolicies(t *testing.T) {
	f := families[0]
	local := ap("10.1.0.9:8080")
	syn := segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}
	r := newUplinkRig(t, Uplink{})
	t.Run("local", func(t *testing.T) {
		r.reset(t)
		r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal|FrontendExternalLocal, []netip.AddrPort{f.backend}, []netip.AddrPort{local})
		_, out := r.in(t, syn.bytes(t))
		want := syn
		want.dst = local
		wantPacket(t, out, want)
	})
	t.Run("local for who is inside only", func(t *testing.T) { // a cluster IP that is an external IP, too
		r.reset(t)
		r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal|FrontendLocalPolicy, []netip.AddrPort{f.backend}, []netip.AddrPort{local})
		_, out := r.in(t, syn.bytes(t))
		want := syn
		want.dst = f.backend
		wantPacket(t, out, want)
	})
	t.Run("for who is inside only, at an address that is outside's", func(t *testing.T) {
		r.reset(t)
		r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), 0, []netip.AddrPort{f.backend}, nil)
		if err := r.table.Map(MapFrontend).Put(ExternalVIPKeyOf(f.vip.Addr()), Frontend{Flags: FrontendVIP | FrontendExternal}); err != nil {
			t.Fatal(err)
		}
		v, _ := r.in(t, syn.bytes(t))
		wantVerdict(t, v, tcRedirect)
	})
	t.Run("none local", func(t *testing.T) {
		r.reset(t)
		r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal|FrontendExternalLocal, []netip.AddrPort{f.backend}, nil)
		v, _ := r.in(t, syn.bytes(t))
		wantVerdict(t, v, tcShot)
		if c := r.counts(t); c[CountNoLocal] != 1 {
			t.Errorf("counts are %v", c)
		}
	})
	for _, flag := range []FrontendFlags{FrontendSourceRange, FrontendExternalRange} {
		t.Run(fmt.Sprintf("source range %#x", flag), func(t *testing.T) {
			r.reset(t)
			r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal|flag, []netip.AddrPort{f.backend}, nil)
			v, _ := r.in(t, syn.bytes(t))
			wantVerdict(t, v, tcShot)
			if c := r.counts(t); c[CountSourceRange] != 1 {
				t.Errorf("counts are %v", c)
			}
			key := SourceRangeKeyOf(testIndex, netip.MustParsePrefix("203.0.113.0/30"))
			if err := r.table.Map(MapSourceRange).Put(key, uint8(0)); err != nil {
				t.Fatal(err)
			}
			v, _ = r.in(t, syn.bytes(t))
			wantVerdict(t, v, tcUnspec)
		})
	}
}

// A client may use one port for two frontends of a backend: answers must not be mixed up.
func TestUplinkKeepsFrontendsOfOneClientApart(t *testing.T) {
	f := families[0]
	other, second := ap("192.0.2.11:80"), ap("10.1.0.6:8080")
	r := newUplinkRig(t, Uplink{})
	r.service(t, 3, FrontendKeyOf(f.vip, UDP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	r.service(t, 4, FrontendKeyOf(other, UDP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	r.in(t, segment{src: f.client, dst: f.vip, proto: UDP}.bytes(t))
	v, _ := r.in(t, segment{src: f.client, dst: other, proto: UDP}.bytes(t))
	wantVerdict(t, v, tcShot)
	r.service(t, 4, FrontendKeyOf(other, UDP), FrontendExternal, []netip.AddrPort{second}, nil)
	v, _ = r.in(t, segment{src: f.client, dst: other, proto: UDP}.bytes(t))
	wantVerdict(t, v, tcUnspec)
	for backend, vip := range map[netip.AddrPort]netip.AddrPort{f.backend: f.vip, second: other} {
		s := segment{src: backend, dst: f.client, proto: UDP}
		_, out := r.out(t, s.bytes(t))
		s.src = vip
		wantPacket(t, out, s)
	}
}

func TestUplinkRestoresAnEvictedPartner(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		keys := []FlowKey{FlowKeyOf(f.client, f.vip, p, WayIn), FlowKeyOf(f.backend, f.client, p, WayOut)}
		ct := r.packet.Map(MapConntrack)
		for i, evicted := range keys {
			var before, after Flow
			if err := ct.Lookup(evicted, &before); err != nil {
				t.Fatal(err)
			}
			if err := ct.Delete(evicted); err != nil {
				t.Fatal(err)
			}
			var other Flow
			if err := ct.Lookup(keys[1-i], &other); err != nil {
				t.Fatal(err)
			}
			if keys[1-i].Partner(other) != evicted {
				t.Errorf("the partner of %+v is %+v, want %+v", keys[1-i], keys[1-i].Partner(other), evicted)
			}
			other.Seen = 1
			if err := ct.Put(keys[1-i], other); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagACK}.bytes(t))
			} else {
				r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagACK}.bytes(t))
			}
			if err := ct.Lookup(evicted, &after); err != nil {
				t.Fatalf("way %v: %v", evicted.Way, err)
			}
			if after.AddrPort() != before.AddrPort() || after.Index != before.Index {
				t.Errorf("restored %+v, want %+v", after, before)
			}
		}
	})
}

func TestUplinkLeavesFlowsOfAnotherProxy(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		if err := r.packet.Map(MapConntrack).Put(FlowKeyOf(f.client, f.vip, p, WayIn), Flow{Flags: FlowStack}); err != nil {
			t.Fatal(err)
		}
		in := segment{src: f.client, dst: f.vip, proto: p}.bytes(t)
		v, out := r.in(t, in)
		wantVerdict(t, v, tcUnspec)
		if !bytes.Equal(in, out) {
			t.Error("changed")
		}
	})
}

func TestUplinkTranslatesBehindOptionsAndExtensionHeaders(t *testing.T) {
	eachFamily(t, Uplink{}, allProtos, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		s := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN, options: true, payload: []byte("x")}
		_, out := r.in(t, s.bytes(t))
		s.dst = f.backend
		wantPacket(t, out, s)
		s = s.reply()
		_, out = r.out(t, s.bytes(t))
		s.src = f.vip
		wantPacket(t, out, s)
	})
}

// mutations is how many packets TestUplinkChangesNoByteOfOthers tries.
func mutations(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("FIRSTHOP_TEST_MUTATIONS")); err == nil {
		return n
	}
	if testing.Short() {
		return 2_000
	}
	return 10_000
}

// Packets that are no Service's are not changed by a byte, whatever is in them: random bytes in packets of both families.
func TestUplinkChangesNoByteOfOthers(t *testing.T) {
	r := newUplinkRig(t, Uplink{})
	var seeds [][]byte
	for _, f := range families {
		for _, p := range allProtos {
			r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{f.backend}, nil)
			for _, options := range []bool{false, true} {
				s := segment{src: f.client, dst: netip.AddrPortFrom(f.node.Addr(), 80), proto: p, flags: flagSYN, options: options, payload: make([]byte, 20)}
				seeds = append(seeds, s.bytes(t), s.reply().bytes(t))
			}
		}
		seeds = append(seeds, icmpError(t, f.client.Addr(), f.node.Addr(), segment{src: f.node, dst: f.client, proto: UDP}.bytes(t)[14:]))
	}
	rng := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	opts := ebpf.RunOptions{DataOut: make([]byte, 512), Repeat: 1}
	vips := map[netip.Addr]bool{families[0].vip.Addr(): true, families[1].vip.Addr(): true}
	for range mutations(t) {
		p := bytes.Clone(seeds[rng.IntN(len(seeds))])
		for range rng.IntN(8) {
			p[14+rng.IntN(len(p)-14)] = byte(rng.Uint32())
		}
		if rng.IntN(4) == 0 {
			p = p[:14+20+rng.IntN(len(p)-33)]
		}
		if d, ok := destination(p); ok && vips[d] {
			continue
		}
		for hook, prog := range r.progs {
			opts.Data, opts.DataOut = p, opts.DataOut[:512]
			v, err := prog.Run(&opts)
			if err != nil {
				continue // too short for the kernel
			}
			if int32(v) != tcUnspec || !bytes.Equal(opts.DataOut, p) {
				t.Fatalf("%s: verdict %d\n%x\n%x", hook, int32(v), p, opts.DataOut)
			}
		}
	}
}

func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 34 && p[12] == 8 && p[13] == 0:
		return netip.AddrFrom4([4]byte(p[30:34])), true
	case len(p) >= 54:
		return netip.AddrFrom16([16]byte(p[38:54])), true
	}
	return netip.Addr{}, false
}

// icmpError builds a port unreachable that quotes a packet, from its network header on.
func icmpError(t testing.TB, src, dst netip.Addr, quoted []byte) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: routerMAC, DstMAC: hostMAC, EthernetType: layers.EthernetTypeIPv4}
	var ls []gopacket.SerializableLayer
	if src.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Protocol: layers.IPProtocolICMPv4, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		ls = []gopacket.SerializableLayer{eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(quoted)}
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 4)}
		icmp.SetNetworkLayerForChecksum(ip)
		ls = []gopacket.SerializableLayer{eth, ip, icmp, gopacket.Payload(append(make([]byte, 4), quoted...))}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// wantError compares an error with one that is built for the quoted packet, whose transport checksum may be that of before.
func wantError(t *testing.T, got []byte, src, dst netip.Addr, quoted segment, check uint16) {
	t.Helper()
	q := quoted.bytes(t)[14:]
	at := 20
	if quoted.src.Addr().Is6() {
		at = 40
	}
	if quoted.proto == TCP {
		at += 16
	} else {
		at += 6
	}
	q[at], q[at+1] = byte(check>>8), byte(check)
	if want := icmpError(t, src, dst, q); !bytes.Equal(got, want) {
		t.Errorf("got  %x %s\nwant %x %s", got, describe(got, false), want, describe(want, false))
	}
}

// transportCheck is the checksum of a segment's transport header.
func transportCheck(t *testing.T, s segment) uint16 {
	p := s.bytes(t)[14:]
	at := 20
	if s.src.Addr().Is6() {
		at = 40
	}
	if s.proto == TCP {
		at += 16
	} else {
		at += 6
	}
	return uint16(p[at])<<8 | uint16(p[at+1])
}

func TestUplinkTranslatesErrors(t *testing.T) {
	router := map[string]netip.Addr{"IPv4": netip.MustParseAddr("203.0.113.254"), "IPv6": netip.MustParseAddr("2001:db8:c::fe")}
	eachFamily(t, Uplink{}, []Proto{TCP, UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.masquerade(t, f)
		node := netip.AddrPortFrom(f.node.Addr(), 20000)
		_, out := r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		r.out(t, out)
		hop := router[f.name]

		t.Run("in, about an answer", func(t *testing.T) {
			s := segment{src: f.vip, dst: f.client, proto: p, flags: flagACK}
			v, out := r.in(t, icmpError(t, hop, f.vip.Addr(), s.bytes(t)[14:]))
			wantVerdict(t, v, tcUnspec)
			check := transportCheck(t, s)
			s.src = f.backend
			wantError(t, out, hop, f.backend.Addr(), s, check)
		})
		t.Run("in, about a masqueraded packet", func(t *testing.T) {
			s := segment{src: node, dst: f.backend, proto: p, flags: flagACK}
			v, out := r.in(t, icmpError(t, hop, node.Addr(), s.bytes(t)[14:]))
			wantVerdict(t, v, tcUnspec)
			check := transportCheck(t, s)
			s.src = f.client
			wantError(t, out, hop, f.client.Addr(), s, check)
		})
		for name, from := range map[string][2]netip.Addr{"backend": {f.backend.Addr(), f.vip.Addr()}, "router": {hop, hop}} {
			t.Run("out, by the "+name, func(t *testing.T) {
				s := segment{src: f.client, dst: f.backend, proto: p, flags: flagACK}
				v, out := r.out(t, icmpError(t, from[0], f.client.Addr(), s.bytes(t)[14:]))
				wantVerdict(t, v, tcUnspec)
				check := transportCheck(t, s)
				s.dst = f.vip
				wantError(t, out, from[1], f.client.Addr(), s, check)
			})
		}
	})
}

func TestUplinkDropsRedirectsOfFlows(t *testing.T) {
	r, f := newUplinkRig(t, Uplink{}), families[0]
	r.service(t, testIndex, FrontendKeyOf(f.vip, TCP), FrontendExternal, []netip.AddrPort{f.backend}, nil)
	r.in(t, segment{src: f.client, dst: f.vip, proto: TCP, flags: flagSYN}.bytes(t))
	for _, tc := range []struct {
		quoted segment
		want   int
	}{
		{segment{src: f.client, dst: f.backend, proto: TCP, flags: flagACK}, tcShot},
		{segment{src: f.client, dst: ap("10.1.0.6:8080"), proto: TCP, flags: flagACK}, tcUnspec},
	} {
		p := icmpError(t, f.node.Addr(), f.client.Addr(), tc.quoted.bytes(t)[14:])
		p[34], p[35] = 5, 1
		v, _ := r.out(t, p)
		wantVerdict(t, v, tc.want)
	}
}

// An error goes to who sent the packet that it quotes. Others quote flows only to have errors go astray.
func TestUplinkLeavesErrorsToOthersAlone(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p}.bytes(t))
		answer := segment{src: f.vip, dst: f.client, proto: p}.bytes(t)[14:]
		request := segment{src: f.client, dst: f.backend, proto: p}.bytes(t)[14:]
		for hook, in := range map[string][]byte{
			"from_uplink": icmpError(t, f.client.Addr(), f.node.Addr(), answer),
			"to_uplink":   icmpError(t, f.backend.Addr(), f.node.Addr(), request),
		} {
			v, out := r.run(t, hook, in)
			wantVerdict(t, v, tcUnspec)
			if !bytes.Equal(in, out) {
				t.Errorf("%s has changed an error to somebody else", hook)
			}
		}
	})
}

// Keys have IPv4 addresses as v4-mapped ones: packets of IPv6 with such addresses are of none of their flows.
func TestUplinkLeavesMappedAddressesAlone(t *testing.T) {
	f := families[0]
	r := newUplinkRig(t, Uplink{})
	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	for _, p := range allProtos {
		r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		for _, s := range []segment{
			{src: mapped(f.client), dst: mapped(f.vip), proto: p, flags: flagSYN},
			{src: families[1].client, dst: mapped(f.vip), proto: p, flags: flagSYN},
		} {
			in := s.bytes(t)
			v, out := r.in(t, in)
			wantVerdict(t, v, tcUnspec)
			if !bytes.Equal(in, out) {
				t.Errorf("%s from %s is translated", p, s.src)
			}
		}
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		back := segment{src: mapped(f.backend), dst: mapped(f.client), proto: p, flags: flagACK, chunk: 3}.bytes(t)
		if _, out := r.out(t, back); !bytes.Equal(back, out) {
			t.Errorf("%s: an answer is translated", p)
		}
		quoted := segment{src: mapped(f.vip), dst: mapped(f.client), proto: p, flags: flagACK, chunk: 3}.bytes(t)[14:]
		in := icmpError(t, families[1].client.Addr(), mapped(f.vip).Addr(), quoted)
		if _, out := r.in(t, in); !bytes.Equal(in, out) {
			t.Errorf("%s: an error is translated", p)
		}
	}
}

// Nobody gets an answer whose address is of no single host: it would go to many, or to the client's own sockets.
func TestUplinkAnswersSingleHostsOnly(t *testing.T) {
	r := newUplinkRig(t, Uplink{})
	for i, sources := range [][]string{
		{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"},
		{"::", "::1", "ff02::1"},
	} {
		f := families[i]
		for _, p := range allProtos {
			r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, nil, nil)
			for _, source := range sources {
				s := segment{src: netip.AddrPortFrom(netip.MustParseAddr(source), 40000), dst: f.vip, proto: p, flags: flagSYN}
				v, _ := r.in(t, s.bytes(t))
				if v != tcShot {
					t.Errorf("%s from %s: verdict %d, want %d", p, source, v, tcShot)
				}
			}
			s := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t)
			s[6] |= 1 // to all of the segment
			v, _ := r.in(t, s)
			wantVerdict(t, v, tcShot)
		}
	}
	if c := r.counts(t); c[CountRejected] != 0 || c[CountRejectFailed] != 27 {
		t.Errorf("counts are %v", c)
	}
}

// A flow that is the stack's is so with all of its fragments, at addresses that only Services have, too.
func TestUplinkLeavesAllFragmentsOfAnotherProxysFlow(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		if err := r.table.Map(MapFrontend).Put(ExternalVIPKeyOf(f.vip.Addr()), Frontend{Flags: FrontendVIP | FrontendExternal}); err != nil {
			t.Fatal(err)
		}
		late := segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: laterFragment}
		v, _ := r.in(t, late.bytes(t))
		wantVerdict(t, v, tcShot) // its first one has not come
		if c := r.counts(t); c[CountFragment] != 1 {
			t.Errorf("counts are %v", c)
		}
		if err := r.packet.Map(MapConntrack).Put(FlowKeyOf(f.client, f.vip, p, WayIn), Flow{Flags: FlowStack}); err != nil {
			t.Fatal(err)
		}
		for _, part := range []part{firstFragment, laterFragment} {
			s := segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: part}.bytes(t)
			v, out := r.in(t, s)
			wantVerdict(t, v, tcUnspec)
			if !bytes.Equal(s, out) {
				t.Error("changed")
			}
		}
	})
}

// Packets have the same id again after a while: their fragments are none of the former's.
func TestUplinkForgetsFragments(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: firstFragment}.bytes(t))
		late := segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: laterFragment}.bytes(t)
		if _, out := r.in(t, late); bytes.Equal(out, late) {
			t.Error("a fragment is not translated")
		}
		m := r.packet.Map(MapFragment)
		var keys []FragmentKey
		var key FragmentKey
		var value Fragment
		entries := m.Iterate()
		for entries.Next(&key, &value) {
			keys = append(keys, key)
		}
		if err := entries.Err(); err != nil || len(keys) != 2 {
			t.Fatalf("%d fragmented packets, %v", len(keys), err)
		}
		for _, key := range keys {
			if err := m.Lookup(key, &value); err != nil {
				t.Fatal(err)
			}
			value.At -= 30
			if err := m.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		if _, out := r.in(t, late); !bytes.Equal(out, late) {
			t.Error("a fragment is taken for one of a packet of long ago")
		}
	})
}

// What has ended is in nobody's way: a client may use the same port for another frontend of a backend then.
func TestUplinkBeginsByAnotherFrontendOnceAFlowIsOver(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP, UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		other := netip.AddrPortFrom(f.vip.Addr(), 443)
		r.service(t, testIndex+1, FrontendKeyOf(other, p), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		first := segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}
		second := segment{src: f.client, dst: other, proto: p, flags: flagSYN}
		r.in(t, first.bytes(t))
		v, _ := r.in(t, second.bytes(t))
		wantVerdict(t, v, tcShot)
		if p == TCP {
			first.flags = flagFIN | flagACK
			r.in(t, first.bytes(t))
			r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagFIN | flagACK}.bytes(t))
		} else {
			var way Flow
			key := FlowKeyOf(f.backend, f.client, p, WayOut)
			if err := r.packet.Map(MapConntrack).Lookup(key, &way); err != nil {
				t.Fatal(err)
			}
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
				t.Fatal(err)
			}
			for _, age := range []time.Duration{170 * time.Second, 200 * time.Second} { // the first one is not over yet
				way.Seen = uint64(now.Nano() - int64(age)) // wraps where the machine has not run for so long, as the program's difference does
				if err := r.packet.Map(MapConntrack).Put(key, way); err != nil {
					t.Fatal(err)
				}
				if age < 180*time.Second {
					v, _ := r.in(t, second.bytes(t))
					wantVerdict(t, v, tcShot)
				}
			}
		}
		v, out := r.in(t, second.bytes(t))
		wantVerdict(t, v, tcUnspec)
		second.dst = f.backend
		wantPacket(t, out, second)
		back := second.reply()
		_, out = r.out(t, back.bytes(t))
		back.src = other
		wantPacket(t, out, back)
	})
}

// What is not chosen yet, or is the stack's, translates no errors.
func TestUplinkLeavesErrorsOfTheStacksFlowsAlone(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		ct := r.packet.Map(MapConntrack)
		for name, value := range map[string]Flow{
			"of the stack": {Addr: AddressOf(f.backend.Addr()), Port: PortOf(f.backend.Port()), Flags: FlowStack},
			"a marker":     {Flags: FlowMasquerade},
		} {
			for hook, key := range map[string]FlowKey{"from_uplink": FlowKeyOf(f.client, f.vip, p, WayIn), "to_uplink": FlowKeyOf(f.client, f.vip, p, WayOut)} {
				if err := ct.Put(key, value); err != nil {
					t.Fatal(err)
				}
				in := icmpError(t, f.client.Addr(), f.vip.Addr(), segment{src: f.vip, dst: f.client, proto: p}.bytes(t)[14:])
				v, out := r.run(t, hook, in)
				wantVerdict(t, v, tcUnspec)
				if !bytes.Equal(in, out) {
					t.Errorf("%s, %s: changed", name, hook)
				}
			}
		}
	})
}

// No more than what an error quotes of a later fragment tells its ports.
func TestUplinkLeavesErrorsAboutLaterFragmentsAlone(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p}.bytes(t))
		ports := []byte{byte(f.vip.Port() >> 8), byte(f.vip.Port()), byte(f.client.Port() >> 8), byte(f.client.Port()), 0, 0, 0, 0}
		late := segment{src: f.vip, dst: f.client, proto: p, payload: ports, fragment: laterFragment}.bytes(t)[14:]
		in := icmpError(t, f.client.Addr(), f.vip.Addr(), late)
		v, out := r.in(t, in)
		wantVerdict(t, v, tcUnspec)
		if !bytes.Equal(in, out) {
			t.Error("changed")
		}
	})
}

// The other fragments would be dropped: an answer to the first one is none to the packet.
func TestUplinkAnswersNoFragment(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, nil, nil)
		v, _ := r.in(t, segment{src: f.client, dst: f.vip, proto: p, payload: make([]byte, 24), fragment: firstFragment}.bytes(t))
		wantVerdict(t, v, tcShot)
		if c := r.counts(t); c[CountRejectFailed] != 1 {
			t.Errorf("counts are %v", c)
		}
	})
}

// A checksum of zero says that there is none: it stays so.
func TestUplinkMakesNoChecksumOfUDP(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{UDP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		at := 14 + 20 + 6
		if f.client.Addr().Is6() {
			at += 20
		}
		s := segment{src: f.client, dst: f.vip, proto: p, payload: []byte("x")}
		in := s.bytes(t)
		in[at], in[at+1] = 0, 0
		v, out := r.in(t, in)
		wantVerdict(t, v, tcUnspec)
		s.dst = f.backend
		want := s.bytes(t)
		want[at], want[at+1] = 0, 0
		if !bytes.Equal(out, want) {
			t.Errorf("got  %x\nwant %x", out, want)
		}
	})
}

// Who has an endpoint on this node has no mark for masquerade: its packets do not leave it.
func TestUplinkMarksFlowsToOtherNodesOnly(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{TCP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		for flags, want := range map[BackendFlags]bool{0: true, BackendLocal: false} {
			be := Backend{Addr: AddressOf(f.backend.Addr()), Port: PortOf(f.backend.Port()), ID: BackendMember | 1, Flags: flags}
			if err := r.table.Map(MapBackend).Put(BackendKey{10 * testIndex, 0}, be); err != nil {
				t.Fatal(err)
			}
			r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
			var mark Flow
			err := r.packet.Map(MapConntrack).Lookup(FlowKeyOf(f.client, f.backend, p, WayOut), &mark)
			if marked := err == nil; marked != want {
				t.Errorf("flags %#x: marked %v, want %v", flags, marked, want)
			}
			r.reset(t)
			r.service(t, testIndex, FrontendKeyOf(f.vip, p), FrontendExternal, []netip.AddrPort{f.backend}, nil)
		}
	})
}

// An association is over once the backend aborts it, or confirms its end. What comes from outside may be anybody's.
func TestUplinkKnowsHowSCTPEnds(t *testing.T) {
	eachFamily(t, Uplink{}, []Proto{SCTP}, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		for _, chunk := range []uint8{6, 14} { // ABORT, SHUTDOWN COMPLETE
			r.in(t, segment{src: f.client, dst: f.vip, proto: p}.bytes(t))
			r.out(t, segment{src: f.backend, dst: f.client, proto: p, chunk: 2}.bytes(t)) // INIT ACK
			for _, outside := range []bool{true, false} {
				if outside {
					r.in(t, segment{src: f.client, dst: f.vip, proto: p, chunk: chunk}.bytes(t))
				} else {
					r.out(t, segment{src: f.backend, dst: f.client, proto: p, chunk: chunk}.bytes(t))
				}
				var way Flow
				if err := r.packet.Map(MapConntrack).Lookup(FlowKeyOf(f.backend, f.client, p, WayOut), &way); err != nil {
					t.Fatal(err)
				}
				if way.Flags&FlowCut == 0 || way.Flags.Ended() == outside {
					t.Errorf("chunk %d, from outside %v: flags are %#x", chunk, outside, way.Flags)
				}
			}
		}
	})
}

func TestUplinkNotesAnswers(t *testing.T) {
	eachFamily(t, Uplink{}, allProtos, func(t *testing.T, r *uplinkRig, f family, p Proto) {
		r.in(t, segment{src: f.client, dst: f.vip, proto: p, flags: flagSYN}.bytes(t))
		keys := []FlowKey{FlowKeyOf(f.client, f.vip, p, WayIn), FlowKeyOf(f.backend, f.client, p, WayOut)}
		for _, answered := range []bool{false, true} {
			for _, key := range keys {
				var half Flow
				if err := r.packet.Map(MapConntrack).Lookup(key, &half); err != nil {
					t.Fatal(err)
				}
				if is := half.Flags&FlowReplied != 0; is != answered {
					t.Errorf("way %v: answered %v, want %v", key.Way, is, answered)
				}
			}
			r.out(t, segment{src: f.backend, dst: f.client, proto: p, flags: flagSYN | flagACK, chunk: 2}.bytes(t))
		}
	})
}
