package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/vm/kube"
)

// TestRuntimePod does with the pod of deploy/runtime what a DaemonSet and a kubelet do, beside a real API server and
// with nothing but the rights of its manifests.
func TestRuntimePod(t *testing.T) {
	n := newNode(t)
	kube.Prepare(t)
	n.done("systemctl", "start", "etcd.service", "apiserver.service")
	c := kube.NewClient(t)
	c.Apply(read(t, deploy(t), "runtime/rbac.yaml"))
	c.Create(kube.Accounts, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "firsthop"}}, nil)
	c.AddNode()
	c.Serve("web", netip.MustParseAddrPort(web), kube.Backend, corev1.ProtocolTCP)
	n.startKubeProxy()

	one := n.newPod(c, "one", runtimePod(t), n.rootfs())
	n.start(one.pod).ends(0, vip)
	first := one.run()
	first.serves(web)
	first.proves(c)
	n.Run("a pod opts out, and in again", func(t *testing.T) { n.on(t).optsOut(c) })

	n.Run("it is killed, and started again by the kubelet", func(t *testing.T) {
		n := n.on(t)
		kube.WhileConnecting(n, web, kube.Greeting, func() {
			first.kill("KILL")
			n.answers(web, kube.Greeting)
			first = one.run()
			first.on(t).lives()
		})
		c.Serve("web2", netip.MustParseAddrPort("10.96.9.3:80"), kube.Backend, corev1.ProtocolTCP)
		n.answers("10.96.9.3:80", kube.Greeting)
	})
	first.refusedNothing()

	node := n // whose containers go on after a subtest
	n.Run("another version takes its place, when it has ended", func(t *testing.T) {
		n := n.on(t)
		rootfs := workDir + "/rootfs-0.2.0"
		unpack(t, filesDir+"/firsthop-oci.tar", rootfs)
		program, err := os.ReadFile(filesDir + "/firsthop-0.2.0")
		n.must(err)
		n.must(os.WriteFile(rootfs+"/usr/bin/firsthop", program, 0o755))
		kube.WhileConnecting(n, web, kube.Greeting, func() {
			began := time.Now()
			first.kill("TERM")
			grace := time.Duration(*one.pod.TerminationGracePeriodSeconds) * time.Second
			n.Logf("its end took %v; the kubelet would kill it after %v", time.Since(began).Round(time.Millisecond), grace)
			two := node.newPod(c, "two", one.pod, rootfs)
			two.startAs(two.pod, two.pod.InitContainers[0], n.image, rootfs, "").ends(0, vip)
			first = two.run()
			first.on(t).lives()
		})
		n.answers(web, kube.Greeting)
		if out := n.firsthop("status"); !strings.Contains(out, "v0.2.0") {
			n.Errorf("status does not name the new version:\n%s", out)
		}
		c.Serve("web3", netip.MustParseAddrPort("10.96.9.4:80"), kube.Backend, corev1.ProtocolTCP)
		n.answers("10.96.9.4:80", kube.Greeting)
	})
	first.refusedNothing()
	if out, code := n.command("/run/vm/firsthop", "uninstall", "--force"); code == 0 || !strings.Contains(out, "delete the DaemonSet") {
		n.Errorf("beside the runtime, uninstall: %d\n%s", code, out)
	}
	first.kill("TERM")
	n.answers(web, kube.Greeting) // what it has made goes on without it
}

// runtimePod has what the kubelet adds for default/kubernetes.
func runtimePod(t *testing.T) pod {
	p := thisBootOnly(withAddresses(runtimeManifest(t)))
	host, portNumber, _ := strings.Cut(vip, ":")
	for _, c := range []*container{&p.InitContainers[0], &p.Containers[0]} {
		c.Env = append(c.Env, variable{Name: "KUBERNETES_SERVICE_HOST", Value: host}, variable{Name: "KUBERNETES_SERVICE_PORT", Value: portNumber})
	}
	return p
}

// aPod is one of the DaemonSet's, whose container can be run again and again.
type aPod struct {
	*node
	pod    pod
	rootfs string
}

// newPod makes the pod in the API and prepares what a kubelet would have: the volume with the token, which is bound to it.
func (n *node) newPod(c *kube.Client, name string, p pod, rootfs string) *aPod {
	n.Helper()
	var made corev1.Pod
	c.Create(kube.SystemPods, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: kube.Node, ServiceAccountName: p.ServiceAccountName, HostNetwork: is(p.HostNetwork),
			Containers: []corev1.Container{{Name: "firsthop", Image: p.Containers[0].Image}},
		},
	}, &made)
	var token authenticationv1.TokenRequest
	c.Create(kube.Accounts+"/"+p.ServiceAccountName+"/token", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: made.Name, UID: made.UID},
	}}, &token)
	of := n.on(n.T)
	of.tokenDir = filepath.Join(workDir, "token-"+name)
	n.must(os.MkdirAll(of.tokenDir, 0o755))
	for file, data := range map[string][]byte{"token": []byte(token.Status.Token), "namespace": []byte("kube-system"), "ca.crt": read(n.T, kube.Dir, "ca.crt")} {
		n.must(os.WriteFile(filepath.Join(of.tokenDir, file), data, 0o644))
	}
	n.tokenDir = of.tokenDir
	return &aPod{of, p, rootfs}
}

// running is a container that runs.
type running struct {
	*node
	name, log string
	probe     string // the URL of its liveness probe
}

