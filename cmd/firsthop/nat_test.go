package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// put writes Services into the table as the runtime does, and returns their indexes.
func (n node) put(list ...nat.Service) []uint32 {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), false)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	store := nat.NewKernel(maps, bpf.Features{Batch: true})
	state, err := store.Read()
	if err != nil {
		n.Fatal(err)
	}
	p := nat.NewPlanner(state, nat.RuntimeIndexes)
	var indexes []uint32
	for _, svc := range list {
		index, err := p.Assign(0, svc)
		if err != nil {
			n.Fatal(err)
		}
		indexes = append(indexes, index)
	}
	applied, err := nat.Apply(store, p.Take())
	if err == nil {
		err = applied.Commit()
	}
	if err != nil {
		n.Fatal(err)
	}
	return indexes
}

// service is one of the runtime's with a frontend: "tcp/10.96.0.20:80".
func service(frontend string, backends ...string) nat.Service {
	proto, addr, _ := strings.Cut(frontend, "/")
	p, err := bpf.ParseProto(proto)
	if err != nil {
		panic(err)
	}
	svc := nat.Service{Name: frontend, Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(netip.MustParseAddrPort(addr), p)}, AllowEmpty: true}
	for _, b := range backends {
		svc.Backends = append(svc.Backends, netip.MustParseAddrPort(b))
	}
	return svc
}

