package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Source names a place where addresses come from. The names are part of the
// output that scripts read.
type Source string

// The sources, in rank order: what an earlier one says goes first.
const (
	SourceFlags            Source = "flags"
	SourceEnvironment      Source = "environment"
	SourceKubeadmFile      Source = "kubeadm-file" // --kubeadm-config
	SourceAPI              Source = "api"
	SourceKubeconfig       Source = "kubeconfig" // the runtime's --kubeconfig
	SourceKubeadm          Source = "kubeadm"
	SourceKubelet          Source = "kubelet"
	SourceK3s              Source = "k3s"
	SourceRKE2             Source = "rke2"
	SourceMicroK8s         Source = "microk8s"
	SourceCanonical        Source = "canonical"
	SourceK0s              Source = "k0s"
	SourceServer           Source = "kube-apiserver" // of a service, or a static pod elsewhere
	SourceBalancer         Source = "balancer"
	SourcePod              Source = "pod"
	SourceClusterInfo      Source = "cluster-info"
	SourceKubeadmConfig    Source = "kubeadm-config"
	SourceKubeProxy        Source = "kube-proxy"
	SourceServicesEndpoint Source = "services-endpoint"
	SourceCache            Source = "cache"
)

// Finding is what one source gave, or why it gave nothing.
type Finding struct {
	Source   Source
	Services []netip.AddrPort
	// DefaultServices are those of Services that no file names: they belong to
	// the default Service range of a product (10.43.0.0/16 of k3s). All others
	// were read, from the configuration of a server or from the API.
	DefaultServices []netip.AddrPort
	// Endpoints may hold host names that are not resolved yet.
	Endpoints []Endpoint
	// Helpers are addresses that only help to ask the API: loopback ones
	// (k3s' 127.0.0.1:6444, Talos' 127.0.0.1:7445 are proxies of this node,
	// which pods cannot reach and which keep stale lists), and URLs with a path.
	Helpers []Endpoint
	// Credentials can be used to ask the API.
	Credentials []*Credential
	// Clusters are the files that tell which cluster this is, see Decide.
	Clusters []ClusterRef
	// Notes say, one sentence each, where something was found or why not.
	Notes []string

	at     string // the kubeconfig that is being read, "" for another file
	givers map[Endpoint][]string
}

// Empty reports whether the source gave no address.
func (f *Finding) Empty() bool { return len(f.Services) == 0 && len(f.Endpoints) == 0 }

func (f *Finding) notef(format string, args ...any) {
	f.Notes = append(f.Notes, fmt.Sprintf(format, args...))
}

// IsDefault reports whether a Service address is only the default of a product.
func (f *Finding) IsDefault(a netip.AddrPort) bool { return slices.Contains(f.DefaultServices, a) }

func (f *Finding) addService(a netip.AddrPort) {
	if !slices.Contains(f.Services, a) {
		f.Services = append(f.Services, a)
	}
}

// addEndpoint sorts an endpoint in: loopback ones are helpers.
func (f *Finding) addEndpoint(e Endpoint) {
	list := &f.Endpoints
	if e.loopback() {
		list = &f.Helpers
	}
	f.givenBy(e)
	if !slices.Contains(*list, e) {
		*list = append(*list, e)
	}
}

// givenBy notes which kubeconfig, or another file, names an endpoint.
func (f *Finding) givenBy(e Endpoint) {
	if f.givers == nil {
		f.givers = map[Endpoint][]string{}
	}
	f.givers[e] = append(f.givers[e], f.at)
}

// addEntry adds an ip:port or name:port that a file holds.
func (f *Finding) addEntry(where, entry string) {
	e, reason := parseEndpoint(strings.TrimSpace(entry))
	if reason != "" {
		f.notef("%s: %q %s", where, clip(entry), reason)
		return
	}
	if e.loopback() {
		f.notef("%s: %s is on loopback, used only to ask the API", where, e)
	}
	f.addEndpoint(e)
}

