package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf/objects"
)

// bpfObject is a program, map or link by its id. The kernel does not use an id twice before it has used all others.
type bpfObject struct {
	kind string // as in fdinfo: "prog", "map", "link"
	id   uint32
}

// describe names an object for a reader who has to find out where it came from.
func (o bpfObject) describe() string {
	name := ""
	switch o.kind {
	case "prog":
		if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(o.id)); err == nil {
			defer p.Close()
			if info, err := p.Info(); err == nil {
				name = fmt.Sprintf(" %s %q", info.Type, info.Name)
			}
		}
	case "map":
		if m, err := ebpf.NewMapFromID(ebpf.MapID(o.id)); err == nil {
			defer m.Close()
			if info, err := m.Info(); err == nil {
				name = fmt.Sprintf(" %s %q", info.Type, info.Name)
			}
		}
	}
	return fmt.Sprintf("BPF %s %d%s", o.kind, o.id, name)
}

// bpfObjects lists all BPF objects of the machine.
func bpfObjects() (map[bpfObject]bool, error) {
	all := make(map[bpfObject]bool)
	var err error
	for id := ebpf.ProgramID(0); err == nil; {
		if id, err = ebpf.ProgramGetNextID(id); err == nil {
			all[bpfObject{"prog", uint32(id)}] = true
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err = nil
	for id := ebpf.MapID(0); err == nil; {
		if id, err = ebpf.MapGetNextID(id); err == nil {
			all[bpfObject{"map", uint32(id)}] = true
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	links, err := objects.Links{}.IDs()
	if err != nil && !errors.Is(err, objects.ErrNotSupported) {
		return nil, err
	}
	for _, id := range links {
		all[bpfObject{"link", uint32(id)}] = true
	}
	return all, nil
}

// forgetHeldElsewhere removes the objects that something outside of this process's labs keeps alive: a file descriptor
// of another process, a pin in a bpffs that is not ours, or an attachment to a cgroup that is not ours.
func forgetHeldElsewhere(of map[bpfObject]bool) error {
	held := make(map[bpfObject]bool)
	heldByProcesses(held)
	if err := heldByPins(held); err != nil {
		return err
	}
	if err := heldByCgroups(held); err != nil {
		return err
	}
	for o := range held {
		if o.kind == "link" {
			addLinkProgram(held, o.id)
		}
	}
	for o := range held {
		if o.kind == "prog" {
			addProgramMaps(held, o.id)
		}
	}
	for o := range held {
		delete(of, o)
	}
	return nil
}

func addLinkProgram(held map[bpfObject]bool, id uint32) {
	l, err := link.NewFromID(link.ID(id))
	if err != nil {
		return // gone, or of a kind that the library does not know
	}
	defer l.Close()
	if info, err := l.Info(); err == nil {
		held[bpfObject{"prog", uint32(info.Program)}] = true
	}
}

func addProgramMaps(held map[bpfObject]bool, id uint32) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return // gone
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		held[bpfObject{"map", uint32(id)}] = true
	}
}

// heldByProcesses adds what the open files of other processes refer to. A child of this process counts as this process.
func heldByProcesses(held map[bpfObject]bool) {
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	ours := make(map[string]bool)
	for _, path := range infos {
		pid := strings.Split(path, "/")[2]
		if _, ok := ours[pid]; !ok {
			ours[pid] = isOurs(pid)
		}
		if ours[pid] {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range bytes.Lines(data) {
			key, value, ok := strings.Cut(string(line), "_id:")
			if !ok || key != "prog" && key != "map" && key != "link" {
				continue
			}
			if id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32); err == nil {
				held[bpfObject{key, uint32(id)}] = true
			}
		}
	}
}

// isOurs tells whether a process is this one or descends from it.
func isOurs(pid string) bool {
	own := strconv.Itoa(os.Getpid())
	for range 64 {
		if pid == own {
			return true
		}
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			return false
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[1] == "0" {
			return false
		}
		pid = fields[1]
	}
	return false
}

// heldByPins adds what is pinned in every bpffs but our labs' own: in this mount namespace, and in those of other
// processes, which it reaches through their /proc/PID/root.
func heldByPins(held map[bpfObject]bool) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	walkPins(held, "", mounts)
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	seen := map[string]bool{own: true}
	namespaces, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	for _, path := range namespaces {
		pid := strings.Split(path, "/")[2]
		ns, err := os.Readlink(path)
		if err != nil || seen[ns] || isOurs(pid) {
			continue
		}
		seen[ns] = true
		table, err := os.Open("/proc/" + pid + "/mountinfo")
		if err != nil {
			continue // it is gone
		}
		mounts, err := mountinfo.GetMountsFromReader(table, mountinfo.FSTypeFilter("bpf"))
		table.Close()
		if err == nil {
			walkPins(held, "/proc/"+pid+"/root", mounts)
		}
	}
	return nil
}

// walkPins adds what is pinned in the given mounts, all of which lie below root.
func walkPins(held map[bpfObject]bool, root string, mounts []*mountinfo.Info) {
	own := "/" + ownPrefix()
	for _, m := range mounts {
		if m.FSType != "bpf" || strings.Contains(m.Mountpoint, own) {
			continue
		}
		_ = filepath.WalkDir(root+m.Mountpoint, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				addPin(held, path)
			}
			return nil // gone meanwhile
		})
	}
}

