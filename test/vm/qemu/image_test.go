package qemu

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

func bzImage(version string) []byte {
	data := make([]byte, 0x400)
	copy(data[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(data[0x20e:], 0x100)
	copy(data[0x300:], version)
	return data
}

func armImage() []byte {
	data := make([]byte, 64, 256)
	copy(data[56:], "ARM\x64")
	return append(data, "\x00Linux version %s\x00Linux version 6.12.1-arm64 (x@y)"...)
}

func vmlinux(machine byte) []byte {
	return append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00"+string([]byte{machine, 0})),
		"…Linux version 4.18.0-193.el8.x86_64 (mock@x) …"...)
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func efi(kind string, payload []byte) []byte {
	data := make([]byte, 64)
	copy(data, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(data[8:], 64)
	binary.LittleEndian.PutUint32(data[12:], uint32(len(payload)))
	copy(data[24:], kind)
	return append(data, payload...)
}

func TestReadImage(t *testing.T) {
	for name, tc := range map[string]struct {
		data          []byte
		arch, release string // empty: it is refused
	}{
		"a bzImage":                                {bzImage("5.3.0 (builder@x) #1\x00"), "amd64", "5.3.0"},
		"a bzImage of Enterprise Linux":            {bzImage("4.18.0-193.el8.x86_64 (mock@x) #1 SMP\x00"), "amd64", "4.18.0-193.el8.x86_64"},
		"a bzImage whose pointer leads nowhere":    {append(bzImage("")[:0x20e:0x20e], 0xff, 0xff), "", ""},
		"a vmlinux":                                {vmlinux(62), "amd64", "4.18.0-193.el8.x86_64"},
		"a vmlinux of a machine that we have none": {vmlinux(243), "", ""},
		"an Image of arm64":                        {armImage(), "arm64", "6.12.1-arm64"},
		"one in gzip":                              {zipped(t, armImage()), "arm64", "6.12.1-arm64"},
		"one as an EFI program":                    {efi("gzip", append(zipped(t, armImage()), 1, 2, 3, 4)), "arm64", "6.12.1-arm64"},
		"an EFI program that is cut off":           {efi("gzip", zipped(t, armImage()))[:70], "", ""},
		"an EFI program that is packed otherwise":  {efi("lzo", armImage()), "", ""},
		"an Image that says no release":            {armImage()[:64], "", ""},
		"gzip that is cut off":                     {zipped(t, armImage())[:40], "", ""},
		"no kernel":                                {[]byte("hello"), "", ""},
		"nothing":                                  {nil, "", ""},
	} {
		file := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(file, tc.data, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadImage(file)
		if got.Arch != tc.arch || got.Release != tc.release || (err == nil) != (tc.arch != "") {
			t.Errorf("%s: %q of %q, %v; want %q of %q", name, got.Release, got.Arch, err, tc.release, tc.arch)
		}
	}
}

func TestUnpackLeavesOnlyWhatQemuTakes(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"packed": efi("gzip", zipped(t, armImage())), "plain": armImage(),
	} {
		file, to := filepath.Join(dir, name), filepath.Join(dir, name+".unpacked")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		i, err := ReadImage(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Unpack(to); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(i.File)
		if err != nil || !bytes.Equal(got, armImage()) || (i.File == to) != (name == "packed") {
			t.Errorf("%s: %s of %d bytes, %v", name, i.File, len(got), err)
		}
	}
}

func FuzzReadImage(f *testing.F) {
	f.Add(bzImage("5.3.0 "))
	f.Add(armImage())
	f.Add(efi("none", armImage()))
	f.Add(vmlinux(62))
	f.Fuzz(func(t *testing.T, data []byte) {
		if unpacked, err := unpack(data); err == nil && unpacked != nil {
			data = unpacked
		}
		archOf(data)
		bzImageRelease(data)
		bannerRelease(data)
	})
}

func TestQemuMustBeNewEnough(t *testing.T) {
	for version, want := range map[string]map[string]bool{
		"7.2.19": {"amd64": false, "arm64": false},
		"8.2.2":  {"amd64": true, "arm64": false},
		"9.0.1":  {"amd64": true, "arm64": false},
		"9.1.0":  {"amd64": true, "arm64": true},
		"10.0.2": {"amd64": true, "arm64": true},
		"x":      {"amd64": false, "arm64": false},
	} {
		for _, p := range Platforms {
			if _, ok := p.newEnough("QEMU emulator version " + version + " (Debian 1:x)\nCopyright"); ok != want[p.Arch] {
				t.Errorf("%s %s: %v", p.program, version, ok)
			}
		}
	}
	if version, _ := Platforms[0].newEnough("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\n"); version != "10.0.13" {
		t.Errorf("the version is %q", version)
	}
	if _, err := PlatformOf("s390x"); err == nil {
		t.Error("there is a machine for s390x")
	}
}
