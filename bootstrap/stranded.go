package bootstrap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap/dependents"
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

// StrandedError says that without firsthop this node would not start again.
type StrandedError struct {
	Dependents []Dependent `json:"dependents"`
}

func (e *StrandedError) Error() string {
	files := "1 file of this node names"
	if n := len(e.Dependents); n > 1 {
		files = fmt.Sprintf("%d files of this node name", n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s as its API server a Service IP that firsthop serves: without firsthop the node is NotReady after its next reboot", files)
	for _, d := range e.Dependents {
		fmt.Fprintf(&b, "\n  %s", d.Dependent)
		for _, c := range d.Commands {
			fmt.Fprintf(&b, "\n    %s", c)
		}
	}
	b.WriteString("\nrun these commands first, or use --force")
	return b.String()
}

// findDependents looks for what depends on the API service of an instance.
// servers are addresses that it can use instead, the best first.
func findDependents(ctx context.Context, d Dirs, services, servers []netip.AddrPort) []Dependent {
	p := d.places()
	found := dependents.Find(dependents.Config{Root: p.hostRoot, Proc: p.proc, Services: services})
	if len(found) == 0 {
		return nil
	}
	servers = slices.DeleteFunc(slices.Clone(servers), func(a netip.AddrPort) bool { return !a.IsValid() || slices.Contains(services, a) })
	direct := Direct(d)
	defer direct.Close()
	trust := discover.Identify(discover.Config{Root: p.hostRoot, StateDir: p.stateDir, Machine: p.machine()}).Trust
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	live := liveServers(ctx, servers, probe.Config{Strength: probe.Verified, Trust: trust, Dial: direct.DialContext})
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

// apiServiceOf gives the addresses of the API service and its servers, as far as
// table, last report and saved addresses tell. Other Services' addresses are not
// among them: their owners could choose one that a kubelet uses.
func apiServiceOf(table []TableService, last *Report, stateDir string) (services, servers []netip.AddrPort) {
	add := func(list *[]netip.AddrPort, a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(*list, a) {
			*list = append(*list, a)
		}
	}
	known := apiAddrs(last, stateDir)
	for _, svc := range table {
		frontends := tcpFrontends(svc)
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

// strands refuses to take away what this node needs to start again.
func (u *uninstall) strands(ctx context.Context) error {
	last, _ := LoadReport(u.runDir) // without it, table and saved addresses tell
	services, servers := apiServiceOf(u.vips, last, u.stateDir)
	u.servers = servers
	found := findDependents(ctx, u.Dirs, services, servers)
	if len(found) == 0 {
		return nil
	}
	err := &StrandedError{Dependents: found}
	if !u.Force {
		return &exitError{ExitStranded, err}
	}
	for _, d := range found {
		u.Log.Warn("this file still names a Service IP that firsthop served", "file", d.Path, "server", d.Server, "fix", strings.Join(d.Commands, "; "))
	}
	return nil
}

// dependents judges whether what needs the Service IP will have it at the next
// boot.
func (d *doctor) dependents(ctx context.Context) Diagnosis {
	var table []TableService
	if d.maps != nil {
		var err error
		if table, err = tableOf(d.state, d.maps, d.state.Indexes()); err != nil {
			return unseen("what depends on the Service IP", err)
		}
	}
	services, servers := apiServiceOf(table, d.last, d.stateDir)
	if d.noHost != nil {
		return warn("give the container hostPID: true, or mount the host's root and give it by --root", "cannot look at the node's configuration: %s", d.noHost)
	}
	found := findDependents(ctx, d.Dirs, services, servers)
	if len(found) == 0 {
		return ok("no kubelet, kubeadm or kube-proxy configuration of this node names the Service IP")
	}
	var seen, commands []string
	for _, dep := range found {
		seen = append(seen, dep.Dependent.String())
		commands = append(commands, dep.Commands...)
	}
	needs := fmt.Sprintf("this node needs firsthop to start: %s the Service IP", count(len(found), "file")+verbFor(len(found), " names", " name"))
	if boot := d.boot(ctx); d.Own() || d.noHost != nil || boot.Health != Healthy {
		fix := "firsthop install"
		if d.Own() {
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
