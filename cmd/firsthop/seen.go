package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// runtimeView asks the runtime of an instance how it is, and for the names of
// Services. That none runs is an answer; so is that one doesn't say.
func (c *call) runtimeView() diagnose.RuntimeView {
	ctx := c.Context.Context
	client := admin.NewClient(c.dirs.Places().RunDir)
	st, err := client.Status(ctx)
	switch {
	case errors.Is(err, admin.ErrNoRuntime):
		return diagnose.RuntimeView{}
	case err != nil:
		return diagnose.RuntimeView{Silent: err}
	}
	v := diagnose.RuntimeView{Runtime: runtimeStatus(st, time.Now())}
	list, err := client.Services(ctx)
	if err != nil {
		v.Silent = err
	}
	for _, s := range list {
		v.Services = append(v.Services, diagnose.RuntimeService{Index: s.Index, Name: s.String(), Family: s.Family, Kinds: s.Kinds, Out: s.Out})
	}
	return v
}

// problemText is "app/web:http: its node port tcp/192.0.2.1:30080 is served for other/web".
func problemText(p admin.Problem) string {
	object := p.Object
	if p.Port != "" {
		object += ":" + p.Port
	}
	if p.Kind != "Service" {
		object = p.Kind + " " + object
	}
	return object + ": " + p.Message
}

// watchTakes is more than a watch takes to continue at another API server.
const watchTakes = 15 * time.Second

// writeTakes is more than changes take to be written, on a busy machine.
const writeTakes = 5 * time.Second

// socketTroubles are what keeps sockets on backends that are gone.
func socketTroubles(s *admin.Sockets) (out []string) {
	if s.Hung > 0 {
		out = append(out, fmt.Sprintf("%d sockets of backends that went cannot be moved: their applications hold their locks", s.Hung))
	}
	if s.MoveError != "" {
		out = append(out, "connected UDP sockets of backends that went are ended, not moved: "+s.MoveError)
	}
	for _, e := range []struct{ what, err string }{{"not all sockets were compared with the table", s.Error}, {"entries of closed sockets are not removed", s.SweepError}} {
		if e.err != "" {
			out = append(out, e.what+": "+e.err)
		}
	}
	return out
}

