package binaries

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

var (
	// nodePrograms are what a node of kubeadm has beside the programs of Ensure.
	nodePrograms = []string{"kubeadm", "kubectl", "kubelet", "kube-controller-manager", "kube-scheduler"}
	// ownPrograms are built from packages of this module each time: Go knows when there is nothing to do.
	ownPrograms = []string{"./nodes/program/coredns", "./nodes/program/etcd", "./nodes/program/load", "./nodes/program/pause"}
)

// NodeDir is the directory below that of Ensure's programs that has those of EnsureNodes.
const NodeDir = "node"

// EnsureNodes returns a directory with every program that nodes made by kubeadm run: Kubernetes' own, CoreDNS, etcd as
// new as kubeadm wants it (Debian's lacks a flag), the sandbox of pods, and what loads the cluster. It also returns the
// version of Kubernetes. For the very first time it takes eight minutes on two idle cores, three if Ensure's programs are
// built.
func EnsureNodes(ctx context.Context, cfg Config) (dir, version string, err error) {
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	given := cfg.Given
	cfg.Given = "" // it has no programs of nodes: only Ensure's are taken from there
	parent, version, err := cfg.dir(ctx)
	if err != nil {
		return "", "", err
	}
	p, err := Ensure(ctx, Config{Given: given, Module: cfg.Module, Cache: cfg.Cache, Log: cfg.Log})
	if err != nil {
		return "", "", err
	}
	dir = filepath.Join(parent, NodeDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	unlock, err := Lock(filepath.Join(cfg.Cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	isThere := func(name string) bool { return unix.Access(filepath.Join(dir, name), unix.X_OK) == nil }
	for _, from := range []string{p.APIServer, p.Proxy} {
		to := filepath.Join(dir, filepath.Base(from))
		if isThere(filepath.Base(from)) {
			continue
		}
		err := os.Link(from, to)
		if err != nil {
			err = install(from, to) // another file system
		}
		if err != nil && !os.IsExist(err) {
			return "", "", err
		}
	}
	missing := slices.DeleteFunc(slices.Clone(nodePrograms), isThere)
	if len(missing) > 0 {
		if err := cfg.build(ctx, dir, version, "two minutes", missing); err != nil {
			return "", "", err
		}
	}
	for _, pkg := range ownPrograms {
		name := filepath.Base(pkg)
		if pkg != loadProgram && Newer(filepath.Join(dir, name), filepath.Join(cfg.Module, pkg, "main.go")) {
			continue
		}
		if err := cfg.compile(ctx, dir, "-s -w", pkg); err != nil {
			return "", "", err
		}
	}
	for _, name := range slices.Concat(nodePrograms, []string{"coredns", "etcd", "load", "pause", "kube-apiserver", "kube-proxy"}) {
		if !isThere(name) {
			return "", "", &fs.PathError{Op: "find program", Path: filepath.Join(dir, name), Err: fs.ErrNotExist}
		}
	}
	return dir, version, nil
}

// loadProgram is the only one that is likely to change with the tests.
const loadProgram = "./nodes/program/load"
