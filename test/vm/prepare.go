package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/test/vm/debian"
	"github.com/firsthop/firsthop/test/vm/qemu"
	"github.com/firsthop/firsthop/test/vm/wire"
)

// emulator returns a qemu that all kernels of amd64 run on.
func (r *Runner) emulator(ctx context.Context) (qemu.Emulator, error) {
	return r.emulatorOf(ctx, "amd64")
}

// emulatorOf returns a qemu that all kernels of an architecture run on: the machine's, or else Debian 13's, unpacked into
// the cache.
func (r *Runner) emulatorOf(ctx context.Context, arch string) (qemu.Emulator, error) {
	p, err := qemu.PlatformOf(arch)
	if err != nil {
		return qemu.Emulator{}, err
	}
	if e, ok := p.Installed(ctx); ok {
		return e, nil
	}
	tree, err := r.archive("amd64").Fetch(ctx, debian.Request{
		Suites: []string{"trixie"}, Packages: []string{p.Package}, Key: p.Package,
	})
	if err != nil {
		return qemu.Emulator{}, err
	}
	return p.Unpacked(tree.Dir, tree.Version)
}

func (r *Runner) archive(arch string) debian.Archive {
	return debian.Archive{Dir: r.Cache, Arch: arch, Mirror: r.Mirror, Log: r.Out}
}

// fetch fills in a kernel's image, modules and release.
func (r *Runner) fetch(ctx context.Context, k Kernel) (Kernel, error) {
	if k.Image == "" {
		var err error
		if k, err = r.fetchPackage(ctx, k); err != nil {
			return k, err
		}
	}
	image, err := qemu.ReadImage(k.Image)
	if err != nil {
		return k, err
	}
	if image.Arch != k.Arch {
		return k, fmt.Errorf("run %s: it is of %s, not of %s", k.Image, image.Arch, k.Arch)
	}
	dir := filepath.Join(r.Cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return k, err
	}
	err = image.Unpack(filepath.Join(dir, image.Release+"_"+image.Arch))
	k.Image, k.release = image.File, image.Release
	return k, err
}

func (r *Runner) fetchPackage(ctx context.Context, k Kernel) (Kernel, error) {
	var errs []error
	for _, suites := range k.Suites {
		tree, err := r.archive(k.Arch).Fetch(ctx, debian.Request{
			Suites: suites, Packages: []string{k.Package}, Key: "linux-image-",
			// The package itself is empty, and mirrors have been seen to lack it.
			Keep: func(name string) bool { return strings.HasPrefix(name, "linux-") && name != k.Package },
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		k.Modules = tree.Dir
		k.Image, err = imageIn(tree.Dir)
		return k, err
	}
	return k, errors.Join(errs...)
}

// imageIn finds the one kernel image of an unpacked package: in /boot, since Linux 6.18 of Debian beside the modules.
func imageIn(tree string) (string, error) {
	var images []string
	for _, pattern := range []string{"boot/vmlinu*", "usr/lib/modules/*/vmlinu*"} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return "", err
		}
		images = append(images, found...)
	}
	if len(images) != 1 {
		return "", fmt.Errorf("find the kernel image in %s: there are %q, want one", tree, images)
	}
	return images[0], nil
}

// tools are packages of Debian 13 for tests that run programs of others. The machine itself needs none of them.
func (r *Runner) tools(ctx context.Context, arch string) (debian.Tree, error) {
	return r.archive(arch).Fetch(ctx, debian.Request{
		Suites: []string{"trixie"}, Key: "coreutils",
		Packages: []string{"coreutils", "curl", "dash", "iproute2", "mount", "ncat", "nftables", "python3", "util-linux"},
		Keep:     func(name string) bool { return !slices.Contains(unneeded, name) },
	})
}

// unneeded are large packages of which no test uses anything.
var unneeded = []string{"debconf", "perl-base", "tzdata", "openssl-provider-legacy", "ca-certificates"}

// leanly leaves out of the tools what only people read.
func leanly(name string) bool {
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/bash-completion", "var", "usr/lib/python3.13/test"} {
		if strings.HasPrefix(name, dir) {
			return false
		}
	}
	return !strings.Contains(name, "/gconv/")
}

