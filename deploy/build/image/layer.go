package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/firsthop/firsthop/deploy/build/licenses"
)

// docDir has the licenses in an image.
const docDir = "usr/share/doc/firsthop"

// binary is what goes into an image, and what it says of itself.
type binary struct {
	data []byte
	info *buildinfo.BuildInfo
}

// readBinary reads a binary, and refuses one that would not start: of another machine, or not static, as there is
// nothing else in the image.
func readBinary(file, arch string) (binary, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return binary{}, err
	}
	header, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return binary{}, fmt.Errorf("read %s: %w", file, err)
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	if want, known := machines[arch]; !known || header.Machine != want {
		return binary{}, fmt.Errorf("%s is for %v, want %s", file, header.Machine, arch)
	}
	for _, p := range header.Progs {
		if p.Type == elf.PT_INTERP {
			return binary{}, fmt.Errorf("%s needs a dynamic linker, which the image has not: build it with CGO_ENABLED=0", file)
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return binary{}, fmt.Errorf("read what %s is made of: %w", file, err)
	}
	return binary{data, info}, nil
}

// newLayer makes the image's one layer: the binary and the licenses, owned by root.
func newLayer(program []byte, c Config) (v1.Layer, error) {
	files := map[string][]byte{entrypoint[1:]: program, path.Join(docDir, licenses.FileName): c.ThirdParty}
	for _, file := range c.Licenses {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		files[path.Join(docDir, filepath.Base(file))] = text
	}
	var buf bytes.Buffer
	if err := writeTar(&buf, files, c.Created); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

// writeTar writes files, and the directories that they are in, sorted by name.
func writeTar(w io.Writer, files map[string][]byte, modified time.Time) error {
	var names []string
	for name := range files {
		names = append(names, name)
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			names = append(names, dir)
		}
	}
	slices.Sort(names)
	archive := tar.NewWriter(w)
	for _, name := range slices.Compact(names) {
		data, isFile := files[name]
		h := &tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: modified, Format: tar.FormatUSTAR}
		if isFile {
			h.Name, h.Typeflag, h.Size, h.Mode = name, tar.TypeReg, int64(len(data)), 0o644
			if name == entrypoint[1:] {
				h.Mode = 0o755
			}
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(data); err != nil {
			return err
		}
	}
	return archive.Close()
}
