package vm

import (
	"maps"
	"slices"
)

// runtimePaths are those of `firsthop run` with a real API server, which make test-boot builds: as a service of systemd's,
// from a package, and as the pod of the DaemonSet.
var runtimePaths = []Path{
	{Name: "runtime", Packages: packagePaths[0].Packages, Modules: socketModules, Stages: []Stage{
		{Suite: patient(boot("install", "RuntimeBefore|RuntimeInstall|RuntimeServes|RuntimeKilled|RuntimeHangs|RuntimeStopped")), Put: withKube(withPackages)},
		{Suite: patient(boot("boot", "RuntimeBoot|RuntimeUpgrade|RuntimeRemove")), Put: withKube(withPackages)},
		{Suite: patient(boot("purge", "RuntimePurge")), Put: withKube(withPackages)},
	}},
	{Name: "pod", Packages: slices.Concat(containerPaths[0].Packages, []string{"nftables"}), Modules: slices.Concat(containerPaths[0].Modules, socketModules, []string{"nf_tables"}), Stages: []Stage{
		{Suite: patient(containers("pod", "ImageInContainerd|RuntimePod")), Put: withKube(containerFiles)},
	}},
}

// socketModules are what a kernel loads by itself to end a socket, from a disk with modules.
var socketModules = []string{"inet_diag", "tcp_diag", "udp_diag"}

// withKube adds what package kube needs: make vm-kube.
func withKube(put map[string]string) map[string]string {
	put = maps.Clone(put)
	put["systemd/system"] = "test/vm/kube/units"
	for _, name := range []string{"etcd", "kube-apiserver", "ld-linux-x86-64.so.2", "libc.so.6"} {
		put["vm/kube/"+name] = "bin/vm/kube/" + name
	}
	// Another version of the program, for an upgrade without a package.
	put["container-test/firsthop-0.2.0"] = "bin/vm/packages/0.2.0.in/linux-amd64/firsthop"
	put["vm/kube/rbac.yaml"] = "deploy/runtime/rbac.yaml"
	return put
}

// patient is for stages that have to wait for an API server, and for a watchdog.
func patient(s Suite) Suite {
	s.Seconds = 2400
	return s
}
