// Package dependents finds what on a node reaches the API server by a Service IP, and so needs firsthop at its next
// start: kubeconfigs of the kubelet and of kubeadm, static pods, agents of k3s and RKE2, kube-proxy's own configuration.
//
// A pod's way to the API is not among them: it starts after whatever serves Services. What is listed here starts
// before, so without firsthop a node that reboots never becomes Ready again.
package dependents

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// Config says where to look, and for what.
type Config struct {
	Root     string           // prefix of the host's files; "" on the host
	Proc     string           // the host's /proc; "" is Root's
	Services []netip.AddrPort // addresses of the API service
}

// Dependent is a file of the host that names a Service address as the API server.
type Dependent struct {
	Path    string         `json:"path"`   // as the host sees it
	Kind    string         `json:"kind"`   // whose configuration it is
	Server  string         `json:"server"` // as the file has it
	Service netip.AddrPort `json:"service"`

	cluster string // of a kubeconfig with several clusters, or whose server is not literally in the file
	restart string
}

func (d Dependent) String() string { return fmt.Sprintf("%s (%s): %s", d.Path, d.Kind, d.Server) }

// Find looks through the configuration of this node. What cannot be read is left out.
func Find(cfg Config) []Dependent {
	if len(cfg.Services) == 0 {
		return nil
	}
	s := scan{cfg: cfg, fs: hostfs.FS{Root: cfg.Root}, seen: map[string]bool{}}
	s.names = s.hosts()
	s.commands = nodeconf.Commands(s.fs)
	s.pods = s.staticPods()
	s.kubeconfigs()
	s.texts()
	slices.SortStableFunc(s.found, func(a, b Dependent) int { return cmp.Compare(rank(a.Kind), rank(b.Kind)) })
	return s.found
}

// rank puts first what keeps a node from starting.
func rank(kind string) int {
	if kind == kubelet {
		return 0
	}
	return 1
}

type scan struct {
	cfg   Config
	fs    hostfs.FS
	names map[string][]netip.Addr // of /etc/hosts
	seen  map[string]bool         // paths
	found []Dependent
	pods  []string // directories of static pods

	commands []nodeconf.Command
}

// hosts reads /etc/hosts.
func (s *scan) hosts() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	b, err := s.fs.ReadFile("/etc/hosts")
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		if a, err := netip.ParseAddr(words[0]); err == nil {
			for _, name := range words[1:] {
				name = normalName(name)
				out[name] = append(out[name], a.Unmap())
			}
		}
	}
	return out
}

func normalName(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// service gives the Service address that a host and port lead to.
func (s *scan) service(host string, port uint16) (netip.AddrPort, bool) {
	addrs := s.names[normalName(host)]
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		addrs = []netip.Addr{a.WithZone("").Unmap()}
	}
	for _, a := range addrs {
		if ap := netip.AddrPortFrom(a, port); slices.Contains(s.cfg.Services, ap) {
			return ap, true
		}
	}
	return netip.AddrPort{}, false
}

// kubeconfigs looks at every kubeconfig of the node: those in the known places, and those that discovery finds by units,
// drop-ins and command lines.
func (s *scan) kubeconfigs() {
	paths := []string{}
	for _, pattern := range kubeconfigPatterns {
		paths = append(paths, s.fs.Glob(pattern)...)
	}
	for _, f := range sources.Files(s.cfg.Root) {
		for _, c := range f.Clusters {
			paths = append(paths, c.Path)
		}
	}
	paths = append(paths, s.flagged()...)
	for _, path := range paths {
		s.kubeconfig(path)
	}
}

// kubeconfig judges the cluster of the current context. What is no kubeconfig is read as text.
func (s *scan) kubeconfig(path string) {
	b, ok := s.read(path)
	if !ok {
		return
	}
	raw, err := clientcmd.Load(b)
	if err != nil || len(raw.Clusters) == 0 {
		s.text(path, b)
		return
	}
	name := ""
	if ctx := raw.Contexts[raw.CurrentContext]; ctx != nil {
		name = ctx.Cluster
	} else if len(raw.Clusters) == 1 {
		for name = range raw.Clusters {
		}
	}
	cluster := raw.Clusters[name]
	if cluster == nil {
		return
	}
	service, is := s.leadsTo(cluster.Server)
	if !is {
		return
	}
	d := s.dependent(path, cluster.Server, service)
	if len(raw.Clusters) > 1 || !strings.Contains(string(b), cluster.Server) {
		d.cluster = name
	}
	s.found = append(s.found, d)
}

// read reads a file once, by whichever name it is found first.
func (s *scan) read(path string) ([]byte, bool) {
	path = filepath.Clean(path)
	key := path
	if strings.HasPrefix(path, "/lib/") { // nearly always a link
		key = "/usr" + path
	}
	if s.seen[key] || isBackup(path) {
		return nil, false
	}
	s.seen[key] = true
	b, err := s.fs.ReadFile(path)
	return b, err == nil
}

// isBackup reports whether a file is a copy that an editor, a package manager or a person left.
func isBackup(path string) bool {
	for _, end := range []string{"~", ".bak", ".backup", ".old", ".orig", ".save", ".rpmsave", ".rpmnew", ".swp", ".dpkg-old", ".dpkg-new", ".dpkg-dist"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

// Commands are what makes a dependent use an API server's own address, for a shell.
func (d Dependent) Commands(server netip.AddrPort) []string {
	to := "ADDRESS-OF-AN-API-SERVER:6443"
	if server.IsValid() {
		to = server.String()
	}
	var out []string
	switch scheme, _, isURL := strings.Cut(d.Server, "://"); {
	case d.Kind == kubeProxyPod:
		out = append(out, "kubectl -n kube-system get configmap kube-proxy -o yaml | sed "+substitute(d.Server, scheme+"://"+to)+" | kubectl apply -f -")
	case d.cluster != "":
		out = append(out, "kubectl --kubeconfig "+quote(d.Path)+" config set-cluster "+quote(d.cluster)+" --server=https://"+to)
	case isURL:
		out = append(out, "sed -i --follow-symlinks "+substitute(d.Server, scheme+"://"+to)+" "+quote(d.Path))
	case strings.Contains(d.Server, ":") && !isAddr(d.Server):
		out = append(out, "sed -i --follow-symlinks "+substitute(d.Server, to)+" "+quote(d.Path))
	default: // an address whose port stands elsewhere
		out = append(out, fmt.Sprintf("edit %s: replace %s and its port by %s", d.Path, d.Server, to))
	}
	if d.restart != "" {
		out = append(out, d.restart)
	}
	return out
}

func isAddr(text string) bool {
	_, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return err == nil
}

// substitute is the argument of sed that replaces one text by another. Kubernetes' files have no # in a server.
func substitute(old, replacement string) string {
	escaped := strings.NewReplacer(`\`, `\\`, `.`, `\.`, `[`, `\[`, `]`, `\]`, `*`, `\*`, `^`, `\^`, `$`, `\$`, `#`, `\#`).Replace(old)
	return quote("s#" + escaped + "#" + replacement + "#")
}

// quote makes one word of a text for a shell.
func quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:@%+,", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
