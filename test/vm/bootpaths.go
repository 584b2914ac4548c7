package vm

// bootPaths are those of package boot.
var bootPaths = []Path{
	{Name: "life", Short: true, Stages: []Stage{
		{Suite: boot("install", "Before|Install"), Cut: true},
		{Suite: boot("power-cut", "Boot|Uninstall")},
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
	{Name: "cut-init", Stages: []Stage{
		{Suite: boot("install", "Before|Install")},
		{Suite: boot("cut-cache", "Boot|CutInit", cutAt+"/var/lib/firsthop/apiserver.json"), Cut: true},
		{Suite: boot("last", "Boot|Uninstall")},
	}},
	{Name: "hard-boot", Stages: []Stage{
		{Suite: boot("install", "Before|Install")},
		{Suite: boot("no-bpffs", "Boot|BPFFSWasUnmounted"), Cmdline: "vm.no-bpffs"},
		{Suite: boot("moved", "Boot|AllButOneMoved"), Cmdline: "vm.moved"},
	}},
}

const cutAt = "FIRSTHOP_VM_CUT_AT="

// boot is a stage whose tests are of package boot.
func boot(name, tests string, env ...string) Suite {
	return Suite{Name: name, Package: "test/vm/boot", Run: "^Test(" + tests + ")$", Seconds: 240, Env: env}
}
