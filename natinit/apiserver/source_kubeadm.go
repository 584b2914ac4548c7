package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// kubeadmFiles are the kubeconfigs that kubeadm writes, the node's own
// identity first. bootstrap-kubelet.conf holds a token that expires after a day.
var kubeadmFiles = [...]string{"kubelet.conf", "admin.conf", "super-admin.conf", "bootstrap-kubelet.conf"}

func kubeadmSource(root string) Finding {
	f := Finding{Source: SourceKubeadm}
	found := false
	for _, name := range kubeadmFiles {
		found = f.addKubeconfig(root, filepath.Join("/etc/kubernetes", name)) || found
	}
	found = f.addManifest(root, "/etc/kubernetes/manifests/kube-apiserver.yaml") || found
	if !found {
		f.notef("no kubeadm files in /etc/kubernetes")
	}
	return f
}

// addManifest reads the static pod of an API server on this node. It
// reports whether there is one.
func (f *Finding) addManifest(root, path string) bool {
	b, err := readFile(root, path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.notef("%v", err)
		}
		return err == nil || !errors.Is(err, fs.ErrNotExist)
	}
	args, err := manifestArgs(b)
	if err != nil {
		f.notef("%s: %v", path, err)
		return true
	}
	f.addServerArgs(path, args)
	return true
}

// manifestArgs gives command and arguments of the container that runs
// kube-apiserver.
func manifestArgs(b []byte) ([]string, error) {
	var pod struct {
		Spec struct {
			Containers []struct {
				Name    string   `json:"name"`
				Command []string `json:"command"`
				Args    []string `json:"args"`
			} `json:"containers"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(b, &pod); err != nil {
		return nil, fmt.Errorf("not a pod manifest: %v", firstLine(err))
	}
	for _, c := range pod.Spec.Containers {
		args := append(c.Command, c.Args...)
		if c.Name == "kube-apiserver" || len(args) > 0 && filepath.Base(args[0]) == "kube-apiserver" {
			return args, nil
		}
	}
	return nil, fmt.Errorf("no container kube-apiserver in it")
}

// addServerArgs takes the Service IP and the own address out of the
// arguments of a kube-apiserver.
func (f *Finding) addServerArgs(where string, args []string) {
	if r, ok := flagValue(args, "service-cluster-ip-range"); ok {
		f.addServiceRange(where, r)
	} else {
		// 10.0.0.0/24 is the flag's default, but nothing tells that the
		// file is complete (kube-apiserver --help, 1.36).
		f.notef("%s: no --service-cluster-ip-range", where)
	}
	addr, ok := flagValue(args, "advertise-address")
	if !ok {
		return
	}
	port, ok := flagValue(args, "secure-port")
	if !ok {
		port = "6443" // the default of kube-apiserver
	}
	f.notef("%s: an API server on this node, %s", where, net.JoinHostPort(addr, port))
	f.addEntry(where, net.JoinHostPort(addr, port))
}

// flagValue finds --name=value or --name value. The last one wins, as with
// pflag. Quotes around the value, as in a shell script, are taken off.
func flagValue(args []string, name string) (value string, ok bool) {
	for i, a := range args {
		a = strings.Trim(a, `"'`)
		if a == "--"+name && i+1 < len(args) {
			value, ok = args[i+1], true
		} else if v, found := strings.CutPrefix(a, "--"+name+"="); found {
			value, ok = v, true
		}
	}
	return strings.Trim(value, `"'`), ok && value != ""
}

// firstLine keeps an error from a parser on one line of the report.
func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return clip(s)
}
