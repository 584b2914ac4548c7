#!/bin/sh
# boot.sh TEMPLATE ROOT: become pid 1 of a container with this machine's
# systemd and a root file system of its own in memory, filled from TEMPLATE.
# The caller has made all namespaces and chosen the cgroup.
set -e
template=$1 root=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 fh-root "$root"
cp -a "$template/." "$root"
cd "$root"
mkdir -p usr proc sys run tmp var/log dev
mount --bind /usr usr
mount -o remount,bind,ro usr
for l in bin sbin lib lib64; do [ ! -e "/usr/$l" ] || ln -sfn "usr/$l" "$l"; done
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for d in null zero full random urandom tty; do
	: >"dev/$d"
	mount --bind "/dev/$d" "dev/$d"
done
exec env -i container=fh PATH=/usr/sbin:/usr/bin chroot "$root" /lib/systemd/systemd --system --log-target=console
