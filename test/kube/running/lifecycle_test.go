package running

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

func loopbackOf(svc *corev1.Service) string {
	return fmt.Sprintf("127.0.0.1:%d", svc.Spec.Ports[0].NodePort)
}

// indexes are the table's, by a frontend. Those of the fence change all the time.
func (s *site) indexes() map[string]uint32 {
	s.t.Helper()
	out := map[string]uint32{}
	for _, e := range s.node.table() {
		for _, f := range e.Frontends {
			if s.fence.svc.Spec.ClusterIP == "" || !strings.Contains(f, s.fence.svc.Spec.ClusterIP+":") {
				out[f] = e.Index
			}
		}
	}
	return out
}

func TestLifecycle(t *testing.T) {
	s := newSite(t, 1)
	s.node.init(s.cluster.Servers)
	s.node.start()
	svc := s.service("web", 1, 2, 3)
	s.service("web2", 1, 2)
	s.fence.await()

	t.Run("killed and started again and again, it refuses nothing, breaks nothing and keeps the indexes", func(t *testing.T) {
		before := s.indexes()
		clients := s.load(svc)
		for range 5 {
			s.node.run.Kill()
			s.service("web2", 2, 3) // noticed when it is back
			s.node.start()
			s.fence.await()
			s.service("web2", 1, 2)
			s.fence.await()
		}
		clients.end(t)
		if after := s.indexes(); !maps.Equal(before, after) {
			t.Errorf("indexes are %v, were %v", after, before)
		}
	})

	t.Run("a second one says that there is one already", func(t *testing.T) {
		out, code := s.node.command("run", "--kubeconfig="+s.node.kubeconfig, "--node-name="+s.node.Name,
			"--healthz-bind-address=off", "--metrics-bind-address=off")
		if code == 0 || !strings.Contains(out, fmt.Sprintf("pid %d", s.node.run.PID())) || !strings.Contains(out, "at work here") {
			t.Errorf("exit code %d: %s", code, out)
		}
		s.fence.await()
	})

	t.Run("asked to end, it ends with code 0, and what it served is served on", func(t *testing.T) {
		clients := s.load(svc)
		before := s.indexes()
		s.node.stop()
		if after := s.indexes(); !maps.Equal(before, after) {
			t.Errorf("indexes are %v, were %v", after, before)
		}
		if bad := failures(s.pod.ask(probe.TCP, svc.Spec.ClusterIP+":80", 100)); bad != "" {
			t.Error("without a runtime:", bad)
		}
		s.node.start()
		s.fence.await()
		clients.end(t)
	})

	t.Run("init runs twenty times beside it, and nobody notices", func(t *testing.T) {
		before := s.indexes()
		clients := s.load(svc)
		for range 20 {
			s.node.init(s.cluster.Servers)
		}
		s.fence.await()
		clients.end(t)
		if after := s.indexes(); !maps.Equal(before, after) {
			t.Errorf("indexes are %v, were %v", after, before)
		}
	})
	s.node.stop()

	t.Run("a table that is too small grows without a lost connect", func(t *testing.T) { s.grow(t) })
}

// grow puts twice the Service ports into the API that the smallest table has room for.
func (s *site) grow(t *testing.T) {
	const room, each = 1024, 250
	svc := s.service("first", 1, 2, 3)
	s.useNode("small")
	s.node.init(s.cluster.Servers, fmt.Sprint("--max-frontends=", room), fmt.Sprint("--max-backends=", room), fmt.Sprint("--max-services=", 2*room))
	s.node.start()
	s.fence.await()
	clients := s.load(svc)
	var large []*corev1.Service
	for i := range 2 * room / each {
		l := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("large-", i)}}
		for port := range int32(each) {
			l.Spec.Ports = append(l.Spec.Ports, sp(fmt.Sprint("p", port), corev1.ProtocolTCP, 1000+port, firstPort))
		}
		slice := sliceOf(l, 100+i)
		slice.Ports = nil
		for _, p := range l.Spec.Ports {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(p.TargetPort.IntVal)})
		}
		const most = 100 // ports of a slice
		for from := 0; from < each; from += most {
			part := slice.DeepCopy()
			part.Name = fmt.Sprintf("%s-%d", l.Name, from)
			part.Ports = slice.Ports[from:min(each, from+most)]
			s.cluster.Apply(part)
		}
		s.cluster.Apply(l)
		large = append(large, l)
	}
	s.fence.await()
	for i, l := range large {
		want := fmt.Sprintf("%s:%d", remoteAddr(0, 100+i), firstPort)
		for _, p := range l.Spec.Ports {
			target := fmt.Sprintf("%s:%d", l.Spec.ClusterIP, p.Port)
			eventually(t, "the table has room for all", func() string {
				if r := s.pod.ask(probe.TCP, target, 1)[0]; r.Server != want {
					return fmt.Sprintf("%s reaches %q (%s), want %s", target, r.Server, r.Error, want)
				}
				return ""
			})
		}
	}
	clients.end(t)
	if !strings.Contains(s.node.log(), "the table has more capacity") {
		t.Error("it did not grow: the test is too small")
	}
	// Another runtime takes over what has grown.
	before := s.indexes()
	s.node.run.Kill()
	s.node.start()
	s.fence.await()
	if after := s.indexes(); !maps.Equal(before, after) {
		t.Errorf("after a restart the table has %d frontends, had %d", len(after), len(before))
	}
	s.node.stop()
}
