// Package container has what is tested of the init container, in a system with Debian's runc: the image that make image
// has made, with the namespaces, mounts and rights of the manifests in deploy/manifests, which are read for it. A change
// of a manifest changes what is tested.
//
// make test-boot BOOT=container runs it; elsewhere only the tests that read the manifests run.
package container
