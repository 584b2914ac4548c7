package health

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"

	"github.com/firsthop/firsthop/test/lab"
)

var (
	web  = types.NamespacedName{Namespace: "default", Name: "web"}
	shop = types.NamespacedName{Namespace: "default", Name: "shop"}
)

type servicesRig struct {
	*Services
	t     *testing.T
	sick  atomic.Bool
	lines *lab.Log
}

func newServicesRig(t *testing.T) *servicesRig {
	checkLeaks(t)
	r := &servicesRig{t: t}
	log, lines := lab.NewLog()
	r.lines = lines
	r.Services = NewServices(ServicesConfig{Healthy: func() bool { return !r.sick.Load() }, Log: log, Holder: Holder, Retry: time.Millisecond})
	t.Cleanup(r.Close)
	return r
}

// answers waits for an answer from a Service; 0: there is no listener.
func (r *servicesRig) answers(host string, port uint16, name types.NamespacedName, code, local int) {
	r.t.Helper()
	var a asked
	lab.Await(r.t, fmt.Sprintf("%s:%d answers for %s with %d, %d", host, port, name, code, local), func() bool {
		a = ask(r.t, fmt.Sprintf("http://%s:%d/", host, port))
		if code == 0 {
			return a.err != nil
		}
		return a.err == nil && a.code == code && fmt.Sprint(a.body["service"]) == fmt.Sprintf("map[name:%s namespace:%s]", name.Name, name.Namespace) &&
			a.body["localEndpoints"] == float64(local) && a.body["serviceProxyHealthy"] == !r.sick.Load() &&
			a.header.Get("X-Load-Balancing-Endpoint-Weight") == fmt.Sprint(local) && a.header.Get("Content-Type") == "application/json"
	})
}

func TestServicesFollowServiceAndProxy(t *testing.T) {
	r := newServicesRig(t)
	port, other := freePort(t), freePort(t)
	r.Set(web, services.Health{Port: port, Ready4: 2, Ready6: 0, Has4: true, Has6: true})
	r.answers("127.0.0.1", port, web, 200, 2)
	r.answers("[::1]", port, web, 503, 0) // a question is answered for the family that it came by
	r.Set(web, services.Health{Port: port, Ready4: 0, Ready6: 1, Has4: true, Has6: true})
	r.answers("127.0.0.1", port, web, 503, 0)
	r.answers("[::1]", port, web, 200, 1)
	r.sick.Store(true)
	r.answers("[::1]", port, web, 503, 1)
	r.sick.Store(false)

	r.Set(web, services.Health{Port: port, Ready4: 3, Has4: true})
	r.answers("127.0.0.1", port, web, 200, 3)
	r.answers("[::1]", port, web, 0, 0)

	r.Set(web, services.Health{Port: other, Ready4: 3, Has4: true})
	r.answers("127.0.0.1", other, web, 200, 3)
	r.answers("127.0.0.1", port, web, 0, 0)
	r.Set(web, services.Health{})
	r.answers("127.0.0.1", other, web, 0, 0)
}

func TestServicesKeepListenersWhenCountsChange(t *testing.T) {
	r := newServicesRig(t)
	port := freePort(t)
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true})
	r.answers("127.0.0.1", port, web, 200, 1)
	// Connections that are made and not yet accepted would be reset by a listener that closes.
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for n := range 100 {
		r.Set(web, services.Health{Port: port, Ready4: n, Has4: true})
		r.Set(web, services.Health{Port: port, Ready4: n + 1, Has4: true})
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1024)
	if n, err := conn.Read(answer); err != nil || !strings.Contains(string(answer[:n]), "Weight: 100") {
		t.Errorf("%q, %v", answer[:n], err)
	}
}

