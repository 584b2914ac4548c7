package metrics

import (
	"cmp"
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

// adder adds one sample to a family.
type adder = func(value float64, labels ...Label)

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// parts asks the runtime's parts.
func (m *Metrics) parts(p *Page) {
	if m.cfg.Table != nil {
		writeTable(p, m.cfg.Table())
	}
	if m.cfg.SocketMaps != nil {
		m.socketMaps(p)
	}
	if m.cfg.Watches != nil {
		writeWatches(p, m.cfg.Watches())
	}
	if m.cfg.APIServers != nil {
		writeAPIServers(p, m.cfg.APIServers())
	}
	if m.cfg.Dialer != nil {
		writeDialer(p, m.cfg.Dialer())
	}
	if m.cfg.Sockets != nil {
		writeSockets(p, m.cfg.Sockets())
	}
	if m.cfg.PacketPath != nil {
		if st := m.cfg.PacketPath(); st != nil {
			writePacketPath(p, st)
		}
	}
	if m.cfg.Unserved != nil {
		p.Gauge("firsthop_health_check_node_ports_unserved", "Addresses of healthCheckNodePorts that could not be had.", float64(len(m.cfg.Unserved())))
	}
	if m.cfg.Problems != nil {
		p.Gauges("firsthop_service_problems", "Things of Services and EndpointSlices that are ignored or wrong, by reason.", func(add adder) {
			byReason := m.cfg.Problems()
			for _, r := range slices.Sorted(maps.Keys(byReason)) {
				add(float64(byReason[r]), Label{"reason", string(r)})
			}
		})
	}
}

func writeTable(p *Page, st writer.Status) {
	p.Gauge("firsthop_table_adopted", "Whether this process has taken the table over.", truth(st.Adopted))
	p.Gauge("firsthop_table_service_ports", "Service ports, by family, that are wanted in the table.", float64(st.Ports))
	p.Gauges("firsthop_table_service_ports_out", "Service ports that are not in the table as they should be: for lack of room, or because they make no sense.",
		func(add adder) {
			full := 0
			for i := range st.Out {
				if st.Out[i].Full {
					full++
				}
			}
			add(float64(full), Label{"reason", "full"})
			add(float64(len(st.Out)-full), Label{"reason", "invalid"})
		})
	p.Gauges("firsthop_table_entries", "Entries in the table.", func(add adder) {
		add(float64(st.Frontends), Label{"kind", "frontends"})
		add(float64(st.Backends), Label{"kind", "backends"})
	})
	p.Gauges("firsthop_table_entries_limit", "For how many entries the table has room.", func(add adder) {
		for _, l := range []struct {
			kind string
			n    int
		}{{"frontends", st.Room.Frontends}, {"backends", st.Room.Backends}, {"source_ranges", st.Room.SourceRanges}} {
			if l.n > 0 { // else nobody knows
				add(float64(l.n), Label{"kind", l.kind})
			}
		}
	})
	p.Counter("firsthop_table_flushes_total", "Times that something was written to the table.", float64(st.Flushes))
	p.Counter("firsthop_table_repairs_total", "Times that others had changed the table, and it was repaired.", float64(st.Repairs))
	p.Counter("firsthop_table_reloads_total", "Times that the whole table was read.", float64(st.Reloads))
}

func writeWatches(p *Page, watches map[watch.Resource]watch.Status) {
	resources := slices.Sorted(maps.Keys(watches))
	each := func(value func(watch.Status) float64) func(adder) {
		return func(add adder) {
			for _, r := range resources {
				add(value(watches[r]), Label{"resource", string(r)})
			}
		}
	}
	p.Gauges("firsthop_watch_synced", "Whether all objects of a resource were received once.",
		each(func(s watch.Status) float64 { return truth(s.Synced) }))
	p.Gauges("firsthop_watch_failing", "Whether the watch of a resource has failed, and not gone on since.",
		each(func(s watch.Status) float64 { return truth(s.LastError != "") }))
	p.Gauges("firsthop_watch_objects", "Objects that are known.",
		each(func(s watch.Status) float64 { return float64(s.Objects) }))
}

func writeAPIServers(p *Page, st apihealth.Status) {
	p.Gauge("firsthop_api_service_live", "Whether API servers answer where the API service leads to; if not, these are the last known good ones.", truth(st.Live))
	p.Gauge("firsthop_api_service_backends", "Where the API service leads to.", float64(len(st.Set.V4)+len(st.Set.V6)))
	list := slices.SortedFunc(slices.Values(st.Endpoints), func(a, b apihealth.EndpointStatus) int {
		return cmp.Compare(a.Endpoint.String(), b.Endpoint.String())
	})
	each := func(value func(*apihealth.EndpointStatus) float64) func(adder) {
		return func(add adder) {
			for i := range list {
				add(value(&list[i]), Label{"address", list[i].Endpoint.String()})
			}
		}
	}
	p.Gauges("firsthop_api_server_live", "Whether an API server is ready.",
		each(func(e *apihealth.EndpointStatus) float64 { return truth(e.State == apiserver.Live) }))
	p.Gauges("firsthop_api_server_in_use", "Whether the API service leads to it.",
		each(func(e *apihealth.EndpointStatus) float64 { return truth(e.InUse) }))
	p.Gauges("firsthop_api_server_rtt_seconds", "How long its last answer took.",
		each(func(e *apihealth.EndpointStatus) float64 { return e.RTT.Seconds() }))
	c := st.Counters
	p.Counter("firsthop_api_probes_total", "Questions to API servers.", float64(c.Probes))
	p.Counter("firsthop_api_probe_failures_total", "Questions to API servers without a good answer.", float64(c.Failures))
	p.Counter("firsthop_api_service_changes_total", "Times that the API service was led elsewhere.", float64(c.Changes))
	p.Counter("firsthop_api_save_errors_total", "Times that the last known good addresses could not be saved.", float64(c.SaveErrors))
}

func writeDialer(p *Page, st apihealth.DialerStatus) {
	p.Counters("firsthop_api_dials_total", "The runtime's own connections to the API: at the configured address, directly to an API server, or none.", func(add adder) {
		add(float64(st.Configured), Label{"way", "configured"})
		add(float64(st.Direct), Label{"way", "direct"})
		add(float64(st.Failed), Label{"way", "none"})
	})
}

// socketMaps writes how full the maps are in which programs remember sockets.
func (m *Metrics) socketMaps(p *Page) {
	list, err := m.cfg.SocketMaps()
	if err != nil {
		if m.cfg.Log != nil {
			m.cfg.Log.Warn("cannot read the maps of sockets", "err", err)
		}
		return
	}
	each := func(counted bool, value func(*bpf.MapUsage) float64) func(adder) {
		return func(add adder) {
			for i := range list {
				if list[i].Counted || !counted {
					add(value(&list[i]), Label{"map", string(list[i].Map)})
				}
			}
		}
	}
	p.Gauges("firsthop_socket_map_entries", "Entries in the maps in which programs remember sockets, clients and pods.",
		each(false, func(u *bpf.MapUsage) float64 { return float64(u.Used) }))
	p.Gauges("firsthop_socket_map_entries_limit", "For how many entries these maps have room.",
		each(false, func(u *bpf.MapUsage) float64 { return float64(u.Size) }))
	p.Counters("firsthop_socket_map_inserts_total", "New entries that programs added to these maps.",
		each(true, func(u *bpf.MapUsage) float64 { return float64(u.Inserted) }))
	p.Counters("firsthop_socket_map_overflows_total", "New entries that a map had no room for, and that went to one that forgets what was used longest ago.",
		each(true, func(u *bpf.MapUsage) float64 { return float64(u.Overflowed) }))
}
