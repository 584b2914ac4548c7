package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Platform is what machines of one architecture have.
type Platform struct {
	Arch    string // as Debian calls it
	Package string // Debian's package of its emulator
	Port    string // the guest's device of the second serial port, which is the wire

	program string
	least   [2]int // the first version of qemu that will do
	machine []string
	console string // the guest's name of the first serial port
	cmdline string
}

// Platforms are all that there are. Neither accelerates with kvm where that is there: nested in other machines it hangs.
var Platforms = []Platform{
	{
		Arch: "amd64", Package: "qemu-system-x86", program: "qemu-system-x86_64",
		least:   [2]int{8, 0}, // 7.2 corrupts the memory of kernels from 6.12 on
		machine: []string{"-M", "q35", "-cpu", "max"}, console: "ttyS0", Port: "/dev/ttyS1",
		// On a busy machine the timer's ticks come late, and the kernel panics: "IO-APIC + timer doesn't work".
		// Random numbers of the emulated processor: nothing else happens in a machine that a kernel could take some from.
		cmdline: "no_timer_check random.trust_cpu=on",
	},
	{
		Arch: "arm64", Package: "qemu-system-arm", program: "qemu-system-aarch64",
		least: [2]int{9, 1}, // the first with a second serial port
		// What many nodes of clouds have. Newer processors sign pointers, which takes an emulator half of its time.
		machine: []string{"-M", "virt", "-cpu", "neoverse-n1"}, console: "ttyAMA0", Port: "/dev/ttyAMA1",
		// Separate page tables for the kernel make each system call empty the emulator's cache of translated addresses:
		// programs that do little else take three times as long. Other defences stay, as the verifier depends on them.
		cmdline: "kpti=off",
	},
}

// PlatformOf finds one.
func PlatformOf(arch string) (Platform, error) {
	for _, p := range Platforms {
		if p.Arch == arch {
			return p, nil
		}
	}
	return Platform{}, fmt.Errorf("find a machine for the architecture %q: there are amd64 and arm64", arch)
}

// Emulator is a qemu.
type Emulator struct {
	Platform
	argv []string // the command and flags that every machine needs
	env  []string
	Name string // its version, for people
}

// Installed is the qemu of this machine, if it is new enough.
func (p Platform) Installed(ctx context.Context) (Emulator, bool) {
	out, err := exec.CommandContext(ctx, p.program, "--version").Output()
	if err != nil {
		return Emulator{}, false
	}
	version, ok := p.newEnough(string(out))
	return Emulator{Platform: p, argv: []string{p.program}, Name: "qemu " + version}, ok
}

// newEnough reads what qemu says of its version.
func (p Platform) newEnough(said string) (version string, ok bool) {
	version = regexp.MustCompile(`version (\d+\.\d+\S*)`).FindString(said)
	version = strings.TrimPrefix(version, "version ")
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n != 2 {
		return "", false
	}
	return version, major > p.least[0] || major == p.least[0] && minor >= p.least[1]
}

// Unpacked is a qemu that was unpacked with all libraries that it needs, for this machine's own architecture: amd64. It is
// run by its own dynamic linker, so that it works whatever C library this machine has.
func (p Platform) Unpacked(root, version string) (Emulator, error) {
	const triplet = "x86_64-linux-gnu"
	lib := filepath.Join(root, "usr/lib", triplet)
	linker := filepath.Join(lib, "ld-linux-x86-64.so.2")
	for _, file := range []string{linker, filepath.Join(root, "usr/bin", p.program)} {
		if _, err := os.Stat(file); err != nil {
			return Emulator{}, err
		}
	}
	argv := []string{
		linker, "--library-path", strings.Join([]string{lib, filepath.Join(root, "lib", triplet)}, ":"),
		filepath.Join(root, "usr/bin", p.program),
	}
	for _, dir := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		argv = append(argv, "-L", filepath.Join(root, dir))
	}
	return Emulator{Platform: p, argv: argv, env: []string{"QEMU_MODULE_DIR=" + filepath.Join(lib, "qemu")}, Name: "qemu " + version}, nil
}
