package cluster

import (
	"fmt"
	"net/http"
	"os"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Identity is who asks an API server: a user, by certificate, or the bearer of a token.
type Identity struct {
	User   string
	Groups []string
	Token  string // if not "", User and Groups are not used
}

// Admin may do everything.
var Admin = Identity{User: "admin", Groups: []string{"system:masters"}}

// KubeProxy is the user that Kubernetes itself binds to the role system:node-proxier.
var KubeProxy = Identity{User: "system:kube-proxy"}

// Kubelet is a node's identity.
func Kubelet(node string) Identity {
	return Identity{User: "system:node:" + node, Groups: []string{"system:nodes"}}
}

// ServiceAccount makes a ServiceAccount, binds it to ClusterRoles, and returns it with a token for an hour. Made twice,
// it is the same.
func (c *Cluster) ServiceAccount(namespace, name string, clusterRoles ...string) Identity {
	c.t.Helper()
	ctx := c.t.Context()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	_, err := c.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		c.must(err)
	}
	for _, role := range clusterRoles {
		_, err := c.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s:%s:%s", namespace, name, role)},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
		}, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			c.must(err)
		}
	}
	token, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name,
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	c.must(err)
	return Identity{Token: token.Status.Token}
}

// RESTConfig is a client's configuration for a process outside of all labs: it dials in the hub, speaks protobuf, and
// does not limit itself.
func (c *Cluster) RESTConfig(id Identity, s *Server) *rest.Config {
	c.t.Helper()
	cfg := &rest.Config{
		WarningHandler:  rest.NoWarnings{}, // deprecated things are tested, too
		Host:            s.URL(),
		BearerToken:     id.Token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.PEM},
		Dial:            c.Hub.DialContext,
		QPS:             -1,
		ContentConfig: rest.ContentConfig{
			ContentType:        k8sruntime.ContentTypeProtobuf,
			AcceptContentTypes: k8sruntime.ContentTypeProtobuf + "," + k8sruntime.ContentTypeJSON,
		},
	}
	if id.Token == "" {
		cfg.CertData, cfg.KeyData = c.ca.Client(c.t, id.User, id.Groups...)
	}
	return cfg
}

// ClientOf is a client for somebody, with one of the API servers.
func (c *Cluster) ClientOf(id Identity, s *Server) kubernetes.Interface {
	c.t.Helper()
	client, err := kubernetes.NewForConfig(c.RESTConfig(id, s))
	c.must(err)
	return client
}

// httpClient is for what is no object, as /readyz.
func (c *Cluster) httpClient(id Identity) *http.Client {
	client, err := rest.HTTPClientFor(c.RESTConfig(id, c.Servers[0]))
	c.must(err)
	return client
}

// Kubeconfig writes a kubeconfig for a program in a lab, which asks the server at a URL, and returns its path.
func (c *Cluster) Kubeconfig(id Identity, url string) string {
	c.t.Helper()
	const name = "cluster"
	user := &clientcmdapi.AuthInfo{Token: id.Token}
	if id.Token == "" {
		user.ClientCertificateData, user.ClientKeyData = c.ca.Client(c.t, id.User, id.Groups...)
	}
	data, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: url, CertificateAuthorityData: c.ca.PEM}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: user},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
	c.must(err)
	f, err := os.CreateTemp(c.Hub.Dir, "*.kubeconfig")
	c.must(err)
	defer f.Close()
	_, err = f.Write(data)
	c.must(err)
	return f.Name()
}

// CA is the certificate of the authority that signed all others, as PEM.
func (c *Cluster) CA() []byte { return c.ca.PEM }
