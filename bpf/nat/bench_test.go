package nat

import (
	"fmt"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// manyServices are as many Services with one backend each.
func manyServices(n int) []Service {
	var out []Service
	for i := range n {
		out = append(out, Service{
			Name:      fmt.Sprint("other-", i),
			Frontends: []bpf.FrontendKey{tcp(fmt.Sprintf("10.%d.%d.%d:80", 100+i/65536, i/256%256, i%256))},
			Backends:  addrs("192.0.2.1:80"),
		})
	}
	return out
}

// BenchmarkPlan plans one Service on tables of two sizes: what the init stage and each change of the runtime pay.
func BenchmarkPlan(b *testing.B) {
	for _, others := range []int{1, 30000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			f := NewFake(65536)
			ensure(b, f, runtimeIndexes, manyServices(others)...)
			state := mustRead(b, f)
			b.ResetTimer()
			for range b.N {
				p := NewPlanner(state, InitIndexes)
				must(b, p.Ensure(kubernetes("192.0.2.1:6443", "192.0.2.2:6443")))
			}
		})
	}
}

// BenchmarkPlanAll plans a whole table at once, as a runtime that starts on an empty one.
func BenchmarkPlanAll(b *testing.B) {
	services := manyServices(30000)
	for range b.N {
		p := NewPlanner(NewState(65536), runtimeIndexes)
		for _, svc := range services {
			must(b, p.Ensure(svc))
		}
	}
}
