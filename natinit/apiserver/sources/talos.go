package sources

import (
	"bufio"
	"bytes"
	"net/url"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// talosConfig is the machine configuration of Talos, of which its kubelet's
// kubeconfig does not tell much: that names a proxy on this node.
const talosConfig = "/system/state/config.yaml"

func (f *Finding) addTalos(h *host) bool {
	b, err := h.ReadFile(talosConfig)
	if err != nil {
		return false
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
	for {
		doc, err := docs.Read()
		if err != nil {
			return true
		}
		var c struct {
			Cluster struct {
				ControlPlane struct {
					Endpoint string `json:"endpoint"`
				} `json:"controlPlane"`
				Network struct {
					ServiceSubnets []string `json:"serviceSubnets"`
				} `json:"network"`
			} `json:"cluster"`
		}
		if !f.decode(talosConfig, doc, &c) {
			continue
		}
		if len(c.Cluster.Network.ServiceSubnets) > 0 {
			f.addServiceRange(talosConfig, strings.Join(c.Cluster.Network.ServiceSubnets, ","))
		}
		if u, err := url.Parse(c.Cluster.ControlPlane.Endpoint); err == nil && u.Host != "" {
			f.addURL(talosConfig, c.Cluster.ControlPlane.Endpoint, 0)
		}
	}
}
