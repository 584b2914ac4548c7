// Package units makes firsthop start at boot and take itself away again.
//
// What it puts on a host depends on who starts things there:
//
//   - systemd: firsthop-init.service (a oneshot before the kubelet and the
//     container runtimes), and sys-fs-bpf.mount below systemd 239 only: from
//     239 on systemd mounts /sys/fs/bpf itself and refuses such a unit.
//   - OpenRC: /etc/init.d/firsthop-init in the default runlevel.
//   - another init that reads /etc/fstab: one line there, for the bpffs alone.
//   - nobody known: nothing, and a statement that says so.
//
// Beside them goes the host's own copy of the binary, /opt/firsthop/bin/firsthop.
//
// Units are data (see [ServiceUnit] and [MountUnit]). [PlanInstall] and
// [PlanUninstall] look and change nothing; [Install] and [Uninstall] carry the
// same plans out. A file without the [Marker] line is somebody else's: it is
// named in an error and never overwritten or removed. All files are written
// beside their place and renamed into it, so a kill leaves the old file or the
// new one, and at worst a temporary file that the next run takes away.
//
// Every path is resolved below Config.Root the way the host would do it:
// absolute symbolic links in /host/opt stay in /host.
//
// Nothing here is safe for concurrent use on one host: callers hold the lock
// under /run/firsthop.
package units
