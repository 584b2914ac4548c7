package outlive

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

//go:embed testdata/session.py
var python string

//go:embed testdata/session.js
var node_js string

// program is a client that is to be tried.
type program struct {
	name string
	argv []string
	tcp  bool   // it loses nothing on the way
	peer string // what it says of its peer; "": it does not say
	from string // whom it names as the sender
	kept bool   // it uses one UDP socket for all
	// silent ones are heard of at the backend only.
	silent bool
}

// haveRing reports whether io_uring is there and allowed.
func haveRing() bool {
	off, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

// TestPrograms names what is missing on this machine: those clients are left out of the others.
func TestPrograms(t *testing.T) {
	for what, from := range map[string]string{
		"python3": "make setup-test", "curl": "make setup-test", "dig": "make setup-test", "nginx": "make setup-test",
		"node": "Node.js: apt-get install nodejs", "javac": "a JDK: apt-get install default-jdk-headless",
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := exec.LookPath(what); err != nil {
				t.Skipf("needs %s: %s", what, from)
			}
		})
	}
	t.Run("io_uring", func(t *testing.T) {
		if !haveRing() {
			t.Skip("needs io_uring: sysctl kernel.io_uring_disabled=0")
		}
	})
}

// programs are all clients that there are on this machine.
func (n *node) programs() (out []program) {
	n.Helper()
	echo := port(echoPort).String()
	add := func(p program, needs ...string) { // TestPrograms says what is missing
		if !slices.ContainsFunc(needs, func(what string) bool { _, err := exec.LookPath(what); return err != nil }) {
			out = append(out, p)
		}
	}
	goes := func(kind clients.SessionKind, p program, flags ...string) {
		p.name, p.argv = strings.Join(append([]string{string(kind)}, flags...), " "), append(append([]string{client}, flags...), "session-"+string(kind), echo)
		add(p)
	}
	mapped := "[::ffff:" + serviceIP + "]:" + strconv.Itoa(echoPort)
	for _, kind := range []clients.SessionKind{clients.TCPEach, clients.TCPDissolved, clients.FastOpenMessage, clients.FastOpenConnect} {
		goes(kind, program{tcp: true, peer: echo})
	}
	goes(clients.TCPEach, program{tcp: true, peer: mapped}, "-mapped")
	goes(clients.MPTCP, program{tcp: true}) // its subflow is a socket of its own: the backend is named
	for _, kind := range []clients.SessionKind{clients.UDPOnce, clients.UDPDissolved, clients.UDPReusePort} {
		goes(kind, program{peer: echo, from: echo, kept: kind != clients.UDPDissolved})
	}
	goes(clients.UDPOnce, program{peer: mapped, from: mapped, kept: true}, "-mapped")
	goes(clients.UDPLoose, program{from: echo, kept: true})
	goes(clients.UDPLoose, program{from: mapped, kept: true}, "-mapped")
	goes(clients.GoUDP, program{peer: echo, kept: true})
	if haveRing() {
		goes(clients.RingTCP, program{tcp: true, peer: echo})
		goes(clients.RingUDP, program{peer: echo, kept: true})
	}
	add(program{name: "udp-silent", argv: []string{client, "session-udp-silent", port(silentPort).String()}, silent: true, kept: true})

	for _, kind := range []string{"tcp", "udp-once", "udp-loose"} {
		p := program{tcp: kind == "tcp", kept: kind != "tcp", from: echo, peer: echo}
		if p.tcp {
			p.from = ""
		}
		if kind == "udp-loose" {
			p.peer = ""
		}
		where := []string{kind, serviceIP, strconv.Itoa(echoPort)}
		p.name, p.argv = "Python "+kind, append([]string{"python3", "-c", python}, where...)
		add(p, "python3")
		p.name, p.argv = "Node.js "+kind, append([]string{"node", "-e", node_js, "--"}, where...)
		add(p, "node")
		p.name, p.argv = "Java "+kind, append([]string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "testdata/Session.java"}, where...)
		if !p.tcp {
			p.peer = ""
		}
		add(p, "java", "javac")
	}

	loop := func(do string) []string {
		return []string{"bash", "-c", "while :; do read -t 0.02 -r _; [ $? -eq 1 ] && exit 0; " + do + "; done"}
	}
	curl := func(url string) string {
		return "curl -sS -m 2 --noproxy '*' " + url + ` 2>/dev/null || printf '{"error":"curl exits with %s"}\n' $?`
	}
	add(program{name: "curl", argv: loop(curl("http://" + port(httpPort).String() + "/")), tcp: true}, "curl")
	dig := func(what string) []string {
		return loop(`out=$(dig @` + serviceIP + " " + what + ` +short +tries=1 +time=2 2>&1); set -- $out; name=${1//\"/}; ` +
			`case $name in old|new) ;; *) printf '{"error":"dig: %s"}\n' "${name//[^a-z: ]/}"; continue;; esac; ` +
			`printf '{"reply":"{\\"server\\":\\"%s\\"}","peer":"%s"}\n' "$name" "$((${#out} > 3000))"`)
	}
	add(program{name: "dig", argv: dig("small.test TXT"), peer: "0"}, "dig")
	add(program{name: "dig, truncated, then TCP", argv: dig("large.test TXT"), peer: "1"}, "dig")
	add(program{name: "dig, large answers in datagrams", argv: dig("large.test TXT +bufsize=4096 +ignore"), peer: "1"}, "dig")
	if _, err := exec.LookPath("nginx"); err == nil {
		n.startNginx()
	}
	add(program{name: "nginx, its resolver", argv: loop(curl("http://127.0.0.1:18080/"))}, "curl", "nginx")
	return out
}

