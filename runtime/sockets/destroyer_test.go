package sockets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// run runs a destroyer until the test ends.
func (n *node) run(cfg DestroyerConfig) *Destroyer {
	n.t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Config == nil {
		cfg.Config = func() (Config, error) { return n.config(), nil }
	}
	d := NewDestroyer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() { cancel(); running.Wait() })
	return d
}

func TestDestroyerServesAFixedPortWithinASecond(t *testing.T) {
	n := newNode(t)
	d := n.run(DestroyerConfig{})
	a := open(t, n.l, "udp4", 40000)
	a.connects(vip4)
	a.begin("recv")
	n.serve(1)
	start := time.Now()
	d.Gone(gone(0, bpf.UDP)...)
	if got := a.end(); got != "ECONNABORTED" {
		t.Errorf("the waiting receive ends with %s", got)
	}
	if got := a.connects(vip4); got != name(1) {
		t.Errorf("answered by %s", got)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// A socket that was being connected while the table changed is connected after the first look.
func TestDestroyerLooksTwice(t *testing.T) {
	n := newNode(t)
	var looks atomic.Int32
	d := n.run(DestroyerConfig{StillGone: func(Backend) bool { looks.Add(1); return true }})
	d.Gone(gone(0, bpf.UDP)[0])
	lab.Await(t, "the first look", func() bool { return looks.Load() == 1 })
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4) // still served by it, as if it had read the table before
	lab.Await(t, "the second look", func() bool { res, _ := d.Total(); return res.UDP == 1 })
	a.want("ECONNABORTED", "peek")
}

func TestDestroyerSparesABackendThatIsBack(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	asked := make(chan struct{}, 10)
	d := n.run(DestroyerConfig{StillGone: func(Backend) bool { asked <- struct{}{}; return false }})
	d.Gone(gone(0, bpf.UDP)[0])
	<-asked
	if got := a.exchange(); got != name(0) {
		t.Errorf("answered by %s", got)
	}
	if res, err := d.Total(); res != (Result{}) || err != nil {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestDestroyerReportsAnUnsupportedKernelOnce(t *testing.T) {
	n := newNode(t)
	var asked atomic.Int32
	var text lab.Log
	d := n.run(DestroyerConfig{
		Log: slog.New(slog.NewTextHandler(&text, nil)),
		Config: func() (Config, error) {
			asked.Add(1)
			return Config{}, fmt.Errorf("%w: destroy a udp socket: %w", ErrNotSupported, unix.EOPNOTSUPP)
		},
	})
	d.Gone(gone(0, bpf.UDP)...)
	lab.Await(t, "the error", func() bool { _, err := d.Total(); return errors.Is(err, ErrNotSupported) })
	d.Gone(gone(1, bpf.UDP)...)
	if due, _ := d.due(); len(due) != 0 || asked.Load() != 1 || strings.Count(text.String(), "CONFIG")+strings.Count(text.String(), "does not destroy") != 1 {
		t.Errorf("pending %v, asked %d times, logged %q", due, asked.Load(), text.String())
	}
}

func TestDestroyerRepeatsAFailedLook(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	var asked atomic.Int32
	d := n.run(DestroyerConfig{Config: func() (Config, error) {
		if asked.Add(1) == 1 {
			return Config{}, errors.New("no maps yet")
		}
		return n.config(), nil
	}})
	d.Gone(gone(0, bpf.UDP)...)
	lab.Await(t, "the first error", func() bool { _, err := d.Total(); return err != nil })
	lab.Await(t, "the socket's end", func() bool { res, err := d.Total(); return res.UDP == 1 && err == nil })
	a.want("ECONNABORTED", "peek")
}
