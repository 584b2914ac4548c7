package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/firsthop/firsthop/deploy/build/licenses"
)

// repository is the root of the product's module.
const repository = "../../.."

// compile builds the product from a copy of its source, as make image does.
func compile(t *testing.T, source, arch string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "firsthop")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w -X main.version=v1.2.3+a", "-o", out, "./cmd/firsthop")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch, "GOWORK=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build for %s: %v\n%s", arch, err, said)
	}
	return out
}

// thirdParty stands for the licenses of others.
var thirdParty = []byte("the licenses of others")

func config(t *testing.T, source string) Config {
	t.Helper()
	return Config{
		Name: "example.org/firsthop", Version: "v1.2.3+a", Revision: "0123abcd", Created: time.Unix(1700000000, 0).UTC(),
		Binaries: map[string]string{"amd64": compile(t, source, "amd64"), "arm64": compile(t, source, "arm64")},
		Licenses: []string{filepath.Join(source, "LICENSE")}, ThirdParty: thirdParty,
	}
}

func build(t *testing.T, c Config) *Image {
	t.Helper()
	i, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestTwoBuildsGiveOneDigest builds all of it twice, from the source on: elsewhere, with another umask, of files with
// other times and modes.
func TestTwoBuildsGiveOneDigest(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the product four times")
	}
	one, other := t.TempDir(), t.TempDir()
	first := build(t, config(t, repository))
	if err := first.Write(one); err != nil {
		t.Fatal(err)
	}

	former := syscall.Umask(0o077)
	defer syscall.Umask(former)
	elsewhere := filepath.Join(t.TempDir(), "else", "where")
	copySource(t, elsewhere)
	c := config(t, elsewhere)
	long := time.Unix(1, 0)
	for _, file := range append(c.Licenses, c.Binaries["amd64"]) {
		if err := errors.Join(os.Chtimes(file, long, long), os.Chmod(file, 0o400)); err != nil {
			t.Fatal(err)
		}
	}
	second := build(t, c)
	if err := second.Write(other); err != nil {
		t.Fatal(err)
	}
	if first.Digest != second.Digest {
		t.Errorf("digests %v and %v", first.Digest, second.Digest)
	}
	for _, file := range []string{archiveName, digestName, sbomName("linux/amd64"), layoutName + "/index.json"} {
		a, err := os.ReadFile(filepath.Join(one, file))
		b, err2 := os.ReadFile(filepath.Join(other, file))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", file)
		}
	}
}

