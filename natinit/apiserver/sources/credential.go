package sources

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/credplugin"
)

// Credential is an identity that a node has for its API server.
type Credential struct {
	// Path is the file that it came from, as the host sees it.
	Path string
	// Server is the URL of the kubeconfig; "" for a ServiceAccount.
	Server string
	Config *rest.Config // has no ExecProvider: plugin takes its place
	Plugin *credplugin.Plugin
	ca     []byte
	// hostTrust is true when the file names no CA and does not ask to go without.
	hostTrust bool
	hostCA    []byte
}

// Trust is what the servers of the credential's own file are verified with, nil if it names nothing.
func (c *Credential) Trust() *apiserver.Trust {
	t := &apiserver.Trust{CA: c.ca}
	if c.hostTrust {
		t.Host, t.HostCA = hostOf(c.clusterRef(AuthorityOther).Server), c.hostCA
	}
	if t.Known() || t.Host != "" && len(t.HostCA) > 0 {
		return t
	}
	return nil
}

func (c *Credential) clusterRef(s Authority) ClusterRef {
	r := ClusterRef{Path: c.Path, Authority: s, CA: c.ca, HostTrust: c.hostTrust, HostCA: c.hostCA}
	if e, _, err := parseServerURL(c.Server); err == nil {
		r.Server = e
	}
	return r
}

// NodeName is the node that a kubelet's certificate is for, "" for any other
// credential.
func (c *Credential) NodeName() string {
	if c.Config == nil {
		return ""
	}
	for _, cert := range apiserver.Certificates(c.Config.CertData) {
		if name, ok := strings.CutPrefix(cert.Subject.CommonName, "system:node:"); ok {
			return name
		}
	}
	return ""
}

// LoadKubeconfig reads a kubeconfig of the host. Every file that it names
// is read at once, below root, so that nothing is read behind our back later;
// client-go would open the paths as this process sees them. With an error,
// the Credential is not nil if at least the server is known.
func LoadKubeconfig(root, path string) (*Credential, error) {
	b, err := readFile(root, path)
	if err != nil {
		return nil, err
	}
	raw, err := clientcmd.Load(b)
	if err != nil {
		return nil, fmt.Errorf("%s: not a kubeconfig: %s", path, apiserver.FirstLine(err))
	}
	ctx, cluster := currentCluster(raw)
	if cluster == nil {
		return nil, fmt.Errorf("%s: has no cluster", path)
	}
	completeServer(raw, ctx, cluster)
	c := &Credential{Path: path, Server: cluster.Server}
	insecure := cluster.InsecureSkipTLSVerify
	if !insecure {
		c.ca = cluster.CertificateAuthorityData
	}
	if ctx == "" {
		return c, fmt.Errorf("%s: has no current context, so no credentials", path)
	}
	c.hostTrust = !insecure && cluster.CertificateAuthority == "" && len(cluster.CertificateAuthorityData) == 0
	if c.hostTrust {
		c.hostCA = hostTrustStore(root)
	}
	err = inlineFiles(root, path, raw, ctx)
	if !insecure {
		c.ca = cluster.CertificateAuthorityData
	}
	if err != nil {
		return c, err
	}
	if raw.AuthInfos[raw.Contexts[ctx].AuthInfo] == nil {
		return c, fmt.Errorf("%s: has no credentials", path)
	}
	if c.Config, err = clientcmd.NewNonInteractiveClientConfig(*raw, ctx, nil, nil).ClientConfig(); err != nil {
		return c, fmt.Errorf("%s: %s", path, apiserver.FirstLine(err))
	}
	if p := c.Config.ExecProvider; p != nil && root != "" && root != "/" {
		return c, fmt.Errorf("%s: gets its credentials from the program %s of the host, which cannot run in a container", path, p.Command)
	}
	if c.Plugin, err = credplugin.Take(c.Config, path, nil); err != nil { // the kubeconfig was read as a trusted file
		return c, err
	}
	if p := c.Config.AuthProvider; p != nil {
		return c, fmt.Errorf("%s: uses the auth provider %q, which Kubernetes has given up", path, p.Name)
	}
	return c, nil
}

// Ready tells whether the credentials are at hand: a plugin may have to run first.
func (c *Credential) Ready() bool { return c.Plugin == nil || c.Plugin.Ready() }

// Prepare runs the credential plugin if there is one and it has to run.
func (c *Credential) Prepare(ctx context.Context) error {
	if c.Plugin == nil {
		return nil
	}
	_, err := c.Plugin.Get(ctx)
	return err
}

// currentCluster gives the context in use and its cluster. A kubeconfig with
// one cluster and no contexts (cluster-info) still names a server.
func currentCluster(raw *clientcmdapi.Config) (string, *clientcmdapi.Cluster) {
	name := raw.CurrentContext
	if name == "" && len(raw.Contexts) == 1 {
		for name = range raw.Contexts {
		}
	}
	if ctx := raw.Contexts[name]; ctx != nil {
		if cl := raw.Clusters[ctx.Cluster]; cl != nil {
			return name, cl
		}
	}
	if len(raw.Clusters) == 1 {
		for _, cl := range raw.Clusters {
			return "", cl
		}
	}
	return "", nil
}

// inlineFiles replaces the files that the context's cluster and user name by
// their contents. Relative names count from the kubeconfig's directory.
func inlineFiles(root, path string, raw *clientcmdapi.Config, name string) error {
	var errs []error
	inline := func(file *string, data *[]byte) {
		if *file == "" || len(*data) > 0 {
			*file = "" // data wins over file, as in client-go
			return
		}
		p := *file
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(path), p)
		}
		b, err := readFile(root, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: cannot use its credentials: %w", path, err))
			return
		}
		*file, *data = "", b
	}
	ctx := raw.Contexts[name]
	cl := raw.Clusters[ctx.Cluster]
	inline(&cl.CertificateAuthority, &cl.CertificateAuthorityData)
	cl.ProxyURL = "" // a proxy is not the way that pods will take
	if u := raw.AuthInfos[ctx.AuthInfo]; u != nil {
		inline(&u.ClientCertificate, &u.ClientCertificateData)
		inline(&u.ClientKey, &u.ClientKeyData)
		token := []byte(u.Token)
		inline(&u.TokenFile, &token)
		u.Token = strings.TrimSpace(string(token))
	}
	return errors.Join(errs...)
}

// ServiceAccount reads the token that the kubelet gives this pod: files of the container, not of the host.
func ServiceAccount(dir string) (*Credential, error) {
	own := hostfs.FS{}
	token, err := own.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return nil, err
	}
	ca, err := own.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	cfg := &rest.Config{Host: "https://kubernetes.default.svc", BearerToken: strings.TrimSpace(string(token))}
	cfg.CAData = ca
	return &Credential{Path: dir, Config: cfg, ca: ca}, nil
}
