package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// mayInstall looks, and refuses with all reasons at once. Nothing is written.
func (w *work) mayInstall(objects []object, ds object) error {
	if err := w.needRights(installRights()); err != nil {
		return err
	}
	f, err := w.look(w.ctx)
	if err != nil {
		return err
	}
	w.rep.Cluster = f
	w.say("look", "Kubernetes %s at %s, %d nodes with Linux, provider %s", f.Kubernetes, f.Server, len(f.Nodes), f.Provider)
	w.say("look", "kube-proxy: %s", kubeProxySentence(f))
	if f.ControlPlaneEndpoint != "" {
		w.say("look", "controlPlaneEndpoint of kubeadm: %s", f.ControlPlaneEndpoint)
	}
	if f.ServicesEndpoint != "" {
		w.say("look", "API server of the ConfigMap kubernetes-services-endpoint: %s", f.ServicesEndpoint)
	}
	reasons := w.reasons(f)
	if err := w.recallLeftOut(f); err != nil {
		return err
	}
	for _, n := range f.Nodes {
		if n.Unreachable && !slices.Contains(w.LeaveOut, n.Name) {
			reasons = append(reasons, fmt.Sprintf("node %s is unreachable (its kubelet says nothing): bring it back, or --leave-out %s", n.Name, n.Name))
		}
	}
	if len(reasons) == 0 && len(f.Nodes) > 0 { // what the API server itself refuses: PodSecurity, webhooks, fields of others
		pod, err := oncePod(ds, f.Nodes[0].Name, preflightCommands)
		if err != nil {
			return err
		}
		if err := w.tryPod(pod); err != nil {
			reasons = append(reasons, fmt.Sprintf("pods like those of firsthop are refused: %v", err))
		}
		for _, o := range objects {
			if _, err := w.apply(w.ctx, o, w.Force, true); err != nil {
				reasons = append(reasons, conflict(err))
			}
		}
	}
	if len(reasons) > 0 {
		return w.refuse(reasons)
	}
	return nil
}

// needRights refuses where this user lacks rights.
func (w *work) needRights(rights []right) error {
	missing, err := w.missing(w.ctx, rights)
	if err != nil {
		return fmt.Errorf("ask for the rights of this user: %w", err)
	}
	if len(missing) == 0 {
		return nil
	}
	for i := range missing {
		missing[i] = "this user lacks a right: " + missing[i]
	}
	return w.refuse(missing)
}

// accountTime is how long a new cluster may take to have the account that pods without one get.
const accountTime = time.Minute

// tryPod asks whether a pod would be accepted. kubeadm is done some seconds before the controller manager has made the
// namespaces' default accounts, without which no pod is.
func (w *work) tryPod(pod *corev1.Pod) error {
	for end := time.Now().Add(accountTime); ; {
		err := w.createPod(w.ctx, pod, true)
		if err == nil || !strings.Contains(err.Error(), `serviceaccount "default" not found`) || time.Now().After(end) {
			return err
		}
		if wait(w.ctx, retryPause) != nil {
			return err
		}
	}
}

func kubeProxySentence(f *Facts) string {
	if f.KubeProxy == "none" {
		return "none"
	}
	on := 0
	for _, n := range f.Nodes {
		if n.KubeProxy {
			on++
		}
	}
	s := fmt.Sprintf("%s, on %d of %d nodes; it is not touched", f.KubeProxy, on, len(f.Nodes))
	if f.KubeProxyManager != "" {
		s += " (managed by " + f.KubeProxyManager + ")"
	}
	return s
}

// conflict says what to do about fields that somebody else has set.
func conflict(err error) string {
	if apierrors.IsConflict(err) {
		return err.Error() + "; --force takes these fields over"
	}
	return err.Error()
}

// reasons are those against an install that the look has found.
func (w *work) reasons(f *Facts) (out []string) {
	if tooOld(f.Kubernetes) {
		out = append(out, fmt.Sprintf("Kubernetes is %s: 1.%d or later is needed, whose tokens say on which node a pod runs", f.Kubernetes, oldestMinor))
	}
	if f.Replaces != "" {
		out = append(out, f.Replaces+" serves Services in the place of kube-proxy already: two such dataplanes take connections from each other")
	}
	if len(f.Nodes) == 0 {
		out = append(out, "the cluster has no node with Linux")
	}
	for _, list := range []struct {
		flag  string
		names []string
	}{{"--leave-out", w.LeaveOut}, {"--include", w.Include}} {
		for _, name := range list.names {
			if !f.has(name) {
				out = append(out, list.flag+" "+name+": there is no such node")
			}
		}
	}
	for _, name := range w.Include {
		if slices.Contains(w.LeaveOut, name) {
			out = append(out, "node "+name+" is to be left out and included")
		}
	}
	return out
}

func (f *Facts) has(node string) bool {
	return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.Name == node })
}

// recallLeftOut adds the nodes that former installs left out, as long as they are there and not to be included.
func (w *work) recallLeftOut(f *Facts) error {
	r, err := w.readRecord(w.ctx)
	if err != nil || r == nil {
		return err
	}
	for _, name := range r.LeftOut {
		if f.has(name) && !slices.Contains(w.Include, name) && !slices.Contains(w.LeaveOut, name) {
			w.LeaveOut = append(w.LeaveOut, name)
			w.say("look", "node %s is left out, as before; --include %s brings it in", name, name)
		}
	}
	return nil
}
