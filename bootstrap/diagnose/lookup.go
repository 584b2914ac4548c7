package diagnose

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// LookupRequest is a connect (or, for UDP, a datagram) that somebody might make.
type LookupRequest struct {
	Dest  netip.AddrPort
	Proto bpf.Proto
	PID   int // of whose socket it would be, as the host counts; 0: a process in the host's network namespace

	// Outside is the address of a client outside the cluster, whose packets come to this node; zero: it is a process here.
	Outside netip.Addr

	Forbid []string // features of the kernel to be treated as absent
}

// Result of a lookup that the table doesn't decide: the connection goes where it asked to go.
const LeftAlone nat.Kind = "left alone"

// Undecided is the result of a lookup that hangs on what can't be told here.
const Undecided nat.Kind = "undecided"

// Lookup is what would become of a connect, and why.
type Lookup struct {
	Asked    string           `json:"asked"`  // "tcp/10.96.0.1:443"
	Result   nat.Kind         `json:"result"` // translated, refused, dropped, left alone, undecided
	Why      []string         `json:"why"`
	Entry    string           `json:"entry,omitempty"` // the entry that decides
	Flags    []string         `json:"flags,omitempty"` // its flags
	Service  *TableService    `json:"service,omitempty"`
	Backends []netip.AddrPort `json:"backends"` // each may be chosen
	Affinity int              `json:"affinity_seconds,omitempty"`
	Kept     *KeptBackend     `json:"kept,omitempty"` // what the client has by affinity
	Ranges   []string         `json:"source_ranges,omitempty"`
	Scope    bootstrap.Scope  `json:"scope,omitempty"` // of the attached programs; not for clients outside
	Client   LookupClient     `json:"client"`
}

// KeptBackend is the backend that a client keeps.
type KeptBackend struct {
	Backend netip.AddrPort `json:"backend"`
	Seconds int            `json:"seconds_left"`
}

// LookupClient is whose connect it would be.
type LookupClient struct {
	Outside bool   `json:"outside,omitempty"` // of the cluster: then Addr says all
	PID     int    `json:"pid,omitempty"`
	Netns   uint64 `json:"netns_cookie,omitempty"`
	Host    bool   `json:"host_netns"`
	Unknown string `json:"netns_unknown,omitempty"` // why its network namespace can't be told; then Netns is 0 and Host says nothing
	// HostUnknown tells that the programs don't know which network namespace is the host's: then Host says nothing.
	HostUnknown bool       `json:"host_netns_unknown,omitempty"`
	InCgroup    bool       `json:"in_cgroup"`
	OptedOut    bool       `json:"opted_out,omitempty"`
	Addr        netip.Addr `json:"address,omitzero"` // that source ranges judge
}

// LookUp says what a connect would do, or the packets of a client outside the
// cluster, and changes nothing that lasts (see netnsCookieOf). The error matches ErrNoTable if there is no table.
func LookUp(d mounts.Dirs, rt RuntimeView, req LookupRequest) (*Lookup, error) {
	l := &looker{req: req, key: bpf.FrontendKeyOf(netip.AddrPortFrom(req.Dest.Addr().Unmap(), req.Dest.Port()), req.Proto)}
	l.Lookup = &Lookup{Asked: l.key.String(), Backends: []netip.AddrPort{}}
	n, err := lookAt(d)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if err := errors.Join(n.tableErr(), n.hooksErr); err != nil {
		return nil, err
	}
	l.node = n
	if req.Outside.IsValid() {
		return l.Lookup, l.lookUpOutside(rt)
	}
	if err := l.lookAtPrograms(); err != nil {
		return nil, err
	}
	if err := l.lookAtClient(); err != nil {
		return nil, err
	}
	l.verdict = l.state.Lookup(l.key)
	if err := l.describe(rt); err != nil {
		return nil, err
	}
	l.decide()
	if nothing := l.Result == nat.Refused || l.Result == nat.Dropped; nothing && l.key.Proto == bpf.UDP {
		l.because("UDP calls succeed all the same, and lead nowhere (%s) until there is a backend", bpf.Nowhere(l.key.Addr.Addr().Is4()))
	}
	return l.Lookup, nil
}

// looker is a lookup at work.
type looker struct {
	*Lookup
	*node
	req      LookupRequest
	key      bpf.FrontendKey
	verdict  nat.Verdict
	attached bool
	settings bpf.Settings // of the program that would run
	knows    bool         // programs of this kernel know network namespaces
}

