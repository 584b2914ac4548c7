package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/writer"
)

// What a page asks of a writer with 10,000 Services: no write goes on meanwhile.
func BenchmarkWriter(b *testing.B) {
	w := writer.New(writer.Config{
		Store: nat.NewFake(1 << 16), Log: slog.New(slog.DiscardHandler),
		Lock: func(context.Context) (func() error, error) { return func() error { return nil }, nil },
	})
	defer w.Close()
	for i := range 10_000 {
		addr := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		w.Set([]services.Change{{After: []services.Port{{
			Key: services.PortKey{Service: types.NamespacedName{Namespace: "default", Name: fmt.Sprint("web-", i)}, Name: "http", Proto: bpf.TCP},
			Service: nat.Service{
				Name: fmt.Sprint("default/web-", i), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(netip.AddrPortFrom(addr, 80), bpf.TCP)},
				VIPs: []netip.Addr{addr}, Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")}, AllowEmpty: true,
			},
		}}}})
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("Status", func(b *testing.B) {
		for b.Loop() {
			if st := w.Status(); st.Ports != 10_000 || len(st.Out) != 0 {
				b.Fatalf("%+v", st)
			}
		}
	})
	b.Run("Indexes", func(b *testing.B) {
		for b.Loop() {
			if n := len(w.Indexes()); n != 10_000 {
				b.Fatal(n)
			}
		}
	})
}
