package main

import (
	"flag"
	"math"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// BenchmarkInit runs the real program on a fresh node: from its exec to its exit, and from its exec to the first
// connection through the Service address that an API server answers, as a client sees it that tries all the time. The
// program is inside the cgroup that it serves, as on a real node ("in a cgroup of its own" it connects by a child).
//
//	go test ./cmd/firsthop -run '^$' -bench Init
func BenchmarkInit(b *testing.B) {
	for _, families := range []struct {
		name           string
		vips, backends string
		try            string
	}{
		{"IPv4", vip4, server4, vip4},
		{"both families", vips, servers, vip6},
	} {
		for _, where := range []struct {
			name   string
			inside bool
		}{{"on a node", true}, {"in a cgroup of its own", false}} {
			b.Run(families.name+"/"+where.name, func(b *testing.B) {
				var first, again, connect, memory []float64
				for b.Loop() {
					l := lab.New(b)
					answered, took, peak := firstConnect(b, l, firsthop, where.inside, families.vips, families.backends, families.try)
					connect = append(connect, answered)
					first, memory = append(first, took), append(memory, peak)
					took, _ = timeInit(b, l, firsthop, where.inside, families.vips, families.backends)
					again = append(again, took)
					if b.N == 0 || len(first) == 1 {
						b.ReportMetric(mapMiB(b, filepath.Join(l.BPFFS, "firsthop", "maps")), "maps-MiB")
					}
					if err := l.Close(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(0, "ns/op")
				report(b, first, "ms-first-exit")
				report(b, connect, "ms-first-connect")
				report(b, again, "ms-second-exit")
				b.ReportMetric(slices.Max(memory), "peak-MiB")
			})
		}
	}
}

var beside = flag.String("beside", "", "two programs, as OLD,NEW: BenchmarkInitBeside compares them")

// BenchmarkInitBeside runs two versions of the program in turn, each time on a fresh node, and reports the differences
// of the pairs from exec to the first answered connection: their median, and a 95% interval for it.
//
//	go test ./cmd/firsthop -run '^$' -bench InitBeside -benchtime 200x -beside OLD,NEW
func BenchmarkInitBeside(b *testing.B) {
	former, present, given := strings.Cut(*beside, ",")
	if !given {
		b.Skip("-beside OLD,NEW is not given")
	}
	var differences, ratios, olds []float64
	for i := 0; b.Loop(); i++ {
		var took [2]float64
		programs := []string{former, present}
		for j := range programs {
			which := (i + j) % 2 // each is first as often as the other
			l := lab.New(b)
			took[which], _, _ = firstConnect(b, l, programs[which], true, vip4, server4, vip4)
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		}
		olds = append(olds, took[0])
		differences, ratios = append(differences, took[1]-took[0]), append(ratios, took[1]/took[0])
	}
	b.ReportMetric(0, "ns/op")
	report(b, olds, "ms-old")
	report(b, ratios, "new/old")
	report(b, differences, "ms-more")
	n := float64(len(differences)) // of a median, by the binomial distribution's normal approximation
	spread := 1.96 * math.Sqrt(n) / 2
	b.ReportMetric(differences[max(0, int(n/2-spread))], "ms-more-low")
	b.ReportMetric(differences[min(len(differences)-1, int(n/2+spread))], "ms-more-high")
}

// firstConnect is how many milliseconds after a program's exec a client was answered through the Service address, and
// what timeInit gives.
func firstConnect(b *testing.B, l *lab.Lab, program string, inside bool, vips, servers, try string) (answered, took, peak float64) {
	b.Helper()
	accept(b, l, server4)
	accept(b, l, server6)
	client := clients.StartFirstConnect(b, l, client, try)
	start := monotonic(b)
	took, peak = timeInit(b, l, program, inside, vips, servers)
	return ms(client.Wait().Monotonic - start), took, peak
}

// report gives the median and the spread of a sample.
func report(b *testing.B, sample []float64, unit string) {
	slices.Sort(sample)
	b.ReportMetric(sample[len(sample)/2], unit)
	b.Logf("%s: min %.1f, median %.1f, max %.1f of %d", unit, sample[0], sample[len(sample)/2], sample[len(sample)-1], len(sample))
}

// timeInit gives milliseconds from exec to exit and the peak of resident memory in MiB.
func timeInit(b *testing.B, l *lab.Lab, program string, inside bool, vips, servers string) (took, peak float64) {
	b.Helper()
	args := append([]string{"init", "--persist", "off", "--service-ips", vips, "--endpoints", servers}, l.Flags()...)
	var cmd *exec.Cmd
	start := time.Now()
	var run func() ([]byte, error)
	if inside {
		c := l.Command(b.Context(), program, args...)
		cmd, run = c.Cmd, c.CombinedOutput
	} else {
		cmd = exec.Command(program, args...)
		run = func() (out []byte, err error) {
			err = l.Do(func() error { out, err = cmd.CombinedOutput(); return err })
			return out, err
		}
	}
	if out, err := run(); err != nil {
		b.Fatalf("init: %v\n%s", err, out)
	}
	took = ms(time.Since(start))
	return took, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
}

// accept answers TCP connections.
func accept(b *testing.B, l *lab.Lab, addr string) {
	b.Helper()
	ln, err := l.Listen("tcp", netip.MustParseAddrPort(addr).String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).Close()
		}
	}()
}

func mapMiB(b *testing.B, dir string) float64 {
	b.Helper()
	pins, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(pins) == 0 {
		b.Fatalf("no maps in %s: %v", dir, err)
	}
	total := uint64(0)
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			b.Fatal(err)
		}
		info, err := m.Info()
		if err != nil {
			b.Fatal(err)
		}
		n, ok := info.Memlock()
		if !ok {
			b.Fatalf("the kernel doesn't say how large %s is", pin)
		}
		total += n
		m.Close()
	}
	return float64(total) / (1 << 20)
}

func monotonic(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
