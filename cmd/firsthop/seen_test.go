package main

import (
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/services"
)

func TestStatusTellsOfChangesThatWait(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		adopted bool
		waiting time.Duration
		want    string
	}{
		{"nothing waits", true, 0, ""},
		{"a change has just come", true, time.Second, ""},
		{"a change waits for longer than a write takes", true, 42 * time.Second, "for 42s"},
		{"the first write waits for API servers", false, time.Hour, ""},
	} {
		st := &admin.Status{Adopted: tc.adopted}
		if tc.waiting > 0 {
			since := now.Add(-tc.waiting)
			st.Waiting = &since
		}
		got := strings.Join(runtimeStatus(st, now).Troubles, "; ")
		if !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestRuntimeStatusHeldPorts: kube-proxy has ports where both run, which is no trouble; another program that has one is.
func TestRuntimeStatusHeldPorts(t *testing.T) {
	port := func(holder string) admin.Port {
		return admin.Port{For: "/healthz and /livez", Addr: ":10256", Holder: holder, Error: "listen for /healthz: " + holder + " has the port"}
	}
	r := runtimeStatus(&admin.Status{Ports: []admin.Port{
		port("kube-proxy (pid 42)"), port("nginx (pid 43)"), {For: "/metrics", Addr: ":10249", Error: "listen: permission denied"},
		{For: "/metrics", Addr: "127.0.0.1:10266", Listening: true},
	}}, time.Now())
	if len(r.Held) != 1 || !strings.Contains(r.Held[0], "kube-proxy (pid 42)") {
		t.Errorf("held by kube-proxy: %q", r.Held)
	}
	if len(r.Troubles) != 2 || !strings.Contains(r.Troubles[0], "nginx (pid 43)") || !strings.Contains(r.Troubles[1], "permission denied") {
		t.Errorf("troubles: %q", r.Troubles)
	}
}

// A table that nobody keeps up to date is told from one that is served.
func TestRuntimeStatusCutOff(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	dead := []admin.APIServer{{Endpoint: "192.0.2.12:6443", State: "dead", Reason: "connection refused"}}
	for _, tc := range []struct {
		name string
		st   admin.Status
		want string
	}{
		{"all is well", admin.Status{APIServers: admin.APIServers{Live: true, Answering: true, Endpoints: dead}}, ""},
		{"none is ready, but they answer", admin.Status{APIServers: admin.APIServers{Answering: true, Endpoints: dead}}, ""},
		{"none answers", admin.Status{APIServers: admin.APIServers{Endpoints: dead}}, "no API server answers (192.0.2.12:6443 is dead: connection refused)"},
		{"they answer, and tell nothing", admin.Status{APIServers: admin.APIServers{Live: true}, Watches: map[string]admin.Watch{"services": {LastError: "403", Since: at(time.Minute)}}}, "the watch on services fails: 403"},
		{"a watch has just ended", admin.Status{APIServers: admin.APIServers{Live: true}, Watches: map[string]admin.Watch{"endpointslices": {LastError: "EOF", Since: at(time.Second)}}}, ""},
		{"a watch that decides nothing fails", admin.Status{APIServers: admin.APIServers{Live: true}, Watches: map[string]admin.Watch{"pods": {LastError: "403", Since: at(time.Hour)}}}, ""},
	} {
		if got := runtimeStatus(&tc.st, now).CutOff; got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestRuntimeStatusHasTheRuntimesAPIServers(t *testing.T) {
	now := time.Now()
	st := &admin.Status{
		Adopted: true, Proof: admin.Proof{Proven: now}, NodeError: "there is no Node x: give its name with --node-name",
		APIServers: admin.APIServers{Answering: true, Endpoints: []admin.APIServer{
			{Endpoint: "192.0.2.11:6443", State: "not ready", InUse: true, Asked: now, Reason: "no answer in time", Source: "api"},
			{Endpoint: "192.0.2.12:6443", State: "dead", Asked: now, Reason: "connection refused"},
		}},
		Problems: []admin.Problem{
			{Kind: "Service", Object: "app/web", Port: "p", Reason: "FrontendTaken", Message: "its node port tcp/192.0.2.1:30080 is served for evil/np"},
			{Kind: "Service", Object: "evil/np", Reason: string(services.AddressReserved), Message: "its external IP tcp/192.0.2.11:6443 is not served"},
		},
	}
	r := runtimeStatus(st, now)
	if len(r.Servers) != 2 || !r.Servers[0].Used || r.Servers[0].State != "not ready" || r.Servers[1].Used || !r.Servers[1].Asked.Equal(now) {
		t.Errorf("API servers: %+v", r.Servers)
	}
	if !r.Proven.Equal(now) {
		t.Errorf("proven %v", r.Proven)
	}
	troubles := strings.Join(r.Troubles, "; ")
	for _, want := range []string{"no API server is ready, those that answer are used (192.0.2.11:6443 is not ready: no answer in time)", "no Node x"} {
		if !strings.Contains(troubles, want) {
			t.Errorf("troubles: %q lack %q", troubles, want)
		}
	}
	if want := "app/web:p: its node port tcp/192.0.2.1:30080 is served for evil/np"; len(r.Problems) != 2 || r.Problems[0] != want {
		t.Errorf("problems: %q, want %q first", r.Problems, want)
	}
	if len(r.Claims) != 1 || !strings.HasPrefix(r.Claims[0], "evil/np: ") {
		t.Errorf("claims: %q", r.Claims)
	}
}

func TestRuntimeStatusCountsSockets(t *testing.T) {
	st := &admin.Status{Sockets: admin.Sockets{Moved: 3, EndedUDP: 2, Swept: 7, Hung: 1, MoveError: "this process lacks CAP_SYS_PTRACE"}}
	r := runtimeStatus(st, time.Now())
	if want := (diagnose.RuntimeSockets{Moved: 3, EndedUDP: 2, Swept: 7, Hung: 1}); r.Sockets != want {
		t.Errorf("%+v, want %+v", r.Sockets, want)
	}
	if got := strings.Join(r.Troubles, "; "); !strings.Contains(got, "1 sockets of backends that went cannot be moved") || !strings.Contains(got, "ended, not moved: this process lacks CAP_SYS_PTRACE") {
		t.Errorf("troubles: %s", got)
	}
}
