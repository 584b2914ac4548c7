package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CgroupState says how the cgroup v2 hierarchy was found; "": it was not looked at.
type CgroupState string

// The states. PureV2, Hybrid, Elsewhere and Given are usable; NotMounted is what
// EnsureCgroup2 repairs.
const (
	CgroupUnreachable CgroupState = "unreachable"  // no way to the true root
	CgroupPureV2      CgroupState = "pure v2"      // at /sys/fs/cgroup
	CgroupHybrid      CgroupState = "hybrid"       // at /sys/fs/cgroup/unified, beside cgroup v1
	CgroupElsewhere   CgroupState = "elsewhere"    // at another place, perhaps ours
	CgroupNotMounted  CgroupState = "not mounted"  // the true root is mounted nowhere
	CgroupGiven       CgroupState = "given"        // given by the user, a cgroup v2 directory
	CgroupV1          CgroupState = "cgroup v1"    // given by the user, but of cgroup v1
	CgroupWrongType   CgroupState = "wrong type"   // given by the user, but no cgroup
	CgroupNoDirectory CgroupState = "no directory" // given by the user, but not there
)

const (
	pureV2Path = "/sys/fs/cgroup"
	hybridPath = "/sys/fs/cgroup/unified"
)

// Cgroup2 is the cgroup to attach to.
type Cgroup2 struct {
	// Path leads this process to it.
	Path string
	// HostPath is its path in the mount namespace that it is in.
	HostPath string
	// ID is what [CgroupID] gives for it; 0 if it is not mounted.
	ID    uint64
	State CgroupState
	// IsTrueRoot: it is the root of the cgroup namespace of the host's pid 1,
	// so that every process of the host is in it or below. Only meant as said
	// when Sure is set too.
	IsTrueRoot bool
	Sure       bool
	// How says how IsTrueRoot is known, or why it is not.
	How string
	// Actions are what EnsureCgroup2 would do, or has done.
	Actions  []string
	Warnings []string

	problem error
	options string // for a mount: those of the hierarchy
}

// Err says why it cannot be used, nil if it can. It wraps one of the sentinel
// errors; for what EnsureCgroup2 can repair that is ErrAbsent.
func (g *Cgroup2) Err() error { return g.problem }

func (g *Cgroup2) warn(format string, args ...any) {
	g.Warnings = append(g.Warnings, fmt.Sprintf(format, args...))
}

// FindCgroup2 looks for the true root of the cgroup v2 hierarchy, or at the
// cgroup that Config.Path gives, and changes nothing. The state of what it finds
// is in the result, see [Cgroup2.Err]; the error is only for what kept it from
// looking.
//
// The root is known by its id and not by a path: a container has some
// /sys/fs/cgroup of its own, a cgroup2 mounted in a cgroup namespace shows only
// what is below that, and a bind mount may show any cgroup.
func FindCgroup2(c Config) (Cgroup2, error) {
	g, _, _, err := findCgroup2(c)
	return g, err
}

func findCgroup2(c Config) (Cgroup2, Host, trueRoot, error) {
	h, hostErr := FindHost(c)
	if hostErr != nil && !errors.Is(hostErr, ErrNoHost) {
		return Cgroup2{}, h, trueRoot{}, hostErr
	}
	if hostErr != nil {
		h = Host{own: true, ownCgroup: true}
	}
	root := findTrueRoot(&h)
	if c.Explicit && c.Path != "" {
		g, err := lookGivenCgroup(c.Path, root)
		return g, h, root, err
	}
	g, err := searchCgroup(&h, c, root)
	g.How = root.how
	g.warnOfMachine(&h)
	if err == nil && hostErr != nil && g.problem != nil && !root.known {
		g.State, g.Actions = CgroupUnreachable, nil
		g.problem = fmt.Errorf("cgroup2: %w: %w; set hostPID: true, mount the host's /proc at %s, or name the cgroup to use", ErrNotTrueRoot, hostErr, DefaultHostProc)
	}
	return g, h, root, err
}

