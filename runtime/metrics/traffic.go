package metrics

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// CounterReader tells the counters of each service index, in any order; those that never counted may be left out.
type CounterReader func(each func(index uint32, c bpf.Counters)) error

// readChunk is how many counters one system call copies.
const readChunk = 4096

// ReadCounters reads the counters in the kernel, up to the highest index that inUse tells of, or of the init stage's.
// Without batches (Linux 5.6) each is a system call, and only those in use are read.
func ReadCounters(m *ebpf.Map, batch bool, inUse func() map[uint32]services.PortKey) CounterReader {
	return func(each func(uint32, bpf.Counters)) error {
		indexes := inUse()
		if !batch {
			return readSome(m, slices.Collect(maps.Keys(indexes)), each)
		}
		highest := nat.InitIndexes.Last
		for index := range indexes {
			highest = max(highest, index)
		}
		var cursor ebpf.MapBatchCursor
		size := min(readChunk, int(m.MaxEntries()))
		keys, values := make([]uint32, size), make([]bpf.Counters, size)
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			for i := range n {
				if values[i] != (bpf.Counters{}) {
					each(keys[i], values[i])
				}
			}
			if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && n > 0 && keys[n-1] >= highest { // an array is read in order
				return nil
			}
			if err != nil {
				return fmt.Errorf("read counters: %w", err)
			}
		}
	}
}

// readSome reads the counters of unserved ports, which are at index 0, and of some indexes.
func readSome(m *ebpf.Map, indexes []uint32, each func(uint32, bpf.Counters)) error {
	for _, index := range append([]uint32{0}, indexes...) {
		var c bpf.Counters
		if err := m.Lookup(index, &c); err != nil {
			return fmt.Errorf("read counter %d: %w", index, err)
		}
		each(index, c)
	}
	return nil
}

// traffic adds up what all Services did. An index counts from zero when it gets a new Service; a sum of the
// counters as they are would then fall, which Prometheus takes for a restart and counts all of it once more.
type traffic struct {
	last     map[uint32]bpf.Counters // those that ever counted, as the last page found them
	all      bpf.Counters            // of Services
	unserved uint64                  // connections to ports that a VIP doesn't serve
	errors   uint64
}

// grown is by how much a counter went up.
func grown(last, now uint64) uint64 {
	if now < last {
		return now
	}
	return now - last
}

// read adds what was counted since the last page.
func (t *traffic) read(counters CounterReader) error {
	now := make(map[uint32]bpf.Counters, len(t.last))
	err := counters(func(index uint32, c bpf.Counters) { now[index] = c })
	if err != nil {
		return err
	}
	for index, c := range now {
		last := t.last[index]
		if index == 0 {
			t.unserved += grown(last.Refused, c.Refused)
			continue
		}
		t.all.Translated += grown(last.Translated, c.Translated)
		t.all.Refused += grown(last.Refused, c.Refused)
	}
	t.last = now
	return nil
}

// write reads the counters and adds them to a page.
func (t *traffic) write(p *Page, cfg *Config) {
	if cfg.Counters == nil {
		return
	}
	if err := t.read(cfg.Counters); err != nil {
		t.errors++
		if cfg.Log != nil {
			cfg.Log.Warn("cannot read the counters of Services", "err", err)
		}
	}
	p.Counter("firsthop_translated_total", "Connections and datagrams that were sent to a backend.", float64(t.all.Translated))
	p.Counter("firsthop_refused_total", "Connections and datagrams to Services that had no backend.", float64(t.all.Refused))
	p.Counter("firsthop_unserved_port_refused_total", "Connections and datagrams to ports that a Service's address does not serve, and to addresses of the Service range that no Service has.", float64(t.unserved))
	p.Counter("firsthop_traffic_read_errors_total", "Times that these counters could not be read.", float64(t.errors))
	if cfg.PerService && cfg.Indexes != nil {
		t.perService(p, cfg.Indexes())
	}
}

func (t *traffic) perService(p *Page, indexes map[uint32]services.PortKey) {
	type service struct {
		key services.PortKey
		did bpf.Counters
	}
	list := make([]service, 0, len(indexes))
	for index, key := range indexes {
		list = append(list, service{key, t.last[index]})
	}
	slices.SortFunc(list, func(a, b service) int { return a.key.Compare(b.key) })
	write := func(name, help string, value func(bpf.Counters) uint64) {
		p.family(name, "counter", help)
		for i := range list {
			k := &list[i].key
			family := "IPv4"
			if k.IPv6 {
				family = "IPv6"
			}
			labels := []Label{{"namespace", k.Service.Namespace}, {"service", k.Service.Name},
				{"port", k.Name}, {"protocol", k.Proto.String()}, {"ip_family", family}}
			if k.Node != "" {
				labels = append(labels, Label{"node", k.Node})
			}
			p.sample("", float64(value(list[i].did)), labels...)
		}
	}
	write("firsthop_service_translated_total", "Connections and datagrams that were sent to a backend of the Service.",
		func(c bpf.Counters) uint64 { return c.Translated })
	write("firsthop_service_refused_total", "Connections and datagrams to the Service while it had no backend.",
		func(c bpf.Counters) uint64 { return c.Refused })
}
