package container

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

// What follows is the part of Kubernetes' types that the manifests use. They are read strictly: a field that is not here
// is one that nobody translates, and must be added before it can be used.

type object struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type serviceAccount struct {
	object
	AutomountServiceAccountToken *bool `json:"automountServiceAccountToken"`
}

type daemonSet struct {
	object
	Spec struct {
		Selector struct {
			MatchLabels map[string]string `json:"matchLabels"`
		} `json:"selector"`
		UpdateStrategy struct {
			Type          string `json:"type"`
			RollingUpdate struct {
				MaxUnavailable string `json:"maxUnavailable"`
			} `json:"rollingUpdate"`
		} `json:"updateStrategy"`
		Template struct {
			Metadata metadata `json:"metadata"`
			Spec     pod      `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

type pod struct {
	HostNetwork                   *bool             `json:"hostNetwork"`
	HostPID                       *bool             `json:"hostPID"`
	DNSPolicy                     string            `json:"dnsPolicy"`
	PriorityClassName             string            `json:"priorityClassName"`
	ServiceAccountName            string            `json:"serviceAccountName"`
	AutomountServiceAccountToken  *bool             `json:"automountServiceAccountToken"`
	EnableServiceLinks            *bool             `json:"enableServiceLinks"`
	TerminationGracePeriodSeconds *int              `json:"terminationGracePeriodSeconds"`
	NodeSelector                  map[string]string `json:"nodeSelector"`
	Tolerations                   []toleration      `json:"tolerations"`
	Affinity                      any               `json:"affinity"` // of no meaning to a kubelet
	SecurityContext               struct {
		SeccompProfile *profile `json:"seccompProfile"`
	} `json:"securityContext"`
	InitContainers []container `json:"initContainers"`
	Containers     []container `json:"containers"`
	Volumes        []volume    `json:"volumes"`
}

type toleration struct {
	Operator string `json:"operator"`
}

type container struct {
	Name                     string          `json:"name"`
	Image                    string          `json:"image"`
	ImagePullPolicy          string          `json:"imagePullPolicy"`
	Args                     []string        `json:"args"`
	Env                      []variable      `json:"env"`
	EnvFrom                  []variables     `json:"envFrom"` // of a ConfigMap that is not there
	SecurityContext          securityContext `json:"securityContext"`
	VolumeMounts             []volumeMount   `json:"volumeMounts"`
	TerminationMessagePolicy string          `json:"terminationMessagePolicy"`
	LivenessProbe            *probe          `json:"livenessProbe"`
	Resources                struct {
		Requests map[string]string `json:"requests"`
		Limits   map[string]string `json:"limits"`
	} `json:"resources"`
}

type variable struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	ValueFrom *struct {
		FieldRef struct {
			FieldPath string `json:"fieldPath"`
		} `json:"fieldRef"`
	} `json:"valueFrom"`
}

type variables struct {
	ConfigMapRef struct {
		Name     string `json:"name"`
		Optional bool   `json:"optional"`
	} `json:"configMapRef"`
}

type probe struct {
	HTTPGet struct {
		Host string `json:"host"`
		Path string `json:"path"`
		Port int    `json:"port"`
	} `json:"httpGet"`
	PeriodSeconds    int `json:"periodSeconds"`
	FailureThreshold int `json:"failureThreshold"`
}

type securityContext struct {
	RunAsUser                *int  `json:"runAsUser"`
	RunAsGroup               *int  `json:"runAsGroup"`
	RunAsNonRoot             *bool `json:"runAsNonRoot"`
	Privileged               *bool `json:"privileged"`
	AllowPrivilegeEscalation *bool `json:"allowPrivilegeEscalation"`
	ReadOnlyRootFilesystem   *bool `json:"readOnlyRootFilesystem"`
	Capabilities             struct {
		Drop []string `json:"drop"`
		Add  []string `json:"add"`
	} `json:"capabilities"`
	SeccompProfile  *profile `json:"seccompProfile"`
	AppArmorProfile *profile `json:"appArmorProfile"`
	SELinuxOptions  struct {
		Type string `json:"type"`
	} `json:"seLinuxOptions"`
}

type profile struct {
	Type             string `json:"type"`
	LocalhostProfile string `json:"localhostProfile"`
}

type volume struct {
	Name     string `json:"name"`
	HostPath struct {
		Path string `json:"path"`
		Type string `json:"type"`
	} `json:"hostPath"`
}

type volumeMount struct {
	Name             string `json:"name"`
	MountPath        string `json:"mountPath"`
	ReadOnly         bool   `json:"readOnly"`
	MountPropagation string `json:"mountPropagation"`
}

// deploy is the directory with the manifests: in a virtual machine that of the boot, else the repository's.
func deploy(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{filesDir + "/deploy", "../../../deploy"} {
		if _, err := os.Stat(filepath.Join(dir, "manifests")); err == nil {
			return dir
		}
	}
	t.Fatal("the manifests are nowhere")
	return ""
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func strictly(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

// manifest reads the DaemonSet of the init container alone, with patches.
func manifest(t *testing.T, patches ...string) *daemonSet { return manifestOf(t, "manifests", patches) }

// manifestOf reads the DaemonSet of a directory, with patches.
func manifestOf(t *testing.T, name string, patches []string) *daemonSet {
	t.Helper()
	dir := filepath.Join(deploy(t), name)
	var account serviceAccount
	var ds daemonSet
	documents := bytes.Split(read(t, dir, "daemonset.yaml"), []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("%d documents, want two", len(documents))
	}
	strictly(t, documents[0], &account)
	strictly(t, documents[1], &ds)
	pod := &ds.Spec.Template.Spec
	if account.Kind != "ServiceAccount" || ds.Kind != "DaemonSet" || account.Metadata.Name != pod.ServiceAccountName {
		t.Fatalf("%+v, %+v", account, ds.object)
	}
	for _, name := range patches {
		var patch daemonSet
		strictly(t, read(t, dir, name), &patch)
		if patch.Metadata.Name != ds.Metadata.Name || patch.Metadata.Namespace != ds.Metadata.Namespace || patch.Kind != ds.Kind {
			t.Fatalf("%s is for %+v", name, patch.object)
		}
		pod.merge(t, patch.Spec.Template.Spec)
	}
	return &ds
}

// merge does what a strategic merge would, for what the patches have.
func (p *pod) merge(t *testing.T, patch pod) {
	t.Helper()
	if patch.HostPID != nil {
		p.HostPID = patch.HostPID
	}
	p.Volumes = append(p.Volumes, patch.Volumes...)
	for _, c := range patch.InitContainers {
		if c.Name != p.InitContainers[0].Name {
			t.Fatalf("a patch for container %q, there is %q", c.Name, p.InitContainers[0].Name)
		}
		p.InitContainers[0].VolumeMounts = append(p.InitContainers[0].VolumeMounts, c.VolumeMounts...)
		if c.SecurityContext.SeccompProfile != nil {
			p.InitContainers[0].SecurityContext.SeccompProfile = c.SecurityContext.SeccompProfile
		}
		if add := c.SecurityContext.Capabilities.Add; add != nil {
			p.InitContainers[0].SecurityContext.Capabilities.Add = add
		}
	}
	for _, c := range patch.Containers {
		if add := c.SecurityContext.Capabilities.Add; add != nil {
			p.Containers[0].SecurityContext.Capabilities.Add = add
		}
	}
}

// oldKernel is the patch that a node with Linux below 5.11 needs, and no other.
func oldKernel(t *testing.T) []string {
	if below(t, 5, 11) {
		return []string{"kernels-below-5.11.yaml"}
	}
	return nil
}

// runtimeManifest reads the pod of deploy/runtime, as this machine's kernel needs it.
func runtimeManifest(t *testing.T) pod {
	t.Helper()
	return manifestOf(t, "runtime", oldKernel(t)).Spec.Template.Spec
}

func is(b *bool) bool { return b != nil && *b }

// TestManifestAsksForLittle holds the manifest to what docs/container.md promises.
func TestManifestAsksForLittle(t *testing.T) {
	for _, patches := range [][]string{nil, {"host-proc.yaml"}, {"localhost-seccomp.yaml"}, {"host-proc.yaml", "localhost-seccomp.yaml"}} {
		p := manifest(t, patches...).Spec.Template.Spec
		c := p.InitContainers[0]
		s := c.SecurityContext
		for what, ok := range map[string]bool{
			"is not privileged":                            s.Privileged != nil && !*s.Privileged,
			"gains no privileges":                          s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
			"has a read-only root":                         is(s.ReadOnlyRootFilesystem),
			"drops all capabilities first":                 len(s.Capabilities.Drop) == 1 && s.Capabilities.Drop[0] == "ALL",
			"says that it is root":                         s.RunAsUser != nil && *s.RunAsUser == 0,
			"has a memory limit that is also its request":  c.Resources.Limits["memory"] != "" && c.Resources.Limits["memory"] == c.Resources.Requests["memory"],
			"gets no token":                                p.AutomountServiceAccountToken != nil && !*p.AutomountServiceAccountToken,
			"runs init":                                    len(c.Args) == 1 && c.Args[0] == "init",
			"runs on every node, also before it is ready":  len(p.Tolerations) == 1 && p.Tolerations[0] == toleration{"Exists"},
			"is in the host's network":                     is(p.HostNetwork),
			"is confined by seccomp":                       seccompOf(p, c).Type == "RuntimeDefault" || seccompOf(p, c).Type == "Localhost",
			"has one way to the host: hostPID or its proc": is(p.HostPID) == (len(p.Volumes) == 0) && len(c.VolumeMounts) == len(p.Volumes),
		} {
			if !ok {
				t.Errorf("with %q: it is not so that the init container %s", patches, what)
			}
		}
		for _, m := range c.VolumeMounts {
			if m.MountPropagation != "" { // calico#11764: a node whose /sys is not shared would not start the pod
				t.Errorf("with %q: %s asks for %s propagation", patches, m.MountPath, m.MountPropagation)
			}
			if !m.ReadOnly {
				t.Errorf("with %q: %s is writable", patches, m.MountPath)
			}
		}
		for _, c := range p.Containers {
			if !is(c.SecurityContext.RunAsNonRoot) || len(c.SecurityContext.Capabilities.Add) > 0 || !is(c.SecurityContext.ReadOnlyRootFilesystem) {
				t.Errorf("the container %s has more rights than it needs", c.Name)
			}
		}
	}
}

func seccompOf(p pod, c container) profile {
	for _, own := range []*profile{c.SecurityContext.SeccompProfile, p.SecurityContext.SeccompProfile} {
		if own != nil {
			return *own
		}
	}
	return profile{"Unconfined", ""}
}

// TestManifestCapabilitiesInDocs compares docs/container.md with the manifest.
func TestManifestCapabilitiesInDocs(t *testing.T) {
	docs, err := os.ReadFile("../../../docs/container.md")
	if err != nil {
		if _, missing := os.Stat(filesDir); missing == nil {
			t.Skip("needs Linux outside of a virtual machine: the documents are not in it")
		}
		t.Fatal(err)
	}
	c := manifest(t, "kernels-below-5.11.yaml").Spec.Template.Spec.InitContainers[0]
	for _, name := range c.SecurityContext.Capabilities.Add {
		if !bytes.Contains(docs, []byte("| `"+name+"` |")) {
			t.Errorf("docs/container.md has no row for %s", name)
		}
	}
	if n := bytes.Count(docs, []byte("\n| `SYS_")) + bytes.Count(docs, []byte("\n| `NET_")); n != len(c.SecurityContext.Capabilities.Add) {
		t.Errorf("docs/container.md has rows for %d capabilities, the manifest adds %d", n, len(c.SecurityContext.Capabilities.Add))
	}
	if want := "`" + c.Resources.Limits["memory"] + "`"; !bytes.Contains(docs, []byte(want)) {
		t.Errorf("docs/container.md does not name the limit %s", want)
	}
}
