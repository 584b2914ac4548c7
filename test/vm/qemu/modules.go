package qemu

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Module is a kernel module, ready for finit_module(2).
type Module struct {
	Name string // with underscores
	Data []byte // decompressed: a kernel may be unable to
}

// Modules returns the named modules and all that they depend on, in the order in which they must be loaded, and the
// names of those that the tree doesn't have: built into the kernel, or not built. Packages have no modules.dep, which
// depmod writes at their installation, so the dependencies come from the modules themselves.
func Modules(dir string, names ...string) (modules []Module, absent []string, err error) {
	files, err := findModules(dir)
	if err != nil {
		return nil, nil, err
	}
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, ok := files[name]
		if !ok {
			absent = append(absent, name)
			return nil
		}
		data, err := readModule(file)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		modules = append(modules, Module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, nil, err
		}
	}
	return modules, absent, nil
}

// findModules maps the names of all modules below a directory to their files. A directory "" has none.
func findModules(dir string) (map[string]string, error) {
	files := make(map[string]string)
	if dir == "" {
		return files, nil
	}
	dir, err := filepath.EvalSymlinks(dir) // WalkDir doesn't follow the one it begins with
	if err != nil {
		return nil, fmt.Errorf("look for modules: %w", err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base, rest, ok := strings.Cut(d.Name(), ".ko")
		if ok && !d.IsDir() && slices.Contains([]string{"", ".xz", ".gz", ".zst"}, rest) {
			files[strings.ReplaceAll(base, "-", "_")] = path
		}
		return nil
	})
	return files, err
}

// readModule reads and decompresses a module.
func readModule(path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".gz":
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		return io.ReadAll(z)
	case ".xz":
		return decompress("xz", path)
	case ".zst":
		return decompress("zstd", path)
	}
	return os.ReadFile(path)
}

func decompress(program, path string) ([]byte, error) {
	data, err := exec.Command(program, "--decompress", "--stdout", path).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s with %s: %w", path, program, err)
	}
	return data, nil
}

// dependencies reads the names in a module's own description: depends=a,b
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo: not a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