// run starts the pod's container.
func (a *aPod) run() *running {
	a.Helper()
	c := a.pod.Containers[0]
	name, bundle := a.bundle(a.pod, c, a.image, a.rootfs, "")
	r := &running{node: a.node, name: name, log: filepath.Join(workDir, name+".log")}
	probe := c.LivenessProbe.HTTPGet
	r.probe = fmt.Sprintf("http://%s:%d%s", probe.Host, probe.Port, probe.Path)
	log, err := os.Create(r.log)
	a.must(err)
	defer log.Close()
	cmd := exec.Command("runc", "--root", runcRoot, "run", "--detach", "--bundle", bundle, name)
	cmd.Stdout, cmd.Stderr = log, log
	a.must(cmd.Run())
	a.Cleanup(func() {
		if r.ended() != nil {
			r.kill("KILL")
		}
		a.Logf("container %s:\n%s", name, r.said())
		os.RemoveAll(bundle)
	})
	return r
}

func (r *running) said() string {
	data, _ := os.ReadFile(r.log)
	return string(data)
}

// ended returns an error while it runs.
func (r *running) ended() error {
	out, code := r.command("runc", "--root", runcRoot, "state", r.name)
	var state struct{ Status string }
	if code == 0 && json.Unmarshal([]byte(out), &state) == nil && state.Status != "stopped" {
		return errors.New(state.Status)
	}
	return nil
}

// kill sends a signal and waits for the end.
func (r *running) kill(signal string) {
	r.Helper()
	r.done("runc", "--root", runcRoot, "kill", r.name, signal)
	kube.Await(r, "the end of "+r.name, r.ended)
	_, _ = r.command("runc", "--root", runcRoot, "delete", "--force", r.name)
}

func (r *running) on(t *testing.T) *running {
	copied := *r
	copied.node = r.node.on(t)
	return &copied
}

// lives waits for the kubelet's probe to be answered.
func (r *running) lives() {
	r.Helper()
	for _, url := range []string{r.probe, strings.Replace(r.probe, "/livez", "/healthz", 1)} {
		kube.Await(r, url, func() error {
			if r.ended() == nil {
				r.Fatalf("it has ended:\n%s", r.said())
			}
			resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", resp.Status, body)
			}
			return nil
		})
	}
}

// serves waits until a Service is served, to the host and to a pod.
func (r *running) serves(address string) {
	r.Helper()
	r.lives()
	r.answers(address, kube.Greeting)
	if saw := r.visitorOf(address); saw != kube.Greeting {
		r.Errorf("%s says %q to a pod", address, saw)
	}
}

// proves waits until it says on its Node that all is well, which takes most of its rights in the cluster.
func (r *running) proves(c *kube.Client) {
	r.Helper()
	kube.Await(r, "the Node's label and condition", func() error {
		if proxy, ready := c.Says(); proxy != "active" || ready.Status != corev1.ConditionTrue {
			return fmt.Errorf("%q, %+v", proxy, ready)
		}
		return nil
	})
}

// refusedNothing looks for what it was refused, by the kernel or the API server.
func (r *running) refusedNothing() {
	r.Helper()
	said := r.said()
	for line := range strings.Lines(said) {
		for _, bad := range []string{"not permitted", "permission denied", "not implemented", "forbidden", "level=ERROR"} {
			if strings.Contains(line, bad) {
				r.Errorf("it says: %s", line)
			}
		}
	}
}

// answers waits until an address is answered so.
func (n *node) answers(address, want string) {
	n.Helper()
	kube.Await(n, address, func() error {
		if saw := kube.Visit(address); saw != want {
			return errors.New(saw)
		}
		return nil
	})
}

// optsOut has an ordinary pod reach the Service by what kube-proxy has, and again by what firsthop has.
func (n *node) optsOut(c *kube.Client) {
	n.Helper()
	if below(n.T, 5, 14) {
		n.Log("user space can't tell network namespaces before Linux 5.14: no pod can opt out")
		return
	}
	c.Create(kube.Pods, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "visitor", Annotations: map[string]string{"firsthop.io/connect-time": "off"}},
		Spec:       corev1.PodSpec{NodeName: kube.Node, Containers: []corev1.Container{{Name: "visitor", Image: "visitor"}}},
	}, nil)
	c.Patch(kube.Pods+"/visitor/status", `{"status":{"phase":"Running","podIP":"10.244.0.2","podIPs":[{"ip":"10.244.0.2"}]}}`)
	wants := func(want string) {
		n.Helper()
		kube.Await(n, "the pod to be answered by "+want, func() error {
			if saw := n.visitorOf(web); saw != want {
				return errors.New(saw)
			}
			return nil
		})
	}
	wants(kubeProxyGreeting)
	n.answers(web, kube.Greeting) // nobody else
	c.Patch(kube.Pods+"/visitor", `{"metadata":{"annotations":null}}`)
	wants(kube.Greeting)
}

// startKubeProxy writes the rules of kube-proxy's nftables mode that say that the API service is served, and starts a
// process that serves the other Service to who comes there by packets.
func (n *node) startKubeProxy() {
	n.Helper()
	host, port, _ := strings.Cut(vip, ":")
	n.done("nft", "add table ip kube-proxy; add chain ip kube-proxy service-x; "+
		"add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }; "+
		"add element ip kube-proxy service-ips { "+host+" . tcp . "+port+" : goto service-x }")
	self, err := os.Executable()
	n.must(err)
	const program = "/run/kube-proxy"
	n.must(os.Symlink(self, program))
	host, _, _ = strings.Cut(web, ":")
	n.done("ip", "address", "add", host+"/32", "dev", "lo")
	cmd := exec.Command(program, "kube-proxy")
	n.must(cmd.Start())
	n.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
