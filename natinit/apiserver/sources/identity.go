package sources

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Authority is how well a file tells which cluster the node is in, the
// strongest first. A file's age says nothing about it.
type Authority int

const (
	// AuthorityGiven is the kubeconfig that the operator gave.
	AuthorityGiven Authority = iota
	// AuthorityKubelet is the kubeconfig of the node's own kubelet.
	AuthorityKubelet
	// AuthorityBootstrap is the one with which the kubelet joins.
	AuthorityBootstrap
	// AuthorityAgent is one of the node's other agents: kube-proxy, k3s' controller.
	AuthorityAgent
	// AuthorityCA is a CA file of the node's own installation.
	AuthorityCA
	// AuthorityPod is the ServiceAccount of this pod.
	AuthorityPod
	// authoritySaved is what an earlier run found. No file has it.
	authoritySaved
	// AuthorityOther is any other kubeconfig: admin.conf, which people merge,
	// copy from other clusters, and switch to another context.
	AuthorityOther
)

// ClusterRef is what one file says about the cluster that it is of.
type ClusterRef struct {
	Path      string
	Authority Authority
	// Server is where it leads, zero if that is not known.
	Server apiserver.Endpoint
	// CA holds the CA certificates that it names (PEM), nil if it names none
	// or they cannot be read.
	CA []byte
	// HostTrust is true when it names no CA: the certificates that the host
	// trusts count then, HostCA.
	HostTrust bool
	HostCA    []byte

	source apiserver.Source
}

func (r *ClusterRef) pinned() bool { return len(apiserver.Certificates(r.CA)) > 0 }

// authorityOf tells the authority of a kubeconfig from its place.
func authorityOf(source apiserver.Source, path string) Authority {
	base := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case source == apiserver.SourceKubeconfig:
		return AuthorityGiven
	case strings.Contains(base, "bootstrap"):
		return AuthorityBootstrap
	case source == apiserver.SourceKubelet, strings.Contains(base, "kubelet"):
		return AuthorityKubelet
	case strings.HasSuffix(base, "controller.kubeconfig"), strings.HasPrefix(base, "kubeproxy."), strings.HasPrefix(base, "kube-proxy"),
		source == apiserver.SourceMicroK8s:
		return AuthorityAgent
	}
	return AuthorityOther
}

// caFiles are CA certificates that installers leave on a node, for the moment
// when its kubeconfigs cannot be read.
var caFiles = map[apiserver.Source][]string{
	apiserver.SourceKubeadm:  {"/etc/kubernetes/pki/ca.crt"},
	apiserver.SourceKubelet:  {"/var/lib/k0s/pki/ca.crt"},
	apiserver.SourceK3s:      {"/var/lib/rancher/k3s/agent/server-ca.crt", "/var/lib/rancher/k3s/server/tls/server-ca.crt"},
	apiserver.SourceRKE2:     {"/var/lib/rancher/rke2/agent/server-ca.crt", "/var/lib/rancher/rke2/server/tls/server-ca.crt"},
	apiserver.SourceMicroK8s: {"/var/snap/microk8s/current/certs/ca.crt"},
}

// addCAFiles adds the CA files of the finding's own installation.
func (f *Finding) addCAFiles(root string) {
	for _, path := range caFiles[f.Source] {
		if b, err := readFile(root, path); err == nil {
			f.Clusters = append(f.Clusters, ClusterRef{Path: path, Authority: AuthorityCA, CA: b})
		}
	}
}

// Identity is the cluster that a node belongs to, as its own files tell.
type Identity struct {
	// By is the file that decided, "" if none did.
	By string
	// Trust verifies the cluster's API servers; nil if no CA is known.
	Trust *apiserver.Trust
	// Others says, one sentence each, what was found of other clusters.
	Others []string

	lead ClusterRef // the file that decided
}

// Decide tells which cluster this node belongs to, and takes out of the
// findings what is of another one. The node's own kubelet decides, not the
// newest file or the server that answers. saved may be nil; it decides only
// where no file of the node's own agents does.
func Decide(findings []Finding, saved *apiserver.Known) (Identity, []Finding) {
	var refs []ClusterRef
	for _, f := range findings {
		for _, r := range f.Clusters {
			r.source = f.Source
			refs = append(refs, r)
		}
	}
	if saved != nil && len(saved.CA) > 0 {
		refs = append(refs, ClusterRef{Path: "the saved addresses", Authority: authoritySaved, CA: saved.CA, source: apiserver.SourceCache})
	}
	slices.SortStableFunc(refs, func(a, b ClusterRef) int { return int(a.Authority) - int(b.Authority) })
	id := decide(refs)
	out := make([]Finding, len(findings))
	for i, f := range findings {
		out[i] = id.own(f)
	}
	return id, out
}

