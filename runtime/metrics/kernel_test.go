package metrics

import (
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func kernelMaps(t testing.TB) *bpf.Maps {
	t.Helper()
	maps, err := bpf.EnsureMaps(bpf.PinsBelow(lab.New(t).BPFFS), bpf.Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := maps.Close(); err != nil {
			t.Error(err)
		}
	})
	return maps
}

// manyServices gives n Services an index each, the first of the runtime's on.
func manyServices(t testing.TB, maps *bpf.Maps, n int) map[uint32]services.PortKey {
	t.Helper()
	indexes := map[uint32]services.PortKey{}
	for i := range n {
		index := uint32(1024 + i)
		indexes[index] = services.PortKey{
			Service: types.NamespacedName{Namespace: fmt.Sprint("namespace-", i%100), Name: fmt.Sprint("service-of-some-name-", i)},
			Name:    "https", Proto: bpf.TCP,
		}
		if err := maps.Map(bpf.MapCounter).Put(index, bpf.Counters{Translated: uint64(i), Refused: uint64(2 * i)}); err != nil {
			t.Fatal(err)
		}
	}
	return indexes
}

func TestReadCounters(t *testing.T) {
	maps := kernelMaps(t)
	const n = 5000 // more than one chunk
	indexes := manyServices(t, maps, n)
	counters := maps.Map(bpf.MapCounter)
	if err := counters.Put(uint32(0), bpf.Counters{Refused: 7}); err != nil {
		t.Fatal(err)
	}
	for _, batch := range []bool{false, true} {
		if batch && !lab.KernelFeatures().Batch {
			continue
		}
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			inUse := func() map[uint32]services.PortKey { return indexes }
			m := New(Config{Counters: ReadCounters(counters, batch, inUse), Indexes: inUse, PerService: true})
			f := parse(t, m.Page())
			for name, want := range map[string]float64{
				"firsthop_translated_total":            n * (n - 1) / 2,
				"firsthop_refused_total":               n * (n - 1),
				"firsthop_unserved_port_refused_total": 7,
				"firsthop_traffic_read_errors_total":   0,
			} {
				if got := f.value(t, name); got != want {
					t.Errorf("%s: %v, want %v", name, got, want)
				}
			}
			for index, key := range indexes {
				if index%500 != 0 {
					continue
				}
				got := f.value(t, "firsthop_service_translated_total", "namespace", key.Service.Namespace, "service", key.Service.Name,
					"port", "https", "protocol", "tcp", "ip_family", "IPv4")
				if got != float64(index-1024) {
					t.Errorf("%s: %v", key, got)
				}
			}
		})
	}
}

func TestReadCountersOfAClosedMap(t *testing.T) {
	maps := kernelMaps(t)
	counters, err := maps.Map(bpf.MapCounter).Clone()
	if err != nil {
		t.Fatal(err)
	}
	counters.Close()
	for _, batch := range []bool{false, true} {
		m := New(Config{Counters: ReadCounters(counters, batch, func() map[uint32]services.PortKey { return nil })})
		if got := parse(t, m.Page()).value(t, "firsthop_traffic_read_errors_total"); got != 1 {
			t.Errorf("batch %v: %v", batch, got)
		}
	}
}

// What a scrape costs with 10,000 Services and the counters of the kernel.
func BenchmarkPage(b *testing.B) {
	maps := kernelMaps(b)
	indexes := manyServices(b, maps, 10_000)
	inUse := func() map[uint32]services.PortKey { return indexes }
	for _, batch := range []bool{true, false} {
		for _, perService := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%v/services=%v", batch, perService), func(b *testing.B) {
				cfg := whole()
				cfg.Counters, cfg.Indexes, cfg.PerService = ReadCounters(maps.Map(bpf.MapCounter), batch, inUse), inUse, perService
				m := New(cfg)
				b.ReportAllocs()
				for b.Loop() {
					b.SetBytes(int64(len(m.Page())))
				}
			})
		}
	}
	b.Run("services=true/zipped", func(b *testing.B) {
		cfg := whole()
		cfg.Counters, cfg.Indexes, cfg.PerService = ReadCounters(maps.Map(bpf.MapCounter), true, inUse), inUse, true
		m := New(cfg)
		req := httptest.NewRequest("GET", "/metrics", nil)
		req.Header.Set("Accept-Encoding", "gzip")
		for b.Loop() {
			w := httptest.NewRecorder()
			m.ServeHTTP(w, req)
			b.ReportMetric(float64(w.Body.Len()), "bytes")
		}
	})
}

// Thousands of nodes are asked every few seconds.
func TestPageIsSmallWithoutServices(t *testing.T) {
	cfg := whole()
	cfg.PerService = false
	if n := strings.Count(string(New(cfg).Page()), "\n"); n > 300 {
		t.Errorf("%d lines", n)
	}
}
