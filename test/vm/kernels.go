package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/test/vm/qemu"
)

// Kernel is one that the suites run on.
type Kernel struct {
	Name string
	// Suites are the Debian suites with its package. Of several lists the first that can be had is taken.
	Suites [][]string
	// Package depends on the newest image of its suite.
	Package string
	Arch    string // as Debian calls it
	// Like is the mainline version whose features it must have; a missing one fails, see inside/features_test.go. Empty:
	// those that firsthop needs.
	Like string

	// Image and Modules are files of the host's instead of a package; Modules may be empty.
	Image, Modules string

	release string // what `uname -r` will say; known once it was fetched
}

// Kernels are those that make test-vm runs.
var Kernels = []Kernel{
	{Name: "5.10", Suites: [][]string{{"bullseye", "bullseye-security"}}, Package: "linux-image-cloud-amd64", Arch: "amd64", Like: "5.10"},
	{Name: "6.1", Suites: [][]string{{"bookworm", "bookworm-security"}}, Package: "linux-image-cloud-amd64", Arch: "amd64", Like: "6.1"},
	{Name: "6.12", Suites: [][]string{{"trixie", "trixie-security"}}, Package: "linux-image-cloud-amd64", Arch: "amd64", Like: "6.12"},
	{Name: "newest", Suites: [][]string{{"trixie", "trixie-backports"}, {"sid"}}, Package: "linux-image-cloud-amd64", Arch: "amd64", Like: "6.18"},
	{Name: "6.12-arm64", Suites: [][]string{{"trixie", "trixie-security"}}, Package: "linux-image-cloud-arm64", Arch: "arm64", Like: "6.12"},
}

// modules are what the tests use and a kernel may have built as modules, for the machine and for the suites.
var modules = []string{
	"veth", "dummy", "bridge", "vxlan", "cls_bpf", "sch_ingress", "inet_diag", "tcp_diag", "udp_diag", "nf_tables",
}

// GivenKernel is an image that the user has. What it must have is read off its release. Without a directory of modules
// they are looked for where packages have them, as seen from the image.
func GivenKernel(image, modules string) (Kernel, error) {
	read, err := qemu.ReadImage(image)
	if err != nil {
		return Kernel{}, err
	}
	if modules == "" {
		modules = modulesBeside(image, read.Release)
	}
	k := Kernel{Name: read.Release, Arch: read.Arch, Image: image, Modules: modules}
	if !strings.Contains(read.Release, ".el8") && !strings.Contains(read.Release, ".el9") { // they say one version and have more
		k.Like = majorMinor(read.Release)
	}
	return k, nil
}

// modulesBeside finds the modules of an image in /boot or in the directory of its modules, "" if they aren't there.
func modulesBeside(image, release string) string {
	dir := filepath.Dir(image)
	for _, candidate := range []string{
		dir, filepath.Join(dir, "../lib/modules", release), filepath.Join(dir, "../usr/lib/modules", release), filepath.Join(dir, "lib/modules", release),
	} {
		if info, err := os.Stat(filepath.Join(candidate, "kernel")); err == nil && info.IsDir() {
			return candidate
		}
	}
	return ""
}

func majorMinor(release string) string {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return ""
	}
	return fmt.Sprintf("%d.%d", major, minor)
}

// TooOld tells whether firsthop has to refuse a kernel: below 5.3, or RHEL 8's below 4.18.0-193 (docs/kernels.md).
func TooOld(release string) bool {
	var major, minor, patch, build int
	n, _ := fmt.Sscanf(release, "%d.%d.%d-%d", &major, &minor, &patch, &build)
	if n < 2 {
		return false
	}
	if major == 4 && minor == 18 && strings.Contains(release, ".el8") {
		return n == 4 && build < 193
	}
	return major < 5 || major == 5 && minor < 3
}

// Select returns the kernels of a comma-separated list, all for an empty one.
func Select(list string) ([]Kernel, error) {
	if list == "" {
		return Kernels, nil
	}
	var selected []Kernel
	for name := range strings.SplitSeq(list, ",") {
		known := len(selected)
		for _, k := range Kernels {
			if k.Name == strings.TrimSpace(name) {
				selected = append(selected, k)
			}
		}
		if len(selected) == known {
			return nil, fmt.Errorf("find the kernel %q: there are %s, and any image by VM_KERNEL", name, kernelNames())
		}
	}
	return selected, nil
}

func kernelNames() string {
	var names []string
	for _, k := range Kernels {
		names = append(names, k.Name)
	}
	return strings.Join(names, ", ")
}
