package scenes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/test/docs"
	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/units"
)

// repository is the root of the product's module.
const repository = "../../.."

// reader follows the documentation: it runs the commands of its pages, as they are, on the nodes of a cluster.
type reader struct {
	*testing.T
	c     *nodes.Cluster
	nodes map[string]*nodes.Node
	env   []string // of each block, NAME=value
}

// built is what the pages' first command has made, once for all tests of a process.
var built = sync.OnceValues(func() (release, error) { return build("") })

// release is a program with its image.
type release struct{ program, image, version string }

// build runs the block of the page, in the source. version is another one than git's.
func build(version string) (r release, err error) {
	blocks, err := docs.Of(repository, "build")
	if err != nil {
		return r, err
	}
	dir, err := os.MkdirTemp("", "fh-pages-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("bash", "-ec", blocks[0].Text)
	// The other architecture would take minutes: test/vm and deploy/build/image build it.
	cmd.Dir, cmd.Env = repository, append(os.Environ(), "ARCHS="+runtime.GOARCH)
	if version != "" {
		cmd.Env = append(cmd.Env, "MAKEFLAGS=-- VERSION="+version)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return r, fmt.Errorf("%s: %w\n%s", blocks[0].Text, err, out)
	}
	for name, to := range map[string]*string{"bin/firsthop": &r.program, "bin/image/firsthop-oci.tar": &r.image} {
		data, err := os.ReadFile(filepath.Join(repository, name))
		if err != nil {
			return r, err
		}
		*to = string(data)
	}
	said, err := exec.Command(filepath.Join(repository, "bin/firsthop"), "version").Output()
	if err != nil {
		return r, err
	}
	_, r.version, _ = strings.Cut(strings.TrimSpace(string(said)), " ")
	r.version, _, _ = strings.Cut(r.version, " ")
	return r, nil
}

func newReader(t *testing.T) *reader {
	return &reader{T: t, c: nodes.New(t), nodes: make(map[string]*nodes.Node)}
}

// node is a host of the pages, prepared for them: what it would pull is there, and firsthop's files are in root's directory.
func (r *reader) node(name string) *nodes.Node {
	r.Helper()
	if n := r.nodes[name]; n != nil {
		return n
	}
	n := r.c.Node(name)
	r.nodes[name] = n
	n.Import("pause", "coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "load")
	n.Put("/usr/local/sbin/kubeadm", strings.NewReplacer("@VERSION@", r.c.Version, "@IGNORED@", nodes.Ignored).Replace(kubeadmWrapper))
	n.Put("/usr/local/sbin/scp", scpStandIn)
	n.Sh("chmod 755 /usr/local/sbin/* && rm -rf /var/run && ln -s /run /var/run") // as Debian's base-files does when it is installed
	manifest, err := os.ReadFile(filepath.Join(repository, "deploy/firsthop.yaml"))
	r.must(err)
	n.Put("/root/deploy/firsthop.yaml", string(manifest))
	n.Sh("ln -s /opt/deploy/runtime /opt/deploy/chart /root/deploy/")
	release, err := built()
	r.must(err)
	r.deliver(n, release)
	return n
}

// deliver copies a release to a node, as the pages have it copied.
func (r *reader) deliver(n *nodes.Node, rel release) {
	r.Helper()
	n.Put("/root/firsthop", rel.program)
	n.Put("/root/firsthop-oci.tar", rel.image)
}

func (r *reader) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// kubeadmWrapper goes before kubeadm: it adds to the page's configuration what a node needs that is no machine.
const kubeadmWrapper = `#!/bin/sh
set -e
given= command="$1 $2"
next=
rest=
for arg; do
	if [ -n "$next" ]; then given=$arg next=; continue; fi
	case "$arg" in
	--config) next=1 ;;
	--config=*) given=${arg#--config=} ;;
	*) rest="$rest '$arg'" ;;
	esac
done
eval "set -- $rest"
case "$command" in
"join "*) exec /usr/bin/kubeadm "$@" --ignore-preflight-errors=@IGNORED@ ;;
"init phase") [ -n "$given" ] || exec /usr/bin/kubeadm "$@"; ignore= ;;
"init "*) ignore=--ignore-preflight-errors=@IGNORED@ ;;
*) exec /usr/bin/kubeadm "$@" ;;
esac
all=$(mktemp)
if [ -n "$given" ]; then
	sed -e '/^kubernetesVersion:/d' -e '/^kind: ClusterConfiguration/a kubernetesVersion: @VERSION@' "$given" >"$all"
else
	printf 'apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: @VERSION@\n' >"$all"
fi
cat >>"$all" <<'EOF'
---
` + nodes.KubeletConfig + `---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
conntrack: {maxPerCore: 0, min: 0}
EOF
exec /usr/bin/kubeadm "$@" --config="$all" $ignore
`

// scpStandIn copies a file to another node by a directory that all have in common: nodes have no ssh.
const scpStandIn = `#!/bin/sh
set -e
to=${2%:}
mkdir -p "/opt/deploy/scp/$to"
cp "$1" "/opt/deploy/scp/$to/"
`

// follow runs the blocks of a test of the pages.
func (r *reader) follow(test string) {
	r.Helper()
	blocks, err := docs.Of(repository, test)
	r.must(err)
	for _, b := range blocks {
		r.run(b, b.Node)
	}
}

func (r *reader) run(b docs.Block, node string) {
	r.Helper()
	n := r.node(node)
	if b.Test != "get" && b.Test != "readme" && r.missing(n) {
		r.get(node)
	}
	n.Sh("if [ -d /opt/deploy/scp/" + node + " ]; then mv /opt/deploy/scp/" + node + "/* /root/; rmdir /opt/deploy/scp/" + node + "; fi")
	r.Logf("%s:%d on %s:\n%s", b.Page, b.Line, node, b.Text)
	script := "set -e\ncd /root\n"
	for _, kv := range r.env {
		script += "export " + kv + "\n"
	}
	// The pages' addresses are those for documentation.
	out, err := n.Try(script + strings.ReplaceAll(b.Text, "192.0.2.1", "10.77.0.1"))
	r.Logf("%s", out)
	if err != nil {
		r.Fatalf("%s:%d: the commands fail: %v", b.Page, b.Line, err)
	}
}

// get follows the page about getting the program, on a node.
func (r *reader) get(node string) {
	r.Helper()
	blocks, err := docs.Of(repository, "get")
	r.must(err)
	for _, b := range blocks {
		r.run(b, node)
	}
}

// missing reports whether a node has not got the program from the page yet.
func (r *reader) missing(n *nodes.Node) bool {
	_, err := n.Try("test -f /usr/local/bin/firsthop && ! test -L /usr/local/bin/firsthop")
	return err != nil
}

// TestPages follows the pages for users, each on a cluster of its own.
func TestPages(t *testing.T) {
	long(t)
	followed := map[string]bool{"build": true, "get": true}
	for _, chapter := range []struct {
		name  string
		tests []string
		do    func(*reader, string) // what is done for a test, nil: it is followed
	}{
		{"readme", []string{"readme"}, nil},
		{"a new cluster, an upgrade, and leaving", []string{"kubeadm-new", "upgrade", "rollback", "leaving"}, (*reader).lifeOfACluster},
		{"beside kube-proxy", []string{"kubeadm-existing", "manifests"}, (*reader).besideKubeProxy},
		{"Helm", []string{"helm"}, (*reader).withHelm},
		{"before kubeadm", []string{"before-kubeadm"}, nil},
		{"high availability", []string{"ha"}, nil},
		{"bare metal", []string{"bare-metal"}, (*reader).bareMetal},
	} {
		for _, test := range chapter.tests {
			followed[test] = true
		}
		t.Run(chapter.name, func(t *testing.T) {
			r := newReader(t)
			for _, test := range chapter.tests {
				if chapter.do != nil {
					chapter.do(r, test)
				} else {
					r.follow(test)
				}
			}
		})
	}
	for test, by := range docs.Runs {
		if by == "test/kube/scenes" && !followed[test] {
			t.Errorf("nothing runs the blocks of %s", test)
		}
	}
}

// lifeOfACluster brings the next version for the page about upgrades, and looks whether leaving leaves nothing.
func (r *reader) lifeOfACluster(test string) {
	r.Helper()
	switch test {
	case "upgrade":
		former, err := built()
		r.must(err)
		next, err := build("v0.0.9-next")
		r.must(err)
		r.env = append(r.env, "FORMER_IMAGE=ghcr.io/firsthop/firsthop:"+former.version)
		for name, n := range r.nodes {
			r.deliver(n, next)
			r.get(name)
		}
	}
	r.follow(test)
	if test == "leaving" {
		r.gone()
	}
}

// gone looks whether anything of firsthop's is left.
func (r *reader) gone() {
	r.Helper()
	for name, n := range r.nodes {
		if left := n.Sh("ls -d /sys/fs/bpf/firsthop /var/lib/firsthop /run/firsthop 2>/dev/null || true"); left != "" {
			r.Errorf("firsthop left on %s:\n%s", name, left)
		}
	}
	if left := r.node("n1").Sh("kubectl get daemonset,configmap,secret,clusterrole,clusterrolebinding -A -o name | grep firsthop || true"); left != "" {
		r.Errorf("firsthop left in the cluster:\n%s", left)
	}
}

// besideKubeProxy has a cluster that serves, and no connection may fail while firsthop comes.
func (r *reader) besideKubeProxy(test string) {
	r.Helper()
	if test != "kubeadm-existing" {
		r.follow(test)
		return
	}
	_, load := r.withKubeProxy()
	r.follow(test)
	load.Await(1000)
	load.Unbroken()
}

// withKubeProxy has a cluster with kube-proxy, and load on it.
func (r *reader) withKubeProxy() (*nodes.Node, *nodes.Load) {
	r.Helper()
	n := r.node("n1")
	n.Sh("kubeadm init && kubectl taint node n1 node-role.kubernetes.io/control-plane-")
	awaitDaemonSet(n, "kube-proxy")
	deployEcho(n)
	load := r.c.Load(loadOfBoth...)
	load.Await(100)
	return n, load
}

// withHelm has Helm's program on the node, and images as if the page's registry had them.
func (r *reader) withHelm(test string) {
	r.Helper()
	n, load := r.withKubeProxy()
	n.Put("/usr/local/sbin/helm", r.helm())
	n.Sh("chmod 755 /usr/local/sbin/helm")
	r.get("n1")
	release, err := built()
	r.must(err)
	for _, version := range []string{"v1", "v2"} {
		n.Sh("ctr -n k8s.io images tag ghcr.io/firsthop/firsthop:" + release.version + " registry.example/firsthop:" + version)
	}
	r.follow(test)
	load.Await(1000)
	load.Unbroken()
	r.gone()
}

// helm is Helm's program, as go.mod of deploy/build has its version.
func (r *reader) helm() string {
	r.Helper()
	path := filepath.Join(r.TempDir(), "helm")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "helm.sh/helm/v3/cmd/helm")
	cmd.Dir, cmd.Env = filepath.Join(repository, "deploy/build"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("build helm: %v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	r.must(err)
	return string(program)
}

// bareMetal has what the package brings, which test/vm/boot installs as a package.
func (r *reader) bareMetal(test string) {
	r.Helper()
	n := r.node("n1")
	n.Sh("kubeadm init --skip-phases=addon/kube-proxy")
	unit, err := units.RuntimeUnit()
	r.must(err)
	n.Put("/usr/lib/systemd/system/"+units.RuntimeServiceName, string(unit))
	settings, err := os.ReadFile(filepath.Join(repository, "deploy/packages/default"))
	r.must(err)
	n.Put(units.EnvironmentFile, string(settings))
	r.get("n1")
	n.Sh("cp /usr/local/bin/firsthop " + units.PackageProgram + " && systemctl daemon-reload")
	r.follow(test)
	awaitCoreDNS(n)
}
