package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/test/lab"
)

// snapshot is what a node has, one line a thing: files with their content, mode and times, pins with the ids of what
// they pin, mounts, attached programs. Two of them are equal if nothing at all was changed in between, not even a file
// that came and went.
type snapshot []string

// snapshot looks at the whole node.
func (n node) snapshot() snapshot {
	n.Helper()
	s := slices.Concat(n.tree(n.StateDir), n.tree(n.RunDir), n.tree(n.BPFFS), n.attached(), n.mounts())
	slices.Sort(s)
	return s
}

// unchanged fails the test if the node isn't what it was.
func (n node) unchanged(before snapshot) {
	n.Helper()
	if diff := cmp.Diff(before, n.snapshot()); diff != "" {
		n.Errorf("changed (- before, + after):\n%s", diff)
	}
}

// tree lists what is at and below a path.
func (n node) tree(root string) snapshot {
	n.Helper()
	var s snapshot
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s mode %o uid %d inode %d", path, st.Mode, st.Uid, st.Ino)
		if fstype(path) == unix.BPF_FS_MAGIC {
			line += pinned(path)
		} else {
			line += fmt.Sprintf(" changed %d.%09d", st.Ctim.Sec, st.Ctim.Nsec)
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" content %x", sha256.Sum256(data))
			}
		}
		s = append(s, line)
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.Fatal(err)
	}
	return s
}

func fstype(path string) int64 {
	var st unix.Statfs_t
	_ = unix.Statfs(path, &st)
	return int64(st.Type)
}

// pinned says what a pin pins; nothing for a directory or a file of the kernel's own.
func pinned(path string) string {
	if m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}); err == nil {
		defer m.Close()
		info, _ := m.Info()
		id, _ := info.ID()
		return fmt.Sprintf(" map %d", id)
	}
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		info, _ := l.Info()
		return fmt.Sprintf(" link %d of program %d", info.ID, info.Program)
	}
	if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer p.Close()
		info, _ := p.Info()
		id, _ := info.ID()
		return fmt.Sprintf(" program %d", id)
	}
	return ""
}

// attached lists the programs of the lab's cgroup at every hook.
func (n node) attached() snapshot {
	n.Helper()
	dir, err := os.Open(n.Cgroup)
	if err != nil {
		n.Fatal(err)
	}
	defer dir.Close()
	return lab.AttachedPrograms(n.T, dir)
}

// mounts lists what is mounted below the lab's directory.
func (n node) mounts() snapshot {
	n.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.Fatal(err)
	}
	var s snapshot
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, " "+n.Dir+"/") {
			s = append(s, "mount "+strings.TrimSpace(line))
		}
	}
	return s
}

// pins are where the instance of the lab's bpffs has its own.
func (n node) pins() bpf.Pins { return bpf.PinsBelow(n.BPFFS) }

// table reads the NAT table.
func (n node) table() *nat.State {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), true)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	state, err := nat.NewKernel(maps, bpf.Features{}).Read()
	if err != nil {
		n.Fatal(err)
	}
	return state
}

// tableUnchanged fails the test if an entry of the NAT table isn't what it was.
func (n node) tableUnchanged(before *nat.State) {
	n.Helper()
	if diff := cmp.Diff(before, n.table()); diff != "" {
		n.Errorf("the table changed (- before, + after):\n%s", diff)
	}
}
