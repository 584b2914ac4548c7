package kubeproxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// BenchmarkDetect looks at nodes with 10,000 Services, each with the two
// chains that kube-proxy gives it at least. "clean" is the cost of the look
// itself, most of it for the machine's processes.
func BenchmarkDetect(b *testing.B) {
	const services = 10_000
	for _, bench := range []struct {
		name    string
		command []string
		rules   func() string
	}{
		{"clean", nil, nil},
		{"nftables", []string{"nft", "-f", "-"}, func() string { return manyNft(services) }},
		{"iptables-nft", []string{"iptables-nft-restore"}, func() string { return manyIptables(services) }},
		{"iptables-legacy", []string{"iptables-legacy-restore"}, func() string { return manyIptables(services) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l := lab.New(b)
			want := 0
			if bench.rules != nil {
				cmd := l.Command(b.Context(), bench.command[0], bench.command[1:]...)
				cmd.Stdin = strings.NewReader(bench.rules())
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				want = services
			}
			for _, mode := range []struct {
				name  string
				cfg   Config
				addrs []netip.AddrPort
				want  int
				again bool
			}{
				{"all", Config{AnyFrontend: true}, nil, want, false},
				{"one", Config{}, []netip.AddrPort{netip.AddrPortFrom(benchAddr(services/2), 80)}, min(want, 1), false},
				{"again", Config{}, []netip.AddrPort{netip.AddrPortFrom(benchAddr(services/2), 80)}, min(want, 1), true},
				{"presence", Config{}, nil, 0, false},
			} {
				b.Run(mode.name, func(b *testing.B) {
					err := l.Do(func() error {
						d := NewDetector(mode.cfg)
						if _, err := d.Detect(b.Context(), mode.addrs...); err != nil {
							return err
						}
						used := cpuTime()
						for b.Loop() {
							if !mode.again {
								d = NewDetector(mode.cfg)
							}
							p, err := d.Detect(b.Context(), mode.addrs...)
							if err != nil {
								return err
							}
							if got := len(p.frontends.served); got != mode.want {
								return fmt.Errorf("%d addresses, want %d\n%s", got, mode.want, p)
							}
						}
						b.ReportMetric(float64(cpuTime()-used)/1e6/float64(b.N), "cpu-ms/op")
						return nil
					})
					if err != nil {
						b.Fatal(err)
					}
				})
			}
		})
	}
}

// cpuTime is the processor time of this process, in nanoseconds.
func cpuTime() int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func benchAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

func manyNft(n int) string {
	var b strings.Builder
	b.WriteString("add table ip kube-proxy\nadd map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }\n")
	b.WriteString("add chain ip kube-proxy service-x\n")
	for i := range n {
		fmt.Fprintf(&b, "add chain ip kube-proxy service-%d\n", i)
	}
	return b.String() + manyElements(n)
}

// manyElements fills the map with n Services.
func manyElements(n int) string {
	var b strings.Builder
	b.WriteString("add element ip kube-proxy service-ips {\n")
	for i := range n {
		fmt.Fprintf(&b, "%s . tcp . 80 : goto service-x,\n", benchAddr(i))
	}
	b.WriteString("}\n")
	return b.String()
}

const jumpToServices = "-A OUTPUT -j KUBE-SERVICES\n"

func manyIptables(n int) string {
	var b strings.Builder
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	for i := range n {
		fmt.Fprintf(&b, ":KUBE-SVC-%016d - [0:0]\n:KUBE-SEP-%016d - [0:0]\n", i, i)
	}
	b.WriteString(jumpToServices)
	for i := range n {
		fmt.Fprintf(&b, "-A KUBE-SERVICES -m comment --comment \"ns/service-%d cluster IP\" -m tcp -p tcp -d %s --dport 80 -j KUBE-SVC-%016d\n", i, benchAddr(i), i)
	}
	for i := range n {
		fmt.Fprintf(&b, "-A KUBE-SVC-%016d -m comment --comment \"ns/service-%d -> 192.0.2.1:80\" -j KUBE-SEP-%016d\n", i, i, i)
		fmt.Fprintf(&b, "-A KUBE-SEP-%016d -m comment --comment ns/service-%d -m tcp -p tcp -j DNAT --to-destination 192.0.2.1:80\n", i, i)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