// copySource copies what the product may be built of.
func copySource(t *testing.T, to string) {
	t.Helper()
	entries, err := os.ReadDir(repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		from, at := filepath.Join(repository, e.Name()), filepath.Join(to, e.Name())
		switch {
		case e.Name()[0] == '.' || e.Name() == "bin" || e.Name() == "test":
		case e.IsDir():
			err = os.CopyFS(at, os.DirFS(from))
		default:
			var data []byte
			if data, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(at, data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheImageIsWhatTheDocsSay(t *testing.T) {
	c := config(t, repository)
	dir := t.TempDir()
	for range 2 { // the second one replaces the first
		if err := build(t, c).Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	top, err := layout.ImageIndexFromPath(filepath.Join(dir, layoutName))
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil || len(m.Manifests) != 1 {
		t.Fatalf("%d images in the layout, want one for podman: %v", len(m.Manifests), err)
	}
	if got := m.Manifests[0].Annotations; got[refName] != "v1.2.3-a" || got["io.containerd.image.name"] != "example.org/firsthop:v1.2.3-a" {
		t.Errorf("it is called %v", got)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		platforms = append(platforms, d.Platform.String())
		if d.Platform.Architecture == "unknown" {
			checkArtifact(t, d, img, m.Manifests)
			continue
		}
		checkConfig(t, img, d.Platform.Architecture)
		checkFiles(t, img, c.Binaries[d.Platform.Architecture])
	}
	if want := []string{"linux/amd64", "linux/arm64/v8", "unknown/unknown", "unknown/unknown"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %q, want %q", platforms, want)
	}
}

func checkConfig(t *testing.T, img v1.Image, arch string) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != arch || c.OS != "linux" || c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/usr/bin/firsthop"}) ||
		len(c.Config.Cmd) > 0 || !slices.Equal(c.Config.Env, []string{"PATH=/usr/bin"}) || c.Created.Unix() != 1700000000 {
		t.Errorf("configuration %+v", c)
	}
	for label, want := range map[string]string{
		"title": "firsthop", "version": "v1.2.3+a", "revision": "0123abcd", "source": source, "licenses": ownLicense, "created": "2023-11-14T22:13:20Z",
	} {
		if got := c.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	if c.Config.Labels["org.opencontainers.image.description"] == "" {
		t.Error("no description")
	}
}

// checkFiles shows that there is one program, and nothing that would start another.
func checkFiles(t *testing.T, img v1.Image, binary string) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1700000000 || h.Mode&0o022 != 0 {
			t.Errorf("%s: owner %d:%d, mode %o, of %v", h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		if filepath.Base(h.Name) == licenses.FileName {
			if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, thirdParty) {
				t.Errorf("the licenses of others are %q, %v", got, err)
			}
		}
		if "/"+h.Name == entrypoint {
			got, err := io.ReadAll(in)
			want, err2 := os.ReadFile(binary)
			if err != nil || err2 != nil || !bytes.Equal(got, want) || h.Mode != 0o755 {
				t.Errorf("the program is another one, mode %o: %v, %v", h.Mode, err, err2)
			}
		}
	}
	want := []string{"usr/", "usr/bin/", "usr/bin/firsthop", "usr/share/", "usr/share/doc/", "usr/share/doc/firsthop/", "usr/share/doc/firsthop/LICENSE", "usr/share/doc/firsthop/THIRD-PARTY-LICENSES"}
	if !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
}

// checkArtifact shows that a bill of materials belongs to one of the images.
func checkArtifact(t *testing.T, d v1.Descriptor, artifact v1.Image, images []v1.Descriptor) {
	t.Helper()
	m, err := artifact.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject == nil || !slices.ContainsFunc(images, func(i v1.Descriptor) bool {
		return i.Digest == m.Subject.Digest && i.Platform.OS == "linux" && d.Annotations["vnd.docker.reference.digest"] == i.Digest.String()
	}) {
		t.Errorf("the artifact's subject is %v", m.Subject)
	}
	if d.ArtifactType != sbomType || len(m.Layers) != 1 || m.Layers[0].MediaType != sbomType {
		t.Errorf("the artifact is a %s of %v", d.ArtifactType, m.Layers)
	}
}

func TestTheBillOfMaterialsIsComplete(t *testing.T) {
	c := config(t, repository)
	info, err := buildinfo.ReadFile(c.Binaries["arm64"])
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(build(t, c).Platforms, func(p Platform) bool { return p.Name == "linux/arm64" })
	var doc spdxDocument
	if err := json.Unmarshal(build(t, c).Platforms[i].SBOM, &doc); err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]string)
	ids := map[string]bool{doc.ID: true}
	for _, p := range doc.Packages {
		listed[p.Name] = p.Version
		if ids[p.ID] {
			t.Errorf("%s is there twice", p.ID)
		}
		ids[p.ID] = true
	}
	for _, d := range info.Deps {
		if listed[d.Path] != d.Version {
			t.Errorf("%s %s: %q", d.Path, d.Version, listed[d.Path])
		}
	}
	if len(info.Deps) < 10 || len(listed) != len(info.Deps)+2 || listed["stdlib"] != strings.TrimPrefix(info.GoVersion, "go") || listed["github.com/firsthop/firsthop"] != c.Version {
		t.Errorf("of %d modules %d are listed: %v", len(info.Deps), len(listed), listed)
	}
	for _, r := range doc.Relationships {
		if !ids[r.Element] || !ids[r.Related] {
			t.Errorf("%v relates what is not listed", r)
		}
	}
}

func TestWhatMakesNoImage(t *testing.T) {
	amd64 := compile(t, repository, "amd64")
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Name: "n", Version: "v", Revision: "r", Created: time.Unix(1, 0), Binaries: map[string]string{"amd64": amd64}, ThirdParty: thirdParty}
	for _, row := range []struct {
		is     string
		change func(*Config)
		says   string
	}{
		{"without a time it could not be made again", func(c *Config) { c.Created = time.Time{} }, "-source-date-epoch"},
		{"without a version nobody knows what it is", func(c *Config) { c.Version = "" }, "version"},
		{"without the licenses of others it must not be passed on", func(c *Config) { c.ThirdParty = nil }, "-repository"},
		{"without a binary it is empty", func(c *Config) { c.Binaries = nil }, "-binary"},
		{"a binary of another machine would not start", func(c *Config) { c.Binaries = map[string]string{"arm64": amd64} }, "want arm64"},
		{"a dynamic binary would not start", func(c *Config) { c.Binaries = map[string]string{"amd64": sh} }, "CGO_ENABLED=0"},
		{"a file that is no program would not start", func(c *Config) { c.Binaries = map[string]string{"amd64": "image_test.go"} }, "bad magic"},
		{"an architecture that nobody knows", func(c *Config) { c.Binaries = map[string]string{"mips": amd64} }, "want mips"},
		{"a license that is not there", func(c *Config) { c.Licenses = []string{"/nowhere"} }, "/nowhere"},
	} {
		t.Run(row.is, func(t *testing.T) {
			c := good
			row.change(&c)
			if _, err := Build(c); err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%v, want it to say %q", err, row.says)
			}
		})
	}
}
