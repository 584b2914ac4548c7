package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/firsthop/firsthop/test/clients"
	"golang.org/x/sys/unix"
)

// connectOnce makes one connection and uses it as configured. Errors are those of the connect and of the echo.
func connectOnce(target netip.AddrPort, do clients.OnConnect) (server string, err error) {
	s, err := newSock(clients.TCP, target, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer s.reset()
	if do == clients.Echo {
		var e clients.Exchange
		err = s.exchange(clients.TCP, target, "hammer\n", &e)
		return e.Server(), err
	}
	if err := s.connect(target); err != nil || do == clients.Reset {
		return "", err
	}
	s.awaitClose()
	return "", nil
}

// hammer connects with many workers until the time is over or the standard input ends.
func hammer(target netip.AddrPort, workers int, duration time.Duration, do clients.OnConnect) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	} else {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}

	var started, running sync.WaitGroup
	reports := make([]clients.Hammered, workers)
	started.Add(workers)
	begin := time.Now()
	for i := range reports {
		running.Go(func() { work(ctx, target, do, &reports[i], started.Done) })
	}
	started.Wait()
	fmt.Println("started")
	running.Wait()

	total := clients.Hammered{Failures: map[string]int64{}, Servers: map[string]int64{}, Elapsed: time.Since(begin)}
	for _, r := range reports {
		total.Connects += r.Connects
		total.Slowest = max(total.Slowest, r.Slowest)
		add(total.Failures, r.Failures)
		add(total.Servers, r.Servers)
	}
	return json.NewEncoder(os.Stdout).Encode(total)
}

func add(sum, m map[string]int64) {
	for k, v := range m {
		sum[k] += v
	}
}

// work connects until the context ends, at least once; it calls started after the first time.
func work(ctx context.Context, target netip.AddrPort, do clients.OnConnect, r *clients.Hammered, started func()) {
	r.Failures, r.Servers = map[string]int64{}, map[string]int64{}
	for {
		begin := time.Now()
		server, err := connectOnce(target, do)
		r.Slowest = max(r.Slowest, time.Since(begin))
		switch {
		case err != nil:
			r.Failures[err.Error()]++
		default:
			r.Connects++
			if do == clients.Echo {
				r.Servers[server]++
			}
		}
		if started != nil {
			started()
			started = nil
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// pause leaves the processor to what is to be measured.
const pause = 50 * time.Microsecond

// first connects until it succeeds and tells when that was.
func first(target netip.AddrPort) error {
	r := clients.First{Failures: map[string]int64{}}
	for {
		_, err := connectOnce(target, clients.Reset)
		if err == nil {
			break
		}
		if len(r.Failures) == 0 {
			fmt.Println("started")
		}
		r.Failures[err.Error()]++
		time.Sleep(pause)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	r.Monotonic = time.Duration(now.Nano())
	if len(r.Failures) == 0 {
		return fmt.Errorf("%s answered before anything was done", target)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
