package main

import (
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
)

// bareMachine begins a script that is pid 1 of a make-believe machine: pid, mount and cgroup namespaces of its own, /run,
// /var/lib and /opt in memory, /etc an overlay that writes to memory, no bpffs.
const bareMachine = `set -e
mount -t proc proc /proc; umount -R -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o size=300m,mode=755 tmpfs /mnt; mkdir /mnt/u /mnt/w; mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
for d in /run /var/lib /opt; do mount -t tmpfs -o size=200m,mode=755 tmpfs $d; done
test -e /sys/fs/cgroup/cgroup.type || exit 99 # the top of the hierarchy, which is the real machine's, has none
rm -rf /etc/runit /etc/inittab; mkdir -p /run/systemd/system; export FH=$1; shift; set +e
`

// onMachine runs a script as pid 1 of a machine with API servers, in which $FH is firsthop. Its last command's exit code
// is the result's.
func onMachine(t *testing.T, script string) result {
	t.Helper()
	n := newNode(t)
	n.serving()
	// Never in the machine's own root cgroup, to which init would attach then.
	const join = `echo $$ >"$1"/cgroup.procs && grep -q "^0::/${1##*/}\$" /proc/self/cgroup || { echo "not in the cgroup $1" >&2; exit 99; }; shift; exec "$@"`
	cmd := n.Command(t.Context(), "bash", "-c", join, "join", n.Cgroup,
		"unshare", "--cgroup", "--pid", "--mount", "--fork", "--kill-child", "--propagation", "private", "bash", "-c", bareMachine+script, "machine", firsthop)
	cmd.Env = withEnv(nil)
	return finish(t, cmd.Cmd, cmd.Start)
}

const initLine = "$FH init --service-ips " + vip4 + " --endpoints " + server4 + " "

// TestInstallFailureIsAWarningOfInit: what was proven serves until the next boot, whatever keeps that from being prepared.
func TestInstallFailureIsAWarningOfInit(t *testing.T) {
	const notStarted = "warning: nothing is sure to start firsthop at the next boot"
	const notSaved = "warning: the API server addresses are not saved"
	for _, tc := range []struct {
		name, spoil string
		says        []string
	}{
		{"a read-only /opt", "mount -o remount,ro /opt", []string{notStarted, "/opt/firsthop/bin", "read-only"}},
		{"a noexec /opt", "mount -o remount,noexec /opt", []string{notStarted, "noexec"}},
		{"a full /opt", "mount -o remount,size=4k /opt", []string{notStarted, "no space left"}},
		{"a read-only /etc", "mount -o remount,ro /etc", []string{notStarted, "/etc/systemd/system", "read-only"}},
		{"a file in the place of /opt/firsthop", "touch /opt/firsthop", []string{notStarted, "/opt/firsthop", "not a directory"}},
		{"a foreign unit", "touch /etc/systemd/system/firsthop-init.service", []string{"firsthop-init.service"}},
		{"a read-only state directory", "mount -o remount,ro /var/lib", []string{notStarted, notSaved, "read-only", "--persist off"}},
		{"a full state directory", "mount -o remount,size=4k /var/lib; cat /dev/zero > /var/lib/full 2>/dev/null; true", []string{notSaved, "no space left"}},
		{"a file in the place of the state directory", "touch /var/lib/firsthop", []string{notSaved, "not a directory"}},
		{"a state directory of nobody's", "mkdir /var/lib/firsthop; chown nobody /var/lib/firsthop", []string{notSaved, notStarted, "belongs to user 65534"}},
		{"saved addresses of a newer format", `mkdir -m 700 /var/lib/firsthop; echo '{"format":99}' > /var/lib/firsthop/apiserver.json`, []string{notSaved, "newer format"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onMachine(t, tc.spoil+"\n"+initLine+"; rc=$?; $FH status | head -1; exit $rc").exits(0).says(append(tc.says, "answered by", "serving; proven")...)
		})
	}
	onMachine(t, "mount -o remount,ro /opt; $FH install").exits(bootstrap.ExitInternal).says("failed at persist", "read-only")
}

