package units

import (
	"bytes"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
)

// apiBPFFS is the first systemd that mounts /sys/fs/bpf at boot as an API
// file system (v239, NEWS: "systemd will now automatically mount ... bpf").
// From then on a unit for that path is refused as "Cannot create mount unit
// for API file system", whether it is mounted or not: the check goes by path
// (mount_point_is_api in src/shared/mount-setup.c). In a container systemd
// refuses the unit too, but mounts nothing.
const apiBPFFS = 239

// MountUnitName is the name that systemd demands of a mount unit for path.
func MountUnitName(path string) string { return unit.UnitNamePathEscape(path) + ".mount" }

// runtimes are the services that must find the Service IP working: kubelets
// and container runtimes in all the forms that distributions start them.
// Before= on a unit that does not exist does nothing.
var runtimes = []string{
	"kubelet.service", "containerd.service", "crio.service", "docker.service",
	"cri-docker.service", "cri-dockerd.service",
	"k3s.service", "k3s-agent.service",
	"rke2-server.service", "rke2-agent.service",
	"k0scontroller.service", "k0sworker.service",
	"snap.microk8s.daemon-containerd.service", "snap.microk8s.daemon-kubelite.service",
	"snap.k8s.containerd.service", "snap.k8s.kubelet.service",
	"snap.kubelet-eks.daemon.service", "nodeadm-run.service",
}

// capabilities are all that the init stage needs, with the reason for each.
// CAP_BPF and CAP_PERFMON (Linux 5.8) are not listed: bpf_capable() and
// perfmon_capable() accept CAP_SYS_ADMIN, which mounts need in any case.
// CAP_SYS_RESOURCE is not, because LimitMEMLOCK= is set before the start.
// CAP_DAC_* are not: all that is read belongs to root.
var capabilities = []string{
	"CAP_SYS_ADMIN",  // mount bpffs and cgroup2, setns, bpf() below 5.8
	"CAP_NET_ADMIN",  // attach programs: below 5.8 bpf_prog_attach() asks for this one alone
	"CAP_SYS_PTRACE", // /proc/1/ns/mnt and /proc/1/root: pid 1 has more capabilities than we (ptrace(2), PTRACE_MODE_READ_FSCREDS)
	"CAP_SYS_CHROOT", // setns into a mount namespace asks for it beside CAP_SYS_ADMIN (setns(2))
}

