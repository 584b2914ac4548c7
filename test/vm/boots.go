package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/vm/qemu"
	"github.com/firsthop/firsthop/test/vm/wire"
)

const (
	systemDisk = "/dev/vda"
	// systemGrace is for a boot of systemd, 15 to 30 s on a machine that has nothing else to do, or for its shutdown.
	systemGrace = 4 * time.Minute
	// systemCmdline has the journal on the console, whose log is kept.
	systemCmdline = "systemd.unit=multi-user.target systemd.journald.forward_to_console=1"
)

// jobsUnit runs the tests of a boot when all others have started.
const (
	jobsUnit     = "vm-jobs.service"
	jobsUnitText = `# Runs the tests of this boot, and tells the host.
[Unit]
After=kubelet.service

[Service]
Type=exec
ExecStart=/run/vm/init jobs
KillMode=process
`
)

// systemModules are for the disk and for the stand-ins: a system's disk has no modules on it.
var systemModules = []string{"virtio_pci", "virtio_blk", "dummy"}

// RunSystems boots systems through the paths that are for them, and returns a result for each stage that was come to. An
// error is one of the runner's own.
func (r *Runner) RunSystems(ctx context.Context, systems []System, paths []Path) ([]Result, error) {
	emulator, err := r.emulator(ctx)
	if err != nil {
		return nil, fmt.Errorf("get a qemu from version 8 on: %w", err)
	}
	var results []Result
	for _, s := range systems {
		for _, p := range paths {
			if !p.On(s.Name) {
				continue
			}
			of, err := r.runPath(ctx, emulator, s, p)
			results = append(results, of...)
			if err != nil {
				return results, fmt.Errorf("run %s on the system %s: %w", p.Name, s.Name, err)
			}
		}
	}
	return results, nil
}

func (r *Runner) runPath(ctx context.Context, e qemu.Emulator, s System, p Path) ([]Result, error) {
	kernels, err := Select(s.Kernel)
	if err != nil {
		return nil, err
	}
	k, err := r.fetch(ctx, kernels[0])
	if err != nil {
		return nil, err
	}
	pristine, err := r.disk(ctx, s, p.Packages)
	if err != nil {
		return nil, err
	}
	bin, err := r.stageBinaries(ctx, k.Arch, p)
	if err != nil {
		return nil, err
	}
	logs := filepath.Join(r.Cache, "logs", s.Name, p.Name)
	if err := os.RemoveAll(logs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	disk := filepath.Join(logs, "disk") // left behind for who looks why it failed
	if err := command(ctx, "cp", "--sparse=always", pristine, disk); err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Out, "%s, %s: kernel %s on %s\n", s.Name, p.Name, k.Name, e.Name)
	k.Name = s.Name
	var results []Result
	for _, stage := range p.Stages {
		result, err := r.bootSystem(ctx, e, k, p, stage, bin, disk)
		for i := range result {
			result[i].Suite = p.Name + "/" + result[i].Suite
		}
		results = append(results, result...)
		if err != nil || len(result) == 0 || result[0].Verdict != Passed {
			return results, err
		}
	}
	return results, os.Remove(disk)
}

// stageBinaries builds what the stages of a path run, and returns where it is.
func (r *Runner) stageBinaries(ctx context.Context, arch string, p Path) (string, error) {
	var suites []Suite
	for _, stage := range p.Stages {
		s := Suite{Name: stageBinary(stage), Package: stage.Package}
		if !slices.ContainsFunc(suites, func(had Suite) bool { return had.Name == s.Name }) {
			suites = append(suites, s)
		}
	}
	return r.binaries(ctx, arch, suites)
}

// stageBinary is the name of the program with a stage's tests: one for each package.
func stageBinary(s Stage) string { return strings.ReplaceAll(s.Package, "/", "-") }

