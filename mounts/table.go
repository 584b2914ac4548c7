package mounts

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Mount is one line of a mount table.
type Mount struct {
	// ID and Parent are the kernel's mount ids, reused after an unmount.
	ID     int
	Parent int
	// Dev is the superblock's device, major:minor. Each bpffs has its own.
	Dev string
	// Root is the directory of the file system that is mounted; for cgroup2
	// it is relative to the cgroup namespace of the process that read it.
	Root string
	// Point is the mount point, relative to the root of the table's process.
	Point  string
	Type   string
	Source string
	// Options are the mount's own, Super the superblock's.
	Options string
	Super   string
	// Shared: a mount below this one appears in other mount namespaces too.
	Shared bool
}

// devicePrefix begins the identity of a mount of ours by its device, on kernels
// that don't keep the source of a bpffs: from 5.3 to 5.16 it is taken for an
// unknown mount option and dropped (fixed by kernel commit 1e9d74660d4d).
const devicePrefix = "device "

// is reports whether m is the mount with this identity: its source, or its
// device, which no other mounted file system has.
func (m Mount) is(identity string) bool {
	return identity != "" && (m.Source == identity || devicePrefix+m.Dev == identity)
}

// Ours reports whether firsthop made this mount, as far as its source tells:
// on kernels that don't keep the source of a bpffs it doesn't.
func (m Mount) Ours() bool { return strings.HasPrefix(m.Source, sourcePrefix) }

// readTable reads a mount table and keeps the lines for which keep is true.
//
// A node with many pods has thousands of mounts, and parsing each line costs
// more than the kernel's making of it, so keep sees the raw line and only what
// it lets pass is parsed. The line is as the kernel wrote it: blanks, tabs,
// newlines, backslashes and # in a path are octal escapes.
func readTable(r io.Reader, keep func(line []byte) bool) ([]Mount, error) {
	var data bytes.Buffer
	data.Grow(32 << 10) // the kernel builds the table anew from the top for every read
	if _, err := data.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var kept []byte
	for line := range bytes.Lines(data.Bytes()) {
		if keep(line) {
			kept = append(kept, line...)
		}
	}
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(kept), nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	mounts := make([]Mount, len(infos))
	for i, in := range infos {
		mounts[i] = Mount{
			ID: in.ID, Parent: in.Parent, Dev: fmt.Sprintf("%d:%d", in.Major, in.Minor), Root: in.Root, Point: in.Mountpoint,
			Type: in.FSType, Source: in.Source, Options: in.Options, Super: in.VFSOptions,
			Shared: strings.HasPrefix(in.Optional, "shared:") || strings.Contains(in.Optional, " shared:"),
		}
	}
	return mounts, nil
}

// escapePath writes a path as the kernel does in a mount table (mangle_path
// with " \t\n\\#" in fs/proc_namespace.c).
func escapePath(p string) string {
	if !strings.ContainsAny(p, " \t\n\\#") {
		return p
	}
	var b strings.Builder
	for i := range len(p) {
		switch c := p[i]; c {
		case ' ', '\t', '\n', '\\', '#':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// mountPointIs returns a filter for the lines whose mount point is path.
func mountPointIs(path string) func([]byte) bool {
	want := escapePath(path)
	return func(line []byte) bool { return pointIs(line, want) }
}

// pointIs compares the fifth field of a line, the mount point.
func pointIs(line []byte, point string) bool {
	for range 4 {
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			return false
		}
		line = line[i+1:]
	}
	return len(line) > len(point) && string(line[:len(point)]) == point && line[len(point)] == ' '
}

// typeIs returns a filter for the lines of one file system type.
func typeIs(fstype string) func([]byte) bool {
	want := []byte(" - " + fstype + " ")
	return func(line []byte) bool { return bytes.Contains(line, want) }
}

// byID finds a mount by its id.
func byID(mounts []Mount, id int) (Mount, bool) {
	if i := slices.IndexFunc(mounts, func(m Mount) bool { return m.ID == id }); i >= 0 {
		return mounts[i], true
	}
	return Mount{}, false
}

// stackAt returns the mounts that lie on one another at a mount point, the
// topmost first, and those at the same mount point that no path reaches because
// a mount over a parent directory hides them.
//
// id is the mount that the path really leads to. Without it (0) the last line
// counts as the topmost. That is the order in which mounts were made, so it is
// wrong after mount --move, and the id is better: each mount of a stack has the
// one below it as its parent.
func stackAt(mounts []Mount, point string, id int) (stack, hidden []Mount) {
	at := slices.DeleteFunc(slices.Clone(mounts), func(m Mount) bool { return m.Point != point })
	if len(at) == 0 {
		return nil, nil
	}
	if id == 0 {
		id = at[len(at)-1].ID
	}
	for {
		m, ok := byID(at, id)
		if !ok {
			return stack, at
		}
		stack = append(stack, m)
		at = slices.DeleteFunc(at, func(m Mount) bool { return m.ID == id })
		id = m.Parent
	}
}