// warnOfMachine reports a node that is a container with the cgroup namespace of
// its machine (kind or k3d with Docker on cgroup v1, or --cgroupns=host): the root
// there is the machine's own (cilium issues 18269 and 20749).
func (g *Cgroup2) warnOfMachine(h *Host) {
	if !h.container || !h.topCgroup || g.State == "" {
		return
	}
	in := ""
	if h.entry != "" {
		if data, err := os.ReadFile(h.entry + "/cgroup"); err == nil {
			if at, _ := cgroup2Path(string(data)); at != "" && at != "/" {
				in = fmt.Sprintf(" (its pid 1 is in %s)", at)
			}
		}
	}
	g.warn("this node is a container that shares the machine's cgroup namespace%s: every process of the whole machine is served, other nodes on it included; "+
		"start the node with a private cgroup namespace (docker run --cgroupns=private), or give the node's own cgroup by --cgroup", in)
}

// lookGivenCgroup judges a path that the user gave.
func lookGivenCgroup(path string, root trueRoot) (Cgroup2, error) {
	g := Cgroup2{Path: path, HostPath: path, How: root.how}
	bad := func(s CgroupState, cause error, format string, args ...any) (Cgroup2, error) {
		g.State = s
		g.problem = fmt.Errorf("cgroup %s: %w: %s", path, cause, fmt.Sprintf(format, args...))
		return g, nil
	}
	if !strings.HasPrefix(path, "/") {
		return g, fmt.Errorf("cgroup path %q is not absolute", path)
	}
	fd, err := ownView().openDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad(CgroupNoDirectory, ErrNoDirectory, "make it with mkdir, below the mount point of cgroup2")
	case errors.Is(err, unix.ENOTDIR):
		return bad(CgroupWrongType, ErrNotCgroup, "it is a file")
	case err != nil:
		return g, err
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return g, fmt.Errorf("statfs %s: %w", path, err)
	}
	switch uint32(st.Type) {
	case unix.CGROUP2_SUPER_MAGIC:
	case unix.CGROUP_SUPER_MAGIC:
		return bad(CgroupV1, ErrCgroup1, "it is in a hierarchy of version 1, to which connect programs do not attach; give a directory of the version 2 hierarchy (mount -t cgroup2 shows where)")
	default:
		return bad(CgroupWrongType, ErrNotCgroup, "its file system has magic %#x; give a directory of the cgroup v2 hierarchy (mount -t cgroup2 shows where)", uint32(st.Type))
	}
	if g.ID, err = cgroupID(fd, path); err != nil {
		return g, err
	}
	g.State, g.IsTrueRoot, g.Sure = CgroupGiven, root.is(g.ID), root.known
	g.judgeGiven()
	return g, nil
}

func (g *Cgroup2) judgeGiven() {
	switch {
	case !g.Sure:
		g.warn("whether %s is the true root is not known (%s): processes outside of it are not served", g.Path, g.How)
	case !g.IsTrueRoot:
		g.warn("%s (cgroup id %d) is below the true root: processes outside of it are not served", g.Path, g.ID)
	}
}