// hardening is what may be taken from the service. It holds no directive that
// gives it a mount namespace (Protect*, Private*, *Paths ...): the mounts it
// makes would stay in there. RestrictNamespaces= is left out as well: it
// makes clone3 fail, with which the proof puts its child into a cgroup.
// Directives that an older systemd does not know only warn: RestrictSUIDSGID=
// is of 242, LockPersonality= and KeyringMode= of 235, the rest of 231 or before.
func hardening(version int) []*unit.UnitOption {
	opts := []*unit.UnitOption{
		service("CapabilityBoundingSet", strings.Join(capabilities, " ")),
		service("NoNewPrivileges", "yes"),
		service("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
		service("SystemCallArchitectures", "native"),
	}
	// @system-service is of 239. An older systemd would ignore the unknown
	// group, keep the rest of the list, and so forbid everything else.
	if version >= apiBPFFS {
		opts = append(opts,
			service("SystemCallFilter", "@system-service @mount bpf"),
			service("SystemCallFilter", "~chroot pivot_root"),
			// ENOSYS, not EPERM: a call that this systemd's list does not know
			// yet then looks like an older kernel, for which we have a way.
			service("SystemCallErrorNumber", "ENOSYS"),
		)
	}
	return append(opts,
		service("LockPersonality", "yes"),
		service("MemoryDenyWriteExecute", "yes"),
		service("RestrictRealtime", "yes"),
		service("RestrictSUIDSGID", "yes"),
		service("KeyringMode", "private"),
		service("UMask", "0077"),
		service("LimitMEMLOCK", "infinity"), // BPF maps count as locked memory below Linux 5.11
		service("LimitNOFILE", "65536"),
	)
}

func service(name, value string) *unit.UnitOption {
	return unit.NewUnitOption("Service", name, value)
}

// ServiceUnit returns firsthop-init.service for a host with the given systemd
// version; 0 means that it is not known, and leaves out what an old one would
// misunderstand.
//
// It can never hold up a boot: multi-user.target only wants it, nothing
// requires it, the kubelet is merely ordered after it, and TimeoutStartSec=
// bounds it (a oneshot has no start timeout of its own, systemd.service(5)).
// It waits for no network: a connect is answered by our program before the
// kernel looks for a route.
func ServiceUnit(c Config, version int) ([]*unit.UnitOption, error) {
	return serviceUnit(c, BinaryPath, version)
}

// serviceUnit is ServiceUnit for a program in any place.
func serviceUnit(c Config, program string, version int) ([]*unit.UnitOption, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	head := func(name, value string) *unit.UnitOption { return unit.NewUnitOption("Unit", name, value) }
	opts := []*unit.UnitOption{
		head("Description", "firsthop: the Kubernetes API Service works before the kubelet starts"),
		head("Documentation", "https://github.com/firsthop/firsthop"),
		head("ConditionPathExists", program),
		// Not the bpffs: from 239 on it has no unit file, and RequiresMountsFor=
		// would do nothing; below, a failed mount unit would keep us from
		// mounting it ourselves, which After= and Wants= do not.
		head("RequiresMountsFor", path.Dir(program)+" "+quoteWord(c.StateDir)),
	}
	if needsMountUnit(c, version) {
		opts = append(opts,
			head("Wants", MountUnitName(c.BPFFS)),
			head("After", MountUnitName(c.BPFFS)))
	}
	for i := 0; i < len(runtimes); i += 4 {
		opts = append(opts, head("Before", strings.Join(runtimes[i:min(i+4, len(runtimes))], " ")))
	}
	opts = append(opts,
		service("Type", "oneshot"),
		service("RemainAfterExit", "yes"),
		service("TimeoutStartSec", "30s"),
		service("EnvironmentFile", "-"+EnvironmentFile),
		service("ExecStart", execLine(program, c.Args)),
	)
	opts = append(opts, hardening(version)...)
	return append(opts, unit.NewUnitOption("Install", "WantedBy", "multi-user.target")), nil
}

// MountUnit returns the unit that mounts a bpffs at path: for systemd below
// 239 only, newer ones refuse it for /sys/fs/bpf. The options are those that
// newer systemd uses. It comes before local-fs.target like any local mount;
// systemd adds the ordering after the /sys mount by itself.
func MountUnit(path string) []*unit.UnitOption {
	return []*unit.UnitOption{
		unit.NewUnitOption("Unit", "Description", "BPF file system"),
		unit.NewUnitOption("Unit", "Documentation", "https://docs.kernel.org/bpf/"),
		unit.NewUnitOption("Unit", "DefaultDependencies", "no"),
		unit.NewUnitOption("Unit", "ConditionPathExists", specifiers(path)),
		unit.NewUnitOption("Unit", "After", "systemd-modules-load.service"),
		unit.NewUnitOption("Unit", "Before", "local-fs.target umount.target"),
		unit.NewUnitOption("Unit", "Conflicts", "umount.target"),
		unit.NewUnitOption("Mount", "What", "bpffs"),
		unit.NewUnitOption("Mount", "Where", specifiers(path)),
		unit.NewUnitOption("Mount", "Type", "bpf"),
		unit.NewUnitOption("Mount", "Options", "rw,nosuid,nodev,noexec,relatime,mode=700"),
		unit.NewUnitOption("Install", "WantedBy", "local-fs.target"),
	}
}

// needsMountUnit says whether the bpffs of c gets a mount unit: the usual
// path, and a systemd that is known to be too old to mount it.
func needsMountUnit(c Config, version int) bool {
	return c.BPFFS == DefaultBPFFS && version > 0 && version < apiBPFFS
}

// render is the unit file: the marker, what an administrator should know, and
// the options in order.
func render(opts []*unit.UnitOption) []byte {
	return withHead(Marker+"\n# The next install writes this file again: keep changes in a drop-in\n"+
		"# (systemctl edit), or settings in "+EnvironmentFile+".\n\n", opts)
}

// renderPackaged is the unit file of a package. It has no [Marker]: it is the package manager's.
func renderPackaged(opts []*unit.UnitOption, settings string) []byte {
	return withHead("# Of the package firsthop: keep changes in a drop-in (systemctl edit), or\n"+
		"# settings in "+EnvironmentFile+settings+".\n\n", opts)
}

func withHead(head string, opts []*unit.UnitOption) []byte {
	b := bytes.NewBufferString(head)
	_, _ = b.ReadFrom(unit.Serialize(opts)) // from one buffer to another: no error
	return b.Bytes()
}

// isOurs reports whether a text file carries the marker as a line of its own.
func isOurs(data []byte) bool {
	for line := range bytes.Lines(data) {
		if string(bytes.TrimRight(line, "\r\n")) == Marker {
			return true
		}
	}
	return false
}
