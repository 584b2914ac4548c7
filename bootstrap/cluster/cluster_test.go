package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/deploy"
)

// What needs an API server is tested by test/kube/installer.

func TestTooOld(t *testing.T) {
	for version, want := range map[string]bool{
		"v1.29.15": true, "v1.30.0": false, "v1.36.3": false, "v1.30.4-eks-a1b2c3": false, "v1.31.1+k3s1": false, "v2.0.0": false, "": true, "v1": true,
	} {
		if got := tooOld(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

func TestProviderOf(t *testing.T) {
	node := func(version, image string, labels ...string) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}}
		n.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: version, OSImage: image}
		for _, l := range labels {
			n.Labels[l] = "x"
		}
		return n
	}
	for _, tc := range []struct {
		node    corev1.Node
		kubeadm bool
		want    string
	}{
		{node("v1.36.3", "Debian"), true, "kubeadm"},
		{node("v1.36.3", "Debian"), false, "not known"},
		{node("v1.31.1+k3s1", ""), false, "k3s"},
		{node("v1.31.1+rke2r1", ""), false, "RKE2"},
		{node("v1.31.1", "Talos (v1.9.0)"), false, "Talos"},
		{node("v1.31.1-eks-1", "", "eks.amazonaws.com/nodegroup"), false, "EKS"},
		{node("v1.31.1-gke.1", "", "cloud.google.com/gke-nodepool"), false, "GKE"},
		{node("v1.31.1", "", "kubernetes.azure.com/cluster"), false, "AKS"},
	} {
		if got := providerOf([]corev1.Node{tc.node}, tc.kubeadm).name; got != tc.want {
			t.Errorf("%s: want %s", got, tc.want)
		}
	}
}

func TestJudge(t *testing.T) {
	said := func(exit int, check, status string) onNode {
		return onNode{node: "n", exit: map[string]int{"check": exit, "status": 1}, output: map[string]string{"check": check, "status": status}}
	}
	for _, tc := range []struct {
		name   string
		result onNode
		own    bool
		grade  diagnose.Grade
		exit   bootstrap.ExitCode
		says   string
	}{
		{"ready", said(0, `{}`, `{}`), false, diagnose.OK, 0, "ready"},
		{"ready, and something to know", said(0, `{"findings":[{"check":"boot","grade":"warn","sentence":"no systemd"}]}`, ``), false, diagnose.Warn, 0, "boot: no systemd"},
		{"an old kernel", said(5, `{"findings":[{"check":"kernel","grade":"fail","sentence":"4.15"}]}`, ``), false, diagnose.Skip, 5, "left out: kernel: 4.15"},
		{"no address", said(7, `{"findings":[{"check":"addresses","grade":"fail","sentence":"none"}]}`, ``), false, diagnose.Fail, 7, "addresses: none"},
		{"words", said(1, "firsthop: x\nfirsthop: panic", ``), false, diagnose.Fail, 1, "exit code 1: firsthop: panic"},
		{"a runtime of the host's", said(0, `{}`, `{"runtime":{}}`), false, diagnose.Fail, 1, "firsthop.service"},
		{"a runtime of the DaemonSet's", said(0, `{}`, `{"runtime":{}}`), true, diagnose.OK, 0, "ready"},
		{"no result", onNode{node: "n", err: errors.New("no result within 1m")}, false, diagnose.Fail, 1, "no result within"},
	} {
		got := judge(tc.result, tc.own)
		if got.Grade != tc.grade || got.Exit != tc.exit || !strings.Contains(got.Reason, tc.says) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

// A pod that runs once is the init container with other arguments: it may what that may, and no more.
func TestOncePod(t *testing.T) {
	v, err := deploy.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	v.HostProc, v.Endpoints = true, "192.0.2.1:6443"
	objects, err := render(v)
	if err != nil {
		t.Fatal(err)
	}
	ds := daemonSetOf(objects)
	set, err := typed(ds)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := oncePod(ds, "n1", preflightCommands)
	if err != nil {
		t.Fatal(err)
	}
	init := set.Spec.Template.Spec.InitContainers[0]
	if len(pod.Spec.Containers) != 2 || len(pod.Spec.InitContainers) != 0 || pod.Spec.NodeName != "n1" || *pod.Spec.AutomountServiceAccountToken {
		t.Fatalf("%+v", pod.Spec)
	}
	for _, c := range pod.Spec.Containers {
		if !slices.Equal(c.Args, preflightCommands[c.Name]) || c.Image != init.Image || len(c.VolumeMounts) != 1 || c.Env[0] != init.Env[0] ||
			!slices.Equal(c.SecurityContext.Capabilities.Add, init.SecurityContext.Capabilities.Add) {
			t.Errorf("%+v", c)
		}
	}
	if other, err := oncePod(ds, "n2", preflightCommands); err != nil || other.Name == pod.Name {
		t.Errorf("%v: two nodes have the pod %s", err, pod.Name)
	}
}

// Every kind that the chart makes has its place in the API, and is among the rights that are asked for.
func TestRightsForAllObjects(t *testing.T) {
	v, err := deploy.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := render(v)
	if err != nil {
		t.Fatal(err)
	}
	rights := installRights()
	for _, o := range objects {
		if _, err := o.path(); err != nil {
			t.Error(err)
		}
		k := kinds[o.kind()]
		if !slices.ContainsFunc(rights, func(r right) bool {
			return r.group == k.group && r.resource == k.resource && slices.Contains(r.verbs, "patch")
		}) {
			t.Errorf("no right for %s", o)
		}
	}
}
