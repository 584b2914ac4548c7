package metrics

import (
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/uplinks"
)

// writePacketPath writes how clients outside of the cluster are served.
func writePacketPath(p *Page, st *uplinks.Status) {
	p.Gauge("firsthop_packet_path_served", "Whether packets from outside of the cluster are served, by every device that leads off the node.", truth(st.Served() == nil))
	p.Gauges("firsthop_packet_path_attached", "Whether the programs are at a device that leads off the node.", func(add adder) {
		for _, d := range st.Devices {
			add(truth(d.Attached && d.Error == nil), Label{"device", d.Name})
		}
	})
	if st.Counts == nil {
		return
	}
	p.Counter("firsthop_packet_path_flows_total", "Flows from outside of the cluster that were led to an endpoint.", float64(st.Counts[bpf.CountFlow]))
	p.Counter("firsthop_packet_path_rejected_total", "Packets to what nothing serves that were answered, by RST or ICMP.", float64(st.Counts[bpf.CountRejected]))
	p.Counters("firsthop_packet_path_dropped_total", "Packets that were dropped, by reason.", func(add adder) {
		for _, c := range bpf.PacketCounts() {
			if c.Dropped() {
				add(float64(st.Counts[c]), Label{"reason", c.String()})
			}
		}
	})
}
