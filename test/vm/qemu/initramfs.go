package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Initramfs collects the files of a guest's first root file system. Everything in it belongs to root, whichever user builds it.
type Initramfs struct {
	entries []entry
	dirs    map[string]bool
}

type entry struct {
	name string // without a slash in front
	mode uint32
	dev  uint64
	data []byte // or
	file string // a file of the host
}

// AddFile copies a file of the host, symbolic links followed, with its permissions.
func (i *Initramfs) AddFile(name, hostPath string) error {
	info, err := os.Stat(hostPath)
	if err != nil {
		return err
	}
	i.add(entry{name: name, mode: unix.S_IFREG | uint32(info.Mode().Perm()), file: hostPath})
	return nil
}

// AddData makes a file.
func (i *Initramfs) AddData(name string, data []byte, perm os.FileMode) {
	i.add(entry{name: name, mode: unix.S_IFREG | uint32(perm), data: data})
}

// AddLink makes a symbolic link.
func (i *Initramfs) AddLink(name, target string) {
	i.add(entry{name: name, mode: unix.S_IFLNK | 0o777, data: []byte(target)})
}

// AddDir makes a directory, and those that it is in.
func (i *Initramfs) AddDir(name string) { i.parents(path.Join(strings.TrimPrefix(name, "/"), "x")) }

// AddTree copies a directory of the host with what is in it: directories, files and symbolic links. keep, unless it is
// nil, says of paths below it what is to be copied.
func (i *Initramfs) AddTree(name, hostDir string, keep func(rel string) bool) error {
	return filepath.WalkDir(hostDir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(hostDir, p)
		if err != nil {
			return err
		}
		at := path.Join(name, rel)
		switch {
		case keep != nil && !keep(rel):
			if d.IsDir() {
				return filepath.SkipDir
			}
		case d.IsDir():
			i.AddDir(at)
		case d.Type() == os.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			i.AddLink(at, target)
		case d.Type().IsRegular():
			return i.AddFile(at, p)
		}
		return nil
	})
}

func (i *Initramfs) add(e entry) {
	e.name = strings.TrimPrefix(e.name, "/")
	i.parents(e.name)
	i.entries = append(i.entries, e)
}

// parents adds the directories that a file is in: the kernel unpacks nothing into a directory that isn't there.
func (i *Initramfs) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || dir == "/" || i.dirs[dir] {
		return
	}
	i.parents(dir)
	if i.dirs == nil {
		i.dirs = make(map[string]bool)
	}
	i.dirs[dir] = true
	perm := uint32(0o755)
	if dir == "tmp" {
		perm = 0o1777
	}
	i.entries = append(i.entries, entry{name: dir, mode: unix.S_IFDIR | perm})
}

// WriteFile writes the archive in cpio's newc format, which every kernel with an initramfs unpacks. It isn't compressed:
// the emulated machine would take longer to inflate it than the host to copy it.
func (i *Initramfs) WriteFile(hostPath string) error {
	f, err := os.Create(hostPath)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if err := i.write(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func (i *Initramfs) write(w io.Writer) error {
	console := entry{name: "dev/console", mode: unix.S_IFCHR | 0o600, dev: unix.Mkdev(5, 1)}
	entries := append([]entry{{name: "dev", mode: unix.S_IFDIR | 0o755}, console}, i.entries...)
	for n, e := range entries {
		if err := e.write(w, n+1); err != nil {
			return fmt.Errorf("write %s: %w", e.name, err)
		}
	}
	return entry{name: "TRAILER!!!"}.write(w, 0)
}

// write writes one entry: header, name and content, each padded to four bytes.
func (e entry) write(w io.Writer, inode int) error {
	data := e.data
	if e.file != "" {
		var err error
		if data, err = os.ReadFile(e.file); err != nil {
			return err
		}
	}
	// magic, inode, mode, uid, gid, links, mtime, size, device, device of a special file, length of the name, checksum
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, e.mode, 0, 0, 1, 0, len(data), 0, 0, unix.Major(e.dev), unix.Minor(e.dev), len(e.name)+1, 0)
	for _, part := range [][]byte{pad(append([]byte(header+e.name), 0)), pad(data)} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func pad(b []byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }
