package sources

import (
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// addArgsFile reads a file with the arguments of an API server, one a line, as
// snaps keep them.
func (f *Finding) addArgsFile(h *host, path, snap string) bool {
	b, err := h.ReadFile(path)
	if err != nil {
		return false
	}
	env := map[string]string{"SNAP_DATA": snap + "/current", "SNAP_COMMON": snap + "/common"}
	f.addServerArgs(h, path, nodeconf.SplitArgs(h, string(b), env))
	return true
}

// microk8sSource reads what the snap of MicroK8s keeps.
func microk8sSource(h *host) Finding {
	const snap = "/var/snap/microk8s/current"
	f := Finding{Source: apiserver.SourceMicroK8s}
	found := false
	for _, name := range []string{"kubelet.config", "client.config", "proxy.config"} {
		found = h.addKubeconfig(&f, filepath.Join(snap, "credentials", name)) || found
	}
	// A worker has the file too, and no API server.
	if !h.exists(snap + "/var/lock/clustered.lock") {
		found = f.addArgsFile(h, snap+"/args/kube-apiserver", "/var/snap/microk8s") || found
	}
	if b, err := h.ReadFile(snap + "/args/traefik/provider.yaml"); err == nil {
		found = true
		f.addTraefik(snap+"/args/traefik/provider.yaml", b)
	}
	if !found {
		f.Notef("no MicroK8s in %s", snap)
	}
	return f
}

// addTraefik reads the servers that a worker's own proxy balances over.
func (f *Finding) addTraefik(path string, b []byte) {
	var p struct {
		TCP struct {
			Services map[string]struct {
				LoadBalancer struct {
					Servers []struct {
						Address string `json:"address"`
					} `json:"servers"`
				} `json:"loadBalancer"`
			} `json:"services"`
		} `json:"tcp"`
	}
	if !f.decode(path, b, &p) {
		return
	}
	var list []string
	for name, s := range p.TCP.Services {
		if !strings.Contains(name, "apiserver") {
			continue
		}
		for _, srv := range s.LoadBalancer.Servers {
			list = append(list, srv.Address)
		}
	}
	f.addServers(path, list)
}

// canonicalSource reads what the snaps of Canonical Kubernetes (k8s) and of
// Charmed Kubernetes (kube-apiserver) keep. Their kubelets' kubeconfigs are in
// the places of kubeadm and of others.
func canonicalSource(h *host) Finding {
	const args = "/var/snap/k8s/common/args"
	f := Finding{Source: apiserver.SourceCanonical}
	found := f.addArgsFile(h, args+"/kube-apiserver", "/var/snap/k8s")
	found = f.addArgsFile(h, "/var/snap/kube-apiserver/current/args", "/var/snap/kube-apiserver") || found
	lists := []string{args + "/conf.d/k8s-apiserver-proxy.json", "/etc/kubernetes/k8s-apiserver-proxy.json"}
	if b, err := h.ReadFile(args + "/k8s-apiserver-proxy"); err == nil {
		flags := nodeconf.Flags(nodeconf.SplitArgs(h, string(b), nil))
		if p, ok := flags.Last("endpoints"); ok && filepath.IsAbs(p) {
			lists = []string{p}
		}
	}
	for _, p := range lists {
		if b, err := h.ReadFile(p); err == nil {
			found = true
			f.addProxyList(p, b)
		}
	}
	if !found {
		f.Notef("no Canonical Kubernetes in /var/snap/k8s or /var/snap/kube-apiserver")
	}
	return f
}

// addProxyList reads the servers that the k8s snap's own proxy knows.
func (f *Finding) addProxyList(path string, b []byte) {
	var list struct {
		Endpoints []string `json:"endpoints"`
	}
	if f.decode(path, b, &list) {
		f.addServers(path, list.Endpoints)
	}
}
