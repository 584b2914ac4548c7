package apiserver

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// rancher says how k3s and RKE2, which share their code, differ.
type rancher struct {
	source  Source
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
	units   []string
}

var k3s = &rancher{
	source: SourceK3s, dataDir: "/var/lib/rancher/k3s", confDir: "/etc/rancher/k3s", admin: "k3s.yaml",
	// The second one exists when the API is not on the supervisor's port.
	balancer: []string{"k3s-api-server-agent-load-balancer.json", "k3s-agent-load-balancer.json"},
	units:    []string{"k3s", "k3s-agent"},
}

var rke2 = &rancher{
	source: SourceRKE2, dataDir: "/var/lib/rancher/rke2", confDir: "/etc/rancher/rke2", admin: "rke2.yaml",
	balancer: []string{"rke2-api-server-agent-load-balancer.json"},
	apiPort:  EndpointPort,
	units:    []string{"rke2-server", "rke2-agent"},
}

// rancherConfig is what counts in config.yaml; keys may be scalars or lists.
type rancherConfig struct {
	Server           string     `json:"server"`
	DataDir          string     `json:"data-dir"`
	ServiceCIDR      stringList `json:"service-cidr"`
	HTTPSListenPort  int        `json:"https-listen-port"`
	AdvertiseAddress string     `json:"advertise-address"`
	NodeIP           stringList `json:"node-ip"`
}

func rancherSource(root string, r *rancher) Finding {
	f := Finding{Source: r.source}
	cfg, where := r.config(root, &f)
	data := orElse(cfg.DataDir, r.dataDir)
	found := where != ""
	for _, name := range []string{"kubelet.kubeconfig", string(r.source) + "controller.kubeconfig", "kubeproxy.kubeconfig"} {
		found = f.addKubeconfig(root, filepath.Join(data, "agent", name)) || found
	}
	found = f.addKubeconfig(root, filepath.Join(r.confDir, r.admin)) || found
	for _, name := range r.balancer {
		if f.addBalancer(root, filepath.Join(data, "agent/etc", name), r.apiPort) {
			found = true
			break
		}
	}
	if r.source == SourceRKE2 {
		found = f.addManifest(root, filepath.Join(data, "agent/pod-manifests/kube-apiserver.yaml")) || found
	}
	if cfg.Server != "" {
		f.addURL(orElse(where, r.confDir), cfg.Server, r.apiPort)
	}
	if exists(root, filepath.Join(data, "server")) {
		found = true
		r.addServer(&f, cfg, orElse(where, r.confDir+"/config.yaml"))
	}
	if !found {
		f.notef("no %s in %s or %s", r.source, data, r.confDir)
	}
	return f
}

// addServer adds what is known on a server: its Service range and address.
func (r *rancher) addServer(f *Finding, cfg rancherConfig, where string) {
	if len(f.Services) == 0 {
		if len(cfg.ServiceCIDR) > 0 {
			f.addServiceRange(where, strings.Join(cfg.ServiceCIDR, ","))
		} else {
			// The documented default of both (docs.k3s.io, "Networking").
			f.addDefaultRange("no service-cidr in "+where+", the default of "+string(r.source), "10.43.0.0/16")
		}
	}
	port := cfg.HTTPSListenPort
	if port == 0 || r.apiPort != 0 {
		port = EndpointPort
	}
	addrs := []string(cfg.NodeIP)
	if cfg.AdvertiseAddress != "" {
		addrs = []string{cfg.AdvertiseAddress}
	}
	for _, a := range addrs {
		f.notef("%s: a server on this node, %s", where, a)
		f.addEntry(where, net.JoinHostPort(strings.TrimSpace(a), strconv.Itoa(port)))
	}
}

// config merges config.yaml, config.yaml.d and the flags of the units, the
// later ones first served. where names what was read, "" if nothing.
func (r *rancher) config(root string, f *Finding) (cfg rancherConfig, where string) {
	files := append([]string{filepath.Join(r.confDir, "config.yaml")}, glob(root, filepath.Join(r.confDir, "config.yaml.d/*.yaml"))...)
	for _, path := range files {
		b, err := readFile(root, path)
		if err != nil {
			continue
		}
		where = path
		if err := yaml.Unmarshal(b, &cfg); err != nil {
			f.notef("%s: not readable: %s", path, firstLine(err))
		}
	}
	for _, u := range r.units {
		for _, path := range []string{"/etc/systemd/system/" + u + ".service", "/usr/local/lib/systemd/system/" + u + ".service", "/usr/lib/systemd/system/" + u + ".service"} {
			if r.unit(root, path, &cfg) {
				where = orElse(where, path)
			}
		}
		// The installer writes K3S_URL next to the unit.
		for _, path := range []string{"/etc/systemd/system/" + u + ".service.env", "/etc/default/" + u, "/etc/sysconfig/" + u} {
			b, err := readFile(root, path)
			if err != nil {
				continue
			}
			if url := envValue(string(b), strings.ToUpper(string(r.source))+"_URL"); url != "" && cfg.Server == "" {
				cfg.Server, where = url, orElse(where, path)
			}
		}
	}
	return cfg, where
}

func (r *rancher) unit(root, path string, cfg *rancherConfig) bool {
	b, err := readFile(root, path)
	if err != nil {
		return false
	}
	args := words(string(b))
	set := func(to *string, name string) {
		if v, ok := flagValue(args, name); ok {
			*to = v
		}
	}
	set(&cfg.Server, "server")
	set(&cfg.DataDir, "data-dir")
	set(&cfg.AdvertiseAddress, "advertise-address")
	if v, ok := flagValue(args, "service-cidr"); ok {
		cfg.ServiceCIDR = stringList{v}
	}
	if v, ok := flagValue(args, "node-ip"); ok {
		cfg.NodeIP = strings.Split(v, ",")
	}
	if v, ok := flagValue(args, "https-listen-port"); ok {
		cfg.HTTPSListenPort, _ = strconv.Atoi(v)
	}
	return true
}

// addBalancer reads the servers that the agent's load balancer knows. It
// reports whether the file is there.
func (f *Finding) addBalancer(root, path string, apiPort uint16) bool {
	b, err := readFile(root, path)
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
	if err := json.Unmarshal(b, &lb); err != nil {
		f.notef("%s: not JSON: %s", path, firstLine(err))
		return
	}
	for _, a := range lb.ServerAddresses {
		f.addEntry(path, a)
	}
	if len(lb.ServerAddresses) > 0 {
		f.notef("%s: %d servers", path, len(lb.ServerAddresses))
	}
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
	*l = many
	return nil
}

// envValue finds NAME=value in a file of shell assignments.
func envValue(s, name string) string {
	for line := range strings.Lines(s) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if v, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}
