package diagnose

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/dependents"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

// What on a node needs the Service IP at its next start, and where it can go instead.

// Dependent is a file that names the Service IP as the API server, and the shell
// commands that make it name an API server itself.
type Dependent struct {
	dependents.Dependent
	Commands []string `json:"commands"`
}

// FindDependents looks for what depends on the API service of an instance.
// servers are addresses that it can use instead, the best first.
func FindDependents(ctx context.Context, d mounts.Dirs, services, servers []netip.AddrPort) []Dependent {
	p := d.Places()
	found := dependents.Find(dependents.Config{Root: p.HostRoot, Proc: p.Proc, Services: services})
	if len(found) == 0 {
		return nil
	}
	servers = slices.DeleteFunc(slices.Clone(servers), func(a netip.AddrPort) bool { return !a.IsValid() || slices.Contains(services, a) })
	direct := bootstrap.Direct(d)
	defer direct.Close()
	trust := discover.Identify(discover.Config{Root: p.HostRoot, StateDir: p.StateDir, Machine: bootstrap.MachineAt(p)}).Trust
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	live := bootstrap.LiveServers(ctx, servers, probe.Config{Strength: probe.Verified, Trust: trust, Dial: direct.DialContext})
	if len(live) == 0 {
		live = servers
	}
	// Loopback is right for no other process than those of this network namespace, and for no certificate.
	slices.SortStableFunc(live, func(a, b netip.AddrPort) int {
		return boolInt(a.Addr().IsLoopback()) - boolInt(b.Addr().IsLoopback())
	})
	var out []Dependent
	for _, d := range found {
		out = append(out, Dependent{d, d.Commands(serverFor(d.Service, live))})
	}
	return out
}

// serverFor prefers a server of the family that is in use.
func serverFor(service netip.AddrPort, servers []netip.AddrPort) netip.AddrPort {
	for _, s := range servers {
		if s.Addr().Is4() == service.Addr().Is4() {
			return s
		}
	}
	if len(servers) > 0 {
		return servers[0]
	}
	return netip.AddrPort{}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// APIServiceOf gives the addresses of the API service and its servers, as far as
// table, last report and saved addresses tell. Other Services' addresses are not
// among them: their owners could choose one that a kubelet uses.
func APIServiceOf(table []TableService, last *bootstrap.Report, stateDir string) (services, servers []netip.AddrPort) {
	add := func(list *[]netip.AddrPort, a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(*list, a) {
			*list = append(*list, a)
		}
	}
	known := APIAddrs(last, stateDir)
	for _, svc := range table {
		frontends := TCPFrontends(svc)
		is := func(a netip.AddrPort) bool { return slices.Contains(known, a) }
		if svc.Owner != natinit.OwnerInit && !slices.ContainsFunc(frontends, is) {
			continue
		}
		for _, a := range frontends {
			add(&services, a)
		}
		for _, a := range svc.Backends {
			add(&servers, a)
		}
	}
	for _, a := range known {
		add(&services, a)
	}
	if last != nil {
		for _, s := range last.Servers {
			add(&servers, s.Endpoint.Addr)
		}
	}
	if saved, err := apiserver.Load(stateDir); err == nil {
		for _, e := range saved.Endpoints {
			add(&servers, e.Addr)
		}
	}
	return services, servers
}

// dependents judges whether what needs the Service IP will have it at the next
// boot.
func (d *doctor) dependents(ctx context.Context) Finding {
	var table []TableService
	if d.maps != nil {
		var err error
		if table, err = tableOf(d.state, d.maps, d.state.Indexes()); err != nil {
			return unseen("what depends on the Service IP", err)
		}
	}
	services, servers := APIServiceOf(table, d.last, d.StateDir)
	if d.NoHost != nil {
		return warn("give the container hostPID: true, or mount the host's root and give it by --root", "cannot look at the node's configuration: %s", d.NoHost)
	}
	found := FindDependents(ctx, d.cfg.Dirs, services, servers)
	if len(found) == 0 {
		return ok("no kubelet, kubeadm or kube-proxy configuration of this node names the Service IP")
	}
	var seen, commands []string
	for _, dep := range found {
		seen = append(seen, dep.Dependent.String())
		commands = append(commands, dep.Commands...)
	}
	needs := fmt.Sprintf("this node needs firsthop to start: %s the Service IP", count(len(found), "file")+verbFor(len(found), " names", " name"))
	if boot := d.boot(ctx); d.cfg.Own() || d.NoHost != nil || boot.Grade != OK {
		fix := "firsthop install"
		if d.cfg.Own() {
			fix = strings.Join(commands, "; ")
		}
		return fail(fix, "%s, and nothing starts firsthop at the next boot: the node would stay NotReady", needs).because(seen...)
	}
	return ok("%s, and the boot unit starts it first", needs).because(seen...)
}

func verbFor(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
