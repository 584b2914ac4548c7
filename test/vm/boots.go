package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
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

// systemModules are for the disk and for the stand-ins: a system's disk has no modules on it.
var systemModules = []string{"virtio_pci", "virtio_blk", "dummy"}

// RunSystems boots systems through all stages and returns a result for each stage that was come to. An error is one of
// the runner's own.
func (r *Runner) RunSystems(ctx context.Context, systems []System) ([]Result, error) {
	emulator, err := r.emulator(ctx)
	if err != nil {
		return nil, fmt.Errorf("get a qemu from version 8 on: %w", err)
	}
	var results []Result
	for _, s := range systems {
		of, err := r.runSystem(ctx, emulator, s)
		results = append(results, of...)
		if err != nil {
			return results, fmt.Errorf("run the system %s: %w", s.Name, err)
		}
	}
	return results, nil
}

func (r *Runner) runSystem(ctx context.Context, e qemu.Emulator, s System) ([]Result, error) {
	kernels, err := Select(s.Kernel)
	if err != nil {
		return nil, err
	}
	k, err := r.fetch(ctx, kernels[0])
	if err != nil {
		return nil, err
	}
	pristine, err := r.disk(ctx, s)
	if err != nil {
		return nil, err
	}
	bin, err := r.binaries(ctx, k.Arch, []Suite{Stages[0].Suite})
	if err != nil {
		return nil, err
	}
	logs := filepath.Join(r.Cache, "logs", s.Name)
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
	fmt.Fprintf(r.Out, "%s: kernel %s on %s\n", s.Name, k.Name, e.Name)
	k.Name = s.Name
	var results []Result
	for _, stage := range Stages {
		result, err := r.bootSystem(ctx, e, k, stage, filepath.Join(bin, Stages[0].Name+".test"), disk)
		results = append(results, result...)
		if err != nil || len(result) == 0 || result[0].Verdict != Passed {
			return results, err
		}
	}
	return results, os.Remove(disk)
}

// bootSystem boots a system once.
func (r *Runner) bootSystem(ctx context.Context, e qemu.Emulator, k Kernel, stage Stage, tests, disk string) ([]Result, error) {
	logs := filepath.Dir(disk)
	initramfs := filepath.Join(logs, "initramfs")
	if err := r.writeSystemInitramfs(initramfs, k, stage, tests); err != nil {
		return nil, err
	}
	defer os.Remove(initramfs)
	console := filepath.Join(logs, "console-"+stage.Name+".log")
	c := collector{Runner: r, kernel: k, suites: []Suite{stage.Suite}, logs: logs, began: time.Now()}
	err := e.Boot(ctx, qemu.Machine{
		Kernel: k.Image, Initramfs: initramfs, Cmdline: systemCmdline + " " + stage.Cmdline, Disk: disk,
		MemoryMB: memoryMB, Console: console, Grace: systemGrace,
	}, c.bound, c.event)
	var broken *qemu.EmulatorError
	if ctx.Err() != nil || errors.As(err, &broken) {
		return c.results, err
	}
	c.end(err, console)
	return c.results, c.err
}

// writeSystemInitramfs writes what starts the system, and what the test adds to it without writing to its disk.
func (r *Runner) writeSystemInitramfs(file string, k Kernel, stage Stage, tests string) error {
	var root qemu.Initramfs
	bin := filepath.Dir(tests)
	ours := strings.TrimPrefix(wire.SystemDir, "/") + "/"
	for name, from := range map[string]string{
		"init": filepath.Join(bin, "init"), ours + "init": filepath.Join(bin, "init"),
		ours + "firsthop": filepath.Join(bin, "firsthop"), ours + "tests/" + stage.Name: tests,
	} {
		if err := root.AddFile(name, from); err != nil {
			return err
		}
	}
	root.AddDir(ours + "src/" + stage.Package)
	units := ours + wire.SystemRun + "/systemd/system"
	if err := root.AddTree(units, filepath.Join(r.Repository, stage.Package, "testdata/units"), nil); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(r.Repository, stage.Package, "testdata/units"))
	if err != nil {
		return err
	}
	for _, unit := range entries {
		root.AddLink(units+"/multi-user.target.wants/"+unit.Name(), "../"+unit.Name())
	}
	mods, _, err := qemu.Modules(k.Modules, systemModules...) // what is absent may be built in
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

// SelectSystems returns the systems of a comma-separated list, all for an empty one.
func SelectSystems(list string) ([]System, error) {
	if list == "" {
		return Systems, nil
	}
	var selected []System
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(Systems, func(s System) bool { return s.Name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("find the system %q: see systems.go for those that there are", name)
		}
		selected = append(selected, Systems[i])
	}
	return selected, nil
}