func runtimeStatus(st *admin.Status, now time.Time) *diagnose.RuntimeStatus {
	r := &diagnose.RuntimeStatus{PID: st.PID, Version: st.Version, Since: st.Since, Synced: st.Adopted, Ports: st.Table.Ports}
	for _, o := range st.Table.Out {
		r.Out = append(r.Out, o.Service+": "+o.Reason)
	}
	for _, p := range st.Problems {
		text := problemText(p)
		r.Problems = append(r.Problems, text)
		if p.Reason == string(services.AddressReserved) {
			r.Claims = append(r.Claims, text)
		}
	}
	if st.Dataplane.AttachError != "" {
		r.Troubles = append(r.Troubles, st.Dataplane.AttachError)
	}
	if st.Dataplane.Fault != "" {
		r.Troubles = append(r.Troubles, st.Dataplane.Fault)
	}
	if st.Adopted && st.Waiting != nil && now.Sub(*st.Waiting) > writeTakes {
		r.Troubles = append(r.Troubles, fmt.Sprintf("changes wait to be written for %s: a write hangs or fails, the runtime's log says more",
			now.Sub(*st.Waiting).Round(time.Second)))
	}
	if !st.APIServers.Live && len(st.APIServers.Endpoints) > 0 {
		e := st.APIServers.Endpoints[0]
		what := "no API server answers"
		if st.APIServers.Answering {
			what = "no API server is ready, those that answer are used"
		}
		r.Troubles = append(r.Troubles, fmt.Sprintf("%s (%s is %s: %s)", what, e.Endpoint, e.State, e.Reason))
		if !st.APIServers.Answering {
			r.CutOff = r.Troubles[len(r.Troubles)-1]
		}
	}
	if st.NodeError != "" {
		r.Troubles = append(r.Troubles, st.NodeError)
	}
	r.Proven, r.ProofError = st.Proof.Proven, st.Proof.Error
	for _, e := range st.APIServers.Endpoints {
		r.Servers = append(r.Servers, diagnose.RuntimeServer{
			Endpoint: e.Endpoint, State: e.State, Used: e.InUse, Source: e.Source, Asked: e.Asked, LastLive: e.LastLive, Millis: e.Millis, Reason: e.Reason,
		})
	}
	for _, resource := range slices.Sorted(maps.Keys(st.Watches)) {
		if w := st.Watches[resource]; w.LastError != "" {
			r.Troubles = append(r.Troubles, fmt.Sprintf("the watch on %s fails: %s", resource, w.LastError))
			decides := resource == string(watch.Services) || resource == string(watch.EndpointSlices)
			if decides && r.CutOff == "" && w.Since != nil && now.Sub(*w.Since) > watchTakes {
				r.CutOff = r.Troubles[len(r.Troubles)-1]
			}
		}
	}
	if st.Table.NodesErr != "" {
		r.Troubles = append(r.Troubles, "node ports are not served at the addresses of all other nodes: "+st.Table.NodesErr)
	}
	for _, p := range st.Ports {
		switch {
		case strings.HasPrefix(p.Holder, "kube-proxy "): // which has them where both run
			r.Held = append(r.Held, p.Error)
		case p.Error != "":
			r.Troubles = append(r.Troubles, p.Error)
		}
	}
	k := &st.Sockets
	r.Sockets = diagnose.RuntimeSockets{Moved: k.Moved, EndedUDP: k.EndedUDP, EndedTCP: k.EndedTCP, Left: k.Left, Hung: k.Hung, Swept: k.Swept}
	r.Troubles = append(r.Troubles, socketTroubles(k)...)
	if st.PacketPath != nil {
		r.PacketPath = packetPathStatus(st.PacketPath)
		if e := r.PacketPath.Error; e != "" && st.Adopted {
			r.Troubles = append(r.Troubles, "clients outside of the cluster are not all served: "+e)
		}
	}
	if st.APIServers.SaveError != "" {
		r.Troubles = append(r.Troubles, "the API servers' addresses can't be saved: "+st.APIServers.SaveError)
	}
	return r
}

func packetPathStatus(st *admin.PacketPath) *diagnose.RuntimePacketPath {
	p := &diagnose.RuntimePacketPath{Error: st.Error, Uplinks: []diagnose.RuntimeUplink{}, Ports: st.Ports, Packets: st.Counts}
	var by []string
	for _, u := range st.Uplinks {
		p.Uplinks = append(p.Uplinks, diagnose.RuntimeUplink{Device: u.Device, Why: u.Why, Attached: u.Attached, By: u.By, Ahead: u.Ahead, Error: u.Error})
		if u.Attached {
			by = append(by, u.Device+" ("+u.By+")")
		}
	}
	for _, l := range st.Left {
		p.Left = append(p.Left, l.Device+": "+l.Reason)
	}
	p.Sentence = "clients outside of the cluster are not served"
	if len(by) > 0 {
		p.Sentence = fmt.Sprintf("clients outside of the cluster are served at %s; %d connections so far", strings.Join(by, ", "), st.Counts["flow"])
	}
	if dropped := droppedPackets(st.Counts); dropped != "" {
		p.Sentence += "; dropped: " + dropped
	}
	return p
}

// droppedPackets is "3 for source-range, 1 for malformed".
func droppedPackets(counts map[string]uint64) string {
	var out []string
	for _, c := range bpf.PacketCounts() {
		if n := counts[c.String()]; c.Dropped() && n > 0 {
			out = append(out, fmt.Sprintf("%d for %s", n, c))
		}
	}
	return strings.Join(out, ", ")
}
