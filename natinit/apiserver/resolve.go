package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Resolver looks up addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

var _ Resolver = (*net.Resolver)(nil)

// NewResolver gives a Resolver that honours /etc/hosts below root and asks
// next for the rest. next nil means Go's own resolver, which reads
// /etc/resolv.conf of this process, not of root: in a container the kubelet
// has filled it in (with hostNetwork: the host's).
func NewResolver(root string, next Resolver) Resolver {
	if next == nil {
		next = &net.Resolver{PreferGo: true}
	}
	if root == "" || root == "/" {
		return next // Go reads /etc/hosts itself
	}
	return &hostsResolver{root: root, next: next}
}

type hostsResolver struct {
	root string
	next Resolver
}

func (r *hostsResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	known := false
	if b, err := (hostfs.FS{Root: r.root}).ReadTrusted("/etc/hosts"); err == nil {
		for _, a := range lookupHosts(b, host) {
			known = true
			if network == "ip" || (network == "ip4") == a.Is4() {
				out = append(out, a)
			}
		}
	}
	if known && len(out) == 0 {
		return nil, &net.DNSError{Err: "no address of this family in /etc/hosts", Name: host, IsNotFound: true}
	}
	if len(out) > 0 {
		return out, nil
	}
	return r.next.LookupNetIP(ctx, network, host)
}

// lookupHosts finds a name in a hosts file (hosts(5)).
func lookupHosts(b []byte, host string) []netip.Addr {
	var out []netip.Addr
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, n := range f[1:] {
			if strings.EqualFold(strings.TrimSuffix(n, "."), host) {
				out = append(out, a.Unmap())
				break
			}
		}
	}
	return out
}

// Resolution is what became of one host name.
type Resolution struct {
	// Asked is the endpoint with the name, unresolved.
	Asked Endpoint
	// Found are its addresses, IPv4 first, each in numeric order: DNS shuffles,
	// and a second run must find what the first one found.
	Found []Endpoint
	// Dropped says which addresses were not used, and why.
	Dropped []string
	// Err is why there is no address, or nil.
	Err error
}

// ResolveConfig is what Resolve needs to know about names.
type ResolveConfig struct {
	Resolver Resolver
	// Services are the Service IPs: a name that leads to one is a deadlock
	// (the connection would need itself), so such an address is dropped.
	Services []netip.AddrPort
	// Loopback keeps loopback addresses that a name leads to, because the
	// name was given by hand. The names of localhost always lead to loopback;
	// any other name that does (Debian gives a host its own name as
	// 127.0.1.1) keeps them only when it has no other address.
	Loopback bool
}

// secondFamilyGrace is how long the slower family may take after the faster
// one has answered: some name servers drop AAAA questions (RFC 8305 uses 50 ms
// between users' connects; here an address set is saved, so a little more).
const secondFamilyGrace = 250 * time.Millisecond

// maxLookups bounds the names that are looked up at the same time.
const maxLookups = 16

// Resolve replaces host names by their addresses of both families, in
// parallel, within ctx. Endpoints without a name pass through. A name without
// an address stays in the result, unresolved, so that nobody forgets it; why
// is in the list of resolutions, which has one entry a name.
func Resolve(ctx context.Context, cfg ResolveConfig, endpoints []Endpoint) ([]Endpoint, []Resolution) {
	var names []Resolution
	index := map[Endpoint]int{}
	for _, e := range endpoints {
		if e.Resolved() {
			continue
		}
		if _, dup := index[e]; !dup {
			index[e] = len(names)
			names = append(names, Resolution{Asked: e})
		}
	}
	if len(names) == 0 {
		return endpoints, nil
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxLookups)
	for i := range names {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			resolveOne(ctx, cfg, &names[i])
		})
	}
	wg.Wait()

	out := make([]Endpoint, 0, len(endpoints)+len(names))
	seen := map[netip.AddrPort]bool{}
	for _, e := range endpoints {
		found := []Endpoint{e}
		if !e.Resolved() {
			if r := names[index[e]]; len(r.Found) > 0 {
				found = r.Found
			} else if !slices.Contains(out, e) {
				out = append(out, e)
				continue
			}
		}
		for _, f := range found {
			if f.Resolved() && !seen[f.Addr] {
				seen[f.Addr] = true
				out = append(out, f)
			}
		}
	}
	return out, names
}

func resolveOne(ctx context.Context, cfg ResolveConfig, r *Resolution) {
	addrs, err := lookupBoth(ctx, cfg.Resolver, r.Asked.Host)
	port := r.Asked.Addr.Port()
	var loop []Endpoint
	for _, a := range addrs {
		e := Endpoint{Host: r.Asked.Host, Addr: netip.AddrPortFrom(a, port)}
		switch reason := RefuseAddr(a); {
		case reason != "":
			r.Dropped = append(r.Dropped, fmt.Sprintf("%s: %s", a, reason))
		case slices.Contains(cfg.Services, e.Addr):
			r.Dropped = append(r.Dropped, fmt.Sprintf("%s: is the Service IP itself", e.Addr))
		case a.IsLoopback():
			loop = append(loop, e)
		default:
			r.Found = append(r.Found, e)
		}
	}
	keep := cfg.Loopback && (localhostName(r.Asked.Host) || len(r.Found) == 0)
	for _, e := range loop {
		if keep {
			r.Found = append(r.Found, e)
		} else {
			r.Dropped = append(r.Dropped, fmt.Sprintf("%s: is a loopback address, which pods cannot reach", e.Addr.Addr()))
		}
	}
	if len(r.Found) > 0 {
		return
	}
	r.Err = err
	if err == nil {
		r.Err = fmt.Errorf("no usable address: %s", strings.Join(r.Dropped, "; "))
	}
}

// lookupBoth asks for both families at once. It does not use network "ip":
// there the answer waits for the slower family, and is lost with it when the
// time runs out.
func lookupBoth(ctx context.Context, r Resolver, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	ch := make(chan answer, 2)
	for _, network := range []string{"ip4", "ip6"} {
		go func() {
			a, err := r.LookupNetIP(ctx, network, host)
			ch <- answer{a, err}
		}()
	}
	var out []netip.Addr
	var errs []error
	var grace <-chan time.Time
	for range 2 {
		select {
		case a := <-ch:
			for _, addr := range a.addrs {
				out = append(out, addr.Unmap())
			}
			if a.err != nil {
				errs = append(errs, a.err)
			}
			if len(out) > 0 && grace == nil {
				t := time.NewTimer(secondFamilyGrace)
				defer t.Stop()
				grace = t.C
			}
		case <-grace:
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare) // IPv4 sorts before IPv6
	out = slices.Compact(out)
	if len(out) > 0 {
		return out, nil
	}
	return nil, lookupError(host, errs)
}

// lookupError words why a name has no address, once for both families.
func lookupError(host string, errs []error) error {
	for _, err := range errs {
		var dns *net.DNSError
		switch {
		case errors.As(err, &dns) && dns.IsNotFound:
			continue
		case errors.Is(err, context.DeadlineExceeded), errors.As(err, &dns) && dns.IsTimeout:
			return fmt.Errorf("look up %s: no answer from the name server in time", host)
		}
		return fmt.Errorf("look up %s: %w", host, err)
	}
	return fmt.Errorf("look up %s: no such name", host)
}
