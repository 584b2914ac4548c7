package bench

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpuSeconds is the processor time of a process and of those of its children that it has waited for, in user and kernel
// mode.
func cpuSeconds(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const utime, stime, cutime, cstime = 11, 12, 13, 14 // see proc_pid_stat(5); the first one here is its third
	ticks := 0
	for _, i := range []int{utime, stime, cutime, cstime} {
		n, err := strconv.Atoi(fields[i])
		must(t, err)
		ticks += n
	}
	return float64(ticks) / 100 // USER_HZ is 100 on all architectures that we build for
}

// awaitChildren waits until a process has none, as far as the kernel tells (CONFIG_PROC_CHILDREN): what a child has used
// is its parent's only after its end.
func awaitChildren(t testing.TB, pid int) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		must(t, err)
		children := 0
		for _, list := range lists {
			data, err := os.ReadFile(list)
			if err == nil { // a thread may end
				children += len(strings.Fields(string(data)))
			}
		}
		if children == 0 {
			return
		}
	}
	t.Fatalf("process %d still has children", pid)
}

// peakMiB is the most memory that a process has had resident.
func peakMiB(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			must(t, err)
			return float64(kib) / 1024
		}
	}
	t.Fatal("no VmHWM in /proc/", pid, "/status")
	return 0
}

// syncedAt is when a contender knew all objects, by its own log.
func (k *contender) syncedAt() (time.Time, error) {
	f, err := os.Open(k.proc.Log)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	if _, err := f.Seek(k.logged, 0); err != nil {
		return time.Time{}, err
	}
	var last time.Time
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		at, ok := time.Time{}, false
		if k.name == firsthop {
			at, ok = ourSync(line)
		} else {
			at, ok = theirSync(line, time.Now())
		}
		if ok && at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("the log of %s (%s) does not say when it knew all objects", k.name, k.proc.Log)
	}
	return last, nil
}

// ourSync reads a line of slog's: all objects of a resource have come.
func ourSync(line string) (time.Time, bool) {
	if !strings.Contains(line, `msg="a list is complete"`) ||
		!strings.Contains(line, "resource=services") && !strings.Contains(line, "resource=endpointslices") {
		return time.Time{}, false
	}
	_, rest, _ := strings.Cut(line, "time=")
	at, err := time.Parse(time.RFC3339, strings.Fields(rest)[0])
	return at, err == nil
}

// theirSync reads a line of klog's, which has no year. kube-proxy says it for Services and for EndpointSlices, up to
// 100 ms late (client-go's WaitForCacheSync).
func theirSync(line string, now time.Time) (time.Time, bool) {
	if !strings.Contains(line, `"Caches are synced"`) || len(line) < 21 ||
		!strings.Contains(line, "service config") && !strings.Contains(line, "endpoint slice config") {
		return time.Time{}, false
	}
	at, err := time.ParseInLocation("20060102 15:04:05.000000", strconv.Itoa(now.Year())+line[1:21], now.Location())
	return at, err == nil
}
