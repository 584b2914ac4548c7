package metrics

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/sockets"
)

func TestPageCountsSockets(t *testing.T) {
	m := New(Config{Sockets: func() sockets.Status {
		return sockets.Status{
			Counts: sockets.Counts{Moved: 5, EndedUDP: 2, EndedTCP: 1}, Left: 3, Hung: 4, Swept: 100,
			Services: map[types.NamespacedName]sockets.Counts{{Namespace: "kube-system", Name: "kube-dns"}: {Moved: 4, EndedUDP: 1}},
		}
	}})
	page := string(m.Page())
	for _, line := range []string{
		"firsthop_sockets_moved_total 5", `firsthop_sockets_ended_total{protocol="udp"} 2`, `firsthop_sockets_ended_total{protocol="tcp"} 1`,
		"firsthop_sockets_left 3", "firsthop_sockets_hung 4", "firsthop_socket_entries_swept_total 100",
		`firsthop_service_sockets_moved_total{namespace="kube-system",service="kube-dns"} 4`,
		`firsthop_service_sockets_ended_total{namespace="kube-system",service="kube-dns"} 1`,
	} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}
