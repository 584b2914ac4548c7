package nodes

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// cgroupHooks are where something can be attached to a cgroup.
var cgroupHooks = []ebpf.AttachType{
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCgroupInetSockRelease,
	ebpf.AttachCGroupSockOps, ebpf.AttachCGroupDevice, ebpf.AttachCGroupSysctl, ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt,
	ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	ebpf.AttachCgroupInet4GetSockname, ebpf.AttachCgroupInet6GetSockname,
}

// ofOthers are the files of a node's disk that kubelet, containers and logs change all the time, and sysctls of devices
// that come and go with pods.
var ofOthers = regexp.MustCompile(`^(file (etc/kubernetes|root|tmp|var/(log|lib/(cni|containerd|kubelet|systemd|dbus)|cache|tmp)|etc/cni|opt/cni|run|dev|usr/libexec/kubernetes)(/|$)` +
	`|sysctl /proc/sys/net/\S*/(veth|cni0)|sysctl \S*(nf_conntrack_count|random|fib_multipath_hash_seed))`)

// Traces are what a program could have left on the node: files of its disk, entries of the bpffs, programs at the root of
// its cgroups and at devices, mounts of file systems of the kernel's, sysctls of the network with their values.
func (n *Node) Traces() []string {
	n.c.t.Helper()
	out := n.attached()
	upper := filepath.Join(n.disk, "upper")
	n.c.must(filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // it has just gone
		}
		if err == nil && !d.IsDir() && d.Type()&fs.ModeCharDevice == 0 { // a device is what was deleted
			out = append(out, "file "+strings.TrimPrefix(path, upper+"/"))
		}
		return err
	}))
	for line := range strings.Lines(n.Sh(tracesScript)) {
		out = append(out, strings.TrimSpace(line))
	}
	out = slices.DeleteFunc(out, ofOthers.MatchString)
	slices.Sort(out)
	return out
}

const tracesScript = `
find /sys/fs/bpf -mindepth 1 | sed 's/^/bpffs /'
grep -E '^[^ ]+ [^ ]+ (bpf|cgroup2?) ' /proc/mounts | cut -d' ' -f2,3 | sed 's/^/mount /'
find /proc/sys/net -type f -perm -0400 | while read -r f; do echo "sysctl $f = $(cat "$f" 2>/dev/null | tr '\n\t' '  ')"; done
ls -d /run/firsthop /etc/systemd/system/firsthop* /etc/fstab.d 2>/dev/null | sed 's/^/path /'
systemctl list-unit-files --no-legend --plain 'firsthop*' | sed 's/^/unit /'
`

// attached are the programs at the root of the node's cgroups.
func (n *Node) attached() (out []string) {
	n.c.t.Helper()
	dir, err := os.Open(n.lab.Cgroup)
	n.c.must(err)
	defer dir.Close()
	for _, hook := range cgroupHooks {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: hook})
		if err != nil {
			n.c.t.Fatalf("%s: ask for the programs at %v: %v", n.Name, hook, err)
		}
		for i := range found.Programs {
			out = append(out, fmt.Sprintf("program %d at %v", i, hook))
		}
	}
	return out
}
