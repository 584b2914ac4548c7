package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// load are clients that use all Services until they are stopped: for each one a TCP connection that asks again and again, and
// datagrams at a thousand a second over all of them, of which every one has to be answered.
type load struct {
	wg               sync.WaitGroup
	stop             chan struct{}
	asked, datagrams atomic.Uint64
	mu               sync.Mutex
	errs             []error
}

// loadFrom starts clients of a machine.
func (b *bench) loadFrom(t testing.TB, m machine) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	each := time.Second / 1000 * time.Duration(len(families)*len(kinds))
	for _, f := range families {
		for _, k := range kinds {
			to := f.frontend(k)
			c, err := dial(m, "tcp", fresh(to), to)
			must(t, err)
			u, err := dial(m, "udp", fresh(to), to)
			must(t, err)
			for _, conn := range []net.Conn{c, u} {
				must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
			}
			what := fmt.Sprintf("%s, %s", f.name, k)
			l.wg.Go(func() { l.note(what, l.askAgain(b, f, k, c)) })
			l.wg.Go(func() { l.note(what, l.flow(u, each)) })
		}
	}
	return l
}

func (l *load) note(what string, err error) {
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.errs = append(l.errs, fmt.Errorf("%s: %w", what, err))
	}
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// askAgain asks over one connection whom the server sees, which must not change.
func (l *load) askAgain(b *bench, f family, k kind, c net.Conn) error {
	defer c.Close()
	for !l.stopped() {
		who, err := ask(c, askWho)
		if err == nil {
			err = b.seen(f, k, addrPort(c.LocalAddr()), who)
		}
		if err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		l.asked.Add(1)
		time.Sleep(time.Millisecond)
	}
	return echo(c, 1000)
}

// flow sends numbered datagrams, one each some time, and checks at the end that each was answered.
func (l *load) flow(c net.Conn, each time.Duration) error {
	defer c.Close()
	var sent uint64
	answered := map[uint64]bool{}
	buf := make([]byte, 2048)
	read := func(wait time.Duration) error {
		c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		if err == nil {
			answered[numberOf(buf[:n])] = true
		}
		return err
	}
	for !l.stopped() {
		if _, err := c.Write(numbered(sent)); err != nil {
			return fmt.Errorf("UDP: %w", err)
		}
		sent++
		l.datagrams.Add(1)
		for end := time.Now().Add(each); time.Now().Before(end); {
			if err := read(time.Until(end)); err != nil && !isTimeout(err) {
				return fmt.Errorf("UDP: %w", err)
			}
		}
	}
	for end := time.Now().Add(patience); uint64(len(answered)) < sent && time.Now().Before(end); {
		if err := read(time.Until(end)); err != nil && !isTimeout(err) {
			return fmt.Errorf("UDP: %w", err)
		}
	}
	if lost := sent - uint64(len(answered)); lost > 0 {
		return fmt.Errorf("UDP: %d of %d datagrams were lost", lost, sent)
	}
	return nil
}

// numbered is a datagram with a number, which its answer has, too.
func numbered(n uint64) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), make([]byte, 192)...)
}

func numberOf(answer []byte) uint64 {
	parts := bytes.SplitN(answer, []byte("|"), 3)
	if len(parts) < 3 || len(parts[2]) < 8 {
		return math.MaxUint64
	}
	return binary.BigEndian.Uint64(parts[2])
}

// await waits until there was that much load more.
func (l *load) await(t testing.TB, datagrams uint64) {
	t.Helper()
	asked, sent := l.asked.Load(), l.datagrams.Load()
	lab.Await(t, "the clients go on", func() bool { return l.asked.Load() >= asked+20 && l.datagrams.Load() >= sent+datagrams })
}

// unbroken stops the load, and reports what was lost.
func (l *load) unbroken(t testing.TB) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	for _, err := range l.errs {
		t.Error(err)
	}
	t.Logf("%d requests over TCP, %d datagrams", l.asked.Load(), l.datagrams.Load())
}

// onEachWay runs a test with programs attached by each way that the kernel has; nothing is attached yet.
func onEachWay(t *testing.T, test func(t *testing.T, b *bench)) {
	for _, tcx := range []bool{true, false} {
		t.Run(map[bool]string{true: "tcx", false: "clsact"}[tcx], func(t *testing.T) {
			if tcx && !haveTCX() {
				t.Skip("needs tcx, of Linux 6.6")
			}
			t.Parallel()
			b := newTopology(t)
			b.table = newTable(t, b)
			b.uplinks = newUplinks(t, b, tcx)
			b.serve(t)
			test(t, b)
		})
	}
}

// Flows live on, and nothing is lost, while the programs are kept, exchanged, and attached by the other means and back.
func TestFlowsOutliveUpgrades(t *testing.T) {
	onEachWay(t, func(t *testing.T, b *bench) {
		b.attach(t)
		b.watch(t)
		b.addClsact(t)
		l := b.loadFrom(t, b.client)
		l.await(t, 200)
		b.attach(t)
		l.await(t, 200)
		b.upgrade(t)
		l.await(t, 200)
		if haveTCX() {
			for range 2 {
				b.exchangeWays(t)
				l.await(t, 200)
			}
		}
		must(t, b.tryAll(b.client, everyAddress))
		l.await(t, 200)
		l.unbroken(t)
		b.wantAttachedOnce(t)
	})
}

// addClsact gives the uplinks the qdisc that filters need. While it is added, the kernel drops what the device is to send
// (qdisc_graft, dev_deactivate); it stays when filters go, so that is once in a device's life.
func (b *bench) addClsact(t testing.TB) {
	t.Helper()
	must(t, b.node.Link(func(nl *netlink.Handle) error {
		for _, name := range b.devices {
			dev, err := nl.LinkByName(name)
			if err != nil {
				return err
			}
			err = nl.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
		return nil
	}))
}

// wantAttachedOnce checks that each hook has one program, by one means.
func (b *bench) wantAttachedOnce(t testing.TB) {
	t.Helper()
	must(t, b.node.Do(func() error {
		for _, name := range b.devices {
			dev, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for _, h := range bpf.UplinkHooks() {
				n := 0
				if haveTCX() {
					q, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: h.Attach})
					if err != nil {
						return err
					}
					n = len(q.Programs)
				}
				filters, err := netlink.FilterList(dev, map[bool]uint32{true: netlink.HANDLE_MIN_INGRESS, false: netlink.HANDLE_MIN_EGRESS}[h.Attach == ebpf.AttachTCXIngress])
				if err != nil {
					return err
				}
				if n += len(filters); n != 1 {
					t.Errorf("%s of %s has %d programs", h.Name, name, n)
				}
			}
		}
		return nil
	}))
}

// What a process has attached stays when it is killed, and the next one takes it over.
func TestFlowsOutliveAKill(t *testing.T) {
	onEachWay(t, func(t *testing.T, b *bench) {
		b.watch(t)
		setting, err := json.Marshal(attacher{BPFFS: b.node.BPFFS, Devices: b.devices, TCX: b.uplinks.tcx})
		must(t, err)
		self, err := os.Executable()
		must(t, err)
		cmd := b.node.Command(t.Context(), self)
		cmd.Env = append(os.Environ(), attacherEnv+"="+string(setting))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if line, _ := bufio.NewReader(out).ReadString('\n'); line != "attached\n" {
			t.Fatalf("the process that attaches says %q", line)
		}
		l := b.loadFrom(t, b.client)
		l.await(t, 200)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		l.await(t, 200)
		b.attach(t)
		l.await(t, 200)
		l.unbroken(t)
		b.wantAttachedOnce(t)
	})
}