// bootSystem boots a system once.
func (r *Runner) bootSystem(ctx context.Context, e qemu.Emulator, k Kernel, p Path, stage Stage, bin, disk string) ([]Result, error) {
	logs := filepath.Dir(disk)
	initramfs := filepath.Join(logs, "initramfs")
	if err := r.writeSystemInitramfs(initramfs, k, p, stage, bin); err != nil {
		return nil, err
	}
	defer os.Remove(initramfs)
	console := consoleLog(logs, stage)
	c := collector{Runner: r, kernel: k, suites: []Suite{stage.Suite}, logs: logs, console: console, began: time.Now()}
	err := e.Boot(ctx, qemu.Machine{
		Kernel: k.Image, Initramfs: initramfs, Cmdline: strings.Join([]string{systemCmdline, p.Cmdline, stage.Cmdline}, " "), Disk: disk,
		MemoryMB: memoryMB, Console: console, Grace: systemGrace,
	}, c.bound, c.event)
	var broken *qemu.EmulatorError
	if ctx.Err() != nil || errors.As(err, &broken) {
		return c.results, err
	}
	c.end(err)
	return c.results, c.err
}

func consoleLog(logs string, s Stage) string { return filepath.Join(logs, "console-"+s.Name+".log") }

// writeSystemInitramfs writes what starts the system, and what the test adds to it without writing to its disk.
func (r *Runner) writeSystemInitramfs(file string, k Kernel, p Path, stage Stage, bin string) error {
	var root qemu.Initramfs
	ours := strings.TrimPrefix(wire.SystemDir, "/") + "/"
	for name, from := range map[string]string{
		"init": "init", ours + "init": "init", ours + "firsthop": "firsthop", ours + "tests/" + stage.Name: stageBinary(stage) + ".test",
	} {
		if err := root.AddFile(name, filepath.Join(bin, from)); err != nil {
			return err
		}
	}
	root.AddDir(ours + "src/" + stage.Package)
	if err := r.addUnits(&root, stage); err != nil {
		return err
	}
	for _, to := range slices.Sorted(maps.Keys(stage.Put)) {
		at := ours + wire.SystemRun + "/" + to
		if below, ok := strings.CutPrefix(to, path.Base(wire.SystemDir)+"/"); ok {
			at = ours + below
		}
		if err := r.put(&root, at, stage.Put[to]); err != nil {
			return err
		}
	}
	mods, _, err := qemu.Modules(k.Modules, slices.Concat(systemModules, p.Modules)...) // what is absent may be built in
	if err != nil {
		return err
	}
	m := wire.Manifest{Port: "/dev/ttyS1", System: systemDisk, Cut: stage.Cut}
	for _, mod := range mods {
		name := "modules/" + mod.Name + ".ko"
		root.AddData(name, mod.Data, 0o644)
		m.Modules = append(m.Modules, "/"+name)
	}
	job := stage.job(k)
	job.Argv[0], job.Dir = wire.SystemDir+job.Argv[0], wire.SystemDir+job.Dir
	job.Env = slices.Concat(job.Env, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
	m.Jobs = []wire.Job{job}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	root.AddData(wire.ManifestPath, data, 0o644)
	root.AddData(wire.SystemDir+wire.ManifestPath, data, 0o644)
	return root.WriteFile(file)
}

// addUnits adds the units of a stage's package, and has systemd start them all: those that are not for every boot have
// a condition on the kernel's command line.
func (r *Runner) addUnits(root *qemu.Initramfs, stage Stage) error {
	units := strings.TrimPrefix(wire.SystemDir, "/") + "/" + wire.SystemRun + "/systemd/system"
	names := []string{jobsUnit}
	root.AddData(units+"/"+jobsUnit, []byte(jobsUnitText), 0o644)
	dir := filepath.Join(r.Repository, stage.Package, "testdata/units")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := r.put(root, units+"/"+e.Name(), filepath.Join(stage.Package, "testdata/units", e.Name())); err != nil {
			return err
		}
		names = append(names, e.Name())
	}
	for _, name := range names {
		if filepath.Ext(name) != ".d" {
			root.AddLink(units+"/multi-user.target.wants/"+name, "../"+name)
		}
	}
	return nil
}

// put adds a file or a directory of the repository.
func (r *Runner) put(root *qemu.Initramfs, to, from string) error {
	from = filepath.Join(r.Repository, from)
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return root.AddTree(to, from, nil)
	}
	return root.AddFile(to, from)
}