// startNginx starts a proxy that asks the Service's DNS, again every second, where to go.
func (n *node) startNginx() {
	n.Helper()
	conf := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/nginx.log; user root;
events {}
http {
  access_log off; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  resolver %[2]s ipv6=off valid=1s; resolver_timeout 2s;
  server { listen 127.0.0.1:18080; set $where backend.test; location / { proxy_pass http://$where:%[3]d; } }
}
`, n.Dir, serviceIP, 7000+httpPort)
	n.must(os.WriteFile(n.Dir+"/nginx.conf", []byte(conf), 0o600))
	cmd := n.Command(n.Context(), "nginx", "-p", n.Dir, "-e", n.Dir+"/nginx.log", "-c", n.Dir+"/nginx.conf")
	n.must(cmd.Start())
	n.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
}

// follower is a program at work, and how far it has been looked at.
type follower struct {
	program
	*clients.Session
	heard  func(server string) int64
	mark   map[string]int64 // what had been heard at the event
	before int              // questions before the event
}

// server is who answered lately: the last answers, several in a row, are all of one; "" if not.
func (f *follower) server() string {
	if f.silent {
		for _, server := range []string{"new", "old"} { // one that still sends to the former one sends nothing to the other
			if f.heard(server) > f.mark[server]+inARow {
				return server
			}
		}
		return ""
	}
	past := f.Past()
	if len(past) < inARow {
		return ""
	}
	last := past[len(past)-inARow:]
	for _, e := range last {
		if e.Server() != last[0].Server() {
			return ""
		}
	}
	return last[0].Server()
}

const inARow = 4

// event is what happens while clients are at work.
type event struct {
	name string
	do   func(n *node, replace func())
}

var events = []event{
	{"the endpoint is replaced", func(_ *node, replace func()) { replace() }},
	{"the runtime restarts", func(n *node, replace func()) { n.end(unix.SIGTERM); replace(); n.start() }},
	{"the runtime is killed", func(n *node, replace func()) { n.end(unix.SIGKILL); replace(); n.start() }},
}

// mostLost is how many datagrams a client may lose on the way of its socket from one backend to another: the question
// that the former one was just answering.
const mostLost = 3

// An application that uses a Service hears nothing of what happens to its backends, or to the runtime, but for who answers.
func TestClientsOutlive(t *testing.T) {
	for _, e := range events {
		t.Run(e.name, func(t *testing.T) {
			n := newNode(t)
			list := n.follow(func(program) bool { return true }, "old")
			n.reach(list, "old")
			e.do(n, func() {
				mark(list)
				n.endpoints("new")
			})
			n.reach(list, "new")
			n.judge(list, nil)
		})
	}
}

// A socket that is kept stays with its backend for as long as that is one, whatever happens to the runtime and to the other backend.
func TestClientsKeepTheirBackend(t *testing.T) {
	for _, e := range events {
		t.Run(e.name, func(t *testing.T) {
			n := newNode(t)
			list := n.follow(func(p program) bool { return p.kept && !p.silent }, "old", "new")
			n.reach(list, "")
			chosen := map[*follower]string{}
			for _, f := range list {
				chosen[f] = f.server()
			}
			e.do(n, func() {
				mark(list)
				n.endpoints("new", "old")
			})
			lab.Await(t, "the table is written again", func() bool { return strings.Contains(n.table(), port(dnsPort).String()) })
			for _, f := range list {
				if !within(func() bool { return len(f.Past()) > f.before+2*inARow }) {
					t.Errorf("%s says no more: %s", f.name, tail(f.Past()))
				}
			}
			n.judge(list, func(f *follower, e clients.Exchange) string {
				if s := e.Server(); s != "" && s != chosen[f] && chosen[f] != "" {
					return "answered by " + s + " after " + chosen[f]
				}
				return ""
			})
		})
	}
}

// Who connects before there is an endpoint is served once there is one: agents start before what they talk to.
func TestClientsBeforeEndpointsCome(t *testing.T) {
	n := newNode(t)
	n.endpoints()
	list := n.follow(func(p program) bool { return p.kept }, "")
	for _, f := range list {
		if !within(func() bool { return len(f.Past()) > 1 }) {
			t.Errorf("%s cannot even ask: %s", f.name, tail(f.Past()))
		}
	}
	mark(list)
	n.endpoints("new")
	n.reach(list, "new")
	for _, f := range list {
		f.Stop()
		// Connected sockets hear of it as under kube-proxy, which answers by ICMP; nobody else does.
		for i, e := range f.Past() {
			refused := strings.Contains(e.Error, "ECONNREFUSED") || strings.Contains(e.Error, "refused") || strings.Contains(e.Error, "PortUnreachable")
			if e.Error != "" && !strings.HasSuffix(e.Error, "timeout") && !(refused && f.peer != "" || refused && strings.HasPrefix(f.name, "Java")) && !(refused && f.silent) {
				t.Errorf("%s: question %d of %d: %s", f.name, i, len(f.Past()), e.Error)
				break
			}
		}
	}
	n.explain()
}

// follow starts the programs that are wanted, once the Service is in the table with its endpoints.
func (n *node) follow(want func(program) bool, endpoints ...string) (list []*follower) {
	n.Helper()
	if endpoints[0] != "" {
		n.endpoints(endpoints...)
	}
	lab.Await(n.T, "the runtime serves", func() bool {
		table := n.table()
		for _, name := range []string{"old", "new"} {
			at := fmt.Sprintf("%s:%d", n.backend[name].ip, 7000+echoPort)
			if strings.Contains(table, at) != slices.Contains(endpoints, name) {
				return false
			}
		}
		return strings.Contains(table, port(dnsPort).String())
	})
	for _, p := range n.programs() {
		if want(p) {
			f := &follower{program: p, heard: func(server string) int64 { return n.backend[server].heard.Load() }, mark: map[string]int64{}}
			list = append(list, f)
			f.Session = clients.StartSession(n.T, n.Lab, f.name, f.argv...)
		}
	}
	return list
}

// mark notes how far the programs are.
func mark(list []*follower) {
	for _, f := range list {
		f.before = len(f.Past())
		for _, server := range []string{"old", "new"} {
			f.mark[server] = f.heard(server)
		}
	}
}

// reach waits until all are answered by a server, "" for any.
func (n *node) reach(list []*follower, server string) {
	n.Helper()
	missing := func() []*follower {
		return slices.DeleteFunc(slices.Clone(list), func(f *follower) bool {
			s := f.server()
			return s != "" && (s == server || server == "")
		})
	}
	if within(func() bool { return len(missing()) == 0 }) {
		return
	}
	for _, f := range missing() {
		n.Errorf("%s does not reach %s: %s", f.name, server, tail(f.Past()))
	}
}

// judge stops the programs, and fails for each thing that an application should not have seen.
func (n *node) judge(list []*follower, more func(*follower, clients.Exchange) string) {
	n.Helper()
	for _, f := range list {
		f.Stop()
		if what := f.fault(more); what != "" {
			n.Errorf("%s: %s", f.name, what)
		}
	}
	n.explain()
}

// explain has the runtime's own words, where something is to be explained.
func (n *node) explain() {
	if n.Failed() {
		n.Logf("the runtime says:\n%s", n.said())
	}
}

// fault is the first thing that an application should not have seen; "": none.
func (f *follower) fault(more func(*follower, clients.Exchange) string) string {
	lost := 0
	for i, e := range f.Past() {
		what := ""
		switch {
		case strings.HasSuffix(e.Error, "timeout") && !f.tcp:
			if i >= f.before {
				lost++
			}
			continue
		case e.Error != "":
			what = e.Error
		case f.silent:
		case f.peer != "" && e.Peer != f.peer, f.from != "" && e.From != f.from:
			what = fmt.Sprintf("its peer is %s and %s answers, want %s and %s", e.Peer, e.From, f.peer, f.from)
		case more != nil:
			what = more(f, e)
		}
		if what != "" {
			return fmt.Sprintf("question %d of %d (the event came at %d): %s", i, len(f.Past()), f.before, what)
		}
	}
	if lost > mostLost {
		return fmt.Sprintf("%d of %d questions were not answered", lost, len(f.Past())-f.before)
	}
	return ""
}

func tail(past []clients.Exchange) string {
	return fmt.Sprintf("%d answers, the last %+v", len(past), past[max(0, len(past)-2):])
}
