package sources

import (
	"cmp"
	"strconv"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// k0sRange is the default of spec.network.serviceCIDR (docs.k0sproject.io,
// "Configuration options").
const k0sRange = "10.96.0.0/12"

// k0sSource reads how a k0s controller is configured. The kubeconfig of a
// worker's kubelet is among those of kubelets.
func k0sSource(h *host) Finding {
	f := Finding{Source: apiserver.SourceK0s}
	found := h.addKubeconfig(&f, "/var/lib/k0s/pki/admin.conf")
	controller := found
	path := "/etc/k0s/k0s.yaml"
	for _, p := range h.running("k0s") {
		switch args := p.Args; args[0] {
		case "controller", "server":
			controller = true
			if file, ok := args.Last("config", "c"); ok && file != "" {
				path = file
			}
			if dir, ok := args.Last("data-dir"); ok && dir != "" && dir != "/var/lib/k0s" {
				found = h.addKubeconfig(&f, dir+"/pki/admin.conf") || found
			}
		case "worker":
			if dir, ok := args.Last("data-dir"); ok && dir != "" && dir != "/var/lib/k0s" {
				for _, name := range []string{"/kubelet.conf", "/kubelet-bootstrap.conf"} {
					found = h.addKubeconfig(&f, dir+name) || found
				}
			}
		}
	}
	if b, err := h.ReadFile(path); err == nil {
		found = true
		f.addK0sConfig(h, path, b)
	} else if controller {
		f.addDefaultRange("no "+path+", the default of k0s", k0sRange)
		f.addOwnServer(h, "k0s controller", strconv.Itoa(apiserver.EndpointPort))
		found = true
	}
	if !found {
		f.Notef("no k0s in /etc/k0s or /var/lib/k0s")
	}
	return f
}

func (f *Finding) addK0sConfig(h *host, path string, b []byte) {
	var c struct {
		Spec struct {
			API struct {
				Address         string            `json:"address"`
				ExternalAddress string            `json:"externalAddress"`
				Port            int               `json:"port"`
				ExtraArgs       map[string]string `json:"extraArgs"`
			} `json:"api"`
			Network struct {
				ServiceCIDR string `json:"serviceCIDR"`
			} `json:"network"`
		} `json:"spec"`
	}
	if !f.decode(path, b, &c) {
		return
	}
	args := nodeconf.Flags{}
	for k, v := range c.Spec.API.ExtraArgs {
		args = append(args, "--"+k+"="+v)
	}
	ranges, _ := args.Last("service-cluster-ip-range")
	if ranges = cmp.Or(ranges, c.Spec.Network.ServiceCIDR); ranges != "" {
		f.addServiceRange(path, ranges)
	} else {
		f.addDefaultRange("no serviceCIDR in "+path+", the default of k0s", k0sRange)
	}
	port := c.Spec.API.Port
	if port == 0 {
		port = apiserver.EndpointPort
	}
	advertise, _ := args.Last("advertise-address")
	f.addOwnServer(h, path, strconv.Itoa(port), advertise, c.Spec.API.Address)
	if external := c.Spec.API.ExternalAddress; external != "" {
		f.addControlPlane(path, "externalAddress", external, port)
	}
}
