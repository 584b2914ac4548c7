package services

import (
	"encoding/json"
	"fmt"
	stdruntime "runtime"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// manyEndpoints is a slice as a controller writes it.
func manyEndpoints(name, svc string, n int) *discoveryv1.EndpointSlice {
	var eps []string
	for i := range n {
		eps = append(eps, fmt.Sprintf("10.%d.%d.%d zone=%c", 1+i%100, i/250, 1+i%250, 'a'+i%3))
	}
	return fat(slice(name, svc, "http:8080/tcp", eps...))
}

// cpu reports the processor time of an operation beside the time that passed:
// that is the figure to compare where others share the machine.
func cpu(b *testing.B) (done func()) {
	start := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op") }
}

func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkPorts is the whole meaning of one Service.
func BenchmarkPorts(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("%d endpoints", n), func(b *testing.B) {
			svc, sl := everyKind(), []*discoveryv1.EndpointSlice{manyEndpoints("1", "web", n)}
			node := thisNode().normal()
			b.ReportAllocs()
			defer cpu(b)()
			for b.Loop() {
				if ports, _, _ := compile(svc, sl, &node); len(ports) != 1 {
					b.Fatal("no port")
				}
			}
		})
	}
}

func bigService(i int) *corev1.Service {
	svc := service(fmt.Sprintf("web-%d", i), fmt.Sprintf("http:80/tcp@%d", 30000+i), clusterIPs(fmt.Sprintf("172.30.%d.%d", i/250, i%250+1)))
	fatMeta(&svc.ObjectMeta)
	fatSpec(svc)
	return svc
}

// BenchmarkSliceChange is an endpoint that comes or goes in one of 10,000 Services.
func BenchmarkSliceChange(b *testing.B) {
	table := NewTable(thisNode())
	for i := range 10000 {
		svc := bigService(i)
		table.SetService(svc)
		table.SetSlice(manyEndpoints(svc.Name+"-1", svc.Name, 10))
	}
	with, without := manyEndpoints("web-77-1", "web-77", 10), manyEndpoints("web-77-1", "web-77", 9)
	b.ReportAllocs()
	defer cpu(b)()
	for i := 0; b.Loop(); i++ {
		s := with
		if i%2 == 0 {
			s = without
		}
		if len(table.SetSlice(s)) != 1 {
			b.Fatal("no change")
		}
	}
}

// BenchmarkServiceChange is a node port that changes in one of 10,000 Services.
func BenchmarkServiceChange(b *testing.B) {
	table := NewTable(thisNode())
	for i := range 10000 {
		table.SetService(bigService(i))
	}
	one, other := bigService(77), bigService(77)
	other.Spec.Ports[0].NodePort += 20000
	b.ReportAllocs()
	defer cpu(b)()
	for i := 0; b.Loop(); i++ {
		s := one
		if i%2 == 0 {
			s = other
		}
		if len(table.SetService(s)) != 1 {
			b.Fatal("no change")
		}
	}
}

// BenchmarkMemory is what 10,000 Services of one slice with 10 endpoints hold,
// as decoded from what an API server sends.
func BenchmarkMemory(b *testing.B) {
	for _, strip := range []bool{false, true} {
		b.Run(fmt.Sprintf("stripped %t", strip), func(b *testing.B) {
			for b.Loop() {
				const n = 10000
				s := &Stripper{}
				svcs, sls := make([]*corev1.Service, n), make([]*discoveryv1.EndpointSlice, n)
				before := heap()
				for i := range n {
					svcs[i], sls[i] = decoded(b, bigService(i), &corev1.Service{}), decoded(b, manyEndpoints(fmt.Sprint("s-", i), fmt.Sprintf("web-%d", i), 10), &discoveryv1.EndpointSlice{})
					if strip {
						mustStrip(b, s, svcs[i])
						mustStrip(b, s, sls[i])
					}
				}
				objects := heap()
				table := NewTable(thisNode())
				for i := range n {
					table.SetService(svcs[i])
					table.SetSlice(sls[i])
				}
				b.ReportMetric(float64(objects-before)/n, "B/Service-objects")
				b.ReportMetric(float64(heap()-objects)/n, "B/Service-table")
				stdruntime.KeepAlive(table)
				stdruntime.KeepAlive(svcs)
				stdruntime.KeepAlive(sls)
			}
		})
	}
}

func heap() uint64 {
	stdruntime.GC()
	var m stdruntime.MemStats
	stdruntime.ReadMemStats(&m)
	return m.HeapAlloc
}

func decoded[T any](b *testing.B, obj, into T) T {
	data, err := json.Marshal(obj)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		b.Fatal(err)
	}
	return into
}