// decide takes the best that is known of the cluster. refs are in order of
// their authority.
func decide(refs []ClusterRef) (id Identity) {
	if len(refs) == 0 {
		return id
	}
	lead := confirmed(refs)
	id.By, id.lead = lead.Path, lead
	ca := lead.CA
	if !lead.pinned() {
		// The kubelet's CA file is not there for a moment, or its kubeconfig names
		// none: what is certain to be of the same cluster knows it too.
		ca = nil
		for _, r := range refs {
			if r.pinned() && (r.source == lead.source && r.Authority < AuthorityOther || id.leadsTo(r.Server) || r.Authority == AuthorityPod || r.Authority == authoritySaved) {
				ca = r.CA
				break
			}
		}
	}
	switch {
	case ca != nil:
		id.Trust = &apiserver.Trust{CA: ca}
	case lead.HostTrust:
		id.Trust = &apiserver.Trust{}
	default:
		return id
	}
	if lead.HostTrust {
		id.Trust.Host, id.Trust.HostCA = hostOf(lead.Server), lead.HostCA
	}
	for _, r := range refs { // what pods verify with may be further in a rotation
		if r.Authority == AuthorityPod && apiserver.SameCA(r.CA, ca) && !bytes.Equal(r.CA, ca) {
			id.Trust.CA = slices.Concat(ca, []byte("\n"), r.CA)
		}
	}
	return id
}

// confirmed gives the file that decides: the first, unless that is one of
// several kubelets' kubeconfigs, of which an earlier installation may have left
// some. Then the pod that this is, or an earlier run, knows which is in use.
func confirmed(refs []ClusterRef) ClusterRef {
	lead := refs[0]
	if lead.Authority != AuthorityKubelet || !lead.pinned() {
		return lead
	}
	for _, witness := range refs {
		if witness.Authority != AuthorityPod && witness.Authority != authoritySaved {
			continue
		}
		for _, r := range refs {
			if r.Authority == AuthorityKubelet && apiserver.SameCA(r.CA, witness.CA) {
				return r
			}
		}
	}
	return lead
}

// leadsTo reports whether a server is the one of the file that decided.
func (id *Identity) leadsTo(server apiserver.Endpoint) bool {
	return server != apiserver.Endpoint{} && server == id.lead.Server
}

// of reports whether a file is of this cluster, else why not.
func (id *Identity) of(r ClusterRef) (own bool, why string) {
	switch {
	case r.Path == id.By, id.By == "":
		return true, ""
	case id.Trust.Known() && r.pinned():
		return apiserver.SameCA(r.CA, id.Trust.CA), "its CA is not the one of " + id.By
	case id.Trust.Known(), id.leadsTo(r.Server), r.source == id.lead.source && r.Authority < AuthorityOther, r.Authority == id.lead.Authority:
		return true, "" // whatever is asked with it is verified with our CA, or cannot be told apart
	}
	return false, "nothing shows that it is of the cluster of " + id.By
}

// own gives a finding without what is of other clusters. Where all files that
// the installation itself keeps are, the rest is what a former one has left.
func (id *Identity) own(f Finding) Finding {
	var foreign []string
	anchored, ours := false, false
	for _, r := range f.Clusters {
		r.source = f.Source
		own, why := id.of(r)
		if r.Authority < AuthorityOther {
			anchored, ours = true, ours || own
		}
		if !own {
			foreign = append(foreign, r.Path)
			id.Others = append(id.Others, fmt.Sprintf("%s is of another cluster, and not used: %s", r.Path, why))
		}
	}
	if len(foreign) == 0 {
		return f
	}
	f.Notes = slices.Clone(f.Notes)
	for _, path := range foreign {
		f.Notef("%s: of another cluster than %s, not used", path, id.By)
	}
	if anchored && !ours {
		f.Notef("nothing of it is used")
		return Finding{Source: f.Source, Notes: f.Notes, Clusters: f.Clusters}
	}
	other := func(e apiserver.Endpoint) bool {
		by := f.givers[e]
		return len(by) > 0 && !slices.ContainsFunc(by, func(path string) bool { return !slices.Contains(foreign, path) })
	}
	f.Endpoints = slices.DeleteFunc(slices.Clone(f.Endpoints), other)
	f.Helpers = slices.DeleteFunc(slices.Clone(f.Helpers), other)
	f.Credentials = slices.DeleteFunc(slices.Clone(f.Credentials), func(c *Credential) bool { return slices.Contains(foreign, c.Path) })
	return f
}

func hostOf(e apiserver.Endpoint) string {
	if e.Host == "" && e.Resolved() {
		return e.Addr.Addr().String()
	}
	return e.Host
}