// asRuntime answers at the runtime's socket until the test ends or stop is called.
func (n node) asRuntime(status admin.Status, services ...admin.Service) (stop func()) {
	n.Helper()
	ctx, cancel := context.WithCancel(n.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := admin.Serve(ctx, admin.Config{
			RunDir: n.RunDir, Log: slog.New(slog.DiscardHandler),
			Services: func() []admin.Service { return services }, Status: func() admin.Status { return status },
		})
		if err != nil {
			n.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	n.Cleanup(stop)
	lab.Await(n.T, "the runtime's socket", func() bool {
		_, err := admin.NewClient(n.RunDir).Status(n.Context())
		return err == nil
	})
	return stop
}

// synced is how a runtime is that is well.
func synced(ports int) admin.Status {
	return admin.Status{PID: os.Getpid(), Version: "dev", Since: time.Now(), Adopted: true, Table: admin.Table{Ports: ports}, APIServers: admin.APIServers{Live: true}}
}

func TestNatTellsNames(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init("--extra-service", extra4)
	indexes := n.put(service("tcp/10.96.0.20:80", "10.0.0.5:8080", "10.0.0.6:8080"), service("udp/10.96.0.30:53"))
	n.run("nat").exits(0).says("default/kubernetes", "tcp/10.96.0.20:80", "10.0.0.5:8080", "10.0.0.6:8080")
	stop := n.asRuntime(synced(3),
		admin.Service{Index: indexes[0], Namespace: "default", Name: "web", Port: "http", Proto: "tcp", Family: "IPv4", Kinds: []string{"cluster IP"}},
		admin.Service{Index: indexes[1], Namespace: "kube-system", Name: "dns", Proto: "udp", Family: "IPv4"},
		admin.Service{Namespace: "default", Name: "late", Proto: "tcp", Family: "IPv6", Out: "no room"})
	n.run("nat").exits(0).says("default/kubernetes", "default/web:http", "kube-system/dns", "not in the table as they should be", "default/late (IPv6): no room")
	for _, tc := range []struct {
		word string
		want string
	}{
		{"default/web", "default/web:http"}, {"default/web:http", "default/web:http"}, {"web", "default/web:http"}, {"web:http", "default/web:http"},
		{"10.96.0.20", "default/web:http"}, {"10.96.0.20:80", "default/web:http"}, {"10.0.0.6", "default/web:http"}, {"10.0.0.6:8080", "default/web:http"},
		{"::ffff:10.96.0.20", "default/web:http"}, {"dns", "kube-system/dns"}, {"fd00:96::1", "default/kubernetes"}, {"[fd00:96::1]:443", "default/kubernetes"},
		{"late", "default/late (IPv6)"}, {"kubernetes", "default/kubernetes default/kubernetes"}, {"10.96.0.20:81", ""}, {"we", ""}, {"default", ""},
	} {
		var got []diagnose.TableService
		n.run("nat", tc.word, "-o", "json").exits(0).decode(&got)
		var names []string
		for _, s := range got {
			names = append(names, s.Name)
		}
		if strings.Join(names, " ") != tc.want {
			t.Errorf("nat %s: %q, want %q", tc.word, names, tc.want)
		}
	}
	n.run("nat", "nothing").exits(0).says("nothing in the table is about nothing")
	n.run("nat", "a", "b").exits(bootstrap.ExitUsage).says("one name or address")
	n.run("nat", "web", "--colour").exits(bootstrap.ExitUsage).says(`unknown flag "--colour"`)
	stop()
	n.run("nat").exits(0).says("tcp/10.96.0.20:80")
}

// TestNatCostGrowsWithTheTable: to print a table that is ten times as large takes some ten times the processor time, not a
// hundred times, as where each Service is looked for among all. Processor time, since others use this machine too.
func TestNatCostGrowsWithTheTable(t *testing.T) {
	const small, large = 1_000, 10_000
	lines := [][]string{{"nat"}, {"nat", "-o", "json"}, {"nat", "default/web-77"}, {"nat", "lookup", "10.97.0.77:80"}, {"status"}}
	cost := map[int][]time.Duration{}
	for _, services := range []int{small, large} {
		n := newNode(t)
		n.serving()
		n.init()
		var list []nat.Service
		var names []admin.Service
		for i := range services {
			list = append(list, service(fmt.Sprintf("tcp/10.97.%d.%d:80", i>>8, i&255), fmt.Sprintf("10.1.%d.%d:8080", i>>8, i&255), fmt.Sprintf("10.2.%d.%d:8080", i>>8, i&255)))
		}
		for i, index := range n.put(list...) {
			names = append(names, admin.Service{Index: index, Namespace: "default", Name: fmt.Sprint("web-", i), Proto: "tcp", Family: "IPv4", Kinds: []string{"cluster IP"}})
		}
		n.asRuntime(synced(services), names...)
		for _, line := range lines {
			best := time.Hour
			var r result
			for range 3 { // garbage is collected in some runs and not in others
				r = n.run(line...).exits(0)
				best = min(best, r.cpu)
			}
			cost[services] = append(cost[services], best)
			r.says(map[string]string{"nat": "web-77", "status": fmt.Sprint(services, " Services beside those below")}[line[0]])
			if line[0] == "status" && strings.Count(r.stdout, "\n") > 40 {
				t.Errorf("status is too long:\n%s", r.stdout)
			}
		}
	}
	for i, line := range lines {
		t.Logf("%v: %v with %d Services, %v with %d", line, cost[small][i], small, cost[large][i], large)
		if cost[large][i] > 2*large/small*cost[small][i] {
			t.Errorf("%v takes %v of processor time with %d Services, and %v with %d", line, cost[small][i], small, cost[large][i], large)
		}
	}
}

// TestStatusIsAboutTheAPI: an ordinary Service may have no backend; the API service may not, wherever it is in the table.
func TestStatusIsAboutTheAPI(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0)
	n.run("status").exits(0).says("runtime not running")
	index := n.put(service("tcp/10.96.0.20:80"), service("sctp/10.96.0.21:80", "10.0.0.5:80"))[0]
	r := n.run("status").exits(0).says("serving; proven", "2 Services beside those below", "sctp/10.96.0.21:80: in the table, but not served")
	if strings.Contains(r.stdout, "10.96.0.20") {
		t.Errorf("an ordinary Service without a backend is reported:\n%s", r.stdout)
	}
	status := synced(3)
	status.Table.Out = []admin.Out{{Service: "default/web (IPv4)", Reason: "no room"}}
	status.Watches = map[string]admin.Watch{"services": {LastError: "services is forbidden"}}
	stop := n.asRuntime(status)
	n.run("status").exits(0).says(fmt.Sprintf("pid %d, version dev", os.Getpid()), "2 Service ports are served, 1 are out", "the watch on services fails: services is forbidden")
	var st diagnose.Status
	n.run("status", "-o", "json").exits(0).decode(&st)
	if st.Runtime == nil || st.Runtime.Ports != 3 || len(st.Runtime.Out) != 1 || st.Services != 4 || len(st.Table) != 2 {
		t.Errorf("%+v", st)
	}
	stop()

	// The API service at an index of the runtime's, which the last init's proof or the saved addresses name.
	key := bpf.FrontendKeyOf(netip.MustParseAddrPort(vip4), bpf.TCP)
	n.edit(func(maps *bpf.Maps) error { return maps.Map(bpf.MapFrontend).Put(key, bpf.Frontend{Index: index}) })
	n.run("status").exits(bootstrap.ExitProof).says("service tcp/" + vip4 + " tcp/10.96.0.20:80 has no backend")
	n.without(n.RunDir + "/" + instance.StatusName)
	n.run("status").exits(bootstrap.ExitProof).says("service tcp/" + vip4 + " tcp/10.96.0.20:80 has no backend")
	n.without(apiserver.CachePath(n.StateDir))
	n.asRuntime(synced(1), admin.Service{Index: index, Namespace: "default", Name: "kubernetes", Port: "https", Proto: "tcp", Family: "IPv4"})
	n.run("status").exits(bootstrap.ExitProof).says("service tcp/"+vip4+" tcp/10.96.0.20:80 has no backend", "default/kubernetes:https")
}

// An application is not told what the table says.
func TestLookupSaysThatUDPLeadsNowhere(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	n.put(service("udp/10.96.0.26:53"), service("udp/[fd00:96::26]:53"))
	for addr, nowhere := range map[string]string{"10.96.0.26:53": "127.0.0.9:9", "[fd00:96::26]:53": "[::1]:9"} {
		n.run("nat", "lookup", "--udp", addr).exits(0).says("refused", "has no backend", "lead nowhere ("+nowhere+")")
	}
}

// TestLookupSaysWhatAConnectDoes asks for each case, and holds the answer against a real connect where one can be made.
func TestLookupSaysWhatAConnectDoes(t *testing.T) {
	lab.NeedsLinux(t, 6, 1, "refused and dropped are told apart")
	n := newNode(t)
	n.serving()
	n.echo("tcp", "one", "127.0.0.1:8080")
	n.echo("tcp", "two", "127.0.0.1:8081")
	n.init("--udp=false")
	pod, err := n.AddPod("p", netip.MustParseAddr("10.9.0.5"))
	if err != nil {
		t.Fatal(err)
	}
	web := service("tcp/10.96.0.20:80", "127.0.0.1:8080", "127.0.0.1:8081")
	web.VIPs = []netip.Addr{web.Frontends[0].Addr.Addr()}
	kept := service("tcp/10.96.0.21:80", "127.0.0.1:8080", "127.0.0.1:8081")
	kept.Affinity = time.Hour
	local := service("tcp/10.96.0.22:80", "127.0.0.1:8080")
	local.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{local.Frontends[0]: bpf.FrontendLocalPolicy}
	limited := service("tcp/10.96.0.23:80", "127.0.0.1:8080")
	limited.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{limited.Frontends[0]: bpf.FrontendSourceRange}
	limited.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}
	nodePort := service("tcp/10.96.0.24:80", "127.0.0.1:8080")
	nodePort.Frontends = append(nodePort.Frontends, bpf.LoopbackKey(true, 30080, bpf.TCP), bpf.NodePortKey(true, 30080, bpf.TCP))
	external := service("tcp/203.0.113.30:80", "127.0.0.1:8080", "127.0.0.1:8081")
	external.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{external.Frontends[0]: bpf.FrontendExternal | bpf.FrontendExternalLocal | bpf.FrontendExternalRange}
	external.ExternalVIPs = []netip.Addr{external.Frontends[0].Addr.Addr()}
	external.Local, external.OnNode = external.Backends[1:], external.Backends[1:]
	external.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	indexes := n.put(external, web, kept, local, limited, nodePort, service("tcp/10.96.0.25:80"), service("udp/10.96.0.26:53", "127.0.0.1:53"), service("sctp/10.96.0.27:99", "127.0.0.1:99"))
	n.asRuntime(synced(8), admin.Service{Index: indexes[1], Namespace: "default", Name: "web", Port: "http", Proto: "tcp", Family: "IPv4"})
	n.run("nat", "203.0.113.30").exits(0).says("tcp/203.0.113.30:80[external,local,limited]", "local:")
	var listed []diagnose.TableService
	n.run("nat", "203.0.113.30", "-o", "json").exits(0).decode(&listed)
	if len(listed) != 1 || !slices.Equal(listed[0].OnNode, external.OnNode) || !slices.Equal(listed[0].External, listed[0].Frontends) ||
		!slices.Equal(listed[0].ExternalLocal, listed[0].Frontends) || !slices.Equal(listed[0].ExternalLimited, listed[0].Frontends) {
		t.Errorf("listed is %+v", listed)
	}

	n.edit(func(maps *bpf.Maps) error {
		return maps.Map(bpf.MapFrontend).Put(bpf.NodeKeyOf(netip.MustParseAddr("192.0.2.77")), bpf.Frontend{Flags: bpf.FrontendNode})
	})
	inPod, inNode, outside := pod.Command(t.Context(), "sleep", "600"), n.Command(t.Context(), "sleep", "600"), os.Getpid()
	for _, cmd := range []*lab.Cmd{inPod, inNode} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	n.knows(pod, bpf.Workload{Addr4: bpf.AddressOf(netip.MustParseAddr("10.9.0.5"))})
	connects := func(addr string) string {
		e := clients.At(client).Run(t, n.Lab, clients.TCP, addr, "x")[0]
		if e.Error != "" {
			return e.Error
		}
		return e.Server()
	}
	if s := connects("10.96.0.21:80"); s != "one" && s != "two" {
		t.Fatal(s)
	}
	for _, tc := range []struct {
		name string
		args []string
		want nat.Kind
		says []string
		real string // what a connect on the node does; "-": not tried
	}{
		{"a Service with two backends", []string{"10.96.0.20:80"}, nat.Translated, []string{"127.0.0.1:8080 or 127.0.0.1:8081", "default/web:http", "a frontend", "written by runtime", "one of 2"}, "-"},
		{"the API service, by its name from init", []string{"10.96.0.1:443"}, nat.Translated, []string{server4, "default/kubernetes", "written by init"}, "-"},
		{"an unserved port of a VIP", []string{"10.96.0.20:81"}, nat.Refused, []string{"any/10.96.0.20", "marks the address", "VIP"}, "connect ECONNREFUSED"},
		{"an address of nobody's", []string{"127.0.0.1:8080"}, diagnose.LeftAlone, []string{"no entry of the table"}, "one"},
		{"a Service without a backend", []string{"10.96.0.25:80"}, nat.Refused, []string{"has no backend"}, "connect ECONNREFUSED"},
		{"affinity, with what the host has", []string{"10.96.0.21:80", "--pid", fmt.Sprint(inNode.Process.Pid)}, nat.Translated, []string{"3600 s", "the client keeps 127.0.0.1:80"}, "-"},
		{"affinity of a pod that never connected", []string{"10.96.0.21:80", "--pid", fmt.Sprint(inPod.Process.Pid)}, nat.Translated, []string{"it has none yet", "a network namespace of its own"}, "-"},
		{"only local backends, and none is", []string{"10.96.0.22:80"}, nat.Dropped, []string{"none on this node", "local"}, "connect EHOSTUNREACH"},
		{"a client that source ranges keep out", []string{"10.96.0.23:80"}, nat.Dropped, []string{"in none of the source ranges", "10.9.0.0/24", "limited"}, "connect EHOSTUNREACH"},
		{"a client that they allow", []string{"10.96.0.23:80", "--pid", fmt.Sprint(inPod.Process.Pid)}, nat.Translated, []string{"the source ranges allow 10.9.0.5"}, "-"},
		{"a node port on loopback", []string{"127.0.0.7:30080"}, nat.Translated, []string{"tcp/loopback:30080"}, "one"},
		{"a node port at another node", []string{"192.0.2.77:30080"}, nat.Translated,
			[]string{"tcp/nodes-ipv4:30080, a node port at the addresses of other nodes", "192.0.2.77 is an address of another node"}, "one"},
		{"another port at another node", []string{"192.0.2.77:30081"}, diagnose.LeftAlone, []string{"the address is another node's", "no Service is served there"}, "-"},
		{"a node port on loopback of a pod", []string{"127.0.0.7:30080", "--pid", fmt.Sprint(inPod.Process.Pid)}, diagnose.LeftAlone, []string{"in the host's network namespace only"}, "-"},
		{"UDP that is not served", []string{"--udp", "10.96.0.26:53"}, diagnose.LeftAlone, []string{"--udp=false"}, "-"},
		{"SCTP", []string{"10.96.0.27:99", "--proto", "sctp"}, diagnose.LeftAlone, []string{"SCTP sockets never reach"}, "-"},
		{"a load balancer IP from inside", []string{"203.0.113.30:80"}, nat.Translated, []string{"127.0.0.1:8080 or 127.0.0.1:8081", "external-local", "external-limited"}, "-"},
		{"another port of it from inside", []string{"203.0.113.30:81"}, diagnose.LeftAlone, []string{"no entry of the table"}, "-"},
		{"from outside", []string{"203.0.113.30:80", "--from-outside", "198.51.100.7"}, nat.Translated,
			[]string{"to 127.0.0.1:8081\n", "only backends for traffic that stays on this node", "the source ranges allow 198.51.100.7", "outside the cluster, at 198.51.100.7"}, "-"},
		{"from outside the source ranges", []string{"203.0.113.30:80", "--from-outside", "192.0.2.7"}, nat.Dropped, []string{"(192.0.2.7) is in none of the source ranges", "198.51.100.0/24"}, "-"},
		{"another port from outside", []string{"203.0.113.30:81", "--from-outside", "198.51.100.7"}, nat.Refused, []string{"outside/203.0.113.30, which marks", "not served to clients outside"}, "-"},
		{"what is for clients inside, from outside", []string{"10.96.0.20:80", "--from-outside", "198.51.100.7"}, diagnose.LeftAlone, []string{"for clients inside the cluster"}, "-"},
		{"nobody's address from outside", []string{"192.0.2.99:80", "--from-outside", "198.51.100.7"}, diagnose.LeftAlone, []string{"no entry of the table"}, "-"},
		{"a process outside of the cgroup", []string{"10.96.0.20:80", "--pid", fmt.Sprint(outside)}, diagnose.LeftAlone, []string{"is not in the cgroup"}, "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			n.run(append([]string{"nat", "lookup"}, tc.args...)...).exits(0).says(append(tc.says, string(tc.want))...)
			var got diagnose.Lookup
			n.run(append(append([]string{"nat", "lookup"}, tc.args...), "-o", "json")...).exits(0).decode(&got)
			if got.Result != tc.want {
				t.Errorf("%s, want %s: %q", got.Result, tc.want, got.Why)
			}
			if tc.real == "-" {
				return
			}
			if s := connects(tc.args[0]); s != tc.real {
				t.Errorf("a connect gives %q, want %q", s, tc.real)
			}
		})
	}
	n.T = t
	// Where cookies can't be told, no namespace is invented: what hangs on it is undecided, the rest is said.
	inPodFor := func(addr, forbidden string) (got diagnose.Lookup) {
		line := []string{"nat", "lookup", addr, "--pid", fmt.Sprint(inPod.Process.Pid), "--forbid-feature", forbidden}
		n.run(line...).exits(0).says("can't be told")
		n.run(append(line, "-o", "json")...).exits(0).decode(&got)
		if got.Client.Unknown == "" || got.Client.Netns != 0 || got.Client.Host {
			t.Errorf("%s without %s: %+v", addr, forbidden, got.Client)
		}
		return got
	}
	const unknownNetns = "so-netns-cookie,cgroup-link"
	for addr, want := range map[string]nat.Kind{"10.96.0.20:80": diagnose.Undecided, "10.96.0.23:80": diagnose.Undecided, "127.0.0.7:30080": diagnose.Undecided} {
		if got := inPodFor(addr, unknownNetns); got.Result != want {
			t.Errorf("%s: %s, want %s: %q", addr, got.Result, want, got.Why)
		}
	}
	// Programs that don't know namespaces either take all for the same one.
	if got := inPodFor("10.96.0.20:80", unknownNetns+",netns-cookie"); got.Result != nat.Translated {
		t.Errorf("a Service: %s: %q", got.Result, got.Why)
	}
	if got := inPodFor("10.96.0.23:80", unknownNetns+",netns-cookie"); got.Result != nat.Dropped {
		t.Errorf("a client that source ranges don't know: %s: %q", got.Result, got.Why)
	}
	n.knows(pod, bpf.Workload{Flags: bpf.WorkloadOptedOut})
	n.run("nat", "lookup", "10.96.0.20:80", "--pid", fmt.Sprint(inPod.Process.Pid)).exits(0).says("left alone", "opted out")
	n.init("--scope", "all", "--udp=true")
	n.run("nat", "lookup", "--udp", "10.96.0.26:53").exits(0).says("translated")
}

