package apitest

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// KubeBin is the environment variable with the directory of etcd and
// kube-apiserver, which make test sets (docs/discovery.md). Without it the tests
// against the real one are skipped, since a build takes minutes.
const KubeBin = "FIRSTHOP_TEST_KUBE_BIN"

// RealAddress is where StartReal's API server listens.
const RealAddress = "10.99.0.1:6443"

// StartReal runs a real API server with the node authorizer at RealAddress,
// until the test ends. It takes five seconds and 280 MB.
func StartReal(t testing.TB, ca *CA, flags ...string) {
	t.Helper()
	bin := os.Getenv(KubeBin)
	if bin == "" {
		t.Skip("needs " + KubeBin + ", a directory with etcd and kube-apiserver")
	}
	dir := t.TempDir()
	const etcd = "http://127.0.0.1:2379"
	start(t, dir, filepath.Join(bin, "etcd"), "--data-dir="+dir+"/etcd", "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:2380")
	write := func(name string, content []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	cert := ca.Server(t, append([]string{"10.96.0.1", "10.99.0.1"}, Names...)...)
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	certFile := write("tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	keyFile := write("tls.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}))
	start(t, dir, filepath.Join(bin, "kube-apiserver"), append([]string{"--etcd-servers=" + etcd,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--advertise-address=10.99.0.1", "--secure-port=6443", "--cert-dir=" + dir,
		"--client-ca-file=" + write("ca.crt", ca.PEM), "--tls-cert-file=" + certFile, "--tls-private-key-file=" + keyFile,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + keyFile, "--service-account-signing-key-file=" + keyFile,
		"--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"}, flags...)...)
	admin := ca.HTTPClient(t, "admin", "system:masters")
	deadline := time.Now().Add(2 * time.Minute)
	for {
		// The object itself, since /readyz may be ok before it is written.
		if code, _ := Get(admin, RealAddress, "/api/v1/namespaces/default/endpoints/kubernetes"); code == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(dir + "/kube-apiserver.log")
			t.Fatalf("kube-apiserver does not serve:\n%s", b)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func start(t testing.TB, dir, path string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, filepath.Base(path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// HTTPClient gives a client with a certificate of the user; user "" is nobody.
func (ca *CA) HTTPClient(t testing.TB, user string, groups ...string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM)
	cfg := &tls.Config{RootCAs: pool, ServerName: Names[0]}
	if user != "" {
		c, k := ca.Client(t, user, groups...)
		cert, err := tls.X509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// Get asks for a path and gives status and body; status 0 is no answer.
func Get(c *http.Client, address, path string) (int, string) {
	resp, err := c.Get("https://" + address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// Create posts an object as YAML.
func Create(t testing.TB, c *http.Client, path, object string) {
	t.Helper()
	resp, err := c.Post("https://"+RealAddress+path, "application/yaml", strings.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		t.Fatalf("create %s: %s", path, b)
	}
}

// Kubeadm creates what kubeadm's phases upload-config and bootstrap-token
// create, as far as discovery reads it.
func Kubeadm(t testing.TB, admin *http.Client) {
	t.Helper()
	rbac := "/apis/rbac.authorization.k8s.io/v1/namespaces/"
	configMap := func(ns, name, data string) {
		Create(t, admin, "/api/v1/namespaces/"+ns+"/configmaps", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+name+"}\ndata:\n"+data)
	}
	grant := func(ns, role, object, subject string) {
		Create(t, admin, rbac+ns+"/roles", "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: \""+role+
			"\"}\nrules: [{apiGroups: [''], resources: [configmaps], resourceNames: ["+object+"], verbs: [get]}]\n")
		Create(t, admin, rbac+ns+"/rolebindings", "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: \""+role+
			"\"}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: \""+role+"\"}\nsubjects: ["+subject+"]\n")
	}
	configMap("kube-public", "cluster-info", "  kubeconfig: |\n    apiVersion: v1\n    kind: Config\n    clusters: [{name: \"\", cluster: {server: \"https://10.99.0.1:6443\"}}]\n")
	grant("kube-public", "kubeadm:bootstrap-signer-clusterinfo", "cluster-info", "{apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:anonymous'}")
	configMap("kube-system", "kubeadm-config", "  ClusterConfiguration: |\n    kind: ClusterConfiguration\n    controlPlaneEndpoint: 10.99.0.1:6443\n    networking: {serviceSubnet: '10.96.0.0/16,fd00:96::/112'}\n")
	grant("kube-system", "kubeadm:nodes-kubeadm-config", "kubeadm-config", "{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:nodes'}")
	configMap("kube-system", "kube-proxy", "  kubeconfig.conf: |\n    apiVersion: v1\n    kind: Config\n    clusters: [{name: default, cluster: {server: \"https://10.99.0.1:6443\"}}]\n")
	for _, ns := range []string{"kube-system", "tigera-operator"} {
		if ns != "kube-system" {
			Create(t, admin, "/api/v1/namespaces", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n")
		}
		configMap(ns, "kubernetes-services-endpoint", "  KUBERNETES_SERVICE_HOST: 10.99.0.1\n  KUBERNETES_SERVICE_PORT: '6443'\n")
	}
}

// Use makes a pod of the node use a ConfigMap of kube-system.
func Use(t testing.TB, admin *http.Client, node, configMap string) {
	t.Helper()
	Create(t, admin, "/api/v1/namespaces/kube-system/serviceaccounts", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default}\n")
	Create(t, admin, "/api/v1/namespaces/kube-system/pods", "apiVersion: v1\nkind: Pod\nmetadata: {name: user-of-"+configMap+"}\nspec:\n  nodeName: "+node+
		"\n  automountServiceAccountToken: false\n  containers: [{name: c, image: x}]\n  volumes: [{name: v, configMap: {name: "+configMap+"}}]\n")
}
