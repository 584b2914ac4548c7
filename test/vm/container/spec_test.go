package container

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
)

// spec is a runtime configuration of the Open Container Initiative.
type spec map[string]any

// where is what a runtime configuration has besides what the pod says.
type where struct {
	rootfs, cgroup, netns string // netns: only without hostNetwork
	podDir                string // the kubelet's directory of the pod
	tokenDir              string // of the pod's identity, if it has one
	seccompDir            string // the kubelet's, for Localhost profiles
}

// runtimeSpec is what kubelet and containerd make of a container of a pod.
//
// SELinux and AppArmor are left out: they are not active in these systems. runc has no default seccomp profile, so that
// RuntimeDefault stands for containerd's, see TestImageInContainerd.
func runtimeSpec(t *testing.T, p pod, c container, image imageConfig, at where) spec {
	t.Helper()
	namespaces := []spec{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}}
	if !is(p.HostPID) {
		namespaces = append(namespaces, spec{"type": "pid"})
	}
	if !is(p.HostNetwork) {
		namespaces = append(namespaces, spec{"type": "network", "path": at.netns})
	}
	s := c.SecurityContext
	linux := spec{
		"namespaces": namespaces, "cgroupsPath": at.cgroup,
		"maskedPaths":   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
		"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		"resources": spec{
			"devices": []spec{{"allow": false, "access": "rwm"}},
			"memory":  spec{"limit": bytesOf(t, c.Resources.Limits["memory"])},
		},
	}
	if prof := seccompOf(p, c); prof.Type != "Unconfined" {
		file := runtimeDefault(c.Name)
		if prof.Type == "Localhost" {
			file = filepath.Join(at.seccompDir, prof.LocalhostProfile)
		}
		var filter any
		if err := json.Unmarshal(read(t, "", file), &filter); err != nil {
			t.Fatal(err)
		}
		linux["seccomp"] = filter
	}
	user := image.User
	if s.RunAsUser != nil {
		user = spec{"uid": *s.RunAsUser, "gid": *s.RunAsGroup}
	}
	caps := capabilities(t, s)
	return spec{
		"ociVersion": "1.0.2",
		"process": spec{
			"user": user, "args": append(append([]string{}, image.Entrypoint...), c.Args...), "env": environment(image, c), "cwd": image.WorkingDir,
			"capabilities":    spec{"bounding": caps, "effective": caps, "permitted": caps},
			"noNewPrivileges": s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
		},
		"root":   spec{"path": at.rootfs, "readonly": is(s.ReadOnlyRootFilesystem)},
		"mounts": mountsOf(t, p, c, at),
		"linux":  linux,
	}
}

// downward are the fields that a kubelet would look up.
var downward = map[string]string{"spec.nodeName": kube.Node}

func environment(image imageConfig, c container) []string {
	env := append([]string{}, image.Env...)
	for _, v := range c.Env {
		if v.ValueFrom != nil {
			v.Value = downward[v.ValueFrom.FieldRef.FieldPath]
		}
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}

// capabilities are those that a container has: no manifest of ours keeps the runtime's defaults.
func capabilities(t *testing.T, s securityContext) []string {
	t.Helper()
	if is(s.Privileged) || strings.Join(s.Capabilities.Drop, ",") != "ALL" {
		t.Fatalf("capabilities %+v: want ALL to be dropped first", s.Capabilities)
	}
	caps := []string{}
	for _, name := range s.Capabilities.Add {
		caps = append(caps, "CAP_"+name)
	}
	return caps
}

// mountsOf are those of every container, of the kubelet and of the volumes.
func mountsOf(t *testing.T, p pod, c container, at where) []spec {
	t.Helper()
	safe := []string{"nosuid", "noexec", "nodev"}
	mounts := []spec{
		{"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": append([]string{"ro"}, safe...)},
		{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": append([]string{"ro", "relatime"}, safe...)},
		{"destination": "/dev/termination-log", "type": "bind", "source": filepath.Join(at.podDir, "containers", c.Name, "0"), "options": []string{"rbind", "rprivate", "rw"}},
		{"destination": "/etc/hosts", "type": "bind", "source": filepath.Join(at.podDir, "etc-hosts"), "options": []string{"rbind", "rprivate", "rw"}},
	}
	if is(p.AutomountServiceAccountToken) {
		mounts = append(mounts, spec{"destination": "/var/run/secrets/kubernetes.io/serviceaccount", "type": "bind", "source": at.tokenDir, "options": []string{"rbind", "rprivate", "ro"}})
	}
	for _, m := range c.VolumeMounts {
		options := []string{"rbind", "rprivate", "rw"}
		if m.ReadOnly {
			options[2] = "ro"
		}
		source := ""
		for _, v := range p.Volumes {
			if v.Name == m.Name {
				source = v.HostPath.Path
			}
		}
		if source == "" || m.MountPropagation != "" {
			t.Fatalf("translate the mount %+v", m)
		}
		mounts = append(mounts, spec{"destination": m.MountPath, "type": "bind", "source": source, "options": options})
	}
	return mounts
}

// bytesOf reads a quantity as the manifests write it.
func bytesOf(t *testing.T, quantity string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSuffix(quantity, "Mi"), 10, 64)
	if err != nil || !strings.HasSuffix(quantity, "Mi") {
		t.Fatalf("memory %q: want a number of Mi", quantity)
	}
	return n << 20
}
