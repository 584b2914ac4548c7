package metrics

import (
	"cmp"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/sockets"
)

// writeSockets writes what became of sockets whose backend went. There is a series for each Service that had some.
func writeSockets(p *Page, st sockets.Status) {
	p.Counter("firsthop_sockets_moved_total", "Connected UDP sockets that were connected to their Service again, as it no longer had their backend.", float64(st.Moved))
	p.Counters("firsthop_sockets_ended_total", "Sockets that were ended, as their Service no longer had their backend and they could not be moved.", func(add adder) {
		add(float64(st.EndedUDP), Label{"protocol", "udp"})
		add(float64(st.EndedTCP), Label{"protocol", "tcp"})
	})
	p.Gauge("firsthop_sockets_left", "Sockets on a backend that is gone that could be neither moved nor ended.", float64(st.Left))
	p.Gauge("firsthop_sockets_hung", "Sockets whose application holds their lock, so that they could be neither moved nor ended.", float64(st.Hung))
	p.Counter("firsthop_socket_entries_swept_total", "Entries of closed sockets that were removed from the maps of UDP sockets.", float64(st.Swept))
	p.Counter("firsthop_socket_looks_total", "Comparisons of all sockets with the table.", float64(st.Looks))
	p.Counter("firsthop_socket_look_seconds_total", "How long these took.", st.Busy.Seconds())
	names := slices.SortedFunc(maps.Keys(st.Services), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	each := func(value func(sockets.Counts) uint64) func(adder) {
		return func(add adder) {
			for _, n := range names {
				add(float64(value(st.Services[n])), Label{"namespace", n.Namespace}, Label{"service", n.Name})
			}
		}
	}
	p.Counters("firsthop_service_sockets_moved_total", "Connected UDP sockets of a Service that were moved.", each(func(c sockets.Counts) uint64 { return c.Moved }))
	p.Counters("firsthop_service_sockets_ended_total", "Sockets of a Service that were ended.", each(func(c sockets.Counts) uint64 { return c.EndedUDP + c.EndedTCP }))
}
