package sources

import (
	"net/url"
	"strings"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// serverURL completes the server of a kubeconfig as client-go does: one
// without a scheme is https where secure, else http (rest.DefaultServerURL).
func serverURL(server string, secure bool) string {
	server = strings.TrimSpace(server)
	if server == "" {
		return ""
	}
	if u, err := url.Parse(server); err == nil && u.Scheme != "" && u.Host != "" {
		return u.Scheme + server[len(u.Scheme):] // in lower case
	}
	if secure {
		return "https://" + server
	}
	return "http://" + server
}

// isSecure reports whether a cluster and its user mean TLS: there is a CA, a
// client certificate, or verification is switched off.
func isSecure(cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) bool {
	if cluster.CertificateAuthority != "" || len(cluster.CertificateAuthorityData) > 0 || cluster.InsecureSkipTLSVerify {
		return true
	}
	return user != nil && (user.ClientCertificate != "" || len(user.ClientCertificateData) > 0)
}

// completeServer completes the server of a kubeconfig in place.
func completeServer(raw *clientcmdapi.Config, context string, cluster *clientcmdapi.Cluster) {
	var user *clientcmdapi.AuthInfo
	if ctx := raw.Contexts[context]; ctx != nil {
		user = raw.AuthInfos[ctx.AuthInfo]
	}
	cluster.Server = serverURL(cluster.Server, isSecure(cluster, user))
}
