package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Inode numbers of the first namespaces, fixed in the kernel (PROC_*_INIT_INO in
// include/linux/proc_ns.h since 3.8 and 4.6; in uapi/linux/nsfs.h since 6.18).
const (
	initPIDNamespace    = "pid:[4026531836]"
	initCgroupNamespace = "cgroup:[4026531835]"
)

// Host is the mount namespace of the host, and how it was found.
type Host struct {
	// Prefix comes before a path of the host to make it one that this process
	// can open: "" in the host's own namespace, else for example
	// "/proc/1/root".
	Prefix string
	// Chroot: we are in pid 1's own mount namespace, but another directory is our
	// root: an image that is built, a rescue system. What is at Prefix is outside.
	Chroot bool

	entry     string // the host's first process, "/proc/1"; "" if there is none to be seen
	own       bool   // our mount namespace and root are the host's
	ownCgroup bool   // our cgroup namespace is that of the first process
	topCgroup bool   // the first process is in the initial cgroup namespace
	container bool   // the first process is not the machine's, but a container's that is a node
	inTable   string

	outOfReach bool // not the host at all: our own namespace for want of it
	onlyFiles  bool // a given root that shows the host's files and not its processes: mounts are our own
}

func (h *Host) view() view {
	v := ownView()
	v.prefix, v.inTable = h.Prefix, h.inTable
	if h.entry != "" && !h.own {
		v.inTable = ""
		v.table = tableOf(h.entry)
	}
	return v
}

// FindHost finds the mount namespace of the host: of the process that is the
// node's init, be the node a machine, a virtual machine or, in kind, a
// container. It changes nothing.
//
// The hard part is to know whether process 1 of a /proc is that init. In a pod
// without hostPID, process 1 is the container's own first process, often we
// ourselves; with shareProcessNamespace it is the pause process, whose mount
// namespace differs from ours just as the host's would. So differing namespaces
// prove nothing. What does, for the /proc mounted at some directory:
//
//  1. It must show us (thread-self resolves): then its pid namespace is ours or
//     an ancestor of ours. A host's is; a sibling container's is not.
//
//  2. If the pid namespace of its process 1 has the fixed inode number of the
//     first one, this is the machine's init. Nothing more is needed.
//
//  3. Otherwise the node may be a container (kind), or 1 is a container's
//     process. If 1 is in another mount namespace than we, it is our node's if
//     the file system that is our root is mounted there too: the container
//     runtime mounted it there before it made our namespace of it, while the
//     pause process has only its own. Failing that (a runtime in a private mount
//     namespace), mounts of the kubelet's pods there count as weak evidence.
//
//  4. If 1 shares our mount namespace and nothing says that a kubelet made our
//     container, we are on a node that is a container (kind: by hand, or by its
//     systemd). A kubelet gives every container a termination log and mounts
//     from its pods directory, which are in our own mount table.
//
//  5. Where 1 may not be looked at (it has more capabilities than we, and we
//     lack CAP_SYS_PTRACE, or a security module is in the way), its mount table
//     may still be read. If the mount that is our root is its root too, we are
//     in its mount namespace, for the kernel gives each mount an id of its own.
//
// A /proc that the pod's author mounted is tried before our own /proc: it is
// there for this purpose, and it can only be further out.
func FindHost(c Config) (Host, error) {
	root := c.root()
	if root != "" {
		if st, err := os.Stat(root); err != nil {
			return Host{}, fmt.Errorf("look at root %s: %w", root, err)
		} else if !st.IsDir() {
			return Host{}, fmt.Errorf("root %s is not a directory", root)
		}
	}
	var tried []string
	procs := procDirs(c)
	for i, proc := range procs {
		h, err := judgeProc(proc)
		switch {
		case err != nil:
		case root != "" && !sameFile(root, proc+"/1/root"):
			err = fmt.Errorf("not used: the given root %s is another directory", root)
		case root != "" && h.own && !sameMount(root, "/"): // the host's root, mounted into a container that has its own view of it
			err = fmt.Errorf("not used: the given root %s is the same directory, but mounted apart, so this is a container", root)
		default:
			return *h, nil
		}
		strategy := "host proc"
		if i == len(procs)-1 {
			strategy = "pid 1"
		}
		tried = append(tried, fmt.Sprintf("%s %s/1/root: %v", strategy, proc, err))
	}
	if root != "" {
		h, err := givenRoot(root)
		if err == nil {
			return *h, nil
		}
		tried = append(tried, fmt.Sprintf("given root %s: %v", root, err))
	}
	return Host{}, fmt.Errorf("%w: %s", ErrNoHost, strings.Join(tried, "; "))
}

// procDirs lists where to look for the host's /proc; our own comes last.
func procDirs(c Config) []string {
	dirs := make([]string, 0, 3)
	seen := map[string]bool{"/proc": true}
	add := func(d string) {
		if d = filepath.Clean(d); !seen[d] {
			seen[d] = true
			dirs = append(dirs, d)
		}
	}
	if r := c.root(); strings.HasSuffix(r, "/1/root") {
		add(strings.TrimSuffix(r, "/1/root")) // PROC/1/root
	} else if r != "" {
		add(r + "/proc")
	}
	add(DefaultHostProc)
	return append(dirs, "/proc")
}

func sameFile(a, b string) bool {
	sa, err := os.Stat(a)
	if err != nil {
		return false
	}
	sb, err := os.Stat(b)
	return err == nil && os.SameFile(sa, sb)
}

// sameMount reports whether two paths are on the same mount, true if that is unknown.
func sameMount(a, b string) bool {
	var ids [2]int
	for i, path := range []string{a, b} {
		fd, err := ownView().openDir(path)
		if err != nil {
			return true
		}
		ids[i] = hostfs.MountID(fd)
		unix.Close(fd)
	}
	return ids[0] == ids[1] || ids[0] == 0 || ids[1] == 0
}

// judgeProc applies the rules of FindHost to process 1 of one /proc. The error says why it is not the node's init.
func judgeProc(proc string) (*Host, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(proc, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: proc, Err: err}
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not a proc file system", proc)
	}
	self, err := readNamespaces(proc + "/thread-self")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this process is not seen in %s, which belongs to a pid namespace that is neither ours nor above ours", proc)
	}
	if err != nil {
		return nil, err
	}
	one, err := readNamespaces(proc + "/1")
	if err != nil {
		if sharesRootMount(proc) { // rule 5; more than its mount table we may not see
			h := newHost("", self, self)
			h.own, h.ownCgroup = true, false
			return h, judgeInit(proc, self, true)
		}
		return nil, privileges.Refused("look at", proc+"/1", err, unix.CAP_SYS_PTRACE)
	}
	root, err := os.Stat(proc + "/1/root/")
	if err != nil {
		return nil, privileges.Refused("look through", proc+"/1/root", err, unix.CAP_SYS_PTRACE)
	}
	h := newHost(proc+"/1", one, self)
	h.Prefix = proc + "/1/root"
	same := one.mnt == self.mnt
	if err := judgeInit(proc, one, same); err != nil {
		return nil, err
	}
	if ours, err := os.Stat("/"); same && err == nil && os.SameFile(ours, root) {
		h.own, h.Prefix = true, ""
	}
	h.Chroot = same && !h.own
	return h, nil
}

