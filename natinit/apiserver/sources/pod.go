package sources

import (
	"cmp"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// PodEnvironment are the variables that the kubelet gives every container.
type PodEnvironment struct {
	ServiceHost string // KUBERNETES_SERVICE_HOST
	ServicePort string // KUBERNETES_SERVICE_PORT
	// Port is KUBERNETES_PORT, "tcp://10.96.0.1:443".
	Port string
	// ServiceAccountDir holds token and ca.crt; not below Root, it is the container's own.
	// "" means that there is none.
	ServiceAccountDir string
	// EndpointDir has the ConfigMap kubernetes-services-endpoint as a volume, whose files go before ServiceHost and
	// ServicePort: a running container's variables keep what the ConfigMap had at its start. "" means that there is none.
	EndpointDir string
}

// endpoint is the address that may have been set by hand, and where it is from.
func (env PodEnvironment) endpoint() (host, port, from string) {
	if env.EndpointDir != "" {
		own := hostfs.FS{}
		read := func(name string) string {
			text, _ := own.ReadFile(filepath.Join(env.EndpointDir, name)) // no ConfigMap: no file
			return strings.TrimSpace(string(text))
		}
		if host := read("KUBERNETES_SERVICE_HOST"); host != "" {
			return host, read("KUBERNETES_SERVICE_PORT"), "ConfigMap kubernetes-services-endpoint"
		}
	}
	return env.ServiceHost, env.ServicePort, "KUBERNETES_SERVICE_HOST"
}

// Pod reads what a container knows. KUBERNETES_SERVICE_HOST is the
// Service IP, unless somebody has set it by hand to an address of the API
// server, as other dataplanes ask for. KUBERNETES_PORT, which nobody sets by
// hand, tells which of the two it is.
func Pod(env PodEnvironment) Finding {
	f := Finding{Source: apiserver.SourcePod}
	service, ok := podService(env.Port)
	if ok {
		f.AddService(service)
		f.Notef("KUBERNETES_PORT: Service IP %s", service)
	}
	if host, port, from := env.endpoint(); host != "" {
		e, reason := apiserver.ParseEndpoint(net.JoinHostPort(strings.Trim(host, "[]"), cmp.Or(port, "443")))
		switch {
		case reason != "":
			f.Notef("%s: host %q, port %q: %s", from, apiserver.Clip(host), apiserver.Clip(port), reason)
		case e.Addr == service:
		default:
			f.Notef("%s: %s", from, e)
			f.AddEndpoint(e)
		}
	}
	if env.ServiceAccountDir != "" {
		c, err := ServiceAccount(env.ServiceAccountDir)
		if err != nil {
			f.Notef("no ServiceAccount: %v", err)
		} else {
			f.Credentials = append(f.Credentials, c)
			f.Clusters = append(f.Clusters, c.clusterRef(AuthorityPod))
		}
	}
	if len(f.Notes) == 0 {
		f.Notef("not in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_PORT are not set")
	}
	return f
}

func podService(port string) (netip.AddrPort, bool) {
	s, ok := strings.CutPrefix(port, "tcp://")
	if !ok {
		return netip.AddrPort{}, false
	}
	e, reason := apiserver.ParseEndpoint(s)
	return e.Addr, reason == "" && e.Resolved()
}
