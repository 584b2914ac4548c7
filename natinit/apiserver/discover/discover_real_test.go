package discover

import (
	"fmt"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// With a real API server, the node authorizer, and what kubeadm leaves.
func TestDiscoverARealAPIServer(t *testing.T) {
	w := newWorld(t)
	apitest.StartReal(t, w.CA)
	apitest.Kubeadm(t, w.CA.HTTPClient(t, "admin", "system:masters"))
	const at = apitest.RealAddress
	for name, kubeconfig := range map[string]string{
		"as a kubelet":  w.CA.Kubeconfig(t, "https://"+at, node, nodes),
		"as kube-proxy": w.CA.Kubeconfig(t, "https://"+at, "system:kube-proxy"),
	} {
		t.Run(name, func(t *testing.T) {
			w.file(t, "/etc/kubernetes/kubelet.conf", kubeconfig)
			w.cfg.Thorough = false
			res := w.check(t, "10.96.0.1:443", at)
			if e := res.Endpoints[0]; !e.Preferred || !e.Verified || e.State != apiserver.Live || fmt.Sprint(e.Sources) != "[api kubeadm]" {
				t.Errorf("got %+v", e)
			}
			if res.Services[0].Source != apiserver.SourceAPI {
				t.Errorf("the Service IP is from %s", res.Services[0].Source)
			}
		})
	}
	t.Run("thoroughly", func(t *testing.T) {
		w.kubelet(t, at)
		w.cfg.Thorough = true
		res := w.check(t, "10.96.0.1:443", at)
		if got, want := fmt.Sprint(res.Endpoints[0].Sources), "[api kubeadm cluster-info kubeadm-config]"; got != want {
			t.Errorf("sources %s, want %s", got, want)
		}
	})
	t.Run("with a credential that may read nothing, cluster-info and the manifest", func(t *testing.T) {
		w.file(t, "/etc/kubernetes/kubelet.conf", w.CA.Kubeconfig(t, "https://"+at, "unknown"))
		w.manifest(t, "10.99.0.1", "10.96.0.0/16,fd00:96::/112")
		w.cfg.Thorough = false
		res := w.check(t, "10.96.0.1:443", at)
		if got, want := fmt.Sprint(res.Endpoints[0].Sources), "[kubeadm cluster-info]"; got != want {
			t.Errorf("sources %s, want %s", got, want)
		}
	})
}

func TestDiscoverARealAPIServerWithoutAnonymousRequestsIsLive(t *testing.T) {
	w := newWorld(t)
	apitest.StartReal(t, w.CA, "--anonymous-auth=false")
	w.explicit(t, "10.96.0.1:443", apitest.RealAddress)
	if res := w.check(t, "10.96.0.1:443", apitest.RealAddress); res.Endpoints[0].State != apiserver.Live {
		t.Errorf("got %+v", res.Endpoints[0])
	}
}
