package runtime

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sockets"
	"github.com/firsthop/firsthop/runtime/writer"
)

// serveAdmin lets the command line see this runtime until ctx ends. Traffic
// is served even if that fails.
func (r *run) serveAdmin(ctx context.Context) {
	since := time.Now()
	logged := ""
	for ctx.Err() == nil {
		err := admin.Serve(ctx, admin.Config{
			RunDir: r.cfg.RunDir, Log: r.cfg.Log, Services: r.adminServices,
			Status: func() admin.Status { return r.adminStatus(since) },
		})
		if err != nil && ctx.Err() == nil && err.Error() != logged {
			logged = err.Error()
			r.cfg.Log.Error("`firsthop status` and `firsthop nat` can't see this runtime", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(runDirInterval):
		}
	}
}

// adminServices are the Service ports with the indexes that the table has for them.
func (r *run) adminServices() []admin.Service {
	ports := r.writer.Ports()
	slices.SortFunc(ports, func(a, b writer.PortState) int { return a.Key.Compare(b.Key) })
	kinds := r.loop.Kinds()
	out := make([]admin.Service, 0, len(ports))
	for _, p := range ports {
		out = append(out, admin.Service{
			Index: p.Index, Namespace: p.Key.Service.Namespace, Name: p.Key.Service.Name, Port: p.Key.Name,
			Proto: p.Key.Proto.String(), Family: family(p.Key), Node: p.Key.Node, Kinds: kinds[p.Key], Out: p.Err,
		})
	}
	return out
}

func family(k services.PortKey) string {
	if k.IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

func (r *run) adminStatus(since time.Time) admin.Status {
	st := admin.Status{
		PID: os.Getpid(), Version: r.cfg.Version, Node: r.cfg.NodeName, Since: since,
		Watches: map[string]admin.Watch{}, APIServers: r.adminAPIServers(), Problems: r.adminProblems(),
	}
	if w := r.loop.Liveness().Waiting(); !w.IsZero() {
		st.Waiting = &w
	}
	if err := r.data.Attached(); err != nil {
		st.Dataplane.AttachError = err.Error()
	}
	if err := r.trouble(); err != nil {
		st.Dataplane.Fault = err.Error()
	}
	w := r.writer.Status()
	st.Adopted = w.Adopted
	st.Table.Ports = w.Ports
	if w.NodesErr != nil {
		st.Table.NodesErr = w.NodesErr.Error()
	}
	for _, o := range w.Out {
		st.Table.Out = append(st.Table.Out, admin.Out{Service: o.Key.String(), Reason: o.Err})
	}
	for resource, w := range r.watcher.Status() {
		seen := admin.Watch{LastError: w.LastError}
		if !w.Since.IsZero() {
			seen.Since = &w.Since
		}
		st.Watches[string(resource)] = seen
	}
	st.Proof = r.reporter.lastProof()
	st.NodeError = r.loop.NodeMissing()
	st.Sockets = adminSockets(r.sockets.Status())
	st.PacketPath = adminPacketPath(r.packets.status())
	for _, s := range r.reporter.servers {
		p := s.Status()
		st.Ports = append(st.Ports, admin.Port{For: p.Name, Addr: p.Addr, Listening: p.Listening, Holder: p.Holder, Error: p.Err})
	}
	return st
}

func adminSockets(s sockets.Status) admin.Sockets {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	if errors.Is(s.MoveError, unix.ENOSYS) { // Linux below 5.6: nothing is wrong, nor to be done about it
		s.MoveError = nil
	}
	return admin.Sockets{
		Moved: s.Moved, EndedUDP: s.EndedUDP, EndedTCP: s.EndedTCP, Left: s.Left, Hung: s.Hung, Swept: s.Swept,
		MoveError: text(s.MoveError), Error: text(s.Error), SweepError: text(s.SweepError),
	}
}

func (r *run) adminAPIServers() admin.APIServers {
	m := r.monitor.Status()
	out := admin.APIServers{Live: m.Live, Answering: m.Answering, Since: m.Since}
	if m.Counters.SaveErrors > 0 {
		out.SaveError = m.Counters.LastSaveError
	}
	for _, e := range m.Endpoints {
		out.Endpoints = append(out.Endpoints, admin.APIServer{
			Endpoint: e.Endpoint.String(), Source: string(e.Source), State: e.State.String(), InUse: e.InUse,
			Asked: e.Asked, LastLive: e.LastLive, Millis: float64(e.RTT.Microseconds()) / 1000, Reason: e.Err,
		})
	}
	return out
}

// adminProblems are those of objects, sorted.
func (r *run) adminProblems() []admin.Problem {
	var out []admin.Problem
	for _, p := range r.loop.Problems() {
		out = append(out, admin.Problem{Kind: p.Kind, Object: p.Object.String(), Port: p.Port, Reason: string(p.Reason), Message: p.Message})
	}
	slices.SortFunc(out, func(a, b admin.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	return out
}

// problemsByReason counts what is ignored of objects.
func (r *run) problemsByReason() map[services.Reason]int {
	out := map[services.Reason]int{}
	for _, p := range r.loop.Problems() {
		out[p.Reason]++
	}
	return out
}
