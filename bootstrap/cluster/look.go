package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/natinit/apiserver/query"
)

// The oldest Kubernetes: its tokens name the node of their pod, which the admission policy needs (KEP-4193).
const oldestMajor, oldestMinor = 1, 30

// Facts are what is true of a cluster. JSON is API.
type Facts struct {
	Server               string   `json:"server"`
	Kubernetes           string   `json:"kubernetes"`
	Provider             string   `json:"provider"`
	ControlPlaneEndpoint string   `json:"control_plane_endpoint,omitempty"` // of kubeadm
	ServicesEndpoint     string   `json:"services_endpoint,omitempty"`      // of the ConfigMap kubernetes-services-endpoint
	KubeProxy            string   `json:"kube_proxy"`                       // how it runs
	KubeProxyManager     string   `json:"kube_proxy_managed_by,omitempty"`
	Replaces             string   `json:"replaces_kube_proxy,omitempty"` // who serves Services instead of kube-proxy
	FromOutside          []string `json:"services_from_outside"`         // with node ports, load balancers or external IPs: firsthop doesn't serve their packets
	Nodes                []Node   `json:"nodes"`
}

// Node is one of a cluster. Two facts are told apart: connections are proven to be served at connect time, and packets that
// come from outside are served.
type Node struct {
	Name         string `json:"name"`
	Kernel       string `json:"kernel"`
	System       string `json:"system"`
	ControlPlane bool   `json:"control_plane"`
	Unreachable  bool   `json:"unreachable"`           // its kubelet says nothing
	KubeProxy    bool   `json:"kube_proxy"`            // a pod of kube-proxy's runs on it
	Rollout      string `json:"rollout,omitempty"`     // value of RolloutLabel
	Mode         string `json:"mode,omitempty"`        // what the node's runtime says: active, fallback
	APIServers   string `json:"api_servers,omitempty"` // as the node sees them: how many of them are ready, and which are not
	ConnectTime  Proven `json:"connect_time"`
	PacketPath   Served `json:"packet_path"`
}