// searchCgroup looks at every place where the root may be mounted: the two
// usual ones first, which on nearly every host spares reading the mount table.
func searchCgroup(h *Host, c Config, root trueRoot) (Cgroup2, error) {
	v := h.view()
	var wrong []string
	for _, p := range []string{pureV2Path, hybridPath} {
		if g, ok := tryRoot(v, p, root, &wrong); ok {
			return g, nil
		}
	}
	table, err := v.mounts(typeIs("cgroup2"))
	if err != nil {
		return Cgroup2{}, err
	}
	if g, ok := searchTable(v, table, root, &wrong); ok {
		return g, nil
	}
	if !h.own { // the host may lack what the pod has
		own := ownView()
		mine, err := own.mounts(typeIs("cgroup2"))
		if err != nil {
			return Cgroup2{}, err
		}
		if g, ok := searchTable(own, mine, root, &wrong); ok {
			return g, nil
		}
		table = append(table, mine...)
	}
	if g, ok := unsureRoot(h, v, root); ok {
		return g, nil
	}
	for _, p := range []string{pureV2Path, hybridPath} { // what may not be looked at is not absent: nothing is mounted beside it
		if _, err := CgroupID(v.open(p)); errors.Is(err, ErrRefused) || errors.Is(err, unix.ENOSYS) {
			return Cgroup2{}, err
		}
	}
	at := c.cgroupDir(v)
	g := Cgroup2{HostPath: at, Path: v.open(at), State: CgroupNotMounted, options: hierarchyOptions(table)}
	g.problem = fmt.Errorf("cgroup2: %w: the true root of the hierarchy is mounted nowhere on the host", ErrAbsent)
	g.Actions = []string{"mount cgroup2 at " + g.HostPath}
	for _, w := range wrong {
		g.warn("%s", w)
	}
	return g, nil
}

// searchTable tries each cgroup2 of a mount table.
func searchTable(v view, table []Mount, root trueRoot, wrong *[]string) (Cgroup2, bool) {
	for _, m := range table {
		p, ok := strings.CutPrefix(m.Point, v.inTable)
		if !ok || !strings.HasPrefix(p, "/") {
			continue // not below the given root
		}
		if g, ok := tryRoot(v, p, root, wrong); ok {
			return g, true
		}
	}
	return Cgroup2{}, false
}

// tryRoot looks whether the true root is at p. A cgroup2 that is not it is
// added to wrong.
func tryRoot(v view, p string, root trueRoot, wrong *[]string) (Cgroup2, bool) {
	real, err := v.resolve(p)
	if err != nil {
		return Cgroup2{}, false
	}
	// Any error, a hidden mount point included, means: not here.
	id, err := CgroupID(v.open(real))
	if err != nil {
		return Cgroup2{}, false
	}
	if !root.is(id) {
		w := fmt.Sprintf("%s is a cgroup2, but cgroup %d in it is not the true root", v.open(real), id)
		if root.known && !slices.Contains(*wrong, w) {
			*wrong = append(*wrong, w)
		}
		return Cgroup2{}, false
	}
	return Cgroup2{Path: v.open(real), HostPath: real, ID: id, IsTrueRoot: true, Sure: true, State: layout(p)}, true
}

// layout names the way in which a hierarchy at p is mounted.
func layout(p string) CgroupState {
	switch p {
	case pureV2Path:
		return CgroupPureV2
	case hybridPath:
		return CgroupHybrid
	}
	return CgroupElsewhere
}

// unsureRoot takes pid 1's own mount at one of the usual places where its id
// cannot be verified. (Never ours: in a container that is the container's
// cgroup, and the mistake of calico#10503 and #5852.)
func unsureRoot(h *Host, v view, root trueRoot) (Cgroup2, bool) {
	if root.known || h.entry == "" {
		return Cgroup2{}, false
	}
	for _, p := range []string{pureV2Path, hybridPath} {
		if id, err := CgroupID(v.open(p)); err == nil {
			g := Cgroup2{Path: v.open(p), HostPath: p, ID: id, State: layout(p), IsTrueRoot: true}
			g.warn("%s is taken for the true root because it is pid 1's, which could not be verified: %s", g.Path, root.how)
			return g, true
		}
	}
	return Cgroup2{}, false
}

// hierarchyOptions are the options that cgroup2 mounts show now, and that a new
// one must repeat, or it switches them off for the whole hierarchy.
func hierarchyOptions(table []Mount) string {
	if len(table) == 0 {
		return ""
	}
	var opts []string
	for o := range strings.SplitSeq(table[0].Super, ",") {
		if o != "rw" && o != "ro" {
			opts = append(opts, o)
		}
	}
	return strings.Join(opts, ",")
}
