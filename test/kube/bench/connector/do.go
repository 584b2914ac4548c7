package main

import (
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/bench/wire"
)

// took is what a burst remembers of how long its connects took. It is made once: new memory costs page faults.
var took [1 << 18]int32

// burst connects to one target after the other for a time. What it takes a connection to be made and closed makes the
// rate; what it takes to connect is reported for each.
func burst(source endpoint, targets []endpoint, duration time.Duration) wire.Reply {
	r := wire.Reply{Failures: map[string]int{}, Nanos: took[:0]}
	begin := now()
	end := begin + int64(duration)
	t := begin
	for i := 0; t < end && len(r.Nanos) < len(took); i++ {
		fd, errno := open(&source, &longer)
		if errno != 0 {
			r.Failures["open "+unix.ErrnoName(errno)]++
			t = now()
			continue
		}
		before := now()
		errno = connect(fd, &targets[i%len(targets)])
		nanos := now() - before
		shut(fd)
		if errno != 0 {
			r.Failures[unix.ErrnoName(errno)]++
		} else {
			r.Connects++
			r.Nanos = append(r.Nanos, int32(min(nanos, math.MaxInt32)))
		}
		t = now()
	}
	r.Elapsed = time.Duration(t - begin)
	return r
}

// pause is between two connects while something is waited for: it leaves the processors to what is to be measured.
var pause = unix.NsecToTimespec(int64(100 * time.Microsecond))

// await connects until it gets what it waits for. It calls started after the first connect that did not.
func await(source, target endpoint, req wire.Request, started func() error) (wire.Reply, error) {
	r := wire.Reply{Failures: map[string]int{}}
	limit := now() + int64(req.For)
	for told := false; now() < limit; {
		fd, errno := open(&source, &shorter)
		if errno == 0 {
			errno = connect(fd, &target)
			at := now()
			reached := errno == 0 && (!req.Greeted || greeted(fd))
			shut(fd)
			if reached {
				r.At = time.Duration(at)
				return r, nil
			}
		}
		if errno != 0 {
			r.Failures[unix.ErrnoName(errno)]++
		} else {
			r.Connects++
		}
		if !told {
			if err := started(); err != nil {
				return r, err
			}
			told = true
		}
		_ = unix.Nanosleep(&pause, nil)
	}
	return r, nil
}

// sweep connects once to every target, and names those that did not answer.
func sweep(source endpoint, targets []endpoint) wire.Reply {
	r := wire.Reply{Failures: map[string]int{}}
	for i := range targets {
		fd, errno := open(&source, &shorter)
		if errno == 0 {
			errno = connect(fd, &targets[i])
			shut(fd)
		}
		if errno != 0 {
			r.Failures[unix.ErrnoName(errno)]++
			r.Missing = append(r.Missing, i)
		} else {
			r.Connects++
		}
	}
	r.At = time.Duration(now())
	return r
}
