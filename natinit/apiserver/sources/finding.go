package sources

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Finding is what one source gave, or why it gave nothing.
type Finding struct {
	Source   apiserver.Source
	Services []netip.AddrPort
	// DefaultServices are those of Services that no file names: they belong to
	// the default Service range of a product (10.43.0.0/16 of k3s). All others
	// were read, from the configuration of a server or from the API.
	DefaultServices []netip.AddrPort
	// Endpoints may hold host names that are not resolved yet.
	Endpoints []apiserver.Endpoint
	// Helpers are addresses that only help to ask the API: loopback ones
	// (k3s' 127.0.0.1:6444, Talos' 127.0.0.1:7445 are proxies of this node,
	// which pods cannot reach and which keep stale lists), and URLs with a path.
	Helpers []apiserver.Endpoint
	// Credentials can be used to ask the API.
	Credentials []*Credential
	// Clusters are the files that tell which cluster this is, see Decide.
	Clusters []ClusterRef
	// Notes say, one sentence each, where something was found or why not.
	Notes []string

	at     string // the kubeconfig that is being read, "" for another file
	givers map[apiserver.Endpoint][]string
}

// Empty reports whether the source gave no address.
func (f *Finding) Empty() bool { return len(f.Services) == 0 && len(f.Endpoints) == 0 }

func (f *Finding) Notef(format string, args ...any) {
	f.Notes = append(f.Notes, fmt.Sprintf(format, args...))
}

// IsDefault reports whether a Service address is only the default of a product.
func (f *Finding) IsDefault(a netip.AddrPort) bool { return slices.Contains(f.DefaultServices, a) }

func (f *Finding) AddService(a netip.AddrPort) {
	if !slices.Contains(f.Services, a) {
		f.Services = append(f.Services, a)
	}
}

// AddEndpoint sorts an endpoint in: loopback ones are helpers.
func (f *Finding) AddEndpoint(e apiserver.Endpoint) {
	list := &f.Endpoints
	if e.Loopback() {
		list = &f.Helpers
	}
	f.givenBy(e)
	if !slices.Contains(*list, e) {
		*list = append(*list, e)
	}
}

// givenBy notes which kubeconfig, or another file, names an endpoint.
func (f *Finding) givenBy(e apiserver.Endpoint) {
	if f.givers == nil {
		f.givers = map[apiserver.Endpoint][]string{}
	}
	f.givers[e] = append(f.givers[e], f.at)
}

// addEntry adds an ip:port or name:port that a file holds.
func (f *Finding) addEntry(where, entry string) {
	e, reason := apiserver.ParseEndpoint(strings.TrimSpace(entry))
	if reason != "" {
		f.Notef("%s: %q %s", where, apiserver.Clip(entry), reason)
		return
	}
	if e.Loopback() {
		f.Notef("%s: %s is on loopback, used only to ask the API", where, e)
	}
	f.AddEndpoint(e)
}

// addServers adds a list of servers.
func (f *Finding) addServers(where string, list []string) {
	for _, entry := range list {
		f.addEntry(where, entry)
	}
	if len(list) > 0 {
		f.Notef("%s: %d servers", where, len(list))
	}
}

// decode reads YAML or JSON, and notes why it cannot be read.
func (f *Finding) decode(where string, b []byte, into any) bool {
	err := yaml.Unmarshal(b, into)
	if err != nil {
		f.Notef("%s: not readable: %s", where, apiserver.FirstLine(err))
	}
	return err == nil
}

// addURL adds the server of a URL. port replaces the URL's own if not 0.
func (f *Finding) addURL(where, raw string, port uint16) {
	e, path, err := parseServerURL(raw)
	if err != nil {
		f.Notef("%s: %v", where, err)
		return
	}
	if port != 0 {
		e.Addr = netip.AddrPortFrom(e.Addr.Addr(), port)
	}
	switch {
	case path:
		f.Notef("%s: server %s has a path; a Service cannot add one, so it is used only to ask the API", where, apiserver.Clip(raw))
		f.givenBy(e)
		f.Helpers = append(f.Helpers, e)
		return
	case e.Loopback():
		f.Notef("%s: server %s is on loopback, used only to ask the API", where, e)
	default:
		f.Notef("%s: server %s", where, e)
	}
	f.AddEndpoint(e)
}

// addKubeconfig reads a kubeconfig: its server and its credentials. It
// reports whether there was one.
func (f *Finding) addKubeconfig(root, path string) bool {
	f.at = path
	defer func() { f.at = "" }()
	c, err := LoadKubeconfig(root, path)
	if c != nil {
		f.Clusters = append(f.Clusters, c.clusterRef(authorityOf(f.Source, path)))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !exists(root, path):
		return false
	case err != nil:
		f.Notef("%v", err)
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
func parseServerURL(raw string) (e apiserver.Endpoint, path bool, err error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return e, false, fmt.Errorf("server %q is not a URL", apiserver.Clip(raw))
	}
	port := strings.TrimLeft(u.Port(), "0") // dialled as a number
	switch {
	case u.Scheme != "https":
		return e, false, fmt.Errorf("server %s is not https", apiserver.Clip(raw))
	case port == "":
		port = "443"
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	e, reason := apiserver.ParseEndpoint(net.JoinHostPort(host, port))
	if reason != "" {
		return e, false, fmt.Errorf("server %s %s", apiserver.Clip(raw), reason)
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
		return netip.Addr{}, fmt.Errorf("service range %q is not address/bits", apiserver.Clip(first))
	}
	a := p.Masked().Addr().Unmap().Next()
	if !p.Contains(a) || apiserver.RefuseAddr(a) != "" {
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
		f.Notef("%s: %v", where, err)
		return
	}
	s := netip.AddrPortFrom(a, apiserver.ServicePort)
	f.Notef("%s: service range %s, so the Service IP is %s", where, ranges, s)
	f.AddService(s)
}
