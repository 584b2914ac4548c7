// Package apiserver is about addresses of API servers: what they are called, how they are parsed and resolved, which of
// them may be believed, and which were good last.
//
// The init stage uses it once, before anything else on the node works; the runtime uses it all the time. So it and the
// packages below hold no state of their own, read no environment, and bound everything that waits by the caller's context.
//
//   - sources: where addresses come from. A new source goes there.
//   - query: what the API itself says, asked with the node's own credentials.
//   - probe: whether an API server answers at an address, and is ready.
//   - discover: all of it, for the init stage.
//
// docs/discovery.md explains the sources for operators, and lists what a node's credentials may read, as found with a
// real API server.
package apiserver

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// VarServices is the environment variable with the Service IPs.
	VarServices = "KUBERNETES_SERVICE_IPS_PORTS"
	// VarEndpoints is the environment variable with the API server addresses.
	VarEndpoints = "KUBERNETES_APISERVER_ENDPOINTS"

	// ServicePort is the port of the Service default/kubernetes. No flag of
	// kube-apiserver changes it, so a source that knows only the Service
	// range still knows the port.
	ServicePort = 443
	// EndpointPort is where kubeadm, k3s and RKE2 let the API server listen
	// unless told otherwise.
	EndpointPort = 6443

	// MaxServices bounds the Service entries. A cluster has one kubernetes
	// Service with at most one address a family; the rest is headroom, and
	// every entry costs a service index in the range kept for the init stage.
	MaxServices = 64
	// MaxEndpoints bounds the endpoint entries, both families together. Each
	// live one costs a backend slot per Service entry of its family; etcd
	// stops scaling at seven members, so a thousand API servers is a mistake.
	MaxEndpoints = 1000
)

// Endpoint is one API server address. It is comparable: two endpoints are
// the same one if they are equal.
type Endpoint struct {
	// Host is the host name that the address came from, in lower case, or ""
	// when an IP address was given. It is kept so that the runtime can
	// resolve it again: addresses of load balancers change.
	Host string
	// Addr is the address and port. For a name that is not resolved (yet) the
	// address is invalid and only the port is set.
	Addr netip.AddrPort
}

// Resolved reports whether the endpoint has an address that can be dialled.
func (e Endpoint) Resolved() bool { return e.Addr.Addr().IsValid() }

// String gives "10.0.0.1:6443", "api.example:6443" or, for a resolved name,
// "10.0.0.1:6443 (api.example)".
func (e Endpoint) String() string {
	switch {
	case !e.Resolved():
		return e.HostPort()
	case e.Host != "":
		return e.Addr.String() + " (" + e.Host + ")"
	}
	return e.Addr.String()
}

// HostPort gives the endpoint as it was given: name or address, and port.
func (e Endpoint) HostPort() string {
	if e.Host == "" {
		return e.Addr.String()
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Addr.Port())))
}

// Loopback reports whether only this host can reach the endpoint.
func (e Endpoint) Loopback() bool {
	if e.Resolved() {
		return e.Addr.Addr().IsLoopback()
	}
	return localhostName(e.Host)
}

func localhostName(h string) bool {
	h = strings.TrimSuffix(h, ".")
	return h == "localhost" || strings.HasSuffix(h, ".localhost") || h == "localhost.localdomain" || h == "localhost4" || h == "localhost6" || h == "ip6-localhost"
}

type endpointJSON struct {
	Address string `json:"address,omitempty"`
	Name    string `json:"name,omitempty"`
}

// Words give the address and the name, each with the port, "" for the half that
// is not known.
func (e Endpoint) Words() (address, name string) {
	if e.Resolved() {
		address = e.Addr.String()
	}
	if e.Host != "" {
		name = e.HostPort()
	}
	return address, name
}

// MarshalJSON gives {"address": "10.0.0.1:6443", "name": "api.example:6443"},
// without the half that is not known.
func (e Endpoint) MarshalJSON() ([]byte, error) {
	var j endpointJSON
	j.Address, j.Name = e.Words()
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes, with the checks of
// ParseEndpoints: what comes from a file is judged like what comes from a flag.
func (e *Endpoint) UnmarshalJSON(b []byte) error {
	var j endpointJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	var out Endpoint
	if j.Name != "" {
		n, reason := ParseEndpoint(j.Name)
		if reason != "" || n.Resolved() {
			return fmt.Errorf("name %q: %s", Clip(j.Name), cmp.Or(reason, "is an address"))
		}
		out = n
	}
	if j.Address != "" {
		a, reason := ParseEndpoint(j.Address)
		if reason != "" || !a.Resolved() {
			return fmt.Errorf("address %q: %s", Clip(j.Address), cmp.Or(reason, "is a name"))
		}
		if out.Host != "" && out.Addr.Port() != a.Addr.Port() {
			return fmt.Errorf("name %q and address %q differ in port", Clip(j.Name), Clip(j.Address))
		}
		out.Addr = a.Addr
	}
	if out == (Endpoint{}) {
		return fmt.Errorf("endpoint has neither address nor name")
	}
	*e = out
	return nil
}
