package vm

// bootPaths are those of package boot.
var bootPaths = []Path{
	{Name: "life", Short: true, Stages: []Stage{
		{Suite: boot("install", "Before|Install"), Cut: true},
		{Suite: boot("power-cut", "Boot|Uninstall"), Cmdline: "vm.twin"},
		{Suite: boot("removed", "NoTrace")},
	}},
	// Cut in the middle: at the first thing that install makes, at its copy of the program, at its last.
	{Name: "cut-install", Stages: []Stage{
		{Suite: boot("before", "Before")},
		{Suite: boot("cut-1", "CutInstall", cutAt+"/var/lib/firsthop"), Cut: true},
		{Suite: boot("cut-2", "AfterCut|CutInstall", cutAt+"/opt/firsthop/bin/"), Cut: true},
		{Suite: boot("cut-3", "AfterCut|CutInstall", cutAt+"/etc/systemd/system/firsthop-init.service"), Cut: true},
		{Suite: boot("cut-4", "AfterCut|CutInstall", cutAt+"/etc/systemd/system/multi-user.target.wants/firsthop-init.service"), Cut: true},
		{Suite: boot("again", "InstallAgain")},
		{Suite: boot("last", "Boot|Uninstall")},
	}},
	// Cut where init notes its mount of a bpffs, has the first map, the first link, the last, and writes the cache.
	{Name: "cut-init", Stages: []Stage{
		{Suite: boot("install", "Before|Install")},
		{Suite: boot("cut-mount", "Boot|CutInit", cutAt+"/run/firsthop/changes.json"), Cut: true},
		{Suite: boot("cut-maps", "Boot|CutInit", cutAt+"/sys/fs/bpf/firsthop/maps/"), Cut: true},
		{Suite: boot("cut-links", "Boot|CutInit", cutAt+"/sys/fs/bpf/firsthop/links/"), Cut: true},
		{Suite: boot("cut-proof", "Boot|CutInit", cutAt+"/sys/fs/bpf/firsthop/links/connect6"), Cut: true},
		{Suite: boot("cut-cache", "Boot|CutInit", cutAt+"/var/lib/firsthop/apiserver.json"), Cut: true},
		{Suite: boot("last", "Boot|Uninstall")},
	}},
	{Name: "hard-boot", Stages: []Stage{
		{Suite: boot("install", "Before|Install")},
		{Suite: boot("no-bpffs", "Boot|BPFFSWasUnmounted"), Cmdline: "vm.no-bpffs"},
		{Suite: boot("moved", "Boot|AllButOneMoved"), Cmdline: "vm.moved"},
	}},
	// Both versions of cgroups, and only the first as RHEL 8 has it; Debian 13's systemd 257 has neither any more.
	{Name: "hybrid", Systems: withCgroup1, Cmdline: "systemd.unified_cgroup_hierarchy=0", Stages: []Stage{
		{Suite: boot("install", "Before|Install|Cgroup2|ServesCgroup2", cgroup2+"/sys/fs/cgroup/unified")},
		{Suite: boot("net-cls", "Boot|Cgroup2|ServesCgroup2|WithClassID|Uninstall", cgroup2+"/sys/fs/cgroup/unified"), Cmdline: "vm.net-cls"},
		{Suite: boot("removed", "NoTrace|Cgroup2", cgroup2+"/sys/fs/cgroup/unified")},
	}},
	{Name: "cgroup1", Systems: withCgroup1, Cmdline: "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1", Stages: []Stage{
		{Suite: boot("before", "Before|Cgroup2", cgroup2)},
		{Suite: boot("install", "Install|Cgroup2|ServesCgroup2", cgroup2+"/run/firsthop/cgroup")},
		{Suite: boot("net-cls", "Boot|Cgroup2|ServesCgroup2|WithClassID|Uninstall", cgroup2+"/run/firsthop/cgroup"), Cmdline: "vm.net-cls"},
		{Suite: boot("removed", "NoTrace|Cgroup2", cgroup2)},
	}},
	// nf_tables: without it and without a list of what is built in, kube-proxy's rules could not be looked for.
	{Name: "old-kernel", Systems: []string{"debian11"}, Modules: []string{"nf_tables"}, Stages: []Stage{
		{Suite: boot("install", "Before|Install")},
		{Suite: boot("kube-proxy", "FallsBack"), Put: dropIn("no-connect4"), Cmdline: "vm.twin vm.kube-proxy"},
		{Suite: boot("alone", "FailsLoudly", "FIRSTHOP_VM_LACKS=connect4"), Put: dropIn("no-connect4"), Cmdline: "vm.twin"},
		// Not a setting of firsthop, but a kernel that has no bpffs.
		{Suite: boot("no-bpffs", "FailsLoudly", "FIRSTHOP_VM_LACKS=bpffs"), Cmdline: "vm.twin initcall_blacklist=bpf_init"},
		{Suite: boot("as-5.3", "Boot|Uninstall"), Put: dropIn("as-5.3")},
	}},
}

var withCgroup1 = []string{"debian11", "debian12"}

const cgroup2 = "FIRSTHOP_VM_CGROUP2="

// dropIn changes the boot unit.
func dropIn(name string) map[string]string {
	return map[string]string{"systemd/system/firsthop-init.service.d/" + name + ".conf": "test/vm/boot/testdata/drop-ins/" + name + ".conf"}
}

const cutAt = "FIRSTHOP_VM_CUT_AT="

// boot is a stage whose tests are of package boot.
func boot(name, tests string, env ...string) Suite {
	return Suite{Name: name, Package: "test/vm/boot", Run: "^Test(" + tests + ")$", Seconds: 240, Env: env}
}
