package diagnose

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
)

// TableService is one service index of the table.
type TableService struct {
	Index     uint32           `json:"index"` // 0: a Service that is not in the table
	Name      string           `json:"name,omitempty"`
	Kinds     []string         `json:"kinds,omitempty"` // of the frontends, where the runtime tells
	Owner     natinit.Owner    `json:"owner"`
	Frontends []string         `json:"frontends"`
	Backends  []netip.AddrPort `json:"backends"`
	Local     []netip.AddrPort `json:"local_backends,omitempty"`   // what frontends for local traffic lead to
	OnNode    []netip.AddrPort `json:"backends_on_node,omitempty"` // of Backends and Local, those that are known to be here

	// External are the frontends that clients outside the cluster may use. By those in ExternalLocal these clients reach
	// Local only, and by those in ExternalLimited source ranges allow some of them only.
	External        []string `json:"external_frontends,omitempty"`
	ExternalLocal   []string `json:"external_local_frontends,omitempty"`
	ExternalLimited []string `json:"external_limited_frontends,omitempty"`

	Sticky   bool         `json:"sticky,omitempty"`
	Affinity int          `json:"affinity_seconds,omitempty"`
	Ranges   []string     `json:"source_ranges,omitempty"`
	Out      string       `json:"out,omitempty"` // why it isn't in the table, or not as it should be
	Counters bpf.Counters `json:"counters"`
}

// ErrNoTable says that the instance has no NAT table: init didn't run, or its
// BPFFS is gone.
var ErrNoTable = errors.New("no NAT table")

// ReadTable reads the NAT table of an instance. The error matches ErrNoTable
// if there is none. Names are those that the last init noted; rt brings those of
// the runtime, and the Services that it could not put into the table.
func ReadTable(d mounts.Dirs, rt RuntimeView) ([]TableService, error) {
	n, err := lookAt(d)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if err := n.tableErr(); err != nil {
		return nil, err
	}
	table, err := tableOf(n.state, n.maps, n.state.Indexes())
	if err != nil {
		return nil, err
	}
	return rt.name(table, namesOfInit(n.RunDir)), nil
}

// openTable opens the table for reading. The error of one that lacks some of
// its maps matches os.ErrNotExist beside ErrNoTable.
func openTable(b mounts.BPFFS) (*bpf.Maps, error) {
	maps, err := bpf.OpenMaps(bpf.PinsBelow(b.Path), true)
	if errors.Is(err, os.ErrNotExist) {
		pins := bpf.PinsBelow(b.Path)
		if entries, _ := os.ReadDir(pins.Maps()); len(entries) > 0 {
			return nil, fmt.Errorf("%w that is whole: %w: run `firsthop init`", ErrNoTable, err)
		}
		return nil, fmt.Errorf("%w below %s: run `firsthop init`", ErrNoTable, bpf.PinsBelow(b.HostPath).Dir)
	}
	return maps, err
}

// readState copies the table: by batches, which Linux 5.6 has and which take a
// twentieth of the time, else one by one.
func readState(maps *bpf.Maps) (*nat.State, error) {
	state, err := nat.NewKernel(maps, bpf.Features{Batch: true}).Read()
	if err != nil {
		return nat.NewKernel(maps, bpf.Features{}).Read()
	}
	return state, nil
}

// ReadMaps reads all of a table.
func ReadMaps(maps *bpf.Maps) ([]TableService, error) {
	state, err := readState(maps)
	if err != nil {
		return nil, err
	}
	return tableOf(state, maps, state.Indexes())
}

