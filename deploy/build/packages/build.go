package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/rpm"

	"github.com/firsthop/firsthop/units"
)

const (
	maintainer = "firsthop authors <firsthop@users.noreply.github.com>"
	summary    = "Kubernetes API Service by eBPF, before the kubelet starts"
	about      = `firsthop makes one thing true before anything else on a Kubernetes node
needs it: a connection to the kubernetes Service IP reaches a live API
server. A unit does so at boot, before the kubelet and with no
kube-proxy, and proves it by a real connection.`
	// oldestSystemd knows all that the boot unit asks for: an older one would take a part of its system call filter for
	// the whole of it.
	oldestSystemd = "239"
)

// Program is firsthop for one architecture, by Go's name.
type Program struct{ Arch, Path string }

// Build is what packages are made of.
type Build struct {
	Repository string
	Version    string // git's
	Time       time.Time
	Programs   []Program // one of them must run on this machine
}

// WriteTo writes a .deb and an .rpm for each program into a directory and returns their paths.
func (b Build) WriteTo(ctx context.Context, dir string) ([]string, error) {
	version, err := packageVersion(b.Version, b.Time)
	if err != nil {
		return nil, err
	}
	list, err := b.contents(ctx, version)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var written []string
	for _, p := range b.Programs {
		program, err := os.ReadFile(p.Path)
		if err != nil {
			return written, err
		}
		with := append([]file{{path: units.PackageProgram, data: program, mode: 0o755}}, list...)
		for _, format := range []string{"deb", "rpm"} {
			path, err := b.write(dir, format, p.Arch, version, with)
			if err != nil {
				return written, fmt.Errorf("make a %s for %s: %w", format, p.Arch, err)
			}
			written = append(written, path)
		}
	}
	return written, nil
}

func (b Build) write(dir, format, arch, version string, list []file) (path string, err error) {
	tmp, err := os.MkdirTemp("", "fh-packages-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	info := &nfpm.Info{
		Name: "firsthop", Arch: arch, Platform: "linux", Version: version, VersionSchema: "none",
		Maintainer: maintainer, Homepage: "https://github.com/firsthop/firsthop", License: "Apache-2.0",
		Description: summary + "\n" + about, MTime: b.Time, DisableGlobbing: true,
	}
	if info.Contents, err = stage(tmp, format, list); err != nil {
		return "", err
	}
	var packager nfpm.Packager
	switch format {
	case "deb":
		packager = deb.Default
		info.Section, info.Priority = "net", "optional"
		info.Deb.Compression = "gzip" // xz is a sixth smaller, and takes ten times as long
		info.Deb.Breaks = []string{"systemd (<< " + oldestSystemd + ")"}
	case "rpm":
		packager = rpm.DefaultRPM
		info.Release = "1"
		info.RPM.Compression, info.RPM.BuildHost, info.RPM.Summary, info.RPM.Packager = "gzip", "localhost", summary, maintainer
		info.Description = about
		info.Conflicts = []string{"systemd < " + oldestSystemd}
	}
	if info.Scripts, err = b.scripts(tmp, format); err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return "", err
	}
	path = filepath.Join(dir, packager.ConventionalFileName(info))
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer out.Close()
	if err := packager.Package(info, out); err != nil {
		return "", err
	}
	return path, out.Close()
}

// scripts writes the scripts of a format, with what they share.
func (b Build) scripts(tmp, format string) (s nfpm.Scripts, err error) {
	from := filepath.Join(b.Repository, "deploy/packages/scripts")
	shared, err := os.ReadFile(filepath.Join(from, "undo.sh"))
	if err != nil {
		return s, err
	}
	for name, to := range map[string]*string{
		"deb-postinst": &s.PostInstall, "deb-prerm": &s.PreRemove, "deb-postrm": &s.PostRemove,
		"rpm-post": &s.PostInstall, "rpm-preun": &s.PreRemove, "rpm-postun": &s.PostRemove,
	} {
		if !strings.HasPrefix(name, format+"-") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return s, err
		}
		*to = filepath.Join(tmp, name)
		if err := os.WriteFile(*to, []byte(strings.Replace(string(text), "@UNDO@", strings.TrimSpace(string(shared)), 1)), 0o755); err != nil {
			return s, err
		}
	}
	return s, nil
}
