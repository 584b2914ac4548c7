package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/blakesmith/ar"
	rpmutils "github.com/sassoftware/go-rpmutils"
)

// packaged is a file or directory in a package, as its manager has it.
type packaged struct {
	dir          bool
	mode         int64
	owner, group string
	time         int64
	config       bool
	data         []byte
}

// contents is a package read back.
type contents struct {
	files   map[string]packaged
	fields  map[string]string // of the control file
	scripts map[string]string
}

func readDeb(t *testing.T, file string) contents {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := contents{files: map[string]packaged{}, fields: map[string]string{}, scripts: map[string]string{}}
	var members []string
	var control map[string]packaged
	for r := ar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, strings.TrimSuffix(h.Name, "/"))
		switch h.Name {
		case "control.tar.gz":
			control = readTar(t, r)
		case "data.tar.gz":
			c.files = readTar(t, r)
		}
	}
	if got := strings.Join(members, " "); got != "debian-binary control.tar.gz data.tar.gz" {
		t.Errorf("members of the .deb: %s", got)
	}
	for name, f := range control {
		switch base := path.Base(name); base {
		case "control":
			for line := range strings.Lines(string(f.data)) {
				if key, value, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
					c.fields[key] = strings.TrimSpace(value)
				}
			}
		case "conffiles":
			for line := range strings.Lines(string(f.data)) {
				name := strings.TrimSpace(line)
				kept := c.files[name]
				kept.config = true
				c.files[name] = kept
			}
		case "preinst", "postinst", "prerm", "postrm":
			c.scripts[base] = string(f.data)
			if f.mode != 0o755 {
				t.Errorf("%s has mode %o", base, f.mode)
			}
		}
	}
	return c
}

func readTar(t *testing.T, r io.Reader) map[string]packaged {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]packaged{}
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		files[path.Clean("/"+h.Name)] = packaged{
			dir: h.Typeflag == tar.TypeDir, mode: h.Mode & 0o7777, owner: h.Uname, group: h.Gname, time: h.ModTime.Unix(), data: data,
		}
	}
}

func readRPM(t *testing.T, file string) contents {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rpm, err := rpmutils.ReadRpm(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := contents{files: map[string]packaged{}, fields: map[string]string{}, scripts: map[string]string{}}
	infos, err := rpm.Header.GetFiles()
	if err != nil {
		t.Fatal(err)
	}
	const configNoReplace = 1<<0 | 1<<4 // RPMFILE_CONFIG, RPMFILE_NOREPLACE
	for _, fi := range infos {
		if flags := fi.Flags() & configNoReplace; flags != 0 && flags != configNoReplace {
			t.Errorf("%s has the flags %b", fi.Name(), fi.Flags())
		}
		c.files[fi.Name()] = packaged{
			dir: fi.Mode()&0o170000 == 0o040000, mode: int64(fi.Mode() & 0o7777), owner: fi.UserName(), group: fi.GroupName(),
			time: int64(fi.Mtime()), config: fi.Flags()&configNoReplace == configNoReplace,
		}
	}
	payload, err := rpm.PayloadReaderExtended()
	if err != nil {
		t.Fatal(err)
	}
	for {
		fi, err := payload.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		f := c.files[fi.Name()]
		if f.data, err = io.ReadAll(payload); err != nil {
			t.Fatal(err)
		}
		c.files[fi.Name()] = f
	}
	for tag, key := range map[int]string{
		rpmutils.NAME: "Package", rpmutils.VERSION: "Version", rpmutils.RELEASE: "Release", rpmutils.ARCH: "Architecture",
		rpmutils.REQUIRENAME: "Depends", rpmutils.CONFLICTNAME: "Breaks", rpmutils.BUILDHOST: "Host", rpmutils.LICENSE: "License",
		rpmutils.SUMMARY: "Summary", rpmutils.PROVIDENAME: "Provides",
	} {
		if values, err := rpm.Header.GetStrings(tag); err == nil {
			c.fields[key] = strings.Join(values, ", ")
		}
	}
	for tag, name := range map[int]string{rpmutils.PREIN: "pre", rpmutils.POSTIN: "post", rpmutils.PREUN: "preun", rpmutils.POSTUN: "postun"} {
		if values, err := rpm.Header.GetStrings(tag); err == nil {
			c.scripts[name] = strings.Join(values, "")
		}
	}
	return c
}