// newHost is the host whose first process is at entry.
func newHost(entry string, one, self namespaces) *Host {
	return &Host{
		entry:     entry,
		ownCgroup: one.cgroup == self.cgroup,
		topCgroup: one.cgroup == initCgroupNamespace,
		container: one.pid != initPIDNamespace,
	}
}

// sharesRootMount applies rule 5.
func sharesRootMount(proc string) bool {
	status, err := os.ReadFile(proc + "/thread-self/status")
	if err != nil || !inPIDNamespaceOf(string(status)) {
		return false
	}
	fd, err := ownView().openDir("/")
	if err != nil {
		return false
	}
	id := hostfs.MountID(fd)
	unix.Close(fd)
	isRoot := func(table func() (*os.File, error)) bool {
		mounts, err := view{table: table}.mounts(mountPointIs("/"))
		_, ok := byID(mounts, id)
		return err == nil && ok
	}
	// In our own table too: it is not if we are chrooted into a directory of
	// that mount.
	return isRoot(ownView().table) && isRoot(tableOf(proc+"/1"))
}

// inPIDNamespaceOf reports whether the process of a /proc/PID/status is in the
// pid namespace of that /proc: NSpid has an entry for each namespace below.
func inPIDNamespaceOf(status string) bool {
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(ids)) == 1
		}
	}
	return false
}

// judgeInit says why process 1 is not the node's init, by rules 2 to 4; nil if it is.
func judgeInit(proc string, one namespaces, same bool) error {
	if one.pid == initPIDNamespace {
		return nil
	}
	own, err := ownView().mounts(keepContainerMarks)
	if err != nil {
		return err
	}
	if same {
		if mark := kubeletMark(own); mark != "" {
			return fmt.Errorf("it is this container's own first process, for a kubelet mounted %s here; set hostPID: true, or mount the host's /proc at %s", mark, DefaultHostProc)
		}
		return nil // nothing says that a kubelet made our mount namespace
	}
	theirs, err := view{table: tableOf(proc + "/1")}.mounts(keepNodeMarks(own))
	if err != nil {
		return err
	}
	if hasRoot(own, theirs) || slices.ContainsFunc(theirs, func(m Mount) bool { return inPodsDir(m.Point) }) {
		return nil
	}
	return errors.New("it is in another mount namespace, but not the node's: our root file system is not mounted there (the pause process of a pod with shareProcessNamespace?)")
}

// givenRoot takes Config.Root at its word.
func givenRoot(root string) (*Host, error) {
	// PROC/PID/root: the namespaces of that process can be entered.
	var st unix.Statfs_t
	entry := filepath.Dir(root)
	if filepath.Base(root) == "root" && unix.Statfs(entry, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC {
		one, err := readNamespaces(entry)
		if err != nil {
			return nil, privileges.Refused("look at", entry, err, unix.CAP_SYS_PTRACE)
		}
		self, err := readNamespaces("/proc/thread-self")
		h := newHost(entry, one, self)
		if h.own = err == nil && one.mnt == self.mnt && sameFile("/", root); !h.own {
			h.Prefix = root
		}
		return h, nil
	}
	// Mounts below it are made in our own mount namespace.
	h := &Host{Prefix: root, inTable: root, onlyFiles: true}
	if real, err := filepath.EvalSymlinks(root); err == nil {
		h.inTable = real
	}
	if ns, err := os.Readlink("/proc/thread-self/ns/cgroup"); err == nil {
		h.ownCgroup, h.topCgroup = true, ns == initCgroupNamespace
	}
	return h, nil
}

// namespaces are the links in a process's ns directory.
type namespaces struct{ mnt, pid, cgroup string }

func readNamespaces(process string) (n namespaces, err error) {
	for _, l := range []struct {
		name string
		to   *string
	}{{"mnt", &n.mnt}, {"pid", &n.pid}, {"cgroup", &n.cgroup}} {
		if *l.to, err = os.Readlink(process + "/ns/" + l.name); err != nil {
			return n, err
		}
	}
	return n, nil
}