// lookAtPrograms finds the program that would run, and its settings.
func (l *looker) lookAtPrograms() (err error) {
	hook := "connect6"
	if l.key.Addr.Addr().Is4() {
		hook = "connect4"
	}
	for _, h := range l.hooks {
		if h.Hook == hook && h.Attached {
			l.attached = true
			l.settings, err = settingsOf(h.Program, l.maps)
		}
	}
	l.Scope = bootstrap.ScopeAll
	if l.settings.Flags&bpf.SettingsHostScope != 0 {
		l.Scope = bootstrap.ScopeHost
	}
	if !l.attached {
		l.Scope = bootstrap.ScopeOff
	}
	return err
}

// settingsOf reads the settings of an attached program of ours.
func settingsOf(id ebpf.ProgramID, maps *bpf.Maps) (bpf.Settings, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return bpf.Settings{}, fmt.Errorf("open attached program: %w", err)
	}
	defer p.Close()
	loaded, err := bpf.Inspect(p, maps)
	return loaded.Settings, err
}

// describe tells of the entry that decides, and its Service.
func (l *looker) describe(rt RuntimeView) error {
	v := l.verdict
	if v.Kind == nat.NotOurs {
		return nil
	}
	switch {
	case v.Index == 0 && v.Flags == 0:
		l.Entry = "the Service range"
	case v.Flags&bpf.FrontendVIP != 0:
		l.Entry = v.Frontend.String() + ", which marks the address as a Service's"
	case v.Frontend.AtNodes():
		l.Entry = v.Frontend.String() + ", a node port at the addresses of other nodes"
	case v.Frontend != l.key:
		l.Entry = fmt.Sprintf("%s/loopback:%d, a node port on the loopback addresses", v.Frontend.Proto, v.Frontend.Port.Uint16())
	default:
		l.Entry = v.Frontend.String() + ", a frontend"
	}
	for _, f := range []struct {
		flag bpf.FrontendFlags
		word string
	}{{bpf.FrontendVIP, "VIP"}, {bpf.FrontendLocalPolicy, "local"}, {bpf.FrontendSticky, "sticky"}, {bpf.FrontendSourceRange, "limited"},
		{bpf.FrontendExternal, "external"}, {bpf.FrontendExternalLocal, "external-local"}, {bpf.FrontendExternalRange, "external-limited"}} {
		if v.Flags&f.flag != 0 {
			l.Flags = append(l.Flags, f.word)
		}
	}
	if v.Index == 0 {
		return nil
	}
	l.Affinity = int(v.Affinity / time.Second)
	table, err := tableOf(l.state, l.maps, []uint32{v.Index})
	if err != nil {
		return err
	}
	l.Service = &(RuntimeView{Services: rt.inTable()}).name(table, namesOfInit(l.RunDir))[0]
	l.Ranges = l.Service.Ranges
	return nil
}

// decide does what the programs do, in their order (bpf/connect.c, admit).
func (l *looker) decide() {
	if why := l.undecided(); why != "" {
		l.Result = Undecided
		l.because("%s", why)
		return
	}
	if why := l.leftAlone(); why != "" {
		l.Result = LeftAlone
		l.Why = append(l.Why, why)
		return
	}
	v := l.verdict
	l.Result = v.Kind
	switch {
	case v.Kind == nat.Refused && v.Index == 0 && v.Flags == 0:
		l.because("the address is one of the Service range that no Service has")
		return
	case v.Flags&bpf.FrontendVIP != 0:
		l.because("the address is a Service's, and this port of it is not served")
		return
	case v.Flags&bpf.FrontendSourceRange != 0 && !l.sourceRangesAllow():
		l.Result = nat.Dropped
		l.because("the client's address (%s) is in none of the source ranges", orNone(l.Client.Addr))
		return
	case v.Kind == nat.Dropped:
		l.because("there are backends, but none on this node, and this frontend leads to none elsewhere")
		return
	case v.Kind == nat.Refused:
		l.because("the Service has no backend")
		return
	}
	if v.Frontend.AtNodes() {
		l.because("%s is an address of another node, and the port is a node port, which every node serves", l.key.Addr.Addr())
	}
	l.Backends = v.Backends
	if len(v.Backends) == 1 {
		l.because("it is the only backend")
	} else {
		l.because("one of %d backends, by chance", len(v.Backends))
	}
	// A policy that ended leaves the flag, and a service state that leads to all: see nat.Planner.
	if v.Flags&bpf.FrontendLocalPolicy != 0 && l.differsLocally(v.Index) {
		l.because("local: only backends for traffic that stays on this node are chosen among")
	}
	if v.Flags&bpf.FrontendSourceRange != 0 {
		l.because("limited: the source ranges allow %s", orNone(l.Client.Addr))
	}
	if v.Flags&bpf.FrontendSticky != 0 {
		l.because("sticky: an unconnected UDP socket keeps the backend that it has")
	}
	l.findKept()
}