// TestInstallPromisesOnlyWhatIsKept: units, program and addresses must all be on disk.
func TestInstallPromisesOnlyWhatIsKept(t *testing.T) {
	r := onMachine(t, initLine).exits(0)
	r.says("/etc/systemd/system is on an overlay that writes to /mnt/u, a file system in memory", "/opt/firsthop/bin is on a file system in memory", "/var/lib/firsthop is on a file system in memory")
	if strings.Contains(r.stdout, "After a reboot firsthop-init.service makes the Service IP work") {
		t.Errorf("it promises what is in memory:\n%s", r.stdout)
	}
}

// TestInstallFollowsLinksOfTheHost: a pod with hostPID writes where the host's absolute links lead, not to its own root.
func TestInstallFollowsLinksOfTheHost(t *testing.T) {
	for name, link := range map[string]string{
		"the state directory":  "mkdir -p /mnt/data/firsthop; ln -s /mnt/data/firsthop /var/lib/firsthop",
		"a disk not there yet": "ln -s /mnt/data/firsthop /var/lib/firsthop",
		"the run directory":    "mkdir -p /mnt/data/firsthop /mnt/data/run; ln -s /mnt/data/firsthop /var/lib/firsthop; ln -s /mnt/data/run /run/firsthop",
	} {
		t.Run(name, func(t *testing.T) {
			onMachine(t, `mkdir /mnt/img; mount -t tmpfs tmpfs /mnt/img; mkdir -p /mnt/img/proc /mnt/img/bin /mnt/img/tmp; mount --bind /proc /mnt/img/proc; cp $FH /mnt/img/bin/firsthop
`+link+`
FH="unshare --mount --propagation private chroot /mnt/img /bin/firsthop"
`+initLine+` || exit
ls /mnt/data/firsthop /mnt/img; find /mnt/img -name 'apiserver.json'; test -s /mnt/data/firsthop/apiserver.json`).exits(0).says("answered by")
		})
	}
}

// TestInstallInAChrootStaysThere: an image is built on a machine that must not be touched.
func TestInstallInAChrootStaysThere(t *testing.T) {
	const image = `mkdir -p /mnt/img/proc /mnt/img/etc/systemd/system /mnt/img/usr/lib/systemd /mnt/img/bin; mount -t proc proc /mnt/img/proc; cp $FH /mnt/img/bin/firsthop
outside() { find /opt /etc/systemd/system /var/lib /run -name '*firsthop*' | grep . && echo TOUCHED; }
`
	for name, enter := range map[string]string{"a chroot": "chroot /mnt/img", "a chroot in a mount namespace": "unshare --mount chroot /mnt/img"} {
		t.Run(name, func(t *testing.T) {
			r := onMachine(t, image+enter+` /bin/firsthop install --service-ips `+vip4+` --endpoints `+server4+` || exit
outside
cd /mnt/img && ls opt/firsthop/bin/firsthop etc/systemd/system/firsthop-init.service etc/systemd/system/multi-user.target.wants/firsthop-init.service var/lib/firsthop/apiserver.json`).exits(0).says("Installed in this root alone")
			if strings.Contains(r.stdout, "TOUCHED") {
				t.Errorf("the machine outside was touched:\n%s", r.stdout)
			}
		})
	}
	for _, command := range []string{"init --service-ips " + vip4 + " --endpoints " + server4, "uninstall --force", "uninstall"} {
		r := onMachine(t, image+initLine+">/dev/null; chroot /mnt/img /bin/firsthop "+command+"; rc=$?; $FH status | head -1; exit $rc").exits(bootstrap.ExitInternal).says("this is a chroot", "--root /proc/1/root", "serving; proven")
		_ = r
	}
}

// TestInitMountsNothingInARootOfFiles: the mount would end with the container.
func TestInitMountsNothingInARootOfFiles(t *testing.T) {
	onMachine(t, `cat > /mnt/inner.sh <<'X'
mkdir -p /mnt/host; mount --rbind / /mnt/host; mount --make-rprivate /mnt/host; mount -t proc proc /proc; umount -l /mnt/host/proc
`+initLine+`--root /mnt/host
X
unshare --mount --pid --fork --propagation private bash /mnt/inner.sh`).exits(bootstrap.ExitBPFFS).says("would stay in this container", "mount the host's /proc at /mnt/host/proc")
}

// TestInitNeedsAProcOfProcessesOnly, where it is mounted with subset=pid.
func TestInitNeedsAProcOfProcessesOnly(t *testing.T) {
	onMachine(t, `umount /proc; mount -t proc -o subset=pid proc /proc || exit 0
`+initLine+`--persist off && echo done`).exits(0).says("done")
}