// knows tells the programs of a pod's network namespace.
func (n node) knows(pod *lab.Pod, w bpf.Workload) {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), false)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	var cookie uint64
	err = pod.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err == nil {
		err = maps.Map(bpf.MapWorkload).Put(cookie, w)
	}
	if err == nil {
		err = maps.Map(bpf.MapControl).Put(uint32(0), bpf.ControlOptOut)
	}
	if err != nil {
		n.Fatal(err)
	}
}

func TestLookupRefusesBadArguments(t *testing.T) {
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{}, "wants an address"},
		{[]string{"10.96.0.1"}, "has no port"},
		{[]string{"10.96.0.1:0"}, "want an IP address and a port"},
		{[]string{"web:80"}, "want an IP address and a port"},
		{[]string{"10.96.0.1:443", "10.96.0.1:444"}, "wants one address"},
		{[]string{"10.96.0.1:443", "--proto", "icmp"}, `protocol "icmp"`},
		{[]string{"10.96.0.1:443", "--pid", "-1"}, "--pid -1"},
		{[]string{"10.96.0.1:443", "--pid"}, "--pid needs a value"},
		{[]string{"10.96.0.1:443", "--pid", "x"}, "--pid"},
		{[]string{"--bpffs", "relative", "10.96.0.1:443"}, "want an absolute path"},
	} {
		plain(t, append([]string{"nat", "lookup"}, tc.args...)...).exits(bootstrap.ExitUsage).says(tc.says)
	}
}
