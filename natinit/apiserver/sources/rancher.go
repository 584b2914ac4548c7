package sources

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// rancher says how k3s and RKE2, which share their code, differ.
type rancher struct {
	source  apiserver.Source
	dataDir string // --data-dir
	confDir string
	admin   string // kubeconfig of a server
	// balancer is the list of servers that the agent's own load balancer
	// keeps. k3s has one; RKE2 has two, and the other one is of the
	// supervisor on 9345, which is not the API.
	balancer []string
	// apiPort replaces the port of the servers' URL: RKE2's "server:" is the
	// supervisor, the API is always on 6443 of the same host (rke2#1187).
	apiPort uint16
}

var k3s = &rancher{
	source: apiserver.SourceK3s, dataDir: "/var/lib/rancher/k3s", confDir: "/etc/rancher/k3s", admin: "k3s.yaml",
	// The second one exists when the API is not on the supervisor's port.
	balancer: []string{"k3s-api-server-agent-load-balancer.json", "k3s-agent-load-balancer.json"},
}

var rke2 = &rancher{
	source: apiserver.SourceRKE2, dataDir: "/var/lib/rancher/rke2", confDir: "/etc/rancher/rke2", admin: "rke2.yaml",
	balancer: []string{"rke2-api-server-agent-load-balancer.json"},
	apiPort:  apiserver.EndpointPort,
}

// The default ranges of both (docs.k3s.io, "Networking"): IPv6 where the
// node's first address is.
const (
	rancherRange   = "10.43.0.0/16"
	rancherRangeV6 = "fd00:43::/112"
)

func rancherSource(r *rancher) func(*host) Finding {
	return func(h *host) Finding {
		f := Finding{Source: r.source}
		found := false
		for _, cfg := range nodeconf.RancherCommands(h, string(r.source), h.commands()) {
			found = r.read(h, &f, cfg) || found
		}
		if !found {
			f.Notef("no %s in %s or %s", r.source, r.dataDir, r.confDir)
		}
		return f
	}
}

// read adds what one service of the product, or its configuration, tells.
func (r *rancher) read(h *host, f *Finding, cfg nodeconf.Rancher) bool {
	for _, p := range cfg.Problems {
		f.Notef("%s", apiserver.Clip(p))
	}
	data := cmp.Or(cfg.Value("DATA_DIR", "data-dir", "d"), r.dataDir)
	where := cfg.Path
	if len(cfg.Files) > 0 {
		where = cfg.Files[len(cfg.Files)-1]
	}
	found := where != ""
	for _, name := range []string{"kubelet.kubeconfig", string(r.source) + "controller.kubeconfig", "kubeproxy.kubeconfig"} {
		found = h.addKubeconfig(f, filepath.Join(data, "agent", name)) || found
	}
	admin := cmp.Or(cfg.Value("KUBECONFIG_OUTPUT", "write-kubeconfig", "o"), filepath.Join(r.confDir, r.admin))
	found = h.addKubeconfig(f, admin) || found
	for _, name := range r.balancer {
		if f.addBalancer(h, filepath.Join(data, "agent/etc", name), r.apiPort) {
			found = true
			break
		}
	}
	manifest := r.source == apiserver.SourceRKE2 && f.addManifests(h, filepath.Join(data, "agent/pod-manifests"))
	where = cmp.Or(where, r.confDir+"/config.yaml")
	if server := cfg.Value("URL", "server", "s"); server != "" {
		f.addURL(where, server, r.apiPort)
	}
	if cfg.Server || !cfg.Agent && h.exists(filepath.Join(data, "server")) {
		found = true
		r.addServer(h, f, cfg, where, manifest)
	}
	return found || manifest
}

// addServer adds what is known on a server: its Service range and address.
// manifest is true where the static pod has told both.
func (r *rancher) addServer(h *host, f *Finding, cfg nodeconf.Rancher, where string, manifest bool) {
	var api nodeconf.Flags // of kube-apiserver itself, which go before k3s' own
	for _, a := range cfg.Flags.All("kube-apiserver-arg") {
		api = append(api, "--"+strings.TrimLeft(a, "-"))
	}
	nodeIPs := append(cfg.List("node-external-ip"), cfg.List("node-ip", "i")...)
	first, _ := netip.ParseAddr(firstOfList(nodeIPs))
	if !manifest {
		ranges, _ := api.Last("service-cluster-ip-range")
		switch own := cfg.List("service-cidr"); {
		case ranges != "":
			f.addServiceRange(where, ranges)
		case len(own) > 0:
			f.addServiceRange(where, strings.Join(own, ","))
		case first.Is6():
			f.addDefaultRange("no service-cidr in "+where+", the default of "+string(r.source), rancherRangeV6)
		default:
			f.addDefaultRange("no service-cidr in "+where+", the default of "+string(r.source), rancherRange)
		}
	}
	if manifest || cfg.Flags.Bool("disable-apiserver") {
		return
	}
	port := strconv.Itoa(apiserver.EndpointPort)
	if r.apiPort == 0 {
		port = cmp.Or(cfg.Value("", "https-listen-port"), port)
		port = cmp.Or(cfg.Value("", "advertise-port"), port)
	} else if p, ok := api.Last("secure-port"); ok {
		port = p
	}
	advertise, _ := api.Last("advertise-address")
	addresses := append([]string{advertise, cfg.Value("", "advertise-address")}, nodeIPs...)
	f.addOwnServer(h, where, port, append(addresses, cfg.Value("", "bind-address"))...)
}

func firstOfList(l []string) string {
	if len(l) == 0 {
		return ""
	}
	return l[0]
}

// addBalancer reads the servers that the agent's load balancer knows. It
// reports whether the file is there.
func (f *Finding) addBalancer(h *host, path string, apiPort uint16) bool {
	b, err := h.ReadFile(path)
	if err == nil {
		f.addBalancerText(path, b, apiPort)
	}
	return err == nil
}

func (f *Finding) addBalancerText(path string, b []byte, apiPort uint16) {
	var lb struct {
		ServerURL       string
		ServerAddresses []string
	}
	if !f.decode(path, b, &lb) {
		return
	}
	f.addServers(path, lb.ServerAddresses)
	if u, err := url.Parse(lb.ServerURL); err == nil && u.Host != "" {
		f.addURL(path, lb.ServerURL, apiPort)
	}
}

// stringList reads a YAML string or a list of strings.
type stringList []string

func (l *stringList) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*l = strings.Split(s, ",")
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return fmt.Errorf("neither a string nor a list of strings")
	}
	*l = slices.Clone(many)
	return nil
}