func addPin(held map[bpfObject]bool, path string) {
	if m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}); err == nil {
		defer m.Close()
		if info, err := m.Info(); err == nil {
			if id, ok := info.ID(); ok {
				held[bpfObject{"map", uint32(id)}] = true
			}
		}
	} else if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer p.Close()
		if info, err := p.Info(); err == nil {
			if id, ok := info.ID(); ok {
				held[bpfObject{"prog", uint32(id)}] = true
			}
		}
	} else if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		if info, err := l.Info(); err == nil {
			held[bpfObject{"link", uint32(info.ID)}] = true
		}
	}
}

// heldByCgroups adds the programs that are attached to any cgroup but our labs' own.
func heldByCgroups(held map[bpfObject]bool) error {
	root, err := cgroup2Root()
	if err != nil || root == "" {
		return err
	}
	own := "/" + ownPrefix()
	dirs, err := cgroupTree(root)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if strings.Contains(dir, own) {
			continue
		}
		f, err := os.Open(dir)
		if err != nil {
			continue // gone meanwhile
		}
		for _, at := range cgroupAttachTypes {
			res, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: at})
			if err != nil {
				continue // a hook that this kernel lacks
			}
			for _, p := range res.Programs {
				held[bpfObject{"prog", uint32(p.ID)}] = true
			}
		}
		f.Close()
	}
	return nil
}

// connectTimeHooks are firsthop's.
var connectTimeHooks = []ebpf.AttachType{
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
}

// cgroupAttachTypes are the hooks of firsthop and of those that the tests play.
var cgroupAttachTypes = append(slices.Clip(connectTimeHooks),
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress,
	ebpf.AttachCGroupDevice, ebpf.AttachCGroupInetSockCreate)

// AttachedPrograms lists what is attached to a cgroup itself at firsthop's hooks, by whomever: "program 42 at CGroupInet4Connect".
func AttachedPrograms(t testing.TB, cgroup *os.File) (programs []string) {
	t.Helper()
	for _, at := range connectTimeHooks {
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: at})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
			continue // a kernel without this hook
		}
		if err != nil {
			t.Fatalf("query %v: %v", at, err)
		}
		for _, p := range q.Programs {
			programs = append(programs, fmt.Sprintf("program %d at %v", p.ID, at))
		}
	}
	return programs
}

// AttachedToBind counts the programs that are attached to a cgroup itself where IPv4 sockets are bound.
func AttachedToBind(t testing.TB, cgroup string) int {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet4Bind})
	if err != nil {
		t.Fatal(err)
	}
	return len(q.Programs)
}
