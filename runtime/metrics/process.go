package metrics

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// writeProcess tells about this process what Prometheus' own clients tell. What can't be read is left out.
func writeProcess(p *Page, started time.Time) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err == nil {
		p.Counter("process_cpu_seconds_total", "Processor time that was used.", seconds(usage.Utime)+seconds(usage.Stime))
	}
	p.Gauge("process_start_time_seconds", "When the process started, as a Unix time.", unixSeconds(started))
	if resident, ok := residentBytes("/proc/self/status"); ok {
		p.Gauge("process_resident_memory_bytes", "Memory of the process that is in RAM.", resident)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Gauge("process_open_fds", "Open files, but for the one that counted them.", float64(len(fds)-1))
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		p.Gauge("process_max_fds", "How many files may be open.", float64(limit.Cur))
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	p.Gauge("go_goroutines", "Goroutines.", float64(runtime.NumGoroutine()))
	p.Gauge("go_memstats_heap_alloc_bytes", "Memory of objects on the heap, garbage included.", float64(mem.HeapAlloc))
	p.Gauge("go_memstats_sys_bytes", "Memory that Go has from the system.", float64(mem.Sys))
	p.Counter("go_memstats_alloc_bytes_total", "Memory that objects on the heap ever took.", float64(mem.TotalAlloc))
}

func seconds(t unix.Timeval) float64 { return float64(t.Nano()) / 1e9 }

// residentBytes reads VmRSS.
func residentBytes(path string) (float64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(text) {
		if rest, ok := strings.CutPrefix(string(line), "VmRSS:"); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return float64(n) * 1024, err == nil
		}
	}
	return 0, false
}
