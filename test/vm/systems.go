package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/test/vm/debian"
)

// System is a distribution with its systemd, on a disk that is kept from one boot to the next.
type System struct {
	Name   string
	Suites []string // of Debian
	Kernel string   // the name of one of Kernels
}

// Systems are those that make test-boot boots.
var Systems = []System{
	{Name: "debian11", Suites: []string{"bullseye", "bullseye-security"}, Kernel: "5.10"},
	{Name: "debian12", Suites: []string{"bookworm", "bookworm-security"}, Kernel: "6.1"},
	{Name: "debian13", Suites: []string{"trixie", "trixie-security"}, Kernel: "6.12"},
}

// systemPackages are what a node's system has at least, and what the tests look with.
var systemPackages = []string{
	"base-files", "base-passwd", "bash", "coreutils", "dash", "dbus", "findutils", "grep", "hostname", "iproute2", "kmod",
	"libc-bin", "login", "mount", "procps", "sed", "systemd", "systemd-sysv", "udev", "util-linux",
}

// unusedBySystem are dependencies of the packages' scripts, which are not run.
var unusedBySystem = []string{"adduser", "debconf", "dpkg", "libperl5.36", "passwd", "perl", "perl-base", "perl-modules-5.36"}

const (
	diskSize = "1G" // a sparse file
	// configuration is the version of what debian.Configure does: images that were made by another are not used.
	configuration = "2"
)

// disk returns the image of a system's disk with more packages, as it was never booted. It must not be written to.
func (r *Runner) disk(ctx context.Context, s System, more []string) (string, error) {
	packages := slices.Concat(systemPackages, more)
	slices.Sort(packages)
	sum := sha256.Sum256([]byte(strings.Join(packages, " ")))
	tree, err := r.archive("amd64").Fetch(ctx, debian.Request{
		Suites: s.Suites, Packages: packages, Key: "systemd", Variant: hex.EncodeToString(sum[:4]),
		Keep: func(name string) bool { return slices.Contains(more, name) || !slices.Contains(unusedBySystem, name) },
	})
	if err != nil {
		return "", err
	}
	image := filepath.Join(r.Cache, "disks", filepath.Base(tree.Dir)+"_"+configuration+".ext4")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	if err := os.MkdirAll(filepath.Dir(image), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(image), ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := command(ctx, "cp", "--archive", tree.Dir, root); err != nil {
		return "", err
	}
	if err := debian.Configure(ctx, root); err != nil {
		return "", fmt.Errorf("make a system of %s: %w", tree.Dir, err)
	}
	made := filepath.Join(tmp, "disk")
	if err := command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, made, diskSize); err != nil {
		return "", err
	}
	return image, os.Rename(made, image)
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin") // Debian's users lack these
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
