package sources

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// kubeAPIServerRange is what a kube-apiserver uses that is given no
// --service-cluster-ip-range (kube-apiserver --help, 1.36).
const kubeAPIServerRange = "10.0.0.0/24"

// addServerArgs takes the Service IP and the own address out of the arguments
// of a kube-apiserver.
func (f *Finding) addServerArgs(h *host, where string, args nodeconf.Flags) {
	if r, ok := args.Last("service-cluster-ip-range"); ok && r != "" {
		f.addServiceRange(where, r)
	} else {
		f.addDefaultRange(where+": no --service-cluster-ip-range, the default of kube-apiserver", kubeAPIServerRange)
	}
	port, _ := args.Last("secure-port")
	advertise, _ := args.Last("advertise-address")
	bind, _ := args.Last("bind-address")
	f.addOwnServer(h, where, cmp.Or(port, "6443"), advertise, bind)
}

// addOwnServer adds the API server of this node: at the first address that is
// one, else at the node's own on the default route, as kube-apiserver itself
// chooses. An unspecified address stands for all and names none.
func (f *Finding) addOwnServer(h *host, where, port string, addresses ...string) {
	if port == "0" { // disabled, before 1.20
		f.Notef("%s: no secure port", where)
		return
	}
	for _, a := range addresses {
		a = strings.Trim(strings.TrimSpace(a), "[]")
		if ip, err := netip.ParseAddr(a); a == "" || err == nil && ip.IsUnspecified() {
			continue
		}
		f.Notef("%s: an API server on this node, %s", where, net.JoinHostPort(a, port))
		f.addEntry(where, net.JoinHostPort(a, port))
		return
	}
	if a, ok := h.address(); ok {
		f.Notef("%s: an API server on this node without an address of its own, so it advertises that of the default route, %s", where, net.JoinHostPort(a.String(), port))
		f.addEntry(where, net.JoinHostPort(a.String(), port))
		return
	}
	f.Notef("%s: an API server on this node on port %s, whose address is not known", where, port)
}

// manifestSuffixes are those of the files that installers write. The kubelet
// reads every file of its directory that does not begin with a dot, also a
// copy that somebody has left there.
var manifestSuffixes = []string{".yaml", ".yml", ".json", ".manifest"}

// addManifests reads the static pods of a directory, and reports whether one
// of them is an API server.
func (f *Finding) addManifests(h *host, dir string) bool {
	files := h.Glob(filepath.Join(dir, "*"))
	rank := func(p string) int {
		if slices.Contains(manifestSuffixes, filepath.Ext(p)) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(files, func(a, b string) int { return rank(a) - rank(b) })
	found := false
	for _, p := range files {
		if strings.HasPrefix(filepath.Base(p), ".") || rank(p) > 0 && found {
			continue
		}
		b, err := h.ReadFile(p)
		if err != nil {
			if strings.Contains(filepath.Base(p), "apiserver") {
				f.Notef("%v", err)
			}
			continue
		}
		args, err := manifestArgs(h, b)
		switch {
		case args != nil:
			found = true
			f.addServerArgs(h, p, args)
		case err != nil && strings.Contains(filepath.Base(p), "apiserver"):
			found = true
			f.Notef("%s: %v", p, err)
		}
	}
	return found
}

// staticPod is what is used of a pod: to learn core/v1's costs 1.3 ms (docs/decisions/0017).
type staticPod struct {
	Spec struct {
		Containers []struct {
			Name          string
			Command, Args []string
			Env           []struct{ Name, Value string }
		}
	}
}

// manifestArgs gives the arguments of kube-apiserver in a static pod: of the
// container that runs it, whatever starts it there (a shell, kOps' go-runner,
// hyperkube), else of the container that has its name.
func manifestArgs(h *host, b []byte) (nodeconf.Flags, error) {
	var pod staticPod
	if err := yaml.Unmarshal(b, &pod); err != nil {
		return nil, fmt.Errorf("not a pod manifest: %v", apiserver.FirstLine(err))
	}
	for _, named := range []bool{false, true} {
		for _, c := range pod.Spec.Containers {
			env := map[string]string{}
			for _, e := range c.Env {
				env[e.Name] = e.Value
			}
			argv := slices.Concat(c.Command, c.Args)
			for i, a := range argv {
				argv[i] = expandPodVariables(a, env)
			}
			for _, one := range nodeconf.Unwrap(h, argv, env) {
				if args, ok := nodeconf.Program(one, "kube-apiserver"); ok && len(args) > 0 {
					return args, nil
				}
			}
			if named && c.Name == "kube-apiserver" && len(argv) > 0 {
				return nodeconf.Flags(argv), nil
			}
		}
	}
	return nil, fmt.Errorf("no container kube-apiserver in it")
}

// expandPodVariables replaces $(NAME), as the kubelet does.
func expandPodVariables(s string, env map[string]string) string {
	for name, value := range env {
		s = strings.ReplaceAll(s, "$("+name+")", value)
	}
	return s
}

// serverSource finds API servers that kubeadm and the others below do not
// account for: those that a service runs, and static pods of a kubelet whose
// directory is another one.
func serverSource(h *host) Finding {
	f := Finding{Source: apiserver.SourceServer}
	found := false
	for _, p := range h.running("kube-apiserver") {
		if !slices.ContainsFunc(p.Args, func(a string) bool { return strings.HasPrefix(a, "--") }) {
			continue // systemctl restart kube-apiserver
		}
		found = true
		f.addServerArgs(h, p.Path, p.Args)
	}
	for _, dir := range nodeconf.StaticPodDirs(h, h.commands()) {
		if dir == manifestDir {
			continue // kubeadmSource has it
		}
		found = f.addManifests(h, dir) || found
	}
	found = f.addOpenShift(h) || found
	found = f.addTalos(h) || found
	if !found {
		f.Notef("no service runs kube-apiserver, and no kubelet has static pods elsewhere")
	}
	return f
}

// addOpenShift reads the configuration of the newest revision of OpenShift's
// API server, and the address that its kubelets use.
func (f *Finding) addOpenShift(h *host) bool {
	const resources = "/etc/kubernetes/static-pod-resources"
	found := false
	newest, revision := "", -1
	for _, dir := range h.Glob(resources + "/kube-apiserver-pod-*") {
		n := 0
		if _, err := fmt.Sscanf(filepath.Base(dir), "kube-apiserver-pod-%d", &n); err == nil && n > revision {
			newest, revision = dir, n
		}
	}
	if b, err := h.ReadFile(newest + "/configmaps/config/config.yaml"); newest != "" && err == nil {
		found = true
		var c struct {
			ServicesSubnet string                `json:"servicesSubnet"`
			Arguments      map[string]stringList `json:"apiServerArguments"`
		}
		where := newest + "/configmaps/config/config.yaml"
		f.decode(where, b, &c)
		if r := c.Arguments["service-cluster-ip-range"]; len(r) > 0 {
			f.addServiceRange(where, strings.Join(r, ","))
		} else if c.ServicesSubnet != "" {
			f.addServiceRange(where, c.ServicesSubnet)
		}
	}
	const env = "/etc/kubernetes/apiserver-url.env"
	if b, err := h.ReadFile(env); err == nil {
		vars := nodeconf.ParseEnv(string(b))
		if name := vars["KUBERNETES_SERVICE_HOST"]; name != "" {
			found = true
			f.Notef("%s: %s", env, apiserver.Clip(name))
			f.addEntry(env, net.JoinHostPort(strings.Trim(name, "[]"), cmp.Or(vars["KUBERNETES_SERVICE_PORT"], "6443")))
		}
	}
	return found
}
