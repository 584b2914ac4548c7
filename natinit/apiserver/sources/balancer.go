package sources

import (
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// balancerFiles configure a balancer of this node in front of the API servers:
// the kubelet's kubeconfig names 127.0.0.1 then, and before the balancer runs
// only its configuration tells the servers.
var balancerFiles = [...]string{
	"/etc/nginx/nginx.conf",                // kubespray
	"/etc/haproxy/haproxy.cfg",             // kubespray, kubeadm's guide for high availability
	"/etc/kubekey/haproxy/haproxy.cfg",     // KubeKey
	"/etc/kube-lb/conf/kube-lb.conf",       // kubeasz
	"/opt/kube-nginx/conf/kube-nginx.conf", // guides for binaries
	"/etc/kubernetes/haproxy.cfg",          //
}

func balancerSource(h *host) Finding {
	f := Finding{Source: apiserver.SourceBalancer}
	found := false
	for _, p := range balancerFiles {
		b, err := h.ReadFile(p)
		if err != nil {
			continue
		}
		servers := haproxyServers(string(b))
		if strings.Contains(string(b), "upstream") {
			servers = nginxServers(string(b))
		}
		f.addServers(p, servers)
		found = found || len(servers) > 0
	}
	if !found {
		f.Notef("no nginx or HAProxy of this node balances over API servers")
	}
	return f
}

// ofAPIServers reports whether the name of a group of servers says that they
// are API servers; a balancer may have other groups.
func ofAPIServers(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"kube", "k8s", "api", "master", "control"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// nginxServers reads the servers of "upstream NAME { server HOST:PORT …; }".
func nginxServers(text string) []string {
	var out []string
	var clean strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		clean.WriteString(line + "\n")
	}
	rest := clean.String()
	for {
		_, after, ok := strings.Cut(rest, "upstream")
		if !ok {
			return out
		}
		head, body, ok := strings.Cut(after, "{")
		if !ok {
			return out
		}
		name := strings.TrimSpace(head)
		body, rest, _ = strings.Cut(body, "}")
		// kubeasz names its group "backend", in a file of its own.
		if !ofAPIServers(name) && name != "backend" {
			continue
		}
		for statement := range strings.SplitSeq(body, ";") {
			if w := strings.Fields(statement); len(w) > 1 && w[0] == "server" {
				out = append(out, w[1])
			}
		}
	}
}

// haproxyServers reads the servers of the sections "backend NAME" and
// "listen NAME".
func haproxyServers(text string) []string {
	var out []string
	wanted := false
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		switch w[0] {
		case "global", "defaults", "frontend", "resolvers", "peers", "userlist", "program":
			wanted = false
		case "backend", "listen":
			wanted = len(w) > 1 && ofAPIServers(w[1])
		case "server":
			if wanted && len(w) > 2 {
				out = append(out, w[2])
			}
		}
	}
	return out
}
