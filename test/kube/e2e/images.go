package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/firsthop/firsthop/test/kube/binaries"
	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/test/vm/debian"
)

// userland is what the tests run in containers beside Kubernetes' programs.
var userland = []string{
	"base-files", "base-passwd", "bash", "bind9-dnsutils", "bind9-host", "busybox", "conntrack", "coreutils", "curl", "dash", "findutils", "grep",
	"hostname", "iperf", "iproute2", "iptables", "libc-bin", "netcat-openbsd", "nftables", "nginx-light", "procps", "sed", "util-linux",
}

// unused are dependencies of the packages' scripts, which are not run.
var unused = []string{"adduser", "debconf", "dpkg", "passwd", "perl", "perl-base", "init-system-helpers"}

// links are what scripts of the packages would make, and what Busybox has that is no package of the list.
var links = map[string]string{
	"usr/bin/nc": "nc.openbsd", "usr/bin/wget": "busybox", "usr/bin/ping": "busybox", "usr/bin/nslookup.busybox": "busybox",
	"usr/sbin/iptables": "xtables-nft-multi", "usr/sbin/ip6tables": "xtables-nft-multi",
	"usr/sbin/iptables-save": "xtables-nft-multi", "usr/sbin/ip6tables-save": "xtables-nft-multi",
	"agnhost-2": "agnhost",
}

// images are those of k8s.io/kubernetes/test/utils/image that the tests of the network name, by their commands. All have
// one layer in common.
var images = []nodes.Config{
	{Tags: []string{"registry.k8s.io/e2e-test-images/agnhost:2.63.0"}, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}},
	{Tags: []string{"registry.k8s.io/e2e-test-images/regression-issue-74839:1.4"}, Entrypoint: []string{"/regression-issue-74839"}},
	{Tags: []string{"registry.k8s.io/e2e-test-images/nginx:1.15-4"}, Cmd: []string{"nginx", "-g", "daemon off;"}},
	{
		Tags: []string{
			"registry.k8s.io/e2e-test-images/busybox:1.37.0-1", "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
			"registry.k8s.io/build-image/distroless-iptables:v0.9.6",
		},
		Cmd: []string{"sh"},
	},
}

// ensureImages returns the archive of the images, below a cache. programs is the directory of Kubernetes' own.
func ensureImages(ctx context.Context, cache, programs, coredns string, log io.Writer) (string, error) {
	mirror, err := debian.MirrorOf("")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Append(nil, userland))
	variant := hex.EncodeToString(sum[:4])
	archive := debian.Archive{Dir: cache, Arch: runtime.GOARCH, Mirror: mirror, Log: log}
	tree, err := archive.Fetch(ctx, debian.Request{
		Suites: []string{"trixie", "trixie-security"}, Packages: userland, Key: "bind9-dnsutils", Variant: variant,
		Keep: func(name string) bool { return !slices.Contains(unused, name) },
	})
	if err != nil {
		return "", err
	}
	to := filepath.Join(cache, "nodes/e2e", variant+".tar")
	inputs := []string{coredns}
	for _, name := range append([]string{"agnhost", "regression-issue-74839"}, binaries.PorterFiles...) {
		inputs = append(inputs, filepath.Join(programs, name))
	}
	if binaries.Newer(to, append(inputs, tree.Dir)...) {
		return to, nil
	}
	fmt.Fprintln(log, "writing the images of the end-to-end tests")
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := run(ctx, "cp", "--archive", tree.Dir, root); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/lib/udev"), 0o755); err != nil { // it is made for systems with udev
		return "", err
	}
	if err := debian.Configure(ctx, root); err != nil {
		return "", err
	}
	for name, to := range links {
		path := filepath.Join(root, name)
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
		if err := os.Symlink(to, path); err != nil {
			return "", err
		}
	}
	for _, program := range inputs {
		if err := run(ctx, "cp", program, filepath.Join(root, filepath.Base(program))); err != nil {
			return "", err
		}
	}
	for _, dir := range []string{"uploads", "tmp", "var/lib/nginx", "var/log/nginx"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return "", err
	}
	layer := filepath.Join(tmp, "layer.tar")
	if err := run(ctx, "tar", "--create", "--numeric-owner", "--file", layer, "--directory", root, "."); err != nil {
		return "", err
	}
	return to, nodes.WriteImages(to, layer, images)
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
