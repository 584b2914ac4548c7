package sources

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// kubeadmFile are the documents of a file for kubeadm's --config, v1beta1 to
// v1beta4, as far as they are used.
type kubeadmFile struct {
	init *struct {
		LocalAPIEndpoint localEndpoint `json:"localAPIEndpoint"`
	}
	cluster *clusterConfiguration
	join    *struct {
		Discovery struct {
			BootstrapToken *struct {
				APIServerEndpoint string `json:"apiServerEndpoint"`
			} `json:"bootstrapToken"`
			File *struct {
				KubeConfigPath string `json:"kubeConfigPath"`
			} `json:"file"`
		} `json:"discovery"`
		ControlPlane *struct {
			LocalAPIEndpoint localEndpoint `json:"localAPIEndpoint"`
		} `json:"controlPlane"`
	}
}

func (f *kubeadmFile) clusterOrNone() *clusterConfiguration {
	if f.cluster != nil {
		return f.cluster
	}
	return &clusterConfiguration{}
}

// KubeadmFile reads the file that kubeadm is going to be given, for a
// node that it has not set up yet: the Service IP is the first of the Service
// range, and the endpoints are the API servers that kubeadm will start or join.
// path is as this process sees it, root is that of the host.
func KubeadmFile(root, path string) (Finding, error) {
	return kubeadmFileSource(newHost(root), path)
}

func kubeadmFileSource(h *host, path string) (Finding, error) {
	f := Finding{Source: apiserver.SourceKubeadmFile}
	abs, err := filepath.Abs(path)
	if err != nil {
		return f, err
	}
	// The operator names it, as he does to kubeadm, which trusts it as it is.
	b, err := hostfs.FS{}.ReadFile(abs)
	if err != nil {
		return f, err
	}
	file, err := parseKubeadmFile(b)
	if err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	f.addKubeadmFile(h, path, file)
	return f, nil
}

// parseKubeadmFile reads the documents of kubeadm; those of others
// (KubeletConfiguration, KubeProxyConfiguration) may stand beside them.
func parseKubeadmFile(b []byte) (file kubeadmFile, err error) {
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return file, fmt.Errorf("not YAML: %s", apiserver.FirstLine(err))
		}
		var kind struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			return file, fmt.Errorf("not YAML: %s", apiserver.FirstLine(err))
		}
		if !strings.HasPrefix(kind.APIVersion, "kubeadm.k8s.io/") {
			continue
		}
		var into any
		switch kind.Kind {
		case "InitConfiguration":
			into = &file.init
		case "ClusterConfiguration":
			into = &file.cluster
		case "JoinConfiguration":
			into = &file.join
		default:
			continue
		}
		if err := yaml.Unmarshal(doc, into); err != nil {
			return file, fmt.Errorf("%s: %s", kind.Kind, apiserver.FirstLine(err))
		}
	}
	if file.init == nil && file.cluster == nil && file.join == nil {
		return file, errors.New("has no InitConfiguration, ClusterConfiguration or JoinConfiguration of kubeadm.k8s.io")
	}
	return file, nil
}

// addKubeadmFile adds what the documents say, with kubeadm's defaults for what
// they leave out.
func (f *Finding) addKubeadmFile(h *host, where string, file kubeadmFile) {
	cluster := file.clusterOrNone()
	switch ranges := cluster.serviceRange(); {
	case ranges != "":
		f.addServiceRange(where, ranges)
	case file.init != nil || file.cluster != nil:
		// Not a guess: kubeadm init gives the cluster this range then.
		f.addServiceRange(where+": no networking.serviceSubnet, kubeadm's default", KubeadmServiceRange)
	default: // the cluster that is joined has what it has
		f.addDefaultRange(where+": a JoinConfiguration names no Service range, kubeadm's default", KubeadmServiceRange)
	}
	if file.join != nil {
		f.addJoin(h, where, file)
	}
	local := localEndpoint{}
	if file.init != nil {
		local = file.init.LocalAPIEndpoint
	}
	if file.join == nil {
		f.addLocal(h, where, local, cluster)
	}
	if ep := cluster.ControlPlaneEndpoint; ep != "" {
		f.addControlPlane(where, "controlPlaneEndpoint", ep, local.port())
	}
}

// addJoin adds the API servers of the cluster that a node joins, and its own
// where it becomes one of the control plane.
func (f *Finding) addJoin(h *host, where string, file kubeadmFile) {
	if t := file.join.Discovery.BootstrapToken; t != nil && t.APIServerEndpoint != "" {
		if !f.addControlPlane(where, "apiServerEndpoint", t.APIServerEndpoint, apiserver.EndpointPort) {
			// No other Service has this address and the port 443.
			f.DefaultServices = nil
			f.Notef("%s: give the address of an API server that runs already by --endpoints", where)
		}
	}
	if d := file.join.Discovery.File; d != nil && d.KubeConfigPath != "" {
		if p := d.KubeConfigPath; !filepath.IsAbs(p) {
			f.Notef("%s: discovery.file %q is not read: firsthop reads files of this node only", where, apiserver.Clip(p))
		} else if !h.addKubeconfig(f, p) {
			f.Notef("%s: discovery.file %s is not there", where, p)
		}
	}
	if c := file.join.ControlPlane; c != nil {
		f.addLocal(h, where, c.LocalAPIEndpoint, file.clusterOrNone())
	}
	f.Services = slices.Clip(f.Services)
}

// addLocal adds the API server that kubeadm will start on this node.
func (f *Finding) addLocal(h *host, where string, local localEndpoint, cluster *clusterConfiguration) {
	args := cluster.APIServer.ExtraArgs
	port := cmp.Or(args["secure-port"], strconv.Itoa(local.port()))
	f.addOwnServer(h, where, port, args["advertise-address"], local.AdvertiseAddress)
}