// Proven is what a node's runtime says of connections, as long as it says so.
type Proven struct {
	Proven  bool   `json:"proven"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Said    string `json:"said,omitempty"` // when, RFC 3339
}

// Served is about packets from outside of the cluster.
type Served struct {
	Served bool   `json:"served"`
	Reason string `json:"reason"`
}

// notServed is what is true of every node: firsthop has no packet path yet.
var notServed = Served{Reason: "firsthop serves connections of the node's processes and pods only"}

// look reads everything that is known of the cluster. It writes nothing.
func (c *client) look(ctx context.Context) (*Facts, error) {
	f := &Facts{Server: c.base.String(), FromOutside: []string{}, Nodes: []Node{}}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := c.get(ctx, "/version", &version); err != nil {
		return nil, fmt.Errorf("ask for the version of Kubernetes: %w", err)
	}
	f.Kubernetes = version.GitVersion
	var nodes corev1.NodeList
	if err := c.get(ctx, "/api/v1/nodes", &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	proxies, err := c.lookForKubeProxy(ctx, f)
	if err != nil {
		return nil, err
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
			continue
		}
		node := nodeOf(n)
		node.KubeProxy = proxies[n.Name]
		f.Nodes = append(f.Nodes, node)
	}
	slices.SortFunc(f.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	kubeadm, err := c.lookAtConfigMaps(ctx, f)
	if err != nil {
		return nil, err
	}
	p := providerOf(nodes.Items, kubeadm)
	f.Provider = p.name
	if f.KubeProxy == "" {
		f.KubeProxy = cmp.Or(p.inProcess, "none")
	}
	if f.Replaces, err = c.replacement(ctx); err != nil {
		return nil, err
	}
	return f, c.lookAtServices(ctx, f)
}

func nodeOf(n *corev1.Node) Node {
	node := Node{
		Name: n.Name, Kernel: n.Status.NodeInfo.KernelVersion, System: n.Status.NodeInfo.OSImage,
		Rollout: n.Labels[RolloutLabel], Mode: n.Labels[query.NodeLabel], PacketPath: notServed,
		ConnectTime: Proven{Reason: "Unknown", Message: "the node says nothing of firsthop"},
	}
	_, node.ControlPlane = n.Labels["node-role.kubernetes.io/control-plane"]
	for _, cond := range n.Status.Conditions {
		switch {
		case cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionUnknown:
			node.Unreachable = true
		case string(cond.Type) == query.NodeCondition:
			cond.Message, node.APIServers, _ = strings.Cut(cond.Message, query.APIServersMark)
			node.ConnectTime = Proven{
				Proven: cond.Status == corev1.ConditionTrue && node.Mode == "active",
				Reason: cond.Reason, Message: cond.Message, Said: cond.LastHeartbeatTime.UTC().Format("2006-01-02T15:04:05Z"),
			}
		}
	}
	if node.Unreachable {
		node.ConnectTime.Proven = false
		node.ConnectTime.Message = "the node is unreachable; before: " + node.ConnectTime.Message
	}
	return node
}

// lookForKubeProxy says how it runs and on which nodes.
func (c *client) lookForKubeProxy(ctx context.Context, f *Facts) (map[string]bool, error) {
	var sets appsv1.DaemonSetList
	if err := c.get(ctx, "/apis/apps/v1/daemonsets", &sets); err != nil {
		return nil, fmt.Errorf("list DaemonSets: %w", err)
	}
	for i := range sets.Items {
		ds := &sets.Items[i]
		if isKubeProxy(ds.Name, ds.Spec.Template.Labels) {
			f.KubeProxy = "DaemonSet " + ds.Namespace + "/" + ds.Name
			f.KubeProxyManager = managerOf(ds)
		}
	}
	nodes := map[string]bool{}
	var pods corev1.PodList
	if err := c.get(ctx, "/api/v1/namespaces/kube-system/pods", &pods); err != nil {
		return nil, fmt.Errorf("list pods of kube-system: %w", err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if !isKubeProxy(p.Name, p.Labels) || p.Status.Phase != corev1.PodRunning {
			continue
		}
		nodes[p.Spec.NodeName] = true
		if _, static := p.Annotations[corev1.MirrorPodAnnotationKey]; static && f.KubeProxy == "" {
			f.KubeProxy = "static pods of the nodes"
		}
	}
	return nodes, nil
}

func isKubeProxy(name string, labels map[string]string) bool {
	return labels["k8s-app"] == "kube-proxy" || labels["component"] == "kube-proxy" || name == "kube-proxy"
}

// managerOf says who would undo a change of a DaemonSet, "": nobody is known to.
func managerOf(ds *appsv1.DaemonSet) string {
	for _, m := range []struct{ key, who string }{
		{"app.kubernetes.io/managed-by", ""}, {"addonmanager.kubernetes.io/mode", "the add-on manager"},
		{"argocd.argoproj.io/tracking-id", "Argo CD"}, {"kubernetes.azure.com/managedby", "AKS"},
		{"eks.amazonaws.com/component", "EKS"},
	} {
		for _, marks := range []map[string]string{ds.Labels, ds.Annotations} {
			if v, marked := marks[m.key]; marked {
				return cmp.Or(m.who, v)
			}
		}
	}
	for _, e := range ds.ManagedFields {
		for _, who := range []string{"helm", "argocd", "eks"} {
			if strings.HasPrefix(e.Manager, who) {
				return who
			}
		}
	}
	return ""
}

// lookAtConfigMaps reads what kubeadm and others have noted. kubeadm: it has set up this cluster.
func (c *client) lookAtConfigMaps(ctx context.Context, f *Facts) (kubeadm bool, err error) {
	var m corev1.ConfigMap
	kubeadm, err = c.optional(ctx, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", &m)
	if err != nil {
		return false, fmt.Errorf("read ConfigMap kubeadm-config: %w", err)
	}
	if kubeadm {
		var cfg struct {
			ControlPlaneEndpoint string `json:"controlPlaneEndpoint"`
		}
		if yaml.Unmarshal([]byte(m.Data["ClusterConfiguration"]), &cfg) == nil {
			f.ControlPlaneEndpoint = cfg.ControlPlaneEndpoint
		}
	}
	var e corev1.ConfigMap
	there, err := c.optional(ctx, "/api/v1/namespaces/"+Namespace+"/configmaps/kubernetes-services-endpoint", &e)
	if err != nil {
		return false, fmt.Errorf("read ConfigMap kubernetes-services-endpoint: %w", err)
	}
	if there {
		f.ServicesEndpoint = e.Data["KUBERNETES_SERVICE_HOST"] + ":" + e.Data["KUBERNETES_SERVICE_PORT"]
	}
	return kubeadm, nil
}

// lookAtServices lists those for which packets come from outside of the cluster.
func (c *client) lookAtServices(ctx context.Context, f *Facts) error {
	var services corev1.ServiceList
	if err := c.get(ctx, "/api/v1/services", &services); err != nil {
		return fmt.Errorf("list Services: %w", err)
	}
	for _, s := range services.Items {
		if s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer || len(s.Spec.ExternalIPs) > 0 {
			f.FromOutside = append(f.FromOutside, s.Namespace+"/"+s.Name)
		}
	}
	slices.Sort(f.FromOutside)
	return nil
}

// replacement names the dataplane that serves Services instead of kube-proxy, "": there is none.
func (c *client) replacement(ctx context.Context) (string, error) {
	for _, look := range []func(context.Context) (string, error){c.cilium, c.calico, c.antrea, c.others} {
		found, err := look(ctx)
		if err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
		if err == nil && found != "" {
			return found, nil
		}
	}
	return "", nil
}

func (c *client) cilium(ctx context.Context) (string, error) {
	var m corev1.ConfigMap
	if err := c.get(ctx, "/api/v1/namespaces/kube-system/configmaps/cilium-config", &m); err != nil {
		return "", err
	}
	switch v := m.Data["kube-proxy-replacement"]; v {
	case "true", "strict", "partial", "probe":
		return fmt.Sprintf("Cilium (ConfigMap kube-system/cilium-config: kube-proxy-replacement: %q)", v), nil
	}
	return "", nil
}

// calicoResources are custom resources that say whether Calico serves Services. Where a cluster has their group, reading them
// takes a right.
var calicoResources = []struct{ group, resource string }{
	{"crd.projectcalico.org", "felixconfigurations"}, {"operator.tigera.io", "installations"},
}

// dataplaneRights are those of a look that depend on what the cluster has.
func (c *client) dataplaneRights(ctx context.Context) (rights []right, err error) {
	for _, r := range calicoResources {
		there, err := c.optional(ctx, "/apis/"+r.group, nil) // everybody may ask for that
		if err != nil {
			return nil, fmt.Errorf("ask for the API group %s: %w", r.group, err)
		}
		if there {
			rights = append(rights, right{r.group, r.resource, "", "", []string{"get"}})
		}
	}
	return rights, nil
}

func (c *client) calico(ctx context.Context) (string, error) {
	rights, err := c.dataplaneRights(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range rights {
		var o struct {
			Kind string `json:"kind"`
			Spec struct {
				BPFEnabled    bool `json:"bpfEnabled"`
				CalicoNetwork struct {
					LinuxDataplane string `json:"linuxDataplane"`
				} `json:"calicoNetwork"`
			} `json:"spec"`
		}
		if _, err := c.optional(ctx, "/apis/"+r.group+"/v1/"+r.resource+"/default", &o); err != nil {
			return "", err
		}
		switch {
		case o.Spec.BPFEnabled:
			return "Calico's eBPF dataplane (" + o.Kind + " default: bpfEnabled: true)", nil
		case o.Spec.CalicoNetwork.LinuxDataplane == "BPF":
			return "Calico's eBPF dataplane (" + o.Kind + " default: linuxDataplane: BPF)", nil
		}
	}
	return "", nil
}

func (c *client) antrea(ctx context.Context) (string, error) {
	var m corev1.ConfigMap
	if err := c.get(ctx, "/api/v1/namespaces/kube-system/configmaps/antrea-config", &m); err != nil {
		return "", err
	}
	var cfg struct {
		AntreaProxy struct {
			ProxyAll bool `json:"proxyAll"`
		} `json:"antreaProxy"`
	}
	if yaml.Unmarshal([]byte(m.Data["antrea-agent.conf"]), &cfg) == nil && cfg.AntreaProxy.ProxyAll {
		return "Antrea (ConfigMap kube-system/antrea-config: proxyAll: true)", nil
	}
	return "", nil
}

// others are known by their DaemonSets.
func (c *client) others(ctx context.Context) (string, error) {
	var sets appsv1.DaemonSetList
	if err := c.get(ctx, "/apis/apps/v1/daemonsets", &sets); err != nil {
		return "", err
	}
	for i := range sets.Items {
		ds := &sets.Items[i]
		where := " (DaemonSet " + ds.Namespace + "/" + ds.Name + ")"
		switch {
		case ds.Name == "ovnkube-node" || ds.Name == "ovnkube":
			return "OVN-Kubernetes" + where, nil
		case ds.Name == "anetd" && ds.Namespace == "kube-system":
			return "GKE Dataplane V2" + where, nil
		case ds.Name == "calico-node" && environment(ds, "FELIX_BPFENABLED", "true"):
			return "Calico's eBPF dataplane" + where, nil
		case strings.HasPrefix(ds.Name, "kube-router") && servesServices(ds):
			return "kube-router" + where, nil
		}
	}
	return "", nil
}

func environment(ds *appsv1.DaemonSet, name, value string) bool {
	for _, c := range ds.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if e.Name == name && strings.EqualFold(e.Value, value) {
				return true
			}
		}
	}
	return false
}

// servesServices: kube-router does unless it is told not to.
func servesServices(ds *appsv1.DaemonSet) bool {
	for _, c := range ds.Spec.Template.Spec.Containers {
		for _, arg := range append(slices.Clone(c.Command), c.Args...) {
			if strings.TrimLeft(arg, "-") == "run-service-proxy=false" {
				return false
			}
		}
	}
	return true
}

// tooOld reports whether a version is below the oldest one, or says nothing.
func tooOld(gitVersion string) bool {
	major, rest, _ := strings.Cut(strings.TrimPrefix(gitVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	return err != nil || err2 != nil || a < oldestMajor || a == oldestMajor && b < oldestMinor
}
