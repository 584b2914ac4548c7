package sockets

import (
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

// An application that holds each lock for a little less than counts as hung takes no time from others.
func TestCrewSkipsATenantWhoseJobsAreSlow(t *testing.T) {
	c := newCrew()
	c.limit = time.Hour
	const slow, quick tenant = 7, 8
	var jobs []*job
	var did, done [2]atomic.Int64
	// By a clock of its own, on which each job of one tenant takes a quarter of the limit.
	for i := range 200 {
		j := &job{tenant: slow}
		if i%2 == 1 {
			j.tenant = quick
		}
		j.do = func() error {
			did[j.tenant-slow].Add(1)
			if j.tenant == slow {
				j.begun.Add(-int64(c.limit / 4))
			}
			return nil
		}
		jobs = append(jobs, j)
	}
	if hung := c.work(t.Context(), jobs); len(hung) != 0 {
		t.Errorf("%d jobs hang", len(hung))
	}
	for _, j := range jobs {
		if !j.skipped {
			done[j.tenant-slow].Add(1)
		}
	}
	if got := done[0].Load(); got > 4+workers || got != did[0].Load() {
		t.Errorf("%d slow jobs were done: want about four", got)
	}
	if got := done[1].Load(); got != 100 || did[1].Load() != 100 {
		t.Errorf("%d of 100 other jobs were done", got)
	}
	if c.work(t.Context(), []*job{{tenant: slow, do: func() error { did[0].Store(-1); return nil }}}); did[0].Load() != -1 {
		t.Error("the next time it is skipped, too")
	}
}

func TestCrewBoundsWhatHangs(t *testing.T) {
	c := newCrew()
	c.limit = time.Millisecond
	back := make(chan bool, 100)
	c.back = func() { back <- true }
	release := make(chan bool)
	hang := func(of tenant, count int) (hung int) {
		var jobs []*job
		for range count {
			jobs = append(jobs, &job{tenant: of, do: func() error { <-release; return nil }})
		}
		return len(c.work(t.Context(), jobs))
	}
	total := 0
	for of, most := range map[tenant]int{5: maxHungEach, 6: maxHungEach, foreign: maxHungForeign} {
		got := 0
		for range maxHungForeign { // as looks go by
			got += hang(of, workers)
		}
		if got < most || got >= most+workers { // as many as are at work may be too many
			t.Errorf("%d hang of tenant %d, want %d", got, of, most)
		}
		total += got
	}
	if c.hanging() != total {
		t.Errorf("%d hang, want %d", c.hanging(), total)
	}
	close(release)
	for range total {
		<-back
	}
	if got := len(c.returned()); got != total || c.hanging() != 0 || len(c.returned()) != 0 {
		t.Errorf("%d came back, want %d; %d hang", got, total, c.hanging())
	}
	for of := range tenant(7) {
		if !c.may(of) {
			t.Errorf("tenant %d is still held up", of)
		}
	}
}

func TestTenantHere(t *testing.T) {
	if got := tenantHere(5); got != 5 {
		t.Errorf("its own namespace: %d", got)
	}
	for _, tc := range []struct {
		name  string
		flags uintptr
		want  tenant
	}{{"a pod's", unix.CLONE_NEWNET, 5}, {"of a user namespace", unix.CLONE_NEWNET | unix.CLONE_NEWUSER, foreign}} {
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: tc.flags}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		err := ns.Do(func() error {
			fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			if got := tenantHere(5); got != tc.want {
				t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
			}
			return nil
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		must(t, err)
	}
}