// build compiles a suite's tests, or a program if the package is one, as a static binary.
func (r *Runner) build(ctx context.Context, out, arch, pkg string, test bool) error {
	args := []string{"build"}
	if test {
		args = []string{"test", "-c"}
	}
	// As the Makefile builds the product: what starts at boot should be that.
	args = append(args, "-trimpath", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-ldflags=-s -w", "-o", out, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.Repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// binaries builds all that goes into machines of an architecture and returns where it is.
func (r *Runner) binaries(ctx context.Context, arch string, suites []Suite) (string, error) {
	dir := filepath.Join(r.Cache, "bin", arch)
	if err := r.build(ctx, filepath.Join(dir, "init"), arch, "./test/vm/init", false); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		if err := r.build(ctx, filepath.Join(dir, name), arch, programs[name], false); err != nil {
			return "", err
		}
	}
	for _, s := range suites {
		if err := r.build(ctx, filepath.Join(dir, s.Name+".test"), arch, "./"+s.Package, true); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// fill puts everything but the manifest into a machine's first root.
func (r *Runner) fill(root *qemu.Initramfs, bin, tools string, k Kernel, suites []Suite) (loaded []string, err error) {
	add := func(name, file string) {
		if err == nil {
			err = root.AddFile(name, file)
		}
	}
	add("init", filepath.Join(bin, "init"))
	if err := root.AddTree("", tools, leanly); err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		root.AddLink(dir, "usr/"+dir)
	}
	root.AddLink("usr/bin/go", "/init")
	for name := range programs {
		add("built/"+name, filepath.Join(bin, name))
		root.AddLink("usr/bin/"+name, "/built/"+name)
	}
	for _, s := range suites {
		add("tests/"+s.Name, filepath.Join(bin, s.Name+".test"))
		root.AddDir("src/" + s.Package)
		for _, file := range append(s.Files, filepath.Join(s.Package, "testdata")) {
			err = errors.Join(err, r.addSource(root, file))
		}
	}
	if err != nil {
		return nil, err
	}
	root.AddData("etc/passwd", []byte("root:x:0:0:root:/tmp:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"), 0o644)
	root.AddData("etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644)
	root.AddData("etc/os-release", []byte("ID=firsthop-test\nPRETTY_NAME=\"firsthop test machine\"\n"), 0o644)
	root.AddDir("var/lib")
	mods, _, err := qemu.Modules(k.Modules, modules...) // what is absent may be built in
	if err != nil {
		return nil, err
	}
	for _, m := range mods {
		name := "modules/" + m.Name + ".ko"
		root.AddData(name, m.Data, 0o644)
		loaded = append(loaded, "/"+name)
	}
	return loaded, nil
}

// addSource adds a file or a directory of the repository. A directory testdata need not be there.
func (r *Runner) addSource(root *qemu.Initramfs, name string) error {
	host := filepath.Join(r.Repository, name)
	info, err := os.Stat(host)
	switch {
	case os.IsNotExist(err) && filepath.Base(name) == "testdata":
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return root.AddTree("src/"+name, host, nil)
	}
	return root.AddFile("src/"+name, host)
}

// job is how a suite is run.
func (s Suite) job(k Kernel) wire.Job {
	argv := []string{"/tests/" + s.Name, "-test.v", fmt.Sprintf("-test.timeout=%ds", s.Seconds)}
	if s.Run != "" {
		argv = append(argv, "-test.run="+s.Run)
	}
	if len(s.Without) > 0 {
		argv = append(argv, "-test.skip=^("+strings.Join(slices.Sorted(maps.Keys(s.Without)), "|")+")$")
	}
	return wire.Job{
		Name: s.Name, Argv: argv, Env: append([]string{"FIRSTHOP_VM_LIKE=" + k.Like}, s.Env...), Dir: "/src/" + s.Package,
		// The tests' own limit comes first: it says which test it was.
		Seconds: s.Seconds + 10,
	}
}

func manifest(port string, jobs []wire.Job, modules []string) ([]byte, error) {
	return json.Marshal(wire.Manifest{Port: port, Modules: modules, Cgroups: "v2", Jobs: jobs})
}
