package kubeproxy

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"
)

// Config says where to look. The zero value is right on the host.
type Config struct {
	Root string // prefix of the host's files: "" or "/" on the host, "/proc/1/root" or "/host" in a container
	Proc string // where the host's processes are seen; "" means /proc

	// AnyFrontend reads all rules, for [Presence.ServesAny]. Without it only the given addresses are looked up.
	AnyFrontend bool
}

// Detect looks for kube-proxy, and for rules that serve the TCP addresses addrs. What could not be looked at is in the
// evidence, not an error; the one error is that of a ctx that has ended.
//
// docs/decisions/0015 has what it costs. Without CAP_NET_ADMIN the rules can't be read.
func Detect(ctx context.Context, cfg Config, addrs ...netip.AddrPort) (Presence, error) {
	return NewDetector(cfg).Detect(ctx, addrs...)
}

// Detector looks again and again. It reads rules anew only after they changed. It is for one goroutine at a time, and
// for one network namespace.
type Detector struct {
	root, proc string
	any        bool
	net        string   // /proc/net of the calling thread's network namespace
	netNS      string   // the handle of that namespace
	health     []string // addresses of kube-proxy's healthz
	unchanged  map[string]look
}

// NewDetector makes a Detector.
func NewDetector(cfg Config) *Detector {
	d := &Detector{
		root: cfg.Root,
		proc: cfg.Proc,
		any:  cfg.AnyFrontend,
		// Not below Config.Proc: these belong to the thread that opens the
		// sockets. And not /proc/net, which is the main thread's.
		net:       "/proc/thread-self/net",
		netNS:     "/proc/thread-self/ns/net",
		health:    []string{"127.0.0.1:10256", "[::1]:10256"},
		unchanged: make(map[string]look),
	}
	if d.proc == "" {
		d.proc = "/proc"
	}
	return d
}

// family is an IP version, as netfilter names them.
type family struct {
	name    string
	nfproto uint8
	addrLen int
}

var (
	ip4 = family{name: "ip", nfproto: 2, addrLen: 4}
	ip6 = family{name: "ip6", nfproto: 10, addrLen: 16}
)

// Detect is as the function Detect.
func (d *Detector) Detect(ctx context.Context, addrs ...netip.AddrPort) (Presence, error) {
	// Files of thread-self and new sockets have to speak of one namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	processes := make(chan processLook, 1)
	own := d.netNS
	if here, err := os.Open(own); err == nil { // this thread's: the next goroutine's may be another
		defer here.Close()
		own = fmt.Sprint("/proc/self/fd/", here.Fd())
	}
	go func() { processes <- lookForProcesses(ctx, d.root, d.proc, own) }()

	p := Presence{frontends: newFrontends(d.any, addrs)}
	rules := d.rules(ctx, &p.frontends)
	found := <-processes
	p.Processes = found.processes
	p.Evidence = append(p.Evidence, found.evidence, d.healthz(ctx, found.evidence.Found))
	p.Evidence = append(p.Evidence, rules...)
	p.judge()
	return p, ctx.Err()
}

// rules looks at every place where kube-proxy puts rules.
func (d *Detector) rules(ctx context.Context, f *frontends) []Evidence {
	evidence := d.nft(ctx, f)
	for _, fam := range []family{ip4, ip6} {
		evidence = append(evidence, d.legacy(fam, f))
	}
	return append(evidence, d.ipvs(f)...)
}

// look is what a place gave. It holds while the place has the same version, for maxAge at most.
type look struct {
	version  string
	at       time.Time
	evidence Evidence
	seen     frontends
}

// maxAge bounds what two tables of iptables-legacy with the same number of rules can hide.
const maxAge = 10 * time.Minute

// holds reports whether a look still says what is there. One that could not see all is repeated.
func (l look) holds(version string, f *frontends) bool {
	return version != "" && l.version == version && slices.Equal(l.seen.asked, f.asked) && time.Since(l.at) < maxAge &&
		l.evidence.Found != Unknown && !l.seen.incomplete4 && !l.seen.incomplete6
}

// once returns the last look at a place if it holds, else looks. An empty version is always new.
func (d *Detector) once(source, version string, f *frontends, at func(*frontends) Evidence) Evidence {
	last := d.unchanged[source]
	if !last.holds(version, f) {
		last = look{version: version, at: time.Now(), seen: newFrontends(f.all, f.asked)}
		last.evidence = at(&last.seen)
		d.unchanged[source] = last
	}
	f.merge(last.seen)
	return last.evidence
}