// addURL adds the server of a URL. port replaces the URL's own if not 0.
func (f *Finding) addURL(where, raw string, port uint16) {
	e, path, err := parseServerURL(raw)
	if err != nil {
		f.notef("%s: %v", where, err)
		return
	}
	if port != 0 {
		e.Addr = netip.AddrPortFrom(e.Addr.Addr(), port)
	}
	switch {
	case path:
		f.notef("%s: server %s has a path; a Service cannot add one, so it is used only to ask the API", where, clip(raw))
		f.givenBy(e)
		f.Helpers = append(f.Helpers, e)
		return
	case e.loopback():
		f.notef("%s: server %s is on loopback, used only to ask the API", where, e)
	default:
		f.notef("%s: server %s", where, e)
	}
	f.addEndpoint(e)
}

// addKubeconfig reads a kubeconfig: its server and its credentials. It
// reports whether there was one.
func (f *Finding) addKubeconfig(root, path string) bool {
	f.at = path
	defer func() { f.at = "" }()
	c, err := LoadKubeconfig(root, path)
	if c != nil {
		f.Clusters = append(f.Clusters, c.clusterRef(standingOf(f.Source, path)))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !exists(root, path):
		return false
	case err != nil:
		f.notef("%v", err)
		// The server may be known even where the credentials cannot be used.
		if c == nil {
			return true
		}
	default:
		f.Credentials = append(f.Credentials, c)
	}
	f.addURL(path, c.Server, 0)
	return true
}

// parseServerURL reads the server of a kubeconfig. path reports a path
// prefix, as of a proxy in front of several clusters.
func parseServerURL(raw string) (e Endpoint, path bool, err error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return e, false, fmt.Errorf("server %q is not a URL", clip(raw))
	}
	port := strings.TrimLeft(u.Port(), "0") // dialled as a number
	switch {
	case u.Scheme != "https":
		return e, false, fmt.Errorf("server %s is not https", clip(raw))
	case port == "":
		port = "443"
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	e, reason := parseEndpoint(net.JoinHostPort(host, port))
	if reason != "" {
		return e, false, fmt.Errorf("server %s %s", clip(raw), reason)
	}
	return e, strings.Trim(u.Path, "/") != "", nil
}

// firstAddress gives the Service IP of the API server for the value of
// --service-cluster-ip-range: the first address after the base of the *first*
// range. A second range gives other Services a second family, but the Service
// default/kubernetes is always single stack (seen with 1.36:
// ipFamilyPolicy SingleStack), and the first address of the second range may
// belong to any Service.
func firstAddress(ranges string) (netip.Addr, error) {
	first, _, _ := strings.Cut(ranges, ",")
	p, err := netip.ParsePrefix(strings.TrimSpace(first))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("service range %q is not address/bits", clip(first))
	}
	a := p.Masked().Addr().Unmap().Next()
	if !p.Contains(a) || refuseAddr(a) != "" {
		return netip.Addr{}, fmt.Errorf("service range %s has no usable first address", p)
	}
	return a, nil
}

// addDefaultRange adds the Service IP of a range that a product uses where its
// configuration names none.
func (f *Finding) addDefaultRange(where, ranges string) {
	before := len(f.Services)
	f.addServiceRange(where, ranges)
	f.DefaultServices = append(f.DefaultServices, f.Services[before:]...)
}

// addServiceRange adds the Service IP that belongs to a range.
func (f *Finding) addServiceRange(where, ranges string) {
	a, err := firstAddress(ranges)
	if err != nil {
		f.notef("%s: %v", where, err)
		return
	}
	s := netip.AddrPortFrom(a, ServicePort)
	f.notef("%s: service range %s, so the Service IP is %s", where, ranges, s)
	f.addService(s)
}

// FileSources reads every source that is in files of the host, in rank
// order. Nothing is dialled, no name is looked up, nothing is changed.
func FileSources(root string) []Finding {
	out := newHost(root).sources()
	for i := range out {
		out[i].addCAFiles(root)
	}
	return out
}

// KubeconfigSource reads one kubeconfig of the host, that of whoever was
// given one.
func KubeconfigSource(root, path string) Finding {
	f := Finding{Source: SourceKubeconfig}
	if !f.addKubeconfig(root, path) {
		f.notef("no %s", path)
	}
	return f
}
