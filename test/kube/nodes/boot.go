package nodes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// bootEnv makes a test binary the first process of a node, in namespaces of its own but for the network's: it has the
// node's boot as JSON.
const bootEnv = "FIRSTHOP_NODE_BOOT"

// boot is what a node's first process does before it becomes systemd.
type boot struct {
	Name    string
	Disk    string            // a directory with upper, work and root
	Lower   string            // the root file system that all nodes have in common
	Binds   map[string]string // files and directories of the machine, and where they are on the node
	Cgroups [][2]string       // hierarchies of version 1: name of the directory, and option of mount
	Pods    string            // the prefix of the node's pods
	Hosts   string            // /etc/hosts
}

func init() {
	data, ok := os.LookupEnv(bootEnv)
	if !ok {
		return
	}
	runtime.LockOSThread() // whose rights systemd has
	var b boot
	err := json.Unmarshal([]byte(data), &b)
	if err == nil {
		err = b.start()
	}
	fmt.Fprintln(os.Stderr, "boot:", err)
	os.Exit(1)
}

// mounter makes mounts until one fails.
type mounter struct {
	root string
	err  error
}

// at makes a directory of the node and returns its path.
func (m *mounter) at(dir string) string {
	path := filepath.Join(m.root, dir)
	if m.err == nil {
		m.err = os.MkdirAll(path, 0o755)
	}
	return path
}

func (m *mounter) mount(fstype, dir string, flags uintptr, options string) {
	path := m.at(dir)
	if m.err == nil {
		m.err = wrap("mount "+fstype+" on "+dir, unix.Mount(fstype, path, fstype, flags, options))
	}
}

// bind puts a file or directory of the machine at a path of the node.
func (m *mounter) bind(from, to string) {
	if m.err != nil {
		return
	}
	info, err := os.Stat(from)
	if err != nil {
		m.err = err
		return
	}
	path := filepath.Join(m.root, to)
	if info.IsDir() {
		m.at(to)
	} else {
		m.at(filepath.Dir(to))
		m.file(to, "")
	}
	if m.err == nil {
		m.err = wrap("bind "+from+" to "+to, unix.Mount(from, path, "", unix.MS_BIND, ""))
	}
}

// file writes a file of the node; one with no text may be there, and keeps its own.
func (m *mounter) file(name, text string) {
	if m.err != nil {
		return
	}
	flags := os.O_WRONLY | os.O_CREATE
	if text != "" {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(m.root, name), flags, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	m.err = err
}

func (m *mounter) link(to, name string) {
	if m.err == nil {
		m.err = os.Symlink(to, filepath.Join(m.root, name))
	}
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

const noExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// start returns only if it fails.
func (b boot) start() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	m := &mounter{root: filepath.Join(b.Disk, "root")}
	m.mount("overlay", "", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", b.Lower, filepath.Join(b.Disk, "upper"), filepath.Join(b.Disk, "work")))
	m.mount("proc", "proc", noExec, "")
	m.mount("sysfs", "sys", noExec, "")
	// systemd mounts it on a machine, and leaves it alone where it is told that it has none.
	m.mount("bpf", "sys/fs/bpf", noExec, "mode=700")
	m.mount("tmpfs", "run", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mount("tmpfs", "tmp", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	b.devices(m)
	b.cgroups(m)
	for from, to := range b.Binds {
		m.bind(from, to)
	}
	if m.err == nil { // kubelet's mounts are seen by who has the directory already
		m.err = wrap("share /var/lib/kubelet", unix.Mount("", m.at("var/lib/kubelet"), "", unix.MS_SHARED, ""))
	}
	b.sysctls(m)
	m.file("etc/hostname", b.Name+"\n")
	m.file("etc/hosts", b.Hosts)
	m.file("etc/resolv.conf", "nameserver "+router+"\n")
	m.at("etc/cni/net.d")
	m.file("etc/cni/net.d/10-fh.conflist", strings.ReplaceAll(cniList, "PODS", b.Pods))
	if m.err == nil {
		m.err = wrap("set the host's name", unix.Sethostname([]byte(b.Name)))
	}
	if m.err != nil {
		return m.err
	}
	if err := os.Chdir(m.root); err != nil {
		return err
	}
	// The old root lies over the new one, until it is unmounted: pivot_root(2), "pivot_root(".", ".")".
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, c := range []uintptr{unix.CAP_SYS_TIME, unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	env := []string{
		"container=firsthop", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_LOG_TARGET=console",
		// systemd 256 and later refuse version 1 without the first.
		"SYSTEMD_PROC_CMDLINE=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 systemd.show_status=1",
	}
	return wrap("start systemd", unix.Exec("/sbin/init", []string{"/sbin/init"}, env))
}

// devices makes a /dev with what containers want.
func (b boot) devices(m *mounter) {
	m.mount("tmpfs", "dev", unix.MS_NOSUID, "mode=755")
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "net/tun"} {
		if _, err := os.Stat("/dev/" + name); err == nil {
			m.bind("/dev/"+name, "dev/"+name)
		}
	}
	m.mount("devpts", "dev/pts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
	m.mount("tmpfs", "dev/shm", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	m.at("dev/mqueue")
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		m.link(to, "dev/"+name)
	}
}

// cgroups mounts the hierarchies anew, in the node's cgroup namespace: their roots are the node's cgroups.
func (b boot) cgroups(m *mounter) {
	const base = "sys/fs/cgroup"
	if len(b.Cgroups) == 0 {
		m.mount("cgroup2", base, noExec, "")
		return
	}
	m.mount("tmpfs", base, noExec, "mode=755")
	for _, c := range b.Cgroups {
		options := c[1]
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		m.mount("cgroup", base+"/"+c[0], noExec, options)
		for controller := range strings.SplitSeq(c[1], ",") {
			if controller != c[0] && !strings.Contains(controller, "=") {
				m.link(c[0], base+"/"+controller) // as systemd does for controllers that share a hierarchy
			}
		}
	}
	m.mount("cgroup2", base+"/unified", noExec, "")
}

// sysctls makes /proc/sys read-only, but for the node's own network's. What kubelet sets for the whole machine, and wants
// to read again, are files.
func (b boot) sysctls(m *mounter) {
	const sys = "proc/sys"
	if m.err != nil {
		return
	}
	path := filepath.Join(m.root, sys)
	// A second proc, as the first one's /proc/sys becomes read-only with all below.
	m.mount("proc", "run/proc", noExec, "")
	m.bind(path, sys)
	if m.err == nil {
		m.err = wrap("make /proc/sys read-only", unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|noExec, ""))
	}
	m.bind(filepath.Join(m.root, "run/proc/sys/net"), sys+"/net")
	if m.err == nil {
		m.err = wrap("unmount /run/proc", unix.Unmount(filepath.Join(m.root, "run/proc"), unix.MNT_DETACH))
	}
	m.at("run/sysctl")
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		"net/netfilter/nf_conntrack_max": "262144",
	} {
		if _, err := os.Stat(filepath.Join(path, name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file := "run/sysctl/" + strings.ReplaceAll(name, "/", "_")
		m.file(file, value+"\n")
		if m.err == nil {
			m.err = wrap("cover "+name, unix.Mount(filepath.Join(m.root, file), filepath.Join(path, name), "", unix.MS_BIND, ""))
		}
	}
}

// cniList is the pods' network.
const cniList = `{"cniVersion":"1.0.0","name":"fh","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"PODS"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true},"backend":"iptables"}]}
`
