package vm

// containerPaths are those of package container. Their files are made before: make image.
var containerPaths = []Path{
	{Name: "container", Packages: []string{"runc", "containerd"}, Modules: []string{"veth"}, Stages: []Stage{
		{Suite: containers("containers", "ImageInContainerd|InitContainer|InitContainerWithoutCapability|InitContainerMemoryLimit|InitContainerWithoutSyscall|InstalledStays"), Put: containerFiles},
		{Suite: containers("after", "InstalledServesNextBoot"), Put: containerFiles},
	}},
}

// containerFiles are put below /run.
var containerFiles = map[string]string{
	"container-test/deploy/manifests": "deploy/manifests", "container-test/deploy/seccomp": "deploy/seccomp",
	"container-test/deploy/runtime":   "deploy/runtime",
	"container-test/firsthop-oci.tar": "bin/image/firsthop-oci.tar", "container-test/digest": "bin/image/digest",
}

func containers(name, tests string) Suite {
	return Suite{Name: name, Package: "test/vm/container", Run: "^Test(" + tests + ")$", Seconds: 900}
}