func TestServicesWithTheSamePort(t *testing.T) {
	r := newServicesRig(t)
	port := freePort(t)
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true})
	r.Set(shop, services.Health{Port: port, Ready4: 5, Has4: true})
	r.Set(shop, services.Health{Port: port, Ready4: 6, Has4: true})
	r.answers("127.0.0.1", port, web, 200, 1)
	if u := r.Unserved(); len(u) != 1 || u[0].Service != shop || u[0].Port != port || !strings.Contains(u[0].Err, "default/web") {
		t.Errorf("%+v", u)
	}
	if n := r.lines.Count("same healthCheckNodePort"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	r.Set(web, services.Health{})
	r.answers("127.0.0.1", port, shop, 200, 6)
	if u := r.Unserved(); len(u) != 0 {
		t.Errorf("%+v", u)
	}
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true}) // it comes second now
	r.Set(web, services.Health{})                                  // and goes
	r.Set(shop, services.Health{})
	r.answers("127.0.0.1", port, shop, 0, 0)

}

func TestServicesTakeAPortWhenItIsFree(t *testing.T) {
	r := newServicesRig(t)
	port := freePort(t)
	l, err := net.Listen("tcp4", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true})
	lab.Await(t, "it says what is wrong", func() bool {
		u := r.Unserved()
		return len(u) == 1 && u[0].Service == web && strings.Contains(u[0].Err, "has the port")
	})
	l.Close()
	r.answers("127.0.0.1", port, web, 200, 1)
	lab.Await(t, "all is well", func() bool { return len(r.Unserved()) == 0 })
}

func TestServicesSetAddrs(t *testing.T) {
	r := newServicesRig(t)
	port := freePort(t)
	r.SetAddrs([]netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::1")})
	r.Set(web, services.Health{Port: port, Ready4: 1, Ready6: 2, Has4: true, Has6: true})
	r.answers("127.0.0.2", port, web, 200, 1)
	r.answers("[::1]", port, web, 200, 2)
	r.answers("127.0.0.1", port, web, 0, 0)
	r.SetAddrs([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")})
	r.answers("127.0.0.1", port, web, 200, 1)
	r.answers("[::1]", port, web, 200, 2)
	r.answers("127.0.0.2", port, web, 0, 0)
	r.SetAddrs([]netip.Addr{}) // a node whose addresses match no CIDR
	r.answers("127.0.0.1", port, web, 0, 0)
	r.SetAddrs(nil)
	r.answers("127.0.0.2", port, web, 200, 1)
}

func TestServicesClose(t *testing.T) {
	r := newServicesRig(t)
	port := freePort(t)
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true, Has6: true})
	r.answers("127.0.0.1", port, web, 200, 1)
	r.Close()
	r.answers("127.0.0.1", port, web, 0, 0)
	r.Set(web, services.Health{Port: port, Ready4: 1, Has4: true})
	r.answers("127.0.0.1", port, web, 0, 0)
	r.Close()
}

// TestServicesLeaveDescriptorsToOthers: who may create Services cannot take all descriptors of the process.
func TestServicesLeaveDescriptorsToOthers(t *testing.T) {
	r := newServicesRig(t)
	r.cfg.MaxListeners = 2
	var names []types.NamespacedName
	var ports []uint16
	for i := range 3 {
		names, ports = append(names, types.NamespacedName{Namespace: "app", Name: fmt.Sprint("s", i)}), append(ports, freePort(t))
		r.Set(names[i], services.Health{Port: ports[i], Ready4: 1, Has4: true})
	}
	r.answers("127.0.0.1", ports[0], names[0], 200, 1)
	r.answers("127.0.0.1", ports[1], names[1], 200, 1)
	r.answers("127.0.0.1", ports[2], names[2], 0, 0)
	if un := r.Unserved(); len(un) != 1 || un[0].Service != names[2] || un[0].Err != ErrTooMany.Error() {
		t.Errorf("unserved: %+v", un)
	}
	r.Set(names[0], services.Health{})
	r.answers("127.0.0.1", ports[2], names[2], 200, 1)
}
