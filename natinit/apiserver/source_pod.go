package apiserver

import (
	"net"
	"net/netip"
	"strings"
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
}

// PodSource reads what a container knows. KUBERNETES_SERVICE_HOST is the
// Service IP, unless somebody has set it by hand to an address of the API
// server, as other dataplanes ask for. KUBERNETES_PORT, which nobody sets by
// hand, tells which of the two it is.
func PodSource(env PodEnvironment) Finding {
	f := Finding{Source: SourcePod}
	service, ok := podService(env.Port)
	if ok {
		f.addService(service)
		f.notef("KUBERNETES_PORT: Service IP %s", service)
	}
	if env.ServiceHost != "" {
		e, reason := parseEndpoint(net.JoinHostPort(strings.Trim(env.ServiceHost, "[]"), orElse(env.ServicePort, "443")))
		switch {
		case reason != "":
			f.notef("KUBERNETES_SERVICE_HOST %q, KUBERNETES_SERVICE_PORT %q: %s", clip(env.ServiceHost), clip(env.ServicePort), reason)
		case e.Addr == service:
		default:
			f.notef("KUBERNETES_SERVICE_HOST: %s", e)
			f.addEndpoint(e)
		}
	}
	if env.ServiceAccountDir != "" {
		c, err := loadServiceAccount(env.ServiceAccountDir)
		if err != nil {
			f.notef("no ServiceAccount: %v", err)
		} else {
			f.Credentials = append(f.Credentials, c)
			f.Clusters = append(f.Clusters, c.clusterRef(StandingPod))
		}
	}
	if len(f.Notes) == 0 {
		f.notef("not in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_PORT are not set")
	}
	return f
}

func podService(port string) (netip.AddrPort, bool) {
	s, ok := strings.CutPrefix(port, "tcp://")
	if !ok {
		return netip.AddrPort{}, false
	}
	e, reason := parseEndpoint(s)
	return e.Addr, reason == "" && e.Resolved()
}
