package apiserver

import (
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// microk8sSource reads what the snap of MicroK8s keeps.
func microk8sSource(root string) Finding {
	const snap = "/var/snap/microk8s/current"
	f := Finding{Source: SourceMicroK8s}
	found := false
	for _, name := range []string{"kubelet.config", "client.config", "proxy.config"} {
		found = f.addKubeconfig(root, filepath.Join(snap, "credentials", name)) || found
	}
	if b, err := readFile(root, snap+"/args/kube-apiserver"); err == nil {
		found = true
		f.addServerArgs(snap+"/args/kube-apiserver", words(string(b)))
	}
	if b, err := readFile(root, snap+"/args/traefik/provider.yaml"); err == nil {
		found = true
		f.addTraefik(snap+"/args/traefik/provider.yaml", b)
	}
	if !found {
		f.notef("no MicroK8s in %s", snap)
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
	if err := yaml.Unmarshal(b, &p); err != nil {
		f.notef("%s: not readable: %s", path, firstLine(err))
		return
	}
	n := 0
	for name, s := range p.TCP.Services {
		if !strings.Contains(name, "apiserver") {
			continue
		}
		for _, srv := range s.LoadBalancer.Servers {
			f.addEntry(path, srv.Address)
			n++
		}
	}
	f.notef("%s: %d servers", path, n)
}
