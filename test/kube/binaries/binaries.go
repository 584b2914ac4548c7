// Package binaries gets the programs of a Kubernetes control plane and of a node's service proxy: kube-apiserver and
// kube-proxy are built from the sources of the module k8s.io/kubernetes, at the version that go.mod names; etcd is
// Debian's. All of them land in one directory below a cache, once for every version of theirs and of Go.
//
// EnsureNodes gets all that whole nodes run, too.
package binaries

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/debian"
)

// kubernetes is the module of the programs that are built.
const kubernetes = "k8s.io/kubernetes"

// built are the programs of that module, by their directories below cmd.
var built = []string{"kube-apiserver", "kube-proxy"}

// etcdSuite is the release of Debian that etcd is of. Its version must be 3.5.13 or later: an API server does not ask an
// older one how far a watch has come (etcd#15220, etcd#17507), and then refuses watch-lists, so that clients list.
const etcdSuite = "trixie"

// Programs are the paths of what was built or fetched.
type Programs struct {
	Etcd, APIServer, Proxy string
}

// In returns the programs of a directory, which need not exist.
func In(dir string) Programs {
	return Programs{
		Etcd:      filepath.Join(dir, "etcd"),
		APIServer: filepath.Join(dir, "kube-apiserver"),
		Proxy:     filepath.Join(dir, "kube-proxy"),
	}
}

// missing returns an error that names the first program that is not there.
func (p Programs) missing() error {
	for _, path := range []string{p.Etcd, p.APIServer, p.Proxy} {
		if err := unix.Access(path, unix.X_OK); err != nil {
			return &fs.PathError{Op: "find program", Path: path, Err: err}
		}
	}
	return nil
}

// Config says where things are.
type Config struct {
	// Given is a directory with the programs. If it is not "", nothing is built or fetched.
	Given string
	// Module is a directory of the module whose go.mod names the version of Kubernetes.
	Module string
	// Cache is a directory, made if need be, below which all is kept.
	Cache string
	// Log is told what takes long; nil for nobody.
	Log io.Writer
}

// Ensure returns the programs, after it has built and fetched what is not there yet: six minutes on two idle cores and
// 150 MB to download for the very first time. Processes that call it at once wait for one of them to do the work.
func Ensure(ctx context.Context, cfg Config) (Programs, error) {
	if cfg.Given != "" {
		p := In(cfg.Given)
		return p, p.missing()
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	dir, version, err := cfg.dir(ctx)
	if err != nil {
		return Programs{}, err
	}
	p := In(dir)
	if p.missing() == nil {
		return p, nil
	}
	unlock, err := Lock(filepath.Join(cfg.Cache, "lock"))
	if err != nil {
		return Programs{}, err
	}
	defer unlock()
	if p.missing() == nil { // another process was faster
		return p, nil
	}
	if err := cfg.fetchEtcd(ctx, dir); err != nil {
		return Programs{}, err
	}
	if err := cfg.build(ctx, dir, version, "six minutes", built); err != nil {
		return Programs{}, err
	}
	return p, p.missing()
}

// dir makes the directory of the programs, and returns the version of Kubernetes that they are of.
func (cfg Config) dir(ctx context.Context) (dir, version string, err error) {
	version, err = goCommand(ctx, cfg.Module, "list", "-m", "-f", "{{.Version}}", kubernetes)
	if err != nil {
		return "", "", err
	}
	goVersion, err := goCommand(ctx, cfg.Module, "env", "GOVERSION")
	if err != nil {
		return "", "", err
	}
	dir = filepath.Join(cfg.Cache, fmt.Sprintf("%s_%s_%s", version, goVersion, runtime.GOARCH))
	return dir, version, os.MkdirAll(dir, 0o755)
}

// fetchEtcd puts Debian's etcd into a directory. It links to the C library only.
func (cfg Config) fetchEtcd(ctx context.Context, dir string) error {
	mirror, err := debian.MirrorOf("")
	if err != nil {
		return err
	}
	archive := debian.Archive{Dir: cfg.Cache, Arch: runtime.GOARCH, Mirror: mirror, Log: cfg.Log}
	tree, err := archive.Fetch(ctx, debian.Request{
		Suites: []string{etcdSuite}, Packages: []string{"etcd-server"}, Key: "etcd-server",
		Keep: func(name string) bool { return name == "etcd-server" },
	})
	if err != nil {
		return err
	}
	return install(filepath.Join(tree.Dir, "usr/bin/etcd"), filepath.Join(dir, "etcd"))
}

// install copies a program; it is there completely or not at all.
func install(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", data, 0o755); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// build compiles programs of Kubernetes without cgo and with the flags that tests without the race detector are compiled
// with, so that Go's cache has one copy of what both need.
func (cfg Config) build(ctx context.Context, dir, version, takes string, names []string) error {
	fmt.Fprintf(cfg.Log, "building %s of %s %s into %s: this takes %s on two idle cores, and is done once\n",
		strings.Join(names, ", "), kubernetes, version, dir, takes)
	var packages []string
	for _, name := range names {
		packages = append(packages, kubernetes+"/cmd/"+name)
	}
	// Clients look at the version; without -X it is v0.0.0.
	return cfg.compile(ctx, dir, "-s -w -X k8s.io/component-base/version.gitVersion="+version, packages...)
}

// compile builds programs into a directory, by the last parts of their packages' paths. Each is there completely or not
// at all.
func (cfg Config) compile(ctx context.Context, dir, ldflags string, packages ...string) error {
	tmp, err := os.MkdirTemp(dir, ".building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := append([]string{"build", "-v", "-buildvcs=false", "-o", tmp + "/", "-ldflags", ldflags}, packages...)
	if _, err := goCommandWith(ctx, newProgress(cfg.Log), cfg.Module, args...); err != nil {
		return err
	}
	for _, p := range packages {
		name := path.Base(p)
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// goCommand runs go and returns what it prints, without the last newline.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	return goCommandWith(ctx, &progress{}, dir, args...)
}

// goCommandWith is goCommand for what takes long, and prints the packages that it compiles (-v).
func goCommandWith(ctx context.Context, p *progress, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = p
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, p.rest())
	}
	return strings.TrimSpace(string(out)), nil
}

// Lock waits for a file lock, which ends with the process at the latest.
func Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
	}
}
