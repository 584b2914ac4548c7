package vm

// packagePaths are those of the .deb and the .rpm, which make test-boot builds in two versions.
var packagePaths = []Path{{
	Name: "packages",
	// perl-base and init-system-helpers are for the scripts of Debian's packages, and so of ours.
	Packages: []string{"diffutils", "dpkg", "init-system-helpers", "perl-base", "rpm"},
	Stages: []Stage{
		{Suite: boot("install", "Before|PackageTakesOver"), Put: withPackages},
		{Suite: boot("upgrade", "Boot|PackageUpgrade"), Put: withPackages, Cut: true},
		{Suite: boot("remove", "Boot|PackageRemoveKeepsServing"), Put: withPackages},
		{Suite: boot("purge", "PackagePurge|PackageRespectsPreset"), Put: withPackages},
		{Suite: boot("beside", "PackageRemoveBesideKubeProxy|RPM"), Put: withPackages, Cmdline: "vm.kube-proxy"},
	},
}}

// withPackages has the packages at /run/packages.
var withPackages = map[string]string{"packages/0.1.0": "bin/vm/packages/0.1.0", "packages/0.2.0": "bin/vm/packages/0.2.0"}
