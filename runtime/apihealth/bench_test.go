package apihealth

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

const serveAsChild = "FIRSTHOP_TEST_APISERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serveAsChild) != "" {
		serveChild()
		return
	}
	os.Exit(lab.RunMain(m))
}

type plain struct{}

func (plain) Listen(network, addr string) (net.Listener, error) { return net.Listen(network, addr) }
func (plain) ListenPacket(network, addr string) (net.PacketConn, error) {
	return net.ListenPacket(network, addr)
}

// serveChild is an API server on 64 ports of loopback until its input ends.
func serveChild() {
	ca, err := standin.NewAuthority()
	if err != nil {
		panic(err)
	}
	cfg := standin.APIServerConfig{Name: "child", Network: plain{}, Authority: ca}
	for range 64 {
		cfg.Addrs = append(cfg.Addrs, netip.MustParseAddrPort("127.0.0.1:0"))
	}
	s, err := standin.StartAPIServer(cfg)
	if err != nil {
		panic(err)
	}
	fmt.Println(base64.StdEncoding.EncodeToString(ca.PEM()), strings.ReplaceAll(text(s.Addrs), " ", ","))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// BenchmarkCPU runs 64 endpoints for ten seconds an iteration, with servers in
// another process, and reports what one endpoint costs this one in an hour:
//
//	go test ./runtime/apihealth -run '^$' -bench CPU -benchtime 1x
func BenchmarkCPU(b *testing.B) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveAsChild+"=1")
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	line := must(bufio.NewReader(stdout).ReadString('\n'))
	ca, at, _ := strings.Cut(strings.TrimSpace(line), " ")
	list := must(apiserver.ParseEndpoints(at))

	m := must(New(Config{
		Log: slog.New(slog.DiscardHandler), Explicit: list, CA: must(base64.StdEncoding.DecodeString(ca)), OnChange: func(Set) {},
	}))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for len(m.Status().Set.V4) < len(list) || !m.Status().Live {
		time.Sleep(10 * time.Millisecond)
	}
	b.ResetTimer()
	cpu, probes := cpuTime(b), m.Status().Counters.Probes
	start := time.Now()
	for range b.N {
		time.Sleep(10 * time.Second)
	}
	used, n := cpuTime(b)-cpu, m.Status().Counters.Probes-probes
	hours := time.Since(start).Hours() * float64(len(list))
	b.ReportMetric(used.Seconds()/hours, "cpu-s/endpoint-hour")
	b.ReportMetric(float64(used.Microseconds())/float64(n), "cpu-µs/probe")
	b.ReportMetric(float64(n)/float64(len(list))/time.Since(start).Seconds(), "probes/s")
	if f := m.Status().Counters.Failures; f > 0 {
		b.Errorf("%d probes failed", f)
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkOut measures from the failure to the call that takes the endpoint out:
//
//	go test ./runtime/apihealth -run '^$' -bench Out -benchtime 30x
func BenchmarkOut(b *testing.B) {
	for _, name := range []string{"killed", "silent", "not-ready"} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			r.cfg.Interval = 0
			s := r.serve(a1)
			r.serve(a2)
			r.run().SetEndpoints(addrs(a1, a2))
			var took []time.Duration
			for i := range b.N {
				r.await(a1, a2)
				// Not always at the same time after a probe.
				time.Sleep(time.Duration(i*37%100) * DefaultInterval / 100)
				heal := func() {}
				start := time.Now()
				switch name {
				case "killed":
					s.Close()
					heal = func() { s = r.serve(a1) }
				case "silent":
					r.silence(a1)
					heal = func() { r.unsilence(a1) }
				case "not-ready":
					s.SetReady(false)
					heal = func() { s.SetReady(true) }
				}
				r.await(a2)
				took = append(took, time.Since(start))
				heal()
			}
			slices.Sort(took)
			for p, q := range map[string]float64{"p50": .5, "p90": .9, "max": 1} {
				i := min(int(q*float64(len(took))), len(took)-1)
				b.ReportMetric(float64(took[i].Microseconds())/1000, p+"-ms")
			}
		})
	}
}
