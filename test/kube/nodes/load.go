package nodes

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/lab"
)

// Count is what came of the attempts of one target.
type Count struct {
	OK, Failed int
	Errors     []string // the first ones, with the time of each
}

// Load connects to targets all the time.
type Load struct {
	c    *Cluster
	cmd  *lab.Cmd
	stop io.Closer
	done chan struct{}

	mu     sync.Mutex
	counts map[string]Count
}

// Load starts to connect to targets from the cluster's first node; the test stops it. A target is
//
//	connect=10.96.0.1:443       a new connection every few milliseconds
//	hold=10.96.0.1:443          one connection to an API server, with a request every 100 ms
//	echo=10.96.5.5:7            the same with a server of `load serve`
//	api=https://10.96.0.1:443   client-go with the administrator's credentials, a request every 100 ms
func (c *Cluster) Load(targets ...string) *Load {
	c.t.Helper()
	return c.nodes[0].Load(targets...)
}

// Load is Cluster.Load from a node of choice.
func (n *Node) Load(targets ...string) *Load {
	n.c.t.Helper()
	return n.c.start(n.enter(context.Background(), "exec load run "+strings.Join(targets, " ")))
}

// LoadOutside is Cluster.Load from a host that is no node, on the nodes' network: for node ports, external and load balancer IPs.
func (c *Cluster) LoadOutside(targets ...string) *Load {
	c.t.Helper()
	return c.start(c.hub.Command(context.Background(), c.Program("load"), append([]string{"run"}, targets...)...))
}

// RouteOutside has that host send packets for an address to a node.
func (c *Cluster) RouteOutside(addr string, by *Node) {
	c.t.Helper()
	c.must(c.hub.Link(func(nl *netlink.Handle) error {
		dst, err := netlink.ParseIPNet(addr + "/32")
		if err != nil {
			return err
		}
		return nl.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(by.IP)})
	}))
}

// start runs a load until the test ends.
func (c *Cluster) start(cmd *lab.Cmd) *Load {
	c.t.Helper()
	l := &Load{c: c, cmd: cmd, done: make(chan struct{}), counts: make(map[string]Count)}
	in, err := l.cmd.StdinPipe()
	c.must(err)
	out, err := l.cmd.StdoutPipe()
	c.must(err)
	l.stop = in
	c.must(l.cmd.Start())
	go func() {
		defer close(l.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var counts map[string]Count
			if err := json.Unmarshal(lines.Bytes(), &counts); err == nil {
				l.mu.Lock()
				l.counts = counts
				l.mu.Unlock()
			}
		}
	}()
	c.t.Cleanup(func() { l.end() })
	return l
}

// Counts returns what came of each target up to now.
func (l *Load) Counts() map[string]Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

// Await waits for n more connections to each connect target, and one more answer of each other.
func (l *Load) Await(n int) {
	l.c.t.Helper()
	before := l.Counts()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		now := l.Counts()
		enough := len(now) > 0
		for target, count := range now {
			more := 1
			if strings.HasPrefix(target, "connect=") {
				more = n
			}
			enough = enough && count.OK >= before[target].OK+more
		}
		if enough {
			return
		}
		select {
		case <-l.done:
			l.c.t.Fatalf("the load ended: %v", now)
		default:
		}
		if time.Now().After(end) {
			l.c.t.Fatalf("waited %s in vain for %d more of each: %v", patience, n, now)
		}
	}
}

// Stop ends the load and returns what came of it. Nothing of a node that has lost its power since.
func (l *Load) Stop() map[string]Count {
	l.end()
	return l.Counts()
}

func (l *Load) end() {
	if l.cmd == nil {
		return
	}
	_ = l.stop.Close()
	<-l.done
	_ = l.cmd.Wait()
	l.cmd = nil
}

// Unbroken stops the load and fails the test where an attempt failed, or where there were fewer connects than a thousand.
func (l *Load) Unbroken() {
	l.c.t.Helper()
	for target, count := range l.Stop() {
		l.c.t.Logf("%s: %d succeeded, %d failed", target, count.OK, count.Failed)
		if count.Failed > 0 {
			l.c.t.Errorf("%s: %d of %d failed: %q", target, count.Failed, count.OK+count.Failed, count.Errors)
		}
		if strings.HasPrefix(target, "connect=") && count.OK < 1000 {
			l.c.t.Errorf("%s: only %d connects", target, count.OK)
		}
	}
}