func (l *looker) because(format string, args ...any) {
	l.Why = append(l.Why, fmt.Sprintf(format, args...))
}

func orNone(a netip.Addr) string {
	if !a.IsValid() {
		return "none is known"
	}
	return a.String()
}

// leftAlone says why the programs don't touch the connection; empty: they do.
func (l *looker) leftAlone() string {
	host := "the host's network namespace"
	switch v := l.verdict; {
	case !l.attached:
		return "no program is attached to " + l.cgroup.HostPath
	case !l.Client.InCgroup:
		return fmt.Sprintf("process %d is not in the cgroup %s or below it", l.req.PID, l.cgroup.HostPath)
	case l.key.Proto == bpf.SCTP:
		return "SCTP sockets never reach the connect-time hooks"
	case l.key.Proto == bpf.UDP && l.settings.Flags&bpf.SettingsUDP == 0:
		return "UDP is not served (--udp=false)"
	case v.Kind == nat.NotOurs && l.atNode():
		return "the address is another node's, and no Service is served there at this port: the connection goes where it asked to go"
	case v.Kind == nat.NotOurs:
		return "no entry of the table is about it: the connection goes where it asked to go"
	case l.onLoopback() && !l.knownAsHosts():
		return "node ports serve loopback addresses in " + host + " only" + l.unlessKnown()
	case l.Scope == bootstrap.ScopeHost && !l.knownAsHosts():
		return "only " + host + " is served (--scope host)"
	case l.Client.OptedOut:
		return "the workload has opted out"
	}
	return ""
}

// atNode reports whether the address is marked as another node's.
func (l *looker) atNode() bool {
	_, marked := l.state.Frontends[bpf.NodeKeyOf(l.key.Addr.Addr())]
	return marked
}

func (l *looker) sourceRangesAllow() bool {
	return slices.ContainsFunc(l.Ranges, func(r string) bool {
		p, err := netip.ParsePrefix(r)
		return err == nil && l.Client.Addr.IsValid() && p.Contains(l.Client.Addr)
	})
}

// findKept looks for the backend that the client keeps by affinity.
func (l *looker) findKept() {
	m := l.maps.Map(bpf.MapAffinity)
	if l.Affinity == 0 || m == nil {
		return
	}
	var value bpf.AffinityValue
	if err := m.Lookup(bpf.AffinityKey{Client: l.Client.Netns, Index: l.verdict.Index}, &value); err != nil {
		l.because("affinity: the client keeps for %d s what it gets; it has none yet", l.Affinity)
		return
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return
	}
	left := l.Affinity - int(uint32(now.Sec)-value.Used)
	be, there := l.state.Sets[l.verdict.Set][value.ID]
	switch {
	case left < 0:
		l.because("affinity: what the client kept is forgotten, after %d s", l.Affinity)
	case !there:
		l.because("affinity: what the client kept is no longer a backend")
	default:
		l.Kept = &KeptBackend{Backend: be.AddrPort(), Seconds: left}
		l.because("affinity: the client keeps %s, for %d s more", l.Kept.Backend, left)
	}
}

// ParseDest reads the address of a lookup: IP:PORT, IPv6 in brackets.
func ParseDest(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(strings.TrimSpace(s))
	if _, bare := netip.ParseAddr(strings.Trim(s, "[] ")); err != nil && bare == nil { // an address without a port
		var entry *apiserver.EntryError
		if _, reason := apiserver.ParseServices(s); errors.As(reason, &entry) {
			return netip.AddrPort{}, fmt.Errorf("%q: %s", s, entry.Reason)
		}
	}
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q: want an IP address and a port, as 10.96.0.1:443 or [fd00:96::1]:443", cmp.Or(s, " "))
	}
	return ap, nil
}
