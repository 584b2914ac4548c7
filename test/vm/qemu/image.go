package qemu

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Image is a kernel.
type Image struct {
	File    string
	Arch    string // as Debian calls it
	Release string // what `uname -r` will say

	unpacked []byte // nil if the file is as qemu takes it
}

// ReadImage tells what a file is: a bzImage or vmlinux of amd64, or an Image of arm64, which can be packed with gzip or
// as an EFI program that unpacks itself.
func ReadImage(file string) (Image, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Image{}, err
	}
	i := Image{File: file}
	if i.unpacked, err = unpack(data); err != nil {
		return Image{}, fmt.Errorf("unpack %s: %w", file, err)
	}
	if i.unpacked != nil {
		data = i.unpacked
	}
	i.Arch = archOf(data)
	ok := false
	if i.Release, ok = bzImageRelease(data); !ok {
		i.Release, ok = bannerRelease(data)
	}
	switch {
	case i.Arch == "":
		return Image{}, fmt.Errorf("read %s: neither a bzImage or vmlinux of amd64 nor an Image of arm64", file)
	case !ok:
		return Image{}, fmt.Errorf("read %s: a kernel of %s that doesn't say its release", file, i.Arch)
	}
	return i, nil
}

// Unpack makes File one that qemu takes: a packed image is written to a file of its own, as qemu knows only some kinds.
func (i *Image) Unpack(to string) error {
	if i.unpacked == nil {
		return nil
	}
	i.File = to
	return os.WriteFile(to, i.unpacked, 0o644)
}

// archOf goes by the headers of the boot protocols, and by that of ELF.
// https://docs.kernel.org/arch/x86/boot.html https://docs.kernel.org/arch/arm64/booting.html
func archOf(data []byte) string {
	const elfMachine, x86 = 18, 62
	switch {
	case has(data, 0x202, "HdrS"), has(data, 0, "\x7fELF") && has(data, elfMachine, string([]byte{x86, 0})):
		return "amd64"
	case has(data, 56, "ARM\x64"):
		return "arm64"
	}
	return ""
}

func has(data []byte, at int, magic string) bool {
	return len(data) >= at+len(magic) && string(data[at:at+len(magic)]) == magic
}

// unpack returns nil for what is not packed.
func unpack(data []byte) ([]byte, error) {
	switch {
	case has(data, 0, "\x1f\x8b"):
		return gunzip(data)
	case has(data, 0, "MZ\x00\x00zimg") && len(data) >= 64:
		return unpackEFI(data)
	}
	return nil, nil
}

// unpackEFI takes the kernel out of an EFI program: offset, size, and the name of how it is packed.
// https://git.kernel.org/torvalds/c/a0509109533257850a88ef6b1ad88e58ff3789a8 (drivers/firmware/efi/libstub/zboot-header.S)
func unpackEFI(data []byte) ([]byte, error) {
	offset, size := uint64(binary.LittleEndian.Uint32(data[8:])), uint64(binary.LittleEndian.Uint32(data[12:]))
	if offset+size > uint64(len(data)) {
		return nil, errors.New("it is cut off")
	}
	payload := data[offset : offset+size]
	switch kind, _, _ := bytes.Cut(data[24:56], []byte{0}); string(kind) {
	case "gzip":
		return gunzip(payload)
	case "zstd", "zstd22":
		return pipe(payload, "zstd")
	case "xzkern", "xz":
		return pipe(payload, "xz")
	default:
		return nil, fmt.Errorf("it is packed with %q, which only its own program unpacks", kind)
	}
}

func gunzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	z.Multistream(false) // the rest is padding
	return io.ReadAll(z)
}

// pipe decompresses with a program. What follows the compressed data, a length for the kernel's own use, is passed over.
func pipe(data []byte, program string) ([]byte, error) {
	cmd := exec.Command(program, "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || len(out) == 0) {
		return nil, fmt.Errorf("run %s: %w (Debian packages xz-utils, zstd)", program, err)
	}
	return out, nil
}

// bzImageRelease follows the pointer of the x86 boot protocol (2.00) to the version, which ends with a blank or a null.
func bzImageRelease(data []byte) (string, bool) {
	const pointer = 0x20e
	if len(data) < 0x210 || !has(data, 0x202, "HdrS") {
		return "", false
	}
	at := int(binary.LittleEndian.Uint16(data[pointer:])) + 0x200
	if at >= len(data) {
		return "", false
	}
	return word(data[at:])
}

// bannerRelease finds the kernel's greeting, which is not the only place with these words.
func bannerRelease(data []byte) (string, bool) {
	for {
		_, rest, ok := bytes.Cut(data, []byte("Linux version "))
		if !ok {
			return "", false
		}
		if release, ok := word(rest); ok {
			return release, true
		}
		data = rest
	}
}

func word(data []byte) (string, bool) {
	end := bytes.IndexAny(data, " \x00")
	if end <= 0 || end > 64 || strings.Trim(string(data[:1]), "0123456789") != "" {
		return "", false
	}
	return string(data[:end]), true
}