// tableOf is what a table has at some indexes, in their order. It goes through
// the frontends once: to look for those of each Service takes seconds with 10,000.
func tableOf(state *nat.State, maps *bpf.Maps, indexes []uint32) ([]TableService, error) {
	keys := map[uint32][]bpf.FrontendKey{}
	for k, fe := range state.Frontends {
		if !fe.Mark() {
			keys[fe.Index] = append(keys[fe.Index], k)
		}
	}
	ranges := map[uint32][]string{}
	for r := range state.SourceRanges {
		ranges[r.Index] = append(ranges[r.Index], r.Prefix().String())
	}
	out := make([]TableService, 0, len(indexes))
	for _, index := range indexes {
		ts := TableService{Index: index, Owner: natinit.OwnerOf(index), Frontends: []string{}, Ranges: ranges[index]}
		slices.Sort(ts.Ranges)
		local, cluster := false, false
		slices.SortFunc(keys[index], nat.CompareKeys)
		for _, k := range keys[index] {
			ts.Frontends = append(ts.Frontends, k.String())
			flags := state.Frontends[k].Flags
			ts.Sticky = ts.Sticky || flags&bpf.FrontendSticky != 0
			local, cluster = local || state.Frontends[k].Uses(true), cluster || state.Frontends[k].Uses(false)
			ts.addExternal(k, flags)
		}
		if state.ServiceStates[bpf.ServiceStateAt(index, true)] == state.ServiceStates[bpf.ServiceStateAt(index, false)] {
			ts.ExternalLocal = nil // a policy that ended leaves the flag
		}
		ts.OnNode = state.OnNode(index)
		word := state.ServiceStates[bpf.ServiceStateAt(index, !cluster && local)]
		ts.Backends = backendsOf(state, word)
		ts.Affinity = int(state.AffinityOf(word) / time.Second)
		if cluster && local {
			ts.Local = backendsOf(state, state.ServiceStates[bpf.ServiceStateAt(index, true)])
		}
		if err := maps.Map(bpf.MapCounter).Lookup(index, &ts.Counters); err != nil {
			return nil, fmt.Errorf("read counters of service %d: %w", index, err)
		}
		out = append(out, ts)
	}
	return out, nil
}

// addExternal notes what a frontend is to clients outside the cluster.
func (ts *TableService) addExternal(k bpf.FrontendKey, flags bpf.FrontendFlags) {
	if flags&bpf.FrontendExternal == 0 {
		return
	}
	ts.External = append(ts.External, k.String())
	if flags&bpf.FrontendExternalLocal != 0 {
		ts.ExternalLocal = append(ts.ExternalLocal, k.String())
	}
	if flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0 {
		ts.ExternalLimited = append(ts.ExternalLimited, k.String())
	}
}

// backendsOf is never nil, so that it is a list in JSON.
func backendsOf(state *nat.State, w bpf.ServiceState) []netip.AddrPort {
	return append([]netip.AddrPort{}, state.Backends(w)...)
}

// namesOfInit are the names of the Services that the last init knew, by their
// frontends: a Service that the runtime took over has another index since.
func namesOfInit(runDir string) map[string]string {
	names := map[string]string{}
	last, err := bootstrap.LoadReport(runDir)
	if err != nil {
		return names
	}
	for _, svc := range last.Services {
		if svc.Change == attach.Removed {
			continue
		}
		for _, f := range svc.Frontends {
			names[f] = withoutFamily(svc.Name)
		}
	}
	return names
}

// withoutFamily takes " (IPv4)" off a name: the addresses beside it say so.
func withoutFamily(name string) string {
	name, _, _ = strings.Cut(name, " (IPv")
	return name
}

// Filter keeps of a table what a word is about: a Service's name, with or
// without its namespace and its port's name, or an address, with or without a
// port, of a frontend or backend.
func Filter(table []TableService, word string) []TableService {
	return slices.DeleteFunc(slices.Clone(table), func(ts TableService) bool { return !ts.matches(word) })
}

func (ts TableService) matches(word string) bool {
	if addr, err := netip.ParseAddr(strings.Trim(word, "[]")); err == nil {
		return ts.hasAddress(func(a netip.AddrPort) bool { return a.Addr() == addr.Unmap() })
	}
	if ap, err := netip.ParseAddrPort(word); err == nil {
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		return ts.hasAddress(func(a netip.AddrPort) bool { return a == ap })
	}
	full, _, _ := strings.Cut(withoutFamily(ts.Name), " at node ")
	service, _, _ := strings.Cut(full, ":")
	_, name, _ := strings.Cut(full, "/")
	_, bare, _ := strings.Cut(service, "/")
	return word != "" && slices.Contains([]string{full, service, name, bare}, word)
}

func (ts TableService) hasAddress(is func(netip.AddrPort) bool) bool {
	for _, f := range ts.Frontends {
		_, text, _ := strings.Cut(f, "/")
		if ap, err := netip.ParseAddrPort(text); err == nil && is(ap) {
			return true
		}
	}
	return slices.ContainsFunc(ts.Backends, is) || slices.ContainsFunc(ts.Local, is)
}

// TCPFrontends are the addresses that a Service has for TCP.
func TCPFrontends(svc TableService) []netip.AddrPort {
	var out []netip.AddrPort
	for _, f := range svc.Frontends {
		if text, ok := strings.CutPrefix(f, bpf.TCP.String()+"/"); ok {
			if a, err := netip.ParseAddrPort(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}
